"""What is wrong with this environment, each looked at in a process of its own, and the line that mends it."""
