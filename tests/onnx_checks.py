"""Shared by the tests of both ONNX exporters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Inputs = tuple[Tensor, ...]


def agree(
    run: Callable[..., Sequence[np.ndarray]], module: nn.Module, examples: Sequence[Inputs]
) -> None:
    """Asserts that a file, called by `run`, gives the module's outputs on every example."""
    for inputs in examples:
        with torch.no_grad():
            want = [y for y in tree_leaves(module(*inputs)) if isinstance(y, Tensor)]
        for got, expected in zip(run(*inputs), want, strict=True):
            assert got.shape == tuple(expected.shape)
            scale = max(float(expected.abs().max()), 1e-3)
            error = np.abs(got - expected.numpy()).max()
            assert error < 1e-4 * scale, [tuple(x.shape) for x in inputs]
