"""The replacement for HANet's height-driven attention (Choi, Kim, Choo, CVPR 2020).

All children except the pooling are called as before, so norms, dropout and the positional
embeddings behave as upstream: they take the first column of `pos` and round noise down.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stripctx import functional
from stripctx.fusion.module import Fused, UnknownModuleError, idle, part


class HANetReplacement(Fused):
    """The module's own forward runs if the attention map or attention loss is requested too."""

    names = ("HANet_Conv",)
    upstream = "HANet"
    functions = "row_pool, row_gate"

    @classmethod
    def check(cls, module: Any) -> None:
        size = part(module, "rowpool", *_MODES).output_size
        if not isinstance(size, tuple) or size[1] != 1 or not isinstance(size[0], int):
            raise UnknownModuleError(f"rowpool pools to {size}, not to (L, 1)")
        for path in ("attention_first.0", _last(module)):
            part(module, path, nn.Conv1d)
        if getattr(module, "pos_injection", None) not in (1, 2):
            raise UnknownModuleError("its pos_injection is neither 1 nor 2")

    @classmethod
    def examples(cls, module: Any) -> list[tuple[Any, ...]]:
        weight = module.attention_first[0].weight
        last = part(module, _last(module))
        like = {"dtype": weight.dtype, "device": weight.device}
        x = torch.randn(2, weight.size(1), 37, 5, **like)
        out = torch.randn(2, last.out_channels, 23, 7, **like)
        pos = torch.randint(0, 128, (2, 41, 9), device=weight.device)
        return [(x, out), (x, out, (pos, pos))]

    def unnoticed(self) -> bool:
        return idle(self.rowpool, *_MODES)

    def forward(self, x: Tensor, out: Tensor, pos: Any = None, *args: Any, **kwargs: Any) -> Any:
        if self.steps_aside() or any(args) or any(kwargs.values()):
            return super().forward(x, out, pos, *args, **kwargs)
        rows = functional.row_pool(x, self.rowpool.output_size[0], _MODES[type(self.rowpool)])
        if pos is not None and self.pos_injection == 1:
            rows = self.pos_emb1d_1st(rows, pos)
        if hasattr(self, "dropout"):
            rows = self.dropout(rows)
        rows = self.attention_first(rows)
        if pos is not None and self.pos_injection == 2:
            rows = self.pos_emb1d_2nd(rows, pos)
        rows = self.attention_second(rows)
        if hasattr(self, "attention_third"):
            rows = self.attention_third(rows)
        return functional.row_gate(out, rows)


_MODES: dict[type[nn.Module], str] = {nn.AdaptiveAvgPool2d: "mean", nn.AdaptiveMaxPool2d: "max"}


def _last(module: Any) -> str:
    return "attention_third.0" if hasattr(module, "attention_third") else "attention_second.0"
