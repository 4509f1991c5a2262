"""The pyramid family's pooling: schemas, fake kernels, autograd formulas, vmap.

Shapes: x, grad_x (N, C, H, W); level k (N, C, h, w), one element per bin. Bins are a flat list of
(h, w) pairs, [h0, w0, h1, w1, ...]. Lists contain one tensor per level. The public functions are in
stripctx.functional, the arithmetic in stripctx.reference.pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stripctx.layout import empty, is_channels_last, memory_format
from stripctx.ops import checks
from stripctx.ops.batching import over_channels
from stripctx.ops.register import define
from stripctx.reference import pyramid as reference

OPS = torch.ops.stripctx
MOST_LEVELS = 8
MOST_BINS = 2**24  # along one axis
MOST_POSITIONS = 2**31 - 1  # limit for maxima, whose kernels use 32-bit indices


def _check_map(name: str, x: Tensor) -> None:
    checks.tensor(name, "x", x, "(N, C, H, W)")
    if x.size(2) < 1 or x.size(3) < 1:
        raise ValueError(
            f"{name}: x must have at least one row and one column, got {checks.sizes(x)}"
        )


def _check_bins(name: str, bins: Sequence[int]) -> None:
    text = checks.text(bins)
    if not bins or len(bins) % 2 != 0 or len(bins) > 2 * MOST_LEVELS:
        raise ValueError(
            f"{name}: bins must hold 1 to {MOST_LEVELS} pairs (height, width), laid flat, "
            f"got {text}"
        )
    if any(b < 1 or _exceeds(b, MOST_BINS) for b in bins):
        raise ValueError(f"{name}: bins must be from 1 to {MOST_BINS}, got {text}")


def _check_grads(name: str, grads: Sequence[Tensor], height: int, width: int) -> None:
    if not 1 <= len(grads) <= MOST_LEVELS:
        raise ValueError(f"{name}: grads must hold 1 to {MOST_LEVELS} levels, got {len(grads)}")
    for k, grad in enumerate(grads):
        argument = f"grads[{k}]"
        checks.tensor(name, argument, grad, "(N, C, H, W)")
        checks.alike(name, argument, grad, "grads[0]", grads[0])
        checks.size(name, argument, grad, (*grads[0].shape[:2], *grad.shape[2:]))
        if any(b < 1 or _exceeds(b, MOST_BINS) for b in grad.shape[2:]):
            raise ValueError(
                f"{name}: {argument} must have from 1 to {MOST_BINS} bins along H and W, "
                f"got {checks.sizes(grad)}"
            )
    if height < 1 or width < 1:
        raise ValueError(
            f"{name}: height and width must be positive, got {checks.text((height, width))}"
        )


def _check_positions(name: str, argument: str, height: int, width: int) -> None:
    if _exceeds(height * width, MOST_POSITIONS):
        raise ValueError(
            f"{name}: {argument} must span fewer than {MOST_POSITIONS + 1} positions, "
            f"got {checks.text((height, width))}"
        )


def _exceeds(value: int | torch.SymInt, limit: int) -> bool:
    """False for a symbolic size: the comparison would add a guard to the exported program."""
    return isinstance(value, int) and value > limit


def _fake_levels(x: Tensor, bins: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    like = x if x.dtype is dtype else x.new_empty((0,), dtype=dtype)
    format = memory_format(x)
    return [empty((*x.shape[:2], *size), like, format) for size in reference.pairs(bins)]


def _fake_map(grads: Sequence[Tensor], height: int, width: int, channels_last: bool) -> Tensor:
    format = torch.channels_last if channels_last else torch.contiguous_format
    return empty((*grads[0].shape[:2], height, width), grads[0], format)


def _bins_of(levels: Sequence[Tensor]) -> list[int]:
    return [size for level in levels for size in level.shape[2:]]


def _save_map(ctx: Any, x: Tensor) -> None:
    ctx.map = (x.size(2), x.size(3), is_channels_last(x))


# pyramid_pool: the mean over each bin's window.


def _check_pool(x: Tensor, bins: Sequence[int]) -> None:
    _check_map("pyramid_pool", x)
    _check_bins("pyramid_pool", bins)


def _fake_pool(x: Tensor, bins: Sequence[int]) -> list[Tensor]:
    return _fake_levels(x, bins, x.dtype)


def _save_pool(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _save_map(ctx, inputs[0])


def _backward_pool(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
    return OPS.pyramid_pool_backward(list(grads), *ctx.map), None


def _check_pool_backward(
    grads: Sequence[Tensor], height: int, width: int, channels_last: bool
) -> None:
    _check_grads("pyramid_pool_backward", grads, height, width)


def _save_pool_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.bins = _bins_of(inputs[0])


def _backward_pool_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return (
        OPS.pyramid_pool(grad, ctx.bins),
        None,
        None,
        None,
    )  # its adjoint is the forward operator


# pyramid_max_pool: the maximum of each window, and its index in the plane.


def _check_max_pool(x: Tensor, bins: Sequence[int]) -> None:
    _check_map("pyramid_max_pool", x)
    _check_positions("pyramid_max_pool", "x", x.size(2), x.size(3))
    _check_bins("pyramid_max_pool", bins)


def _fake_max_pool(x: Tensor, bins: Sequence[int]) -> list[Tensor]:
    return _fake_levels(x, bins, x.dtype) + _fake_levels(x, bins, torch.int64)


def _save_max_pool(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    indices = output[len(output) // 2 :]
    ctx.mark_non_differentiable(*indices)
    ctx.save_for_backward(*indices)
    _save_map(ctx, inputs[0])


def _backward_max_pool(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
    indices = list(ctx.saved_tensors)
    return OPS.pyramid_max_pool_backward(list(grads[: len(indices)]), indices, *ctx.map), None


def _check_max_pool_backward(
    grads: Sequence[Tensor],
    indices: Sequence[Tensor],
    height: int,
    width: int,
    channels_last: bool,
) -> None:
    name = "pyramid_max_pool_backward"
    _check_grads(name, grads, height, width)
    _check_positions(name, "height and width", height, width)
    if len(indices) != len(grads):
        raise ValueError(
            f"{name}: indices must hold as many levels as grads, {len(grads)}, got {len(indices)}"
        )
    for k, (index, grad) in enumerate(zip(indices, grads, strict=True)):
        argument = f"indices[{k}]"
        checks.given(name, argument, index)
        if index.dtype is not torch.int64:
            raise ValueError(f"{name}: {argument} must be int64, got {checks.dtype(index.dtype)}")
        checks.size(name, argument, index, tuple(grad.shape))
        checks.same_device(name, argument, index, f"grads[{k}]", grad)


def _fake_max_pool_backward(
    grads: Sequence[Tensor],
    indices: Sequence[Tensor],
    height: int,
    width: int,
    channels_last: bool,
) -> Tensor:
    return _fake_map(grads, height, width, channels_last)


def _save_max_pool_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1])


def _backward_max_pool_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The adjoint of a scatter-add is a gather."""
    height, width = grad.shape[2:]
    to_grads = []
    for index in ctx.saved_tensors:
        flat = index.clamp(0, height * width - 1).flatten(2)
        read = grad.flatten(2).gather(2, flat).unflatten(2, index.shape[2:])
        to_grads.append(torch.where(reference.inside(index, height, width), read, 0))
    return to_grads, [None] * len(to_grads), None, None, None


define(
    "pyramid_pool",
    check=_check_pool,
    reference=reference.pyramid_pool,
    fake=_fake_pool,
    setup_context=_save_pool,
    backward=_backward_pool,
    vmap=over_channels,
)
define(
    "pyramid_pool_backward",
    check=_check_pool_backward,
    reference=reference.pyramid_pool_backward,
    fake=_fake_map,
    setup_context=_save_pool_backward,
    backward=_backward_pool_backward,
    vmap=over_channels,
)
define(
    "pyramid_max_pool",
    check=_check_max_pool,
    reference=reference.pyramid_max_pool,
    fake=_fake_max_pool,
    setup_context=_save_max_pool,
    backward=_backward_max_pool,
    vmap=over_channels,
)
define(
    "pyramid_max_pool_backward",
    check=_check_max_pool_backward,
    reference=reference.pyramid_max_pool_backward,
    fake=_fake_max_pool_backward,
    setup_context=_save_max_pool_backward,
    backward=_backward_max_pool_backward,
    vmap=over_channels,
)
