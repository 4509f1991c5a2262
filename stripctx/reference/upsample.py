"""Interpolation of small maps, "levels", in plain PyTorch: PSPNet's pyramid (Zhao et al., CVPR
2017), the pyramid branch of SPNet's mixed pooling (Hou et al., CVPR 2020) and the convolution over
a pyramid that is never built. Forward and explicit backward.

Shapes: x, out, grad (N, C, H, W); a level (N, C_l, h, w), with C_l = C in sums. The taps of a level
for a kernel of kh x kw are (N, kh*kw*O, h, w), with the kernel's row and column outermost. Half
types are computed in float32 and rounded once.

An axis of `cells` is interpolated to `extent` positions with the index formulas of
`torch.nn.functional.interpolate`: nearest, or linear (without antialiasing if the axis shrinks).
This is a product with a matrix that has two weights per row; its adjoint is the product with the
transpose.

A level's mode is a code of MODES. Its two ratios, along H and W, are input size over output size if
a scale factor was given, which torch then uses in the formula; 0 means that the sizes are used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stripctx.layout import is_channels_last, memory_format
from stripctx.reference.common import widen

BILINEAR, BILINEAR_ALIGNED, NEAREST, NEAREST_EXACT = MODES = range(4)


def samples(
    cells: int,
    extent: int,
    mode: int,
    ratio: float,
    like: Tensor,
    outputs: int,
    offset: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two cells that position h + offset reads and their weights, for h < outputs. Both weights
    are 0 for positions outside [0, extent)."""
    position = torch.arange(offset, offset + outputs, dtype=like.dtype, device=like.device)
    inside = ((position >= 0) & (position < extent)).to(like.dtype)
    if cells == extent:
        first = position.long().clamp(0, cells - 1)
        return first, first, inside, torch.zeros_like(inside)
    if mode in (NEAREST, NEAREST_EXACT):
        first = _nearest(cells, extent, mode, ratio, position)
        return first, first, inside, torch.zeros_like(inside)
    if mode == BILINEAR_ALIGNED:
        source = position * ((cells - 1) / (extent - 1) if extent > 1 else 0.0)
    else:
        source = (position + 0.5) * (ratio or cells / max(extent, 1)) - 0.5
    source = source.clamp(min=0)
    first = source.long().clamp(max=cells - 1)
    second = (first + 1).clamp(max=cells - 1)
    fraction = (source - first).clamp(0, 1)
    return first, second, (1 - fraction) * inside, fraction * inside


def _nearest(cells: int, extent: int, mode: int, ratio: float, position: Tensor) -> Tensor:
    """The cells of positions, computed in float32 for every dtype, as in torch's kernels."""
    scale = torch.tensor(ratio or cells / max(extent, 1), dtype=torch.float32)
    scale = scale.to(position.device)
    if mode == NEAREST_EXACT:
        cell = ((position.float() + 0.5) * scale).floor()
    elif extent == 2 * cells:
        cell = (position / 2).floor()
    else:
        cell = (position.float() * scale).floor()
    return cell.long().clamp(0, cells - 1)


def matrix(
    cells: int,
    extent: int,
    mode: int,
    ratio: float,
    like: Tensor,
    outputs: int | None = None,
    offset: int = 0,
) -> Tensor:
    """(outputs, cells): row h contains the weights of position h + offset."""
    count = extent if outputs is None else outputs
    first, second, low, high = samples(cells, extent, mode, ratio, like, count, offset)
    cell = torch.arange(cells, device=like.device)
    return (first[:, None] == cell) * low[:, None] + (second[:, None] == cell) * high[:, None]


def upsample(
    level: Tensor, height: int, width: int, mode: int, ratios: Sequence[float] = (0.0, 0.0)
) -> Tensor:
    """Interpolates a level, already widened, to (height, width). Gathers, so a NaN reaches only the
    positions that read it."""
    for dim, extent, ratio in ((2, height, ratios[0]), (3, width, ratios[1])):
        cells = level.size(dim)
        first, second, low, high = samples(cells, extent, mode, ratio, level, extent, 0)
        if mode in (NEAREST, NEAREST_EXACT):
            level = level.index_select(dim, first)
            continue
        shape = (-1, 1) if dim == 2 else (-1,)
        level = level.index_select(dim, first) * low.view(shape) + level.index_select(
            dim, second
        ) * high.view(shape)
    return level


