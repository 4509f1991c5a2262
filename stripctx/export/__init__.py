"""Every operator of `torch.ops.stripctx` in standard operators, for runtimes without this package.
Sizes may be symbolic.

`torch.onnx.export(..., dynamo=True)` uses these forms once stripctx is imported. For other
exporters that decompose a program (ExecuTorch, TensorRT), pass `decompositions()` to
`ExportedProgram.run_decompositions`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stripctx import _compat
from stripctx.export import encoding, height, labels, pyramid, strip, upsample
from stripctx.ops.register import FAKES

__all__ = ["decompositions"]

_FAMILIES = {
    strip: ("strip_pool", "strip_add_relu", "strip_conv", "sigmoid_gate"),
    pyramid: ("pyramid_pool", "pyramid_max_pool"),
    upsample: ("pyramid_concat", "pyramid_add_relu", "pyramid_taps_add"),
    height: ("row_gate",),
    encoding: ("encode", "channel_gate"),
    labels: (
        "upsample_argmax",
        "upsample_softmax_max",
        "upsample_cross_entropy",
        "upsample_binary_cross_entropy",
        "upsample_dice",
    ),
}


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The decompositions of all forward operators of stripctx into standard operators of torch.

    Returns:
        A table for `ExportedProgram.run_decompositions`: operator to function.

    Examples:
        >>> from stripctx import StripPooling
        >>> program = torch.export.export(StripPooling(8).eval(), (torch.randn(1, 8, 5, 7),))
        >>> program = program.run_decompositions(decompositions())
        >>> [n.name for n in program.graph.nodes if "stripctx" in str(n.target)]
        []
    """
    return {
        getattr(torch.ops.stripctx, name).default: getattr(family, name)
        for family, names in _FAMILIES.items()
        for name in names
    }


for _operator, _decomposition in decompositions().items():
    _compat.register_decomposition(_operator, _decomposition, FAKES[_operator])
