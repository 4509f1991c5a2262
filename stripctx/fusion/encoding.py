"""Replacements for the encoding layer (Zhang et al., Deep TEN, CVPR 2017) and the context encoding
modules built on it (Zhang et al., CVPR 2018).

Children are called as before; only the residual encoding and the channel gate are replaced. mmseg's
EncHead contains an EncModule and needs no replacement of its own.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stripctx import functional
from stripctx.fusion.module import Fused, UnknownModuleError, example, flag, part


class EncodingReplacement(Fused):
    names = ("Encoding",)
    upstream = "PyTorch-Encoding and mmseg"
    functions = "encode"

    @classmethod
    def check(cls, module: Any) -> None:
        shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
        codewords = shapes.get("codewords", ())
        if len(codewords) != 2 or shapes != {"codewords": codewords, "scale": codewords[:1]}:
            raise UnknownModuleError(f"it has {shapes}, not codewords (K, D) and scale (K)")

    @classmethod
    def examples(cls, module: Any) -> list[tuple[Any, ...]]:
        codewords = module.codewords
        size = (2, codewords.size(1), 11, 13)
        return [(torch.randn(size, dtype=codewords.dtype, device=codewords.device),)]

    def unnoticed(self) -> bool:
        return True

    def forward(self, x: Tensor) -> Any:
        if self.steps_aside(x):
            return super().forward(x)
        return functional.encode(x, self.codewords, self.scale)


class ContextReplacement(Fused):
    """EncModule: encodes its input and gates it by the result. `projection` is the path of its
    first convolution."""

    names = ("EncModule",)
    functions = "channel_gate"
    projection: ClassVar[str]

    @classmethod
    def check(cls, module: Any) -> None:
        part(module, cls.projection, nn.Conv2d)
        part(module, "encoding")
        part(module, "fc")

    @classmethod
    def examples(cls, module: Any) -> list[tuple[Any, ...]]:
        return [(example(module.get_submodule(cls.projection)),)]

    def unnoticed(self) -> bool:
        return True


class EncodingEncModule(ContextReplacement):
    upstream = "PyTorch-Encoding"
    projection = "encoding.0"

    @classmethod
    def check(cls, module: Any) -> None:
        super().check(module)
        if flag(module, "se_loss"):
            part(module, "selayer")

    def forward(self, x: Tensor) -> Any:
        if self.steps_aside(x):
            return super().forward(x)
        encoded = self.encoding(x)
        features = functional.channel_gate(x, self.fc(encoded))
        return (features, self.selayer(encoded)) if self.se_loss else (features,)


class MmsegEncModule(ContextReplacement):
    """Returns the encoding first; the head computes the logits of the auxiliary loss from it."""

    upstream = "mmseg"
    projection = "encoding_project.conv"

    def forward(self, x: Tensor) -> Any:
        if self.steps_aside(x):
            return super().forward(x)
        encoded = self.encoding(self.encoding_project(x)).mean(dim=1)
        return encoded, functional.channel_gate(x, self.fc(encoded))
