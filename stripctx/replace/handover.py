"""Recipes for the modules in which one child's result waits for what follows it.

A pyramid's concatenation waits for the convolution behind it, SPNet's gate for its product. The
module's own forward runs as it is; only for its duration the child may give what is `deferred`.
Called by anybody else, the child gives tensors.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

from torch import nn

from stripctx.replace.fused import Fused, UnknownModuleError, convolution, idle, part
from stripctx.replace.pyramid import PyramidRecipe
from stripctx.replace.strip import SPBlockRecipe

PRODUCERS = (PyramidRecipe, SPBlockRecipe)


class Handover(Fused):
    """A module with a fused child, `producer`, whose result goes to the convolution at `consumer`;
    `between` is the module around that convolution, which is handed it first."""

    functions = "pyramid_conv"
    producer: ClassVar[str]
    between: ClassVar[str]
    consumer: ClassVar[str]

    @classmethod
    def link(cls, module: Any) -> tuple[str, list[str]]:
        """The paths of the producer, and of what its result goes through, a convolution last."""
        return cls.producer, [cls.between, cls.consumer]

    @classmethod
    def concerns(cls, module: Any) -> bool:
        """Whether there is a fused producer; the report says why one is not."""
        try:
            return isinstance(part(module, cls.link(module)[0]), PRODUCERS)
        except UnknownModuleError:
            return False

    @classmethod
    def check(cls, module: Any) -> None:
        producer, takers = cls.link(module)
        for path in takers[-1:]:
            convolution(module, path, stride=(1, 1))
        for path in (producer, *takers):
            if not idle(part(module, path)):
                raise UnknownModuleError(f"{path} has a hook or a forward of its own")

    def unnoticed(self) -> bool:
        producer, takers = self.link(self)
        return self.concerns(self) and all(
            idle(self.get_submodule(path)) for path in (producer, *takers)
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.steps_aside():
            return super().forward(*args, **kwargs)
        producer: Any = self.get_submodule(self.link(self)[0])
        producer.deferring = True
        try:
            return super().forward(*args, **kwargs)
        finally:
            producer.deferring = False


class SemsegHandover(Handover):
    names = ("PSPNet",)
    upstream = "semseg"
    producer, between, consumer = "ppm", "cls", "cls.0"


class MmsegHandover(Handover):
    names = ("PSPHead", "UPerHead")
    upstream = "mmseg"
    producer, between, consumer = "psp_modules", "bottleneck", "bottleneck.conv"


class SmpHandover(Handover):
    names = ("PSPDecoder",)
    upstream = "smp"
    producer, between, consumer = "psp", "conv", "conv.0"


class SequentialHandover(Handover):
    """A sequence in which a convolution stands behind a pyramid, as in PyTorch-Encoding's
    PSPHead."""

    names = ("Sequential",)
    upstream = "torch"

    @classmethod
    def link(cls, module: Any) -> tuple[str, list[str]]:
        children = list(module.named_children())
        for (path, one), (after, other) in itertools.pairwise(children):
            if isinstance(one, PyramidRecipe) and isinstance(other, nn.Conv2d):
                return path, [after]
        raise UnknownModuleError("it has no pyramid with a convolution behind it")


class BottleneckHandover(Handover):
    """A residual block that multiplies by what its SPBlock gives."""

    names = ("Bottleneck",)
    upstream = "SPNet"
    functions = "sigmoid_gate"

    @classmethod
    def link(cls, module: Any) -> tuple[str, list[str]]:
        return "spm", []
