"""The upsample family in standard operators: interpolation, sums, and the taps of a convolution
over a pyramid (see reference.upsample).

A level of few cells is interpolated by a matrix product along each axis, which is faster in most
runtimes than their resize operator; a larger level by torch's operator, which becomes their resize
operator. The sizes of the example decide; both are correct for every size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stripctx import _compat
from stripctx.export.axes import Size, interpolation, nearest
from stripctx.fusion.cost import EXPORTED_RESIZE, exported_products
from stripctx.reference.common import widen
from stripctx.reference.upsample import BILINEAR_ALIGNED, NEAREST, NEAREST_EXACT


def pyramid_concat(
    x: Tensor, levels: Sequence[Tensor], modes: Sequence[int], ratios: Sequence[float], x_index: int
) -> Tensor:
    maps = [map.to(x.dtype) for map in _at_size(x, levels, modes, ratios)]
    maps.insert(x_index, x)
    return torch.cat(maps, 1)


def pyramid_add_relu(
    x: Tensor, levels: Sequence[Tensor], modes: Sequence[int], ratios: Sequence[float]
) -> Tensor:
    return sum(_at_size(x, levels, modes, ratios), widen(x)).relu().to(x.dtype)


def pyramid_taps_add(
    base: Tensor,
    taps: Sequence[Tensor],
    size: Sequence[Size],
    kernel: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    modes: Sequence[int],
    ratios: Sequence[float],
) -> Tensor:
    total = widen(base)
    for k, level in enumerate(taps):
        way = (modes[k], ratios[2 * k : 2 * k + 2])
        if list(kernel) == [1, 1] and list(padding) == [0, 0]:
            total = total + upsample(widen(level), size, *way)
            continue
        rows, columns = (
            _tap_matrix(
                level.size(2 + axis),
                size[axis],
                base.size(2 + axis),
                kernel[axis],
                padding[axis],
                dilation[axis],
                way[0],
                way[1][axis],
                total,
            )
            for axis in (0, 1)
        )
        split = widen(level).unflatten(1, (kernel[0], kernel[1], -1))
        by_row = split.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        total = total + rows @ (by_row @ columns.T)
    return total.to(base.dtype)


def _tap_matrix(
    cells: Size, extent: Size, outputs: Size, kernel: int, padding: int, dilation: int,
    mode: int, ratio: float, like: Tensor,
) -> Tensor:  # fmt: skip
    """(outputs, kernel * cells): the same matrix for each tap, shifted by its offset,
    concatenated."""
    steps = [tap * dilation for tap in range(kernel)]
    matrix = interpolation(cells, extent, mode, ratio, like, outputs + steps[-1], -padding)
    return torch.cat([_compat.rows(matrix, step, outputs) for step in steps], 1)


def _at_size(
    x: Tensor, levels: Sequence[Tensor], modes: Sequence[int], ratios: Sequence[float]
) -> list[Tensor]:
    return [
        upsample(widen(level), x.shape[2:], mode, ratios[2 * k : 2 * k + 2])
        for k, (level, mode) in enumerate(zip(levels, modes, strict=True))
    ]


def upsample(level: Tensor, size: Sequence[Size], mode: int, ratios: Sequence[float]) -> Tensor:
    """Interpolates a widened level to a size."""
    if all(_compat.known_equal(a, b) for a, b in zip(level.shape[2:], size, strict=True)):
        return level
    if mode in (NEAREST, NEAREST_EXACT):
        return _nearest(level, size, mode, ratios)
    if not any(ratios) and exported_products(level.shape[2:], size) > EXPORTED_RESIZE:
        if _compat.is_tracing():  # a trace records sizes in the form of F.interpolate
            corners = mode == BILINEAR_ALIGNED
            return F.interpolate(level, tuple(size), mode="bilinear", align_corners=corners)
        return torch.ops.aten.upsample_bilinear2d.vec(
            level, list(size), mode == BILINEAR_ALIGNED, None
        )
    rows, columns = (
        interpolation(level.size(2 + axis), size[axis], mode, ratios[axis], level)
        for axis in (0, 1)
    )
    return rows @ (level @ columns.T)


def _nearest(level: Tensor, size: Sequence[Size], mode: int, ratios: Sequence[float]) -> Tensor:
    """Uses torch's operator if each cell becomes a block of positions, whatever the size. For other
    ratios runtimes round differently, so the cells are gathered by torch's formula."""
    if all(_blocks(level.size(2 + axis), size[axis], ratios[axis]) for axis in (0, 1)):
        return torch.ops.aten.upsample_nearest2d.vec(level, list(size), None)
    for axis in (0, 1):
        position = torch.arange(size[axis], device=level.device)
        cells = nearest(level.size(2 + axis), size[axis], mode, ratios[axis], position)
        level = level.index_select(2 + axis, cells)
    return level


def _blocks(cells: Size, extent: Size, ratio: float) -> bool:
    """Whether each cell becomes 1, 2, 4, 8 or 16 positions. The reciprocal of other factors is
    rounded, which torch's formula may show."""
    return any(
        ratio in (0.0, 1.0 / times) and _compat.known_equal(extent, cells * times)
        for times in (1, 2, 4, 8, 16)
    )
