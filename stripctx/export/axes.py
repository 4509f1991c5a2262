"""Matrices over one axis of a map, computed from ranges and sizes, so that an exported network
computes them for the size of its input.

A product with such a matrix pools, interpolates or shifts along the axis. Sizes may be symbolic: no
formula here branches on one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stripctx import _compat
from stripctx.reference.upsample import BILINEAR_ALIGNED, NEAREST, NEAREST_EXACT

Size = Any  # int or torch.SymInt; torch's annotations lack the latter


def windows(bins: Size, length: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first position of each bin of adaptive pooling, and one past its last: floor(i n / b) and
    ceil((i + 1) n / b)."""
    begins = torch.arange(bins, device=device) * length
    ends = begins + (length + bins - 1)
    return begins // bins, ends // bins


def means(bins: Size, length: Size, like: Tensor) -> Tensor:
    """(bins, length): the matrix of adaptive mean pooling."""
    begins, ends = windows(bins, length, like.device)
    position = torch.arange(length, device=like.device)
    inside = (position >= begins.unsqueeze(1)) & (position < ends.unsqueeze(1))
    return inside.to(like.dtype) / (ends - begins).unsqueeze(1).to(like.dtype)


def cells_of_bins(bins: int, length: Size, device: torch.device) -> Tensor:
    """(bins, most): the positions of each bin, padded to the largest bin by repeating the last
    position."""
    begins, ends = windows(bins, length, device)
    most = (length + bins - 1) // bins + 1
    return torch.minimum(
        begins.unsqueeze(1) + torch.arange(most, device=device), ends.unsqueeze(1) - 1
    )


def interpolation(
    cells: Size,
    extent: Size,
    mode: int,
    ratio: float,
    like: Tensor,
    outputs: Size | None = None,
    offset: int = 0,
) -> Tensor:
    """(outputs, cells): row h contains the weights of position h + offset of an axis of `extent`, 0
    outside it. `reference.upsample.matrix`, for symbolic sizes."""
    count = extent if outputs is None else outputs
    position = torch.arange(count, device=like.device)
    if offset != 0:
        position = position + offset
    cell = torch.arange(cells, device=like.device)
    if mode in (NEAREST, NEAREST_EXACT):
        picked = nearest(cells, extent, mode, ratio, position)
        weights = (picked.unsqueeze(1) == cell).to(like.dtype)
    else:
        source = _source(cells, extent, mode, ratio, position.to(like.dtype))
        source = source.clamp(min=0, max=cells - 1)
        weights = (1 - (source.unsqueeze(1) - cell.to(like.dtype)).abs()).clamp(min=0)
    if outputs is None and offset == 0:
        return weights
    inside = (position >= 0) & (position < extent)
    return weights * inside.to(like.dtype).unsqueeze(1)


def _source(cells: Size, extent: Size, mode: int, ratio: float, position: Tensor) -> Tensor:
    if _compat.known_equal(cells, extent):
        return position
    if mode == BILINEAR_ALIGNED:
        return position * (cells - 1) / _compat.at_least_one(extent - 1)
    if ratio:
        return (position + 0.5) * ratio - 0.5
    return (position + 0.5) * cells / extent - 0.5


def nearest(cells: Size, extent: Size, mode: int, ratio: float, position: Tensor) -> Tensor:
    """The cell that each position reads, by torch's formula in float32."""
    if _compat.known_equal(cells, extent):
        cell = position
    elif mode == NEAREST and _compat.known_equal(extent, 2 * cells):
        cell = position // 2
    else:
        one = torch.ones((), dtype=torch.float32, device=position.device)
        scale = one * ratio if ratio else one * cells / extent
        half = 0.5 if mode == NEAREST_EXACT else 0.0
        cell = ((position.to(torch.float32) + half) * scale).floor().to(torch.int64)
    return cell.clamp(min=0, max=cells - 1)
