"""The convolution over a pyramid as a composition of operators, which traces, transforms and other
devices use: library products at each map's own resolution, and `pyramid_taps_add`.

Shapes: as in upsample_conv.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stripctx import _compat
from stripctx.layout import memory_format
from stripctx.ops.calls import call
from stripctx.ops.upsample_products import as_matrix, of_each_tap

OPS = torch.ops.stripctx


@dataclass(frozen=True)
class Geometry:
    """The arguments of a convolution and, for each map of another size than x, its mode and two
    ratios."""

    x_index: int
    padding: list[int]
    dilation: list[int]
    modes: list[int]
    ratios: list[float]


def concatenated(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """The convolution of the concatenation. Used in torch.jit.trace, which cannot record an
    operator with traced sizes and would store those of the example."""
    x, levels = maps[geometry.x_index], list(maps)
    del levels[geometry.x_index]
    if levels:
        x = OPS.pyramid_concat(x, levels, geometry.modes, geometry.ratios, geometry.x_index)
    return F.conv2d(x, weight, bias, padding=geometry.padding, dilation=geometry.dilation)


def composed(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    plan = Maps(maps, weight, geometry)
    parts = plan.parts(weight)
    of_maps, of_weight = plan.together(maps), plan.together(parts)
    taps = [_composed_product(maps[k], of_each_tap(parts[k])) for k in plan.small]
    if of_maps.size(1) == 0 and taps:  # no map is convolved at full size
        out = taps[0].new_zeros(()) if bias is None else bias.to(taps[0].dtype)[:, None, None]
        out = out.expand(of_maps.size(0), weight.size(0), *plan.outputs)
    elif plan.pointwise:
        out = _composed_product(of_maps, of_weight.flatten(1), bias)
    else:
        out = F.conv2d(
            of_maps, of_weight, bias, padding=geometry.padding, dilation=geometry.dilation
        )
    return call(OPS.pyramid_taps_add, out, taps, *plan.taps) if taps else out


def _composed_product(map: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """`product`, for autograd."""
    if not as_matrix(map):
        return F.conv2d(map, matrix[:, :, None, None], bias)
    matrices, columns = matrix.expand(map.size(0), -1, -1), map.flatten(2)
    if bias is None:
        out = torch.bmm(matrices, columns)
    else:
        out = torch.baddbmm(bias[:, None], matrices, columns)
    return out.view(map.size(0), matrix.size(0), *map.shape[2:])


class Maps:
    """The division of the maps and of the weight's slices: maps convolved at full size, and levels
    convolved at their own resolution."""

    def __init__(self, maps: Sequence[Tensor], weight: Tensor, geometry: Geometry) -> None:
        x = maps[geometry.x_index]
        self.format = memory_format(x)
        self.size, self.kernel = list(x.shape[2:]), list(weight.shape[2:])
        same = [map is x or _compat.same_sizes(map.shape[2:], x.shape[2:]) for map in maps]
        self.whole = [k for k, is_same in enumerate(same) if is_same]
        self.small = [k for k in range(len(maps)) if k not in self.whole]
        self.whole = [k for k in self.whole if maps[k].size(1) > 0] or self.whole[:1]
        self.outputs = [
            side + 2 * pad - step * (tap - 1)
            for side, pad, step, tap in zip(
                self.size, geometry.padding, geometry.dilation, self.kernel, strict=True
            )
        ]
        self.channels = [map.size(1) for map in maps]
        self.pointwise = self.kernel == [1, 1] and geometry.padding == [0, 0]
        self.taps = (
            self.size, self.kernel, geometry.padding, geometry.dilation, geometry.modes,
            geometry.ratios,
        )  # fmt: skip

    def parts(self, weight: Tensor) -> tuple[Tensor, ...]:
        return weight.split(self.channels, 1)

    def together(self, items: Sequence[Tensor]) -> Tensor:
        """The entries of the maps at full size, concatenated."""
        if len(self.whole) == 1:
            return items[self.whole[0]]
        return torch.cat([items[k] for k in self.whole], 1)
