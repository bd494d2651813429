"""What a setting will need, without a GPU: the step on fake tensors, and a memory model composed from short traces of it."""
