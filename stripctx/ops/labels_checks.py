"""Argument checks and result dtypes of the labels family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stripctx.ops import checks
from stripctx.reference.labels import DTYPES

MOST_CLASSES = 2**24  # class numbers are then exact in float32
MOST_POSITIONS = 2**31 - 1  # along one axis of the image


def accumulate_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype is torch.float64 else torch.float32


def check_logits(name: str, logits: Tensor) -> None:
    checks.tensor(name, "logits", logits, "(N, K, h, w)")
    classes, height, width = logits.shape[1:]
    if classes < 1 or height < 1 or width < 1:
        raise ValueError(
            f"{name}: logits must have a class, a row and a column, got {checks.sizes(logits)}"
        )
    if classes > MOST_CLASSES:
        raise ValueError(f"{name}: logits must have at most {MOST_CLASSES} classes, got {classes}")


def check_size(name: str, argument: str, logits: Tensor, size: Sequence[int]) -> None:
    height, width = logits.shape[2:]
    if len(size) != 2 or size[0] < height or size[1] < width:
        raise ValueError(
            f"{name}: {argument} must be at least the size of logits, "
            f"({height}, {width}), got {checks.text(size)}"
        )
    if size[0] > MOST_POSITIONS or size[1] > MOST_POSITIONS:
        raise ValueError(
            f"{name}: {argument} must be at most {MOST_POSITIONS}, got {checks.text(size)}"
        )


def check_target(name: str, logits: Tensor, target: Tensor) -> None:
    checks.given(name, "target", target)
    if target.dim() != 3:
        raise ValueError(
            f"{name}: target must be 3-D (N, H, W), got {target.dim()}-D {checks.sizes(target)}"
        )
    if target.dtype not in DTYPES.values():
        raise ValueError(
            f"{name}: target must be int64, int32 or uint8, got {checks.dtype(target.dtype)}"
        )
    if target.layout is not torch.strided:
        raise ValueError(f"{name}: target must be a dense tensor, got {target.layout}")
    checks.same_device(name, "target", target, "logits", logits)
    checks.size(name, "target", target, (logits.size(0), *target.shape[1:]))
    check_size(name, "target", logits, target.shape[1:])


def check_wide(
    name: str, argument: str, value: Tensor, logits: Tensor, shape: tuple[Any, ...]
) -> None:
    """`value` has this shape and the accumulation dtype of the logits."""
    checks.given(name, argument, value)
    checks.size(name, argument, value, shape)
    if value.layout is not torch.strided:
        raise ValueError(f"{name}: {argument} must be a dense tensor, got {value.layout}")
    if value.dtype is not accumulate_dtype(logits):
        raise ValueError(
            f"{name}: {argument} must be {checks.dtype(accumulate_dtype(logits))}, "
            f"got {checks.dtype(value.dtype)}"
        )
    checks.same_device(name, argument, value, "logits", logits)


def new(logits: Tensor, *shape: int | torch.SymInt) -> Tensor:
    return torch.empty(shape, dtype=accumulate_dtype(logits), device=logits.device)
