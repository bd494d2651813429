"""Running a plan: the loop, its run folder, its log and its checkpoints."""
