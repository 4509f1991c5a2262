"""Bilinear interpolation of small maps, "levels", in plain PyTorch: PSPNet's pyramid (Zhao et al.,
CVPR 2017), the pyramid arm of SPNet's mixed pooling (Hou et al., CVPR 2020) and the convolution
over a pyramid that is never built. Forward and explicit backward.

Shapes: x, out, grad (N, C, H, W); a level (N, C_l, h, w), for sums C_l = C. Taps of a level under a
kernel of kh x kw are (N, kh*kw*O, h, w), the row and the column of the kernel outermost. Half types
are computed in float32 and rounded once.

An axis of `cells` is interpolated to `extent` positions as `torch.nn.functional.interpolate` does:
linearly, with its index formula, and without antialiasing where it shrinks. That is a product with
a matrix of two weights a row; its adjoint is the product with the transpose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stripctx.layout import is_channels_last, memory_format
from stripctx.reference.common import widen


def samples(
    cells: int, extent: int, align_corners: bool, like: Tensor, outputs: int, offset: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two cells that position h + offset lies between and their weights, for h < outputs.

    Both weights are 0 where the position is outside [0, extent).
    """
    position = torch.arange(offset, offset + outputs, dtype=like.dtype, device=like.device)
    if align_corners:
        source = position * ((cells - 1) / (extent - 1) if extent > 1 else 0.0)
    else:
        source = (position + 0.5) * (cells / max(extent, 1)) - 0.5
    source = source.clamp(min=0)
    first = source.long().clamp(max=cells - 1)
    second = first if cells == extent else (first + 1).clamp(max=cells - 1)
    inside = ((position >= 0) & (position < extent)).to(like.dtype)
    fraction = (source - first).clamp(0, 1)
    return first, second, (1 - fraction) * inside, fraction * inside


def matrix(
    cells: int,
    extent: int,
    align_corners: bool,
    like: Tensor,
    outputs: int | None = None,
    offset: int = 0,
) -> Tensor:
    """(outputs, cells): row h holds the weights of position h + offset."""
    count = extent if outputs is None else outputs
    first, second, low, high = samples(cells, extent, align_corners, like, count, offset)
    cell = torch.arange(cells, device=like.device)
    return (first[:, None] == cell) * low[:, None] + (second[:, None] == cell) * high[:, None]


def upsample(level: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """A wide level at (height, width). Gathers, so a NaN reaches only what it touches."""
    for dim, extent in ((2, height), (3, width)):
        first, second, low, high = samples(level.size(dim), extent, align_corners, level, extent, 0)
        shape = (-1, 1) if dim == 2 else (-1,)
        level = level.index_select(dim, first) * low.view(shape) + level.index_select(
            dim, second
        ) * high.view(shape)
    return level


def upsample_adjoint(grad: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """The adjoint of `upsample`: a wide gradient (N, C, H, W) as sums (N, C, height, width).

    Matrix products, so a NaN reaches its whole plane.
    """
    rows = matrix(height, grad.size(2), align_corners, grad)
    columns = matrix(width, grad.size(3), align_corners, grad)
    return rows.T @ grad @ columns


def _finish(value: Tensor, like: Tensor, channels_last: bool) -> Tensor:
    format = torch.channels_last if channels_last else torch.contiguous_format
    return value.to(like.dtype).contiguous(memory_format=format)


def pyramid_concat(
    x: Tensor, levels: Sequence[Tensor], align_corners: bool, x_first: bool
) -> Tensor:
    height, width = x.shape[2:]
    maps = [upsample(widen(level), height, width, align_corners).to(x.dtype) for level in levels]
    parts = [x, *maps] if x_first else [*maps, x]
    return torch.cat(parts, 1).contiguous(memory_format=memory_format(x))


def pyramid_concat_backward(
    grad: Tensor, sizes: Sequence[int], align_corners: bool, channels_last: bool
) -> list[Tensor]:
    parts = grad.split(list(sizes[::3]), 1)
    return [
        _finish(upsample_adjoint(widen(part), height, width, align_corners), grad, channels_last)
        for part, height, width in zip(parts, sizes[1::3], sizes[2::3], strict=True)
    ]


def pyramid_add_relu(x: Tensor, levels: Sequence[Tensor], align_corners: bool) -> Tensor:
    total = widen(x)
    for level in levels:
        total = total + upsample(widen(level), x.size(2), x.size(3), align_corners)
    return total.relu().to(x.dtype).contiguous(memory_format=memory_format(x))


def pyramid_add_relu_backward(
    grad: Tensor, out: Tensor, sizes: Sequence[int], align_corners: bool
) -> list[Tensor]:
    channels_last = is_channels_last(out)
    passed = torch.where(out <= 0, 0, widen(grad))
    return [
        _finish(passed, grad, channels_last),
        *(
            _finish(upsample_adjoint(passed, height, width, align_corners), grad, channels_last)
            for height, width in zip(sizes[::2], sizes[1::2], strict=True)
        ),
    ]


def tap_matrices(
    cells: Sequence[int],
    size: Sequence[int],
    outputs: Sequence[int],
    kernel: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    align_corners: bool,
    like: Tensor,
) -> list[Tensor]:
    """For the rows and for the columns: (outputs, kernel * cells), the taps side by side."""
    return [
        torch.cat(
            [
                matrix(
                    cells[axis],
                    size[axis],
                    align_corners,
                    like,
                    outputs[axis],
                    tap * dilation[axis] - padding[axis],
                )
                for tap in range(kernel[axis])
            ],
            1,
        )
        for axis in (0, 1)
    ]


def pyramid_taps_add(
    base: Tensor,
    taps: Sequence[Tensor],
    size: Sequence[int],
    kernel: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    align_corners: bool,
) -> Tensor:
    channels, outputs = base.size(1), base.shape[2:]
    total = widen(base)
    for level in taps:
        height, width = level.shape[2:]
        rows, columns = tap_matrices(
            (height, width), size, outputs, kernel, padding, dilation, align_corners, total
        )
        split = widen(level).unflatten(1, (kernel[0], kernel[1], channels))
        by_row = split.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        total = total + rows @ by_row @ columns.T
    return total.to(base.dtype).contiguous(memory_format=memory_format(base))


def pyramid_taps_add_backward(
    grad: Tensor,
    sizes: Sequence[int],
    size: Sequence[int],
    kernel: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    align_corners: bool,
    channels_last: bool,
) -> list[Tensor]:
    wide = widen(grad)
    grads = []
    for height, width in zip(sizes[::2], sizes[1::2], strict=True):
        rows, columns = tap_matrices(
            (height, width), size, grad.shape[2:], kernel, padding, dilation, align_corners, wide
        )
        by_row = (rows.T @ wide @ columns).unflatten(3, (kernel[1], width))
        split = by_row.unflatten(2, (kernel[0], height)).permute(0, 2, 4, 1, 3, 5)
        grads.append(_finish(split.flatten(1, 3), grad, channels_last))
    return grads
