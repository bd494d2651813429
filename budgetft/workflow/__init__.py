"""A file of stages, run in order: each is one command, and runs only when what it is made of has changed."""
