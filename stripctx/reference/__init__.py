"""Plain PyTorch definitions of every operator: the oracle, and the kernels of other devices."""
