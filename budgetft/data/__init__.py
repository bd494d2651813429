"""Examples, converters, the processor, collation and length statistics: everything before the model."""
