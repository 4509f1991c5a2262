"""Pyramid pooling in plain PyTorch (PSPNet, Zhao et al., CVPR 2017, section 3.2), forward and
explicit backward: the definition against which the native kernels are tested, and the
implementation on other devices.

Shapes: x, grad_x (N, C, H, W); level k (N, C, h, w), one element per bin; bins are a flat list of
(h, w) pairs. Bin i of b over n positions is the window [floor(i n / b), ceil((i + 1) n / b)); so
the bins that hold position p are the window [floor(p b / n), ceil((p + 1) b / n)). Half types are
computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stripctx.layout import memory_format
from stripctx.reference.common import widen


def pairs(bins: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(bins[::2], bins[1::2], strict=True))


def windows(bins: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first position of each bin, and one past the last."""
    i = torch.arange(bins, device=device)
    return i * length // bins, -(-(i + 1) * length // bins)


def pyramid_pool(x: Tensor, bins: Sequence[int]) -> list[Tensor]:
    format = memory_format(x)
    return [
        F.adaptive_avg_pool2d(widen(x), size).to(x.dtype).contiguous(memory_format=format)
        for size in pairs(bins)
    ]


def pyramid_pool_backward(
    grads: Sequence[Tensor], height: int, width: int, channels_last: bool
) -> Tensor:
    first = grads[0]
    grad_x = torch.zeros(
        (*first.shape[:2], height, width), dtype=widen(first).dtype, device=first.device
    )
    for grad in grads:
        tops, bottoms = windows(grad.size(2), height, grad.device)
        lefts, rights = windows(grad.size(3), width, grad.device)
        share = widen(grad) / ((bottoms - tops)[:, None] * (rights - lefts))
        for value, held in _at_every_position(share, height, width):
            grad_x += torch.where(held, value, 0)
    format = torch.channels_last if channels_last else torch.contiguous_format
    return grad_x.to(first.dtype).contiguous(memory_format=format)


def pyramid_max_pool(x: Tensor, bins: Sequence[int]) -> list[Tensor]:
    format = memory_format(x)
    pooled = [_max_pool(x, size) for size in pairs(bins)]
    values = [value.to(x.dtype).contiguous(memory_format=format) for value, _ in pooled]
    return values + [index.contiguous(memory_format=format) for _, index in pooled]


def _max_pool(x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    if x.size(1) == 0:  # not supported by torch
        empty = x.new_empty((*x.shape[:2], *size))
        return empty, empty.long()
    return F.adaptive_max_pool2d(widen(x), size, return_indices=True)


def pyramid_max_pool_backward(
    grads: Sequence[Tensor],
    indices: Sequence[Tensor],
    height: int,
    width: int,
    channels_last: bool,
) -> Tensor:
    """Indices outside their bin's window contribute nothing."""
    first = grads[0]
    grad_x = torch.zeros(
        (*first.shape[:2], height, width), dtype=widen(first).dtype, device=first.device
    )
    positions = torch.arange(height * width, device=first.device).view(height, width)
    for grad, index in zip(grads, indices, strict=True):
        spread = _at_every_position(widen(grad), height, width)
        for (value, held), (where, _) in zip(
            spread, _at_every_position(index, height, width), strict=True
        ):
            grad_x += torch.where(held & (where == positions), value, 0)
    format = torch.channels_last if channels_last else torch.contiguous_format
    return grad_x.to(first.dtype).contiguous(memory_format=format)


def inside(index: Tensor, height: int, width: int) -> Tensor:
    """Whether each bin's index, (N, C, h, w), is inside the bin's window."""
    tops, bottoms = windows(index.size(2), height, index.device)
    lefts, rights = windows(index.size(3), width, index.device)
    row = torch.div(index, width, rounding_mode="floor")
    column = index - row * width
    in_rows = (row >= tops[:, None]) & (row < bottoms[:, None])
    return in_rows & (column >= lefts) & (column < rights)


def _at_every_position(level: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Expands a level's bins to the map: one pair (value, valid) for each bin that may overlap at a
    position."""
    for rows, in_rows in _bins_at(level.size(2), height, level.device):
        for columns, in_columns in _bins_at(level.size(3), width, level.device):
            value = level.index_select(2, rows).index_select(3, columns)
            yield value, in_rows[:, None] & in_columns


def _bins_at(bins: int, length: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    begins, ends = windows(length, bins, device)
    for k in range(int((ends - begins).max())):
        yield (begins + k).clamp(max=bins - 1), begins + k < ends
