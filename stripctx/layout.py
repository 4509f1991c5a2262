"""The memory format of a result; csrc/bind/tensor.hpp has the same rule."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """channels_last if a tensor's channels are its fastest dimension and it is not plain NCHW."""
    for x in tensors:
        if x.size(1) > 1 and x.stride(1) == 1 and not x.is_contiguous():
            return torch.channels_last
    return torch.contiguous_format


def is_channels_last(*tensors: Tensor) -> bool:
    return memory_format(*tensors) is torch.channels_last


def empty(shape: tuple[int, ...], like: Tensor, format: torch.memory_format) -> Tensor:
    """An uninitialised tensor of `shape` with the dtype and device of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=format)
