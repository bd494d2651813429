"""The WTS traffic videos of the AI City Challenge as examples."""