def upsample_adjoint(
    grad: Tensor, height: int, width: int, mode: int, ratios: Sequence[float] = (0.0, 0.0)
) -> Tensor:
    """The adjoint of `upsample`: reduces a gradient (N, C, H, W), already widened, to (N, C,
    height, width). Uses matrix products, so a NaN reaches its whole plane."""
    rows = matrix(height, grad.size(2), mode, ratios[0], grad)
    columns = matrix(width, grad.size(3), mode, ratios[1], grad)
    return rows.T @ grad @ columns


def _finish(value: Tensor, like: Tensor, channels_last: bool) -> Tensor:
    format = torch.channels_last if channels_last else torch.contiguous_format
    return value.to(like.dtype).contiguous(memory_format=format)


def _at_size(
    x: Tensor, levels: Sequence[Tensor], modes: Sequence[int], ratios: Sequence[float]
) -> list[Tensor]:
    """The levels, widened and interpolated to the size of x."""
    height, width = x.shape[2:]
    return [
        upsample(widen(level), height, width, mode, ratios[2 * k : 2 * k + 2])
        for k, (level, mode) in enumerate(zip(levels, modes, strict=True))
    ]


def pyramid_concat(
    x: Tensor, levels: Sequence[Tensor], modes: Sequence[int], ratios: Sequence[float], x_index: int
) -> Tensor:
    maps = [map.to(x.dtype) for map in _at_size(x, levels, modes, ratios)]
    maps.insert(x_index, x)
    return torch.cat(maps, 1).contiguous(memory_format=memory_format(x))


def pyramid_concat_backward(
    grad: Tensor,
    sizes: Sequence[int],
    modes: Sequence[int],
    ratios: Sequence[float],
    channels_last: bool,
) -> list[Tensor]:
    parts = grad.split(list(sizes[::3]), 1)
    grads = []
    for k, (part, mode) in enumerate(zip(parts, modes, strict=True)):
        height, width = sizes[3 * k + 1 : 3 * k + 3]
        sums = upsample_adjoint(widen(part), height, width, mode, ratios[2 * k : 2 * k + 2])
        grads.append(_finish(sums, grad, channels_last))
    return grads


def pyramid_add_relu(
    x: Tensor, levels: Sequence[Tensor], modes: Sequence[int], ratios: Sequence[float]
) -> Tensor:
    total = sum(_at_size(x, levels, modes, ratios), widen(x))
    return total.relu().to(x.dtype).contiguous(memory_format=memory_format(x))


def pyramid_add_relu_backward(
    grad: Tensor,
    out: Tensor,
    sizes: Sequence[int],
    modes: Sequence[int],
    ratios: Sequence[float],
) -> list[Tensor]:
    channels_last = is_channels_last(out)
    passed = torch.where(out <= 0, 0, widen(grad))
    grads = [_finish(passed, grad, channels_last)]
    for k, mode in enumerate(modes):
        height, width = sizes[2 * k : 2 * k + 2]
        sums = upsample_adjoint(passed, height, width, mode, ratios[2 * k : 2 * k + 2])
        grads.append(_finish(sums, grad, channels_last))
    return grads


def tap_matrices(
    cells: Sequence[int],
    size: Sequence[int],
    outputs: Sequence[int],
    kernel: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    mode: int,
    ratios: Sequence[float],
    like: Tensor,
) -> list[Tensor]:
    """For the rows and for the columns: (outputs, kernel * cells), the matrices of the taps
    concatenated."""
    return [
        torch.cat(
            [
                matrix(
                    cells[axis],
                    size[axis],
                    mode,
                    ratios[axis],
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
    modes: Sequence[int],
    ratios: Sequence[float],
) -> Tensor:
    channels, outputs = base.size(1), base.shape[2:]
    total = widen(base)
    for k, level in enumerate(taps):
        cells, way = level.shape[2:], (modes[k], ratios[2 * k : 2 * k + 2])
        rows, columns = tap_matrices(cells, size, outputs, kernel, padding, dilation, *way, total)
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
    modes: Sequence[int],
    ratios: Sequence[float],
    channels_last: bool,
) -> list[Tensor]:
    wide, outputs = widen(grad), grad.shape[2:]
    grads = []
    for k, mode in enumerate(modes):
        cells, way = sizes[2 * k : 2 * k + 2], (mode, ratios[2 * k : 2 * k + 2])
        rows, columns = tap_matrices(cells, size, outputs, kernel, padding, dilation, *way, wide)
        by_row = (rows.T @ wide @ columns).unflatten(3, (kernel[1], cells[1]))
        split = by_row.unflatten(2, (kernel[0], cells[0])).permute(0, 2, 4, 1, 3, 5)
        grads.append(_finish(split.flatten(1, 3), grad, channels_last))
    return grads
