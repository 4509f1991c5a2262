"""The kinds of lazy maps (see lazy.py):

Level      F.interpolate(level, ...)
Pyramid    torch.cat of maps, some of them Levels
Sum        a map + Levels
Gate       sigmoid(logits), to be multiplied with a map
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stripctx import functional
from stripctx._compat import same_sizes
from stripctx.fusion import cost
from stripctx.fusion.lazy import Function, Lazy, made
from stripctx.ops.upsample_checks import MOST_LEVELS


class Level(Lazy):
    """A map to be interpolated, with the arguments of `F.interpolate`."""

    def __init__(
        self,
        level: Tensor,
        size: Sequence[int],
        mode: str,
        align_corners: bool | None,
        scale_factor: tuple[float, float] | None,
    ) -> None:
        super().__init__((*level.shape[:2], *size), (level,))
        self.level, self.mode, self.scale_factor = level, mode, scale_factor
        self.align_corners = bool(align_corners) if mode == "bilinear" else None
        self.place = cost.here()

    def make(self) -> Tensor:
        """As F.interpolate, which cannot be called here: the scope would intercept it."""
        scales = self.scale_factor
        size = None if scales else list(self.shape[2:])
        aten = torch.ops.aten
        if self.mode == "bilinear":
            return aten.upsample_bilinear2d.vec(self.level, size, self.align_corners, scales)
        if self.mode == "nearest":
            return aten.upsample_nearest2d.vec(self.level, size, scales)
        return aten._upsample_nearest_exact2d.vec(self.level, size, scales)

    @property
    def is_identity(self) -> bool:
        return same_sizes(self.level.shape, self.shape)


class Pyramid(Lazy):
    """A concatenation of tensors of one size and of levels interpolated to it."""

    def __init__(self, parts: Sequence[Tensor | Level]) -> None:
        first = parts[0]
        inputs = [part.level if isinstance(part, Level) else part for part in parts]
        channels = sum(part.shape[1] for part in parts)
        super().__init__((first.shape[0], channels, *first.shape[2:]), inputs)
        self.parts = list(parts)

    def make(self) -> Tensor:
        return torch.cat([made(part) for part in self.parts], 1)

    def conv(self, weight: Tensor, bias: Tensor | None, padding: Any, dilation: Any) -> Any:
        """conv2d of the concatenation; NotImplemented if no level is worth convolving before
        interpolation."""
        if not alike(*self.inputs):
            return NotImplemented
        if weight.dim() != 4 or weight.shape[1] != self.shape[1]:
            return NotImplemented  # torch raises the error
        size, kernel = self.shape[2:], weight.shape[2:]
        parts = [
            part.level if isinstance(part, Level) and part.waits and part.is_identity else part
            for part in self.parts
        ]
        wait = [
            isinstance(part, Level)
            and part.waits
            and cost.pays(part.level.shape, size, weight.shape[0], kernel)
            for part in parts
        ]
        self._keep_the_best(wait, weight)
        cost.record(self, weight, wait)
        if not any(wait):
            return NotImplemented
        self.check()
        maps = [
            part.level if w and isinstance(part, Level) else made(part)
            for part, w in zip(parts, wait, strict=True)
        ]
        if all(wait):  # pyramid_conv takes the size from x: one of no channels
            maps.append(maps[0].new_empty((self.shape[0], 0, *size)))
            wait.append(False)
        x_index = wait.index(False)
        levels = [*parts[:x_index], *parts[x_index + 1 :]]
        waits = [*wait[:x_index], *wait[x_index + 1 :]]
        ways = [
            (part.mode, part.align_corners, part.scale_factor)
            if w and isinstance(part, Level)
            else ("nearest", None, None)
            for part, w in zip(levels, waits, strict=True)
        ]
        modes, corners, scales = (list(each) for each in zip(*ways, strict=True))
        return functional.pyramid_conv(
            maps[x_index],
            [*maps[:x_index], *maps[x_index + 1 :]],
            weight,
            bias,
            padding=padding,
            dilation=dilation,
            mode=modes,
            align_corners=corners,
            scale_factor=scales,
            x_index=x_index,
        )

    def _keep_the_best(self, wait: list[bool], weight: Tensor) -> None:
        """pyramid_conv takes at most MOST_LEVELS levels: keeps those that save most, and the others
        are interpolated."""

        def saving(k: int) -> float:
            level = self.inputs[k].shape
            return cost.saving(level, self.shape[2:], weight.shape[0], weight.shape[2:])

        waiting = [k for k, waits in enumerate(wait) if waits]
        if len(waiting) <= MOST_LEVELS:
            return
        for k in sorted(waiting, key=saving, reverse=True)[MOST_LEVELS:]:
            wait[k] = False


class Sum(Lazy):
    """A map plus levels, added in that order."""

    def __init__(self, x: Tensor, levels: Sequence[Level]) -> None:
        super().__init__(x.shape, [x, *(level.level for level in levels)])
        self.x, self.levels = x, list(levels)

    def make(self) -> Tensor:
        return self._sum(functional.pyramid_add)

    def relu(self) -> Tensor:
        self.check()
        return self._sum(functional.pyramid_add_relu)

    def _sum(self, function: Function) -> Tensor:
        levels = self.levels
        cost.note(levels)
        return function(
            self.x,
            [one.level for one in levels],
            mode=[one.mode for one in levels],
            align_corners=[one.align_corners for one in levels],
            scale_factor=[one.scale_factor for one in levels],
        )


class Gate(Lazy):
    """A sigmoid, to be multiplied with the map that it gates."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits.shape, (logits,))
        self.place = cost.here()

    def make(self) -> Tensor:
        return self.inputs[0].sigmoid()


def alike(*tensors: Tensor) -> bool:
    """Whether all have one dtype and device; otherwise the promotion rules of torch apply."""
    first = tensors[0]
    return all(one.dtype == first.dtype and one.device == first.device for one in tensors)
