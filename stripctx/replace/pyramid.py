"""Recipes for pyramid pooling (Zhao et al., CVPR 2017), which is everywhere, under many names.

The pyramids differ in their keys, in align_corners and in what they give: the concatenation with x
first or last, or a list of maps. Pooling reads x once for all bins; the rest of a branch is called
as it stands. Alone, the concatenation is written once. Where a module hands it to a convolution
(`handover`, and smp's UPerNet below), `functional.pyramid_conv` takes the levels instead.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from stripctx import functional
from stripctx.replace import deferred
from stripctx.replace.fused import (
    Fused,
    UnknownModuleError,
    convolution,
    example,
    flag,
    idle,
    of_kind,
    pair,
    part,
    up_aligned,
)


class Branch(NamedTuple):
    """One bin: its pooling, what is called after it, and the modules around both, which are not
    called any more."""

    path: str
    pool: Any
    rest: list[nn.Module]
    around: tuple[nn.Module, ...] = ()


class PyramidRecipe(Fused):
    """A module that pools x to several bins and convolves each. Where nothing else is said, the
    branches are sequences in the ModuleList at `branches_at`."""

    functions = "pyramid_pool, pyramid_concat"
    deferring = False  # whether the concatenation may wait: see `handover`
    x_first: ClassVar[bool] = True
    branches_at: ClassVar[str]

    @classmethod
    def branches(cls, module: Any) -> list[Branch]:
        found = part(module, cls.branches_at, nn.ModuleList)
        return [_sequence(f"{cls.branches_at}.{i}", branch) for i, branch in enumerate(found)]

    @classmethod
    def check(cls, module: Any) -> None:
        branches = cls.branches(module)
        if not 1 <= len(branches) <= 8:
            raise UnknownModuleError(f"it has {len(branches)} branches, not one to eight")
        for path, pool, rest, around in branches:
            if not isinstance(pool, nn.AdaptiveAvgPool2d):
                raise UnknownModuleError(f"{path} pools by {type(pool).__name__}, not adaptively")
            if None in pair(pool.output_size):
                raise UnknownModuleError(f"{path} pools to {pool.output_size}")
            if any("forward" in vars(one) for one in (module, pool, *around)):
                raise UnknownModuleError(f"{path} has a forward of its own")
            if _convolution(rest) is None:
                raise UnknownModuleError(f"{path} has no convolution")

    @classmethod
    def examples(cls, module: Any) -> list[tuple[Any, ...]]:
        conv = _convolution(cls.branches(module)[0].rest)
        assert conv is not None
        return [(example(conv),)]

    def aligned(self) -> bool:
        """Its align_corners."""
        return True

    def unnoticed(self) -> bool:
        return all(
            idle(branch.pool, nn.AdaptiveAvgPool2d) and all(map(idle, branch.around))
            for branch in self.branches(self)
        )

    def levels(self, x: Tensor) -> list[Tensor]:
        branches = self.branches(self)
        pooled = functional.pyramid_pool(x, [pair(one.pool.output_size) for one in branches])
        levels = []
        for level, branch in zip(pooled, branches, strict=True):
            for module in branch.rest:
                level = module(level)
            levels.append(level)
        return levels

    def forward(self, x: Tensor) -> Any:
        if self.steps_aside():
            return super().forward(x)
        pyramid = deferred.Pyramid(x, self.levels(x), self.aligned(), self.x_first)
        return pyramid if self.deferring else pyramid.tensor()


class SemsegPPM(PyramidRecipe):
    names = ("PPM",)
    upstream = "semseg"
    branches_at = "features"


class EncodingPyramidPooling(PyramidRecipe):
    """The pools and the rests of the branches are children side by side."""

    names = ("PyramidPooling",)
    upstream = "PyTorch-Encoding and SPNet"

    @classmethod
    def branches(cls, module: Any) -> list[Branch]:
        up_aligned(module)
        return [
            Branch(f"pool{i}", part(module, f"pool{i}"), [part(module, f"conv{i}")])
            for i in range(1, 5)
        ]

    def aligned(self) -> bool:
        return up_aligned(self)


class MmsegPPM(PyramidRecipe):
    """It gives a list of maps, which its head puts behind x."""

    names = ("PPM",)
    upstream = "mmseg"
    functions = "pyramid_pool"

    @classmethod
    def branches(cls, module: Any) -> list[Branch]:
        if not isinstance(module, nn.ModuleList):
            raise UnknownModuleError("it is no ModuleList")
        flag(module, "align_corners")
        return [_sequence(str(i), branch) for i, branch in enumerate(module)]

    def aligned(self) -> bool:
        return flag(self, "align_corners")

    def forward(self, x: Tensor) -> Any:
        if self.steps_aside():
            return super().forward(x)
        levels = self.levels(x)
        maps = [deferred.Level(level, x.shape[2:], self.aligned()) for level in levels]
        return maps if self.deferring else [one.tensor() for one in maps]


class SmpPSPModule(PyramidRecipe):
    names = ("PSPModule",)
    upstream = "smp"
    x_first = False

    @classmethod
    def branches(cls, module: Any) -> list[Branch]:
        branches = []
        for i, block in enumerate(part(module, "blocks", nn.ModuleList)):
            if type(block).__name__ != "PSPBlock":
                raise UnknownModuleError(f"blocks.{i} is {type(block).__name__}, not PSPBlock")
            branches.append(_sequence(f"blocks.{i}.pool", part(block, "pool"), block))
        return branches


class UPerNetPSPModule(PyramidRecipe):
    """It ends in the convolution itself."""

    names = ("PSPModule",)
    upstream = "smp's UPerNet"
    functions = "pyramid_pool, pyramid_conv"
    branches_at = "blocks"

    @classmethod
    def check(cls, module: Any) -> None:
        super().check(module)
        convolution(module, "out_conv.0", stride=(1, 1))

    def forward(self, x: Tensor) -> Any:
        if self.steps_aside():
            return super().forward(x)
        together = deferred.Pyramid(x, self.levels(x), False, True)
        takes = idle(self.out_conv) and idle(self.out_conv[0])
        return self.out_conv(together if takes else together.tensor())


class FixedWindows(Fused):
    """pytorch-semseg's, known in order to say why it is left."""

    names = ("pyramidPooling",)
    upstream = "pytorch-semseg"

    @classmethod
    def check(cls, module: Any) -> None:
        raise UnknownModuleError("it pools with windows of a fixed size, not adaptively")


def _sequence(path: str, branch: nn.Module, *around: nn.Module) -> Branch:
    """A branch in one Sequential."""
    modules = list(of_kind(branch, path, nn.Sequential))
    if not modules:
        raise UnknownModuleError(f"{path} is empty")
    pool, *rest = modules
    return Branch(path, pool, rest, (branch, *around))


def _convolution(rest: list[nn.Module]) -> nn.Conv2d | None:
    found = (one for module in rest for one in module.modules() if isinstance(one, nn.Conv2d))
    return next(found, None)
