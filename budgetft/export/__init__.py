"""What others can load: merged checkpoints, and a plan in the words of other trainers."""
