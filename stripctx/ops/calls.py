"""Calls of operators by the public functions. In a TorchScript trace that cannot contain an
operator, its decomposition is called instead: torch.onnx.export(dynamo=False) supports none of
ours, and torch.jit.trace cannot record one whose arguments are traced sizes."""

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
    """Whether the argument contains traced sizes."""
    if not isinstance(argument, Sequence):
        return False
    return any(isinstance(one, Tensor) and one.dim() == 0 for one in argument)
