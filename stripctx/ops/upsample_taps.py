"""The upsample family's operators that add levels under the taps of a convolution: schemas, fake
kernels, autograd formulas, autocast, vmap.

Shapes: base, out, grad (N, C, H, W); taps (N, kh * kw * C, h, w) for each level. Both operators are
linear: the backward of the backward operator is the forward operator.
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
    MOST,
    MOST_TAPS,
    check_interpolation,
    check_levels,
    check_most,
    check_sizes,
    format_of,
    promote,
    sizes_of,
)
from stripctx.reference import upsample as reference

OPS = torch.ops.stripctx


# pyramid_taps_add: out = base + for every level and tap of the kernel, the tap's channels
# interpolated to (H, W) and read `tap * dilation - padding` positions away, 0 outside. This is a
# convolution of the interpolated level whose sum over channels is already in `taps`.


def _check_kernel(
    name: str,
    size: Sequence[int],
    kernel: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    base_name: str,
    base: Tensor,
) -> None:
    for argument, value, least in (
        ("size", size, 0),
        ("kernel", kernel, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if len(value) != 2 or value[0] < least or value[1] < least:
            raise ValueError(
                f"{name}: {argument} must be two integers of at least {least}, "
                f"got {checks.text(value)}"
            )
        check_most(name, argument, value, MOST_TAPS if argument == "kernel" else MOST)
    expected = tuple(
        size[axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)
    )
    checks.size(name, base_name, base, (*base.shape[:2], *expected))


def check_taps_add(
    base: Tensor,
    taps: Sequence[Tensor],
    size: Sequence[int],
    kernel: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    modes: Sequence[int],
    ratios: Sequence[float],
) -> None:
    name = "pyramid_taps_add"
    checks.tensor(name, "base", base, "(N, C, H, W)")
    _check_kernel(name, size, kernel, padding, dilation, "base", base)
    check_levels(name, "taps", taps, "base", base, kernel[0] * kernel[1] * base.size(1))
    check_interpolation(name, modes, ratios, sizes_of(taps), size)


def _fake_taps_add(base: Tensor, taps: Sequence[Tensor], *geometry: Any) -> Tensor:
    return empty(tuple(base.shape), base, memory_format(base))


def _save_taps_add(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    base, taps, *ctx.geometry = inputs
    ctx.sizes = sizes_of(taps)
    ctx.channels_last = is_channels_last(base)


def _backward_taps_add(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grads = OPS.pyramid_taps_add_backward(grad, ctx.sizes, *ctx.geometry, ctx.channels_last)
    return grad, grads, None, None, None, None, None, None


def _autocast_taps_add(base: Tensor, taps: Sequence[Tensor], *geometry: Any) -> tuple[Any, ...]:
    base, *taps = promote(base, *taps)
    return base, taps, *geometry


def _check_taps_add_backward(
    grad: Tensor,
    sizes: Sequence[int],
    size: Sequence[int],
    kernel: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    modes: Sequence[int],
    ratios: Sequence[float],
    channels_last: bool,
) -> None:
    name = "pyramid_taps_add_backward"
    checks.tensor(name, "grad", grad, "(N, C, H, W)")
    _check_kernel(name, size, kernel, padding, dilation, "grad", grad)
    check_sizes(name, sizes, 2)
    check_interpolation(name, modes, ratios, sizes, size)


def _fake_taps_add_backward(
    grad: Tensor, sizes: Sequence[int], _size: Any, kernel: Sequence[int], *rest: Any
) -> list[Tensor]:
    format = format_of(rest[-1])
    channels = kernel[0] * kernel[1] * grad.size(1)
    return [
        empty((grad.size(0), channels, *sizes[i : i + 2]), grad, format)
        for i in range(0, len(sizes), 2)
    ]


def _save_taps_add_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, _, *ctx.geometry, _ = inputs
    ctx.shape = tuple(grad.shape)


def _backward_taps_add_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    zeros = grads[0].new_zeros(ctx.shape)
    to_grad = OPS.pyramid_taps_add(zeros, list(grads), *ctx.geometry)
    return to_grad, None, None, None, None, None, None, None, None


define(
    "pyramid_taps_add",
    check=check_taps_add,
    reference=reference.pyramid_taps_add,
    fake=_fake_taps_add,
    setup_context=_save_taps_add,
    backward=_backward_taps_add,
    vmap=over_images,
    autocast=_autocast_taps_add,
)
define(
    "pyramid_taps_add_backward",
    check=_check_taps_add_backward,
    reference=reference.pyramid_taps_add_backward,
    fake=_fake_taps_add_backward,
    setup_context=_save_taps_add_backward,
    backward=_backward_taps_add_backward,
    vmap=over_images,
)
