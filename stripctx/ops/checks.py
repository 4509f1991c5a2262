"""Argument checks. Messages name the argument, what was expected and what was given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def given(name: str, argument: str, value: Tensor | None) -> None:
    """Rejects None, which the dispatcher accepts for a tensor."""
    if value is None:
        raise ValueError(f"{name}: {argument} must be a tensor, got None")


def tensor(name: str, argument: str, value: Tensor, shape: str) -> None:
    """`value` is dense, floating-point and has as many dimensions as `shape`, "(N, C, H, W)"."""
    given(name, argument, value)
    rank = shape.count(",") + 1
    if value.dim() != rank:
        raise ValueError(
            f"{name}: {argument} must be {rank}-D {shape}, got {value.dim()}-D {sizes(value)}"
        )
    floating(name, argument, value)
    if value.layout is not torch.strided:
        raise ValueError(f"{name}: {argument} must be a dense tensor, got {value.layout}")


def floating(name: str, argument: str, value: Tensor) -> None:
    if value.dtype not in DTYPES:
        raise ValueError(
            f"{name}: {argument} must be float64, float32, float16 or bfloat16, "
            f"got {dtype(value.dtype)}"
        )


def feature_map(name: str, argument: str, value: Tensor, channels: int) -> None:
    """`value` is a floating-point map (N, channels, H, W)."""
    if value.dim() != 4 or value.shape[1] != channels:
        raise ValueError(
            f"{name}: {argument} must have shape (N, {channels}, H, W), got {sizes(value)}"
        )
    floating(name, argument, value)


def size(name: str, argument: str, value: Tensor, expected: tuple[int | torch.SymInt, ...]) -> None:
    """`value` has exactly the sizes `expected`."""
    if tuple(value.shape) != expected:
        raise ValueError(f"{name}: {argument} must have shape {text(expected)}, got {sizes(value)}")


def alike(name: str, argument: str, value: Tensor, first: str, other: Tensor) -> None:
    """`value` has the dtype and device of `other`, the argument called `first`."""
    if value.dtype != other.dtype:
        raise ValueError(
            f"{name}: {argument} must have the dtype of {first}, {dtype(other.dtype)}, "
            f"got {dtype(value.dtype)}"
        )
    same_device(name, argument, value, first, other)


def same_device(name: str, argument: str, value: Tensor, first: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(
            f"{name}: {argument} must be on the device of {first}, {other.device}, "
            f"got {value.device}"
        )


def dtype(value: torch.dtype) -> str:
    return str(value).removeprefix("torch.")


def text(numbers: Sequence[int | torch.SymInt]) -> str:
    return "(" + ", ".join(str(n) for n in numbers) + ")"


def sizes(value: Tensor) -> str:
    return text(tuple(value.shape))
