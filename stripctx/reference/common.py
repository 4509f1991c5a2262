"""Code shared by the references of all families."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """x in the accumulation type: float64 for float64, float32 for the others."""
    return x if x.dtype is torch.float64 else x.float()
