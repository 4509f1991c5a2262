"""Concatenation, convolution, addition and multiplication of lazy tensors. Each function returns
NotImplemented if it cannot use the lazy form; the tensor is then computed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stripctx import functional
from stripctx.fusion import cost
from stripctx.fusion.lazy import CONSUMERS, METHODS, Lazy, made
from stripctx.fusion.lazy_maps import Gate, Level, Pyramid, Sum, alike
from stripctx.ops import checks
from stripctx.ops.upsample_checks import MOST_LEVELS


def _cat(tensors: Any, dim: int = 0, **options: Any) -> Any:
    """Concatenates maps of one size along the channels: tensors, levels and lazy concatenations."""
    if dim not in (1, -3) or options or not isinstance(tensors, (list, tuple)):
        return NotImplemented
    parts: list[Tensor | Level] = []
    for one in tensors:
        if isinstance(one, Pyramid) and one.waits:
            one.check()
            parts += one.parts
        elif isinstance(one, Level) and one.waits:
            one.check()
            parts.append(one)
        else:
            parts.append(made(one))
    first = parts[0]
    for part in parts:
        fits = isinstance(part, (Tensor, Level)) and len(part.shape) == 4
        if not fits or part.shape[0] != first.shape[0] or part.shape[2:] != first.shape[2:]:
            return NotImplemented
    return Pyramid(parts)


def _conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if isinstance(input, Level) and input.waits:
        input = Pyramid([input])
    plain = isinstance(input, Pyramid) and input.waits and _is_plain(weight)
    if not plain or groups != 1 or isinstance(padding, str) or _pair(stride) != (1, 1):
        return NotImplemented
    return input.conv(weight, bias, _pair(padding), _pair(dilation))


def _pair(value: Any) -> Any:
    """A conv2d argument as a pair: it may be a number or a sequence of one or two."""
    if isinstance(value, (tuple, list)):
        return tuple(value) * 2 if len(value) == 1 else tuple(value)
    return value, value


def _is_plain(weight: Any) -> bool:
    """Whether it is a dense tensor, or a traced one, and no subclass that implements conv2d itself
    (DTensor, quantised weights)."""
    if not isinstance(weight, Tensor) or weight.layout is not torch.strided or weight.is_quantized:
        return False
    if torch.compiler.is_compiling():
        return True
    return not type(weight).__module__.startswith(("torch.distributed", "torchao"))


def _add(a: Any, b: Any, *, alpha: Any = 1) -> Any:
    """The sum of one map and levels interpolated to its shape, in any nesting and order."""
    if alpha != 1:
        return NotImplemented
    terms = [*_terms(a), *_terms(b)]
    levels = [one for one in terms if isinstance(one, Level)]
    maps = [one for one in terms if not isinstance(one, Level)]
    if not maps and len(levels) > 1:
        maps = [levels.pop(0).tensor()]
    if len(maps) != 1 or not levels or len(levels) > MOST_LEVELS:
        return NotImplemented
    x = maps[0]
    if not isinstance(x, Tensor) or x.dim() != 4 or x.dtype not in checks.DTYPES:
        return NotImplemented
    if any(one.shape != x.shape or not alike(x, one.level) for one in levels):
        return NotImplemented
    return Sum(x, levels)


def _terms(value: Any) -> list[Any]:
    if isinstance(value, Sum) and value.waits:
        value.check()
        return [value.x, *value.levels]
    if isinstance(value, Level) and value.waits:
        return [value]
    return [made(value)]


def _relu(input: Any, inplace: bool = False) -> Any:
    return input.relu() if isinstance(input, Sum) and input.waits else NotImplemented


def _dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return input if isinstance(input, Lazy) and (not training or p == 0) else NotImplemented


def _pad(input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    nothing = isinstance(pad, (list, tuple)) and all(isinstance(p, int) and p == 0 for p in pad)
    return input if isinstance(input, Lazy) and nothing else NotImplemented


def _product(a: Any, b: Any) -> Any:
    x, gate = (b, a) if isinstance(a, Gate) else (a, b)
    if not isinstance(gate, Gate) or not gate.waits or not isinstance(x, Tensor):
        return NotImplemented
    logits = gate.inputs[0]
    if x.dim() != 4 or x.shape != logits.shape or x.dtype != logits.dtype:
        return NotImplemented
    cost.note([gate])
    return functional.sigmoid_gate(x, logits)


CONSUMERS.update(
    {
        torch.cat: _cat,
        torch.concat: _cat,
        torch.concatenate: _cat,
        torch.conv2d: _conv2d,
        torch.add: _add,
        torch.Tensor.add: _add,
        torch.Tensor.__add__: _add,
        torch.Tensor.__radd__: _add,
        torch.relu: _relu,
        F.relu: _relu,
        torch.Tensor.relu: _relu,
        F.dropout: _dropout,
        F.dropout2d: _dropout,
        F.pad: _pad,
        torch.mul: _product,
        torch.Tensor.mul: _product,
        torch.Tensor.__mul__: _product,
        torch.Tensor.__rmul__: _product,
    }
)
METHODS.update(
    {
        "add": _add,
        "__add__": _add,
        "__radd__": _add,
        "mul": _product,
        "__mul__": _product,
        "__rmul__": _product,
    }
)
