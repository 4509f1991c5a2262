"""The upsample family's operators, which interpolate levels: schemas, fake kernels, autograd
formulas, autocast, vmap. Those under a convolution's taps are in upsample_taps.

Shapes: x, out, grad (N, C, H, W); levels: 1 to 8 maps (N, C_l, h, w) of any size from 1 x 1. The
public functions are in stripctx.functional, the arithmetic in stripctx.reference.upsample.

Everything but the ReLU is linear: the backward of a backward operator is the forward operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stripctx.layout import empty, is_channels_last, memory_format
from stripctx.ops import checks
from stripctx.ops.batching import over_images
from stripctx.ops.register import define
from stripctx.ops.upsample_checks import (
    check_interpolation,
    check_levels,
    check_sizes,
    format_of,
    promote,
    sizes_of,
)
from stripctx.reference import upsample as reference

OPS = torch.ops.stripctx


# pyramid_concat: x and every level at (H, W), in one tensor. Its backward computes the gradients of
# the levels from their channels of grad; the gradient of x is a view of grad, as for torch.cat.


def _check_concat(
    x: Tensor, levels: Sequence[Tensor], modes: Sequence[int], ratios: Sequence[float], x_index: int
) -> None:
    name = "pyramid_concat"
    checks.tensor(name, "x", x, "(N, C, H, W)")
    check_levels(name, "levels", levels, "x", x)
    check_interpolation(name, modes, ratios, sizes_of(levels), x.shape[2:])
    if not 0 <= x_index <= len(levels):
        raise ValueError(f"{name}: x_index must be from 0 to {len(levels)}, got {x_index}")


def _fake_concat(x: Tensor, levels: Sequence[Tensor], *interpolation: Any) -> Tensor:
    channels = x.size(1) + sum(level.size(1) for level in levels)
    return empty((x.size(0), channels, *x.shape[2:]), x, memory_format(x))


def _save_concat(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, levels, ctx.modes, ctx.ratios, ctx.x_index = inputs
    ctx.channels = x.size(1)
    ctx.sizes = [size for level in levels for size in level.shape[1:]]
    ctx.channels_last = is_channels_last(x)


def _backward_concat(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    channels = ctx.sizes[::3]
    before = sum(channels[: ctx.x_index])
    of_levels = [
        grad.narrow(1, 0, before),
        grad.narrow(1, before + ctx.channels, sum(channels) - before),
    ]
    around = [part for part in of_levels if part.size(1) > 0]
    grads = OPS.pyramid_concat_backward(
        around[0] if len(around) == 1 else torch.cat(of_levels, 1),
        ctx.sizes,
        ctx.modes,
        ctx.ratios,
        ctx.channels_last,
    )
    return grad.narrow(1, before, ctx.channels), grads, None, None, None


def _autocast_concat(
    x: Tensor, levels: Sequence[Tensor], modes: Sequence[int], ratios: Sequence[float], x_index: int
) -> tuple[Any, ...]:
    x, *levels = promote(x, *levels)
    return x, levels, modes, ratios, x_index


def _check_concat_backward(
    grad: Tensor,
    sizes: Sequence[int],
    modes: Sequence[int],
    ratios: Sequence[float],
    channels_last: bool,
) -> None:
    name = "pyramid_concat_backward"
    checks.tensor(name, "grad", grad, "(N, C, H, W)")
    check_sizes(name, sizes, 3)
    checks.size(name, "grad", grad, (grad.size(0), sum(sizes[::3]), *grad.shape[2:]))
    cells = [size for i, size in enumerate(sizes) if i % 3]
    check_interpolation(name, modes, ratios, cells, grad.shape[2:])


def _fake_concat_backward(
    grad: Tensor,
    sizes: Sequence[int],
    modes: Sequence[int],
    ratios: Sequence[float],
    channels_last: bool,
) -> list[Tensor]:
    format = format_of(channels_last)
    return [empty((grad.size(0), *sizes[i : i + 3]), grad, format) for i in range(0, len(sizes), 3)]


def _save_concat_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, _, ctx.modes, ctx.ratios, _ = inputs
    ctx.shape = (grad.size(0), 0, *grad.shape[2:])


def _backward_concat_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    map = grads[0].new_empty(ctx.shape)  # without channels: only its size is used
    to_grad = OPS.pyramid_concat(map, list(grads), ctx.modes, ctx.ratios, 0)
    return to_grad, None, None, None, None


# pyramid_add_relu: out = relu(x + every level at (H, W)). Its backward reads the saved output to
# mask the gradient: one read of a map that the next layer saves anyway. Recomputing the sum would
# require saving x and interpolating again. The gradient passes where the output is NaN.


def _check_add_relu(
    x: Tensor, levels: Sequence[Tensor], modes: Sequence[int], ratios: Sequence[float]
) -> None:
    checks.tensor("pyramid_add_relu", "x", x, "(N, C, H, W)")
    check_levels("pyramid_add_relu", "levels", levels, "x", x, x.size(1))
    check_interpolation("pyramid_add_relu", modes, ratios, sizes_of(levels), x.shape[2:])


def _fake_add_relu(x: Tensor, levels: Sequence[Tensor], *interpolation: Any) -> Tensor:
    return empty(tuple(x.shape), x, memory_format(x))


def _save_add_relu(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, levels, ctx.modes, ctx.ratios = inputs
    ctx.sizes = sizes_of(levels)
    ctx.save_for_backward(output)


def _backward_add_relu(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (out,) = ctx.saved_tensors
    grad_x, *grads = OPS.pyramid_add_relu_backward(grad, out, ctx.sizes, ctx.modes, ctx.ratios)
    return grad_x, grads, None, None


def _autocast_add_relu(x: Tensor, levels: Sequence[Tensor], *interpolation: Any) -> tuple[Any, ...]:
    x, *levels = promote(x, *levels)
    return x, levels, *interpolation


def _check_add_relu_backward(
    grad: Tensor,
    out: Tensor,
    sizes: Sequence[int],
    modes: Sequence[int],
    ratios: Sequence[float],
) -> None:
    name = "pyramid_add_relu_backward"
    checks.tensor(name, "out", out, "(N, C, H, W)")
    checks.tensor(name, "grad", grad, "(N, C, H, W)")
    checks.alike(name, "grad", grad, "out", out)
    checks.size(name, "grad", grad, tuple(out.shape))
    check_sizes(name, sizes, 2)
    check_interpolation(name, modes, ratios, sizes, out.shape[2:])


def _fake_add_relu_backward(
    grad: Tensor, out: Tensor, sizes: Sequence[int], *interpolation: Any
) -> list[Tensor]:
    format = memory_format(out)
    levels = [sizes[i : i + 2] for i in range(0, len(sizes), 2)]
    shapes = [out.shape[2:], *levels]
    return [empty((*out.shape[:2], *shape), out, format) for shape in shapes]


def _save_add_relu_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, out, _, ctx.modes, ctx.ratios = inputs
    ctx.save_for_backward(out)


def _backward_add_relu_backward(ctx: Any, grad_x: Tensor, *grads: Tensor) -> tuple[Any, ...]:
    (out,) = ctx.saved_tensors
    height, width = out.shape[2:]
    one, none = [1, 1], [0, 0]
    total = OPS.pyramid_taps_add(
        grad_x, list(grads), [height, width], one, none, one, ctx.modes, ctx.ratios
    )
    return torch.where(out <= 0, 0, total), None, None, None, None


define(
    "pyramid_concat",
    check=_check_concat,
    reference=reference.pyramid_concat,
    fake=_fake_concat,
    setup_context=_save_concat,
    backward=_backward_concat,
    vmap=over_images,
    autocast=_autocast_concat,
)
define(
    "pyramid_concat_backward",
    check=_check_concat_backward,
    reference=reference.pyramid_concat_backward,
    fake=_fake_concat_backward,
    setup_context=_save_concat_backward,
    backward=_backward_concat_backward,
    vmap=over_images,
)
define(
    "pyramid_add_relu",
    check=_check_add_relu,
    reference=reference.pyramid_add_relu,
    fake=_fake_add_relu,
    setup_context=_save_add_relu,
    backward=_backward_add_relu,
    vmap=over_images,
    autocast=_autocast_add_relu,
)
define(
    "pyramid_add_relu_backward",
    check=_check_add_relu_backward,
    reference=reference.pyramid_add_relu_backward,
    fake=_fake_add_relu_backward,
    setup_context=_save_add_relu_backward,
    backward=_backward_add_relu_backward,
    vmap=over_images,
)
