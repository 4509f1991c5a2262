"""How the public functions call an operator: as it is, or in standard operators in a trace by
TorchScript that could not hold it. torch.onnx.export with dynamo=False knows none of ours, and
torch.jit.trace records none that is given sizes of the image it traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stripctx import _compat


def call(operator: Any, *args: Any) -> Any:
    """Calls an operator of `torch.ops.stripctx`."""
    traces = _compat.is_tracing() and (torch.onnx.is_in_onnx_export() or any(map(_is_sizes, args)))
    if not traces:
        return operator(*args)
    from stripctx.export import decompositions  # needs every operator to be registered

    return decompositions()[operator.default](*args)


def _is_sizes(argument: Any) -> bool:
    """Whether it holds sizes that are traced."""
    if not isinstance(argument, Sequence):
        return False
    return any(isinstance(one, Tensor) and one.dim() == 0 for one in argument)
