"""Definitions of all operators in plain PyTorch, used as test oracle and as kernels of other
devices."""
