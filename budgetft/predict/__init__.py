"""What a setting will need, without a card: the step on fake tensors, and a law composed from short traces of it."""
