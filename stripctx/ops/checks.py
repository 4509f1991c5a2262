"""What operators refuse, in words that name the argument, the expectation and what came.

The native kernels raise the same sentences (csrc/bind/check.hpp).
"""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def tensor(name: str, argument: str, value: Tensor, shape: str) -> None:
    """`value` is dense, floating-point and has as many dimensions as `shape`, "(N, C, H, W)"."""
    rank = shape.count(",") + 1
    if value.dim() != rank:
        raise ValueError(
            f"{name}: {argument} must be {rank}-D {shape}, got {value.dim()}-D {_sizes(value)}"
        )
    if value.dtype not in DTYPES:
        raise ValueError(
            f"{name}: {argument} must be float64, float32, float16 or bfloat16, "
            f"got {_dtype(value.dtype)}"
        )
    if value.layout is not torch.strided:
        raise ValueError(f"{name}: {argument} must be a dense tensor, got {value.layout}")


def size(name: str, argument: str, value: Tensor, expected: tuple[int | torch.SymInt, ...]) -> None:
    """`value` has exactly the sizes `expected`."""
    if tuple(value.shape) != expected:
        raise ValueError(
            f"{name}: {argument} must have shape {_tuple(expected)}, got {_sizes(value)}"
        )


def alike(name: str, argument: str, value: Tensor, first: str, other: Tensor) -> None:
    """`value` has the dtype and lives on the device of `other`, the argument called `first`."""
    if value.dtype != other.dtype:
        raise ValueError(
            f"{name}: {argument} must have the dtype of {first}, {_dtype(other.dtype)}, "
            f"got {_dtype(value.dtype)}"
        )
    same_device(name, argument, value, first, other)


def same_device(name: str, argument: str, value: Tensor, first: str, other: Tensor) -> None:
    """`value` lives on the device of `other`, the argument called `first`."""
    if value.device != other.device:
        raise ValueError(
            f"{name}: {argument} must be on the device of {first}, {other.device}, "
            f"got {value.device}"
        )


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tuple(sizes: tuple[int | torch.SymInt, ...]) -> str:
    return "(" + ", ".join(str(s) for s in sizes) + ")"


def _sizes(value: Tensor) -> str:
    return _tuple(tuple(value.shape))
