"""Replacements for strip pooling: SPNet's modules (Hou et al., CVPR 2020), by upstream names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stripctx import functional
from stripctx.fusion import scope
from stripctx.fusion.lazy_maps import Gate
from stripctx.fusion.module import (
    Fused,
    UnknownModuleError,
    convolution,
    example,
    idle,
    pair,
    part,
    up_aligned,
)
from stripctx.layers import MixedPooling


class SPBlockReplacement(Fused):
    """SPNet's SPBlock: returns the gate; the residual block around it multiplies."""

    names = ("SPBlock",)
    upstream = "SPNet"
    functions = "strip_pool, strip_add_relu"

    @classmethod
    def check(cls, module: Any) -> None:
        convolution(module, "conv1", kernel_size=(3, 1), padding=(1, 0), stride=(1, 1))
        convolution(module, "conv2", kernel_size=(1, 3), padding=(0, 1), stride=(1, 1))
        convolution(module, "conv3", kernel_size=(1, 1), padding=(0, 0), stride=(1, 1))
        part(module, "bn1")
        part(module, "bn2")
        for name, child in module.named_children():
            if name not in _SPBLOCK and type(child) not in _SILENT:
                raise UnknownModuleError(f"{name} is {type(child).__name__}")

    @classmethod
    def examples(cls, module: Any) -> list[tuple[Any, ...]]:
        return [(example(module.conv1),)]

    def unnoticed(self) -> bool:
        return all(
            idle(child, *_SILENT) for name, child in self.named_children() if name not in _SPBLOCK
        )

    def forward(self, x: Tensor) -> Any:
        if self.steps_aside(x):
            return super().forward(x)
        rows, cols = functional.strip_pool(x)
        both = functional.strip_add_relu(self.bn1(self.conv1(rows)), self.bn2(self.conv2(cols)))
        gate = Gate(self.conv3(both))
        return gate if scope.is_open() else gate.tensor()  # lazy: becomes sigmoid_gate


# The children that are called, and the types that the others may have.
_SPBLOCK = ("conv1", "bn1", "conv2", "bn2", "conv3")
_SILENT = (nn.AdaptiveAvgPool2d, nn.ReLU, nn.Sigmoid)


class StripPoolingReplacement(Fused):
    """SPNet's StripPooling, the paper's mixed pooling module. Its children have the same names as
    `MixedPooling`'s, whose two paths it runs."""

    names = ("StripPooling",)
    upstream = "SPNet"
    functions = "pyramid_pool, pyramid_add_relu, strip_pool, strip_add_relu"

    pooling = "strip"  # MixedPooling's option
    _short: Any = MixedPooling._short
    _long: Any = MixedPooling._long

    @classmethod
    def check(cls, module: Any) -> None:
        for name in _PATHS:
            convolution(module, f"{name}.0", stride=(1, 1))
        for i, (height, width) in enumerate(((1, 1), (1, 1), (1, 0), (0, 1)), 1):
            size = pair(part(module, f"pool{i}", nn.AdaptiveAvgPool2d).output_size)
            if (size[0] is None, size[1] is None) != (not height, not width):
                raise UnknownModuleError(f"pool{i} pools to {size}")
        up_aligned(module)

    @classmethod
    def examples(cls, module: Any) -> list[tuple[Any, ...]]:
        return [(example(module.conv1_1[0]),)]

    @property
    def pool_sizes(self) -> tuple[Any, Any]:
        return pair(self.pool1.output_size), pair(self.pool2.output_size)

    @property
    def align_corners(self) -> bool:
        return up_aligned(self)

    def unnoticed(self) -> bool:
        pools = (self.pool1, self.pool2, self.pool3, self.pool4)
        return all(idle(pool, nn.AdaptiveAvgPool2d) for pool in pools)

    def forward(self, x: Tensor) -> Any:
        if self.steps_aside(x):
            return super().forward(x)
        mixed = torch.cat([self._short(self.conv1_1(x)), self._long(self.conv1_2(x))], 1)
        return torch.relu_(x + self.conv3(mixed))


_PATHS = ("conv1_1", "conv1_2", *(f"conv2_{i}" for i in range(7)), "conv3")
