"""Results that have not been computed yet, for code that belongs to somebody else.

A pyramid's concatenation need not exist where a convolution follows it, nor a gate where a product
does; but the two operations stand in different modules, and between them runs a `forward` that is
not ours. So the first module hands on a `Deferred`, and torch's override protocol
(`__torch_function__`) tells it what it meets. The operation it waits for takes its parts; anything
else gets the tensor, which is made then, once. It need not be a torch.Tensor for that: methods,
operators and attributes of a tensor all work on it, `isinstance` alone does not.

torch.compile and torch.export trace through all of this and see the operators only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stripctx import functional


class Deferred:
    """A tensor to be."""

    def __init__(self) -> None:
        self.made: Tensor | None = None

    def make(self) -> Tensor:
        raise NotImplementedError

    def tensor(self) -> Tensor:
        if self.made is None:
            self.made = self.make()
        return self.made

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = NotImplemented
        if function is torch.conv2d:
            result = _conv2d(*args, **kwargs)
        elif function is torch.cat:
            result = _cat(*args, **kwargs)
        elif function in _PRODUCTS:
            result = _product(*args, **kwargs)
        if result is not NotImplemented:
            return result
        made = {name: _made(value) for name, value in kwargs.items()}
        return function(*[_made(value) for value in args], **made)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor(), name)


class Level(Deferred):
    """A level of a pyramid, to be interpolated to a map's size: waits for its concatenation."""

    def __init__(self, level: Tensor, size: Sequence[int], align_corners: bool) -> None:
        super().__init__()
        self.level = level
        self.to = size
        self.align_corners = align_corners

    def make(self) -> Tensor:
        return F.interpolate(self.level, self.to, mode="bilinear", align_corners=self.align_corners)


class Pyramid(Deferred):
    """A map and its levels, to be concatenated: waits for a convolution."""

    def __init__(
        self, x: Tensor, levels: Sequence[Tensor], align_corners: bool, x_first: bool
    ) -> None:
        super().__init__()
        self.x = x
        self.version = _version(x)
        self.levels = levels
        self.how: dict[str, Any] = {"align_corners": align_corners, "x_index": 0 if x_first else -1}

    def make(self) -> Tensor:
        self.check()
        return functional.pyramid_concat(self.x, self.levels, **self.how)

    def conv(self, weight: Any, bias: Any, padding: Any, dilation: Any) -> Tensor:
        self.check()
        return functional.pyramid_conv(
            self.x, self.levels, weight, bias, padding=padding, dilation=dilation, **self.how
        )

    def check(self) -> None:
        if _version(self.x) != self.version:
            raise RuntimeError(
                "fuse: the map that a pyramid was given must not change in place before the "
                "convolution behind the pyramid has run; unfuse the module that holds both"
            )


class Gate(Deferred):
    """A sigmoid to be taken: waits for the map that it gates."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def make(self) -> Tensor:
        return self.logits.sigmoid()


def _conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    waits = isinstance(input, Pyramid) and input.made is None and not isinstance(weight, Deferred)
    if not waits or groups != 1 or stride not in (1, (1, 1), [1, 1]) or isinstance(padding, str):
        return NotImplemented
    return input.conv(weight, bias, padding, dilation)


def _version(x: Tensor) -> int:
    """How often x was changed in place, where that is counted."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version


def _cat(tensors: Any, dim: int = 0, **options: Any) -> Any:
    x, *levels = tensors
    if dim not in (1, -3) or options or not isinstance(x, Tensor) or x.dim() != 4:
        return NotImplemented
    for level in levels:
        if not isinstance(level, Level) or level.made is not None:
            return NotImplemented
        if level.to != x.shape[2:] or level.align_corners != levels[0].align_corners:
            return NotImplemented
    return Pyramid(x, [level.level for level in levels], levels[0].align_corners, True)


def _product(a: Any, b: Any) -> Any:
    x, gate = (b, a) if isinstance(a, Gate) else (a, b)
    if not isinstance(gate, Gate) or gate.made is not None or not isinstance(x, Tensor):
        return NotImplemented
    if x.dim() != 4 or x.shape != gate.logits.shape or x.dtype != gate.logits.dtype:
        return NotImplemented
    return functional.sigmoid_gate(x, gate.logits)


_PRODUCTS = (torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__)


def _made(value: Any) -> Any:
    if isinstance(value, Deferred):
        return value.tensor()
    if isinstance(value, (list, tuple)) and any(isinstance(one, Deferred) for one in value):
        return [_made(one) for one in value]
    return value


def _operator(name: str) -> Callable[..., Any]:
    def call(self: Deferred, *args: Any) -> Any:
        if name in ("__mul__", "__rmul__"):
            met = _product(self, *args)
            if met is not NotImplemented:
                return met
        return getattr(self.tensor(), name)(*[_made(value) for value in args])

    return call


# Python looks operators up in the class, past `__getattr__`.
_OPERATORS = (
    *("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv"),
    *("itruediv", "floordiv", "pow", "rpow", "mod", "matmul", "rmatmul", "neg", "pos", "abs"),
    *("invert", "and", "or", "xor", "lt", "le", "gt", "ge", "eq", "ne", "getitem", "setitem"),
    *("len", "iter", "contains", "bool", "float", "int"),
)
for _name in _OPERATORS:
    setattr(Deferred, f"__{_name}__", _operator(f"__{_name}__"))
