"""Adaptive pooling of any size in standard operators (PSPNet, Zhao et al., CVPR 2017, section 3.2).

Means are products with averaging matrices: one product reads the map once and reduces along W for
the bins of all levels, then each level is reduced along H. Maxima gather the positions of each bin,
one axis at a time; x is read at most twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stripctx.export.axes import Size, cells_of_bins, means
from stripctx.reference.common import widen
from stripctx.reference.pyramid import pairs


def pyramid_pool(x: Tensor, bins: Sequence[int]) -> list[Tensor]:
    wide, sizes = widen(x), pairs(bins)
    if all(_is_one(width) for _, width in sizes):
        by_width = [wide.mean(3, keepdim=True)] * len(sizes)
    else:
        matrix = torch.cat([means(width, x.size(3), wide) for _, width in sizes])
        by_width = list((wide @ matrix.T).split([width for _, width in sizes], 3))
    return [
        _rows(part, height).to(x.dtype) for part, (height, _) in zip(by_width, sizes, strict=True)
    ]


def _rows(part: Tensor, height: Size) -> Tensor:
    """The means of (N, C, H, w) over bands of rows."""
    if _is_one(height):
        return part.mean(2, keepdim=True)
    matrix = means(height, part.size(2), part)
    if _is_one(part.size(3)):  # a single product for all planes
        return (part.squeeze(3) @ matrix.T)[..., None]
    return matrix @ part


def pyramid_max_pool(x: Tensor, bins: Sequence[int]) -> list[Tensor]:
    pooled = [_maxima(widen(x), height, width) for height, width in pairs(bins)]
    return [value.to(x.dtype) for value, _ in pooled] + [index for _, index in pooled]


def _maxima(wide: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The maximum of every bin and its index in the plane: the first of equal maxima."""
    columns = cells_of_bins(width, wide.size(3), wide.device)
    value, column = _along(wide, columns, 3)  # (N, C, H, w)
    rows = cells_of_bins(height, wide.size(2), wide.device)
    value, row = _along(value, rows, 2)  # (N, C, h, w)
    return value, row * wide.size(3) + column.gather(2, row)


def _along(map: Tensor, cells: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The maximum over each row of `cells`, which are positions along `dim`, and its position."""
    gathered = map.index_select(dim, cells.flatten()).unflatten(dim, cells.shape)
    place = gathered.argmax(dim + 1)
    first = cells[:, 0] if dim == 3 else cells[:, :1]
    return gathered.amax(dim + 1), first + place


def _is_one(size: Size) -> bool:
    return isinstance(size, int) and size == 1
