"""THE step: the one training step that is traced, probed and trained."""
