"""Counting bytes: live tensor bytes on the CPU or on fake tensors, the allocator and the whole process on CUDA."""
