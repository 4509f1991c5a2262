"""Tensors that wait for whoever consumes them.

An interpolated map is a promise. A convolution over its concatenation with others takes the small
maps instead, a sum takes them in one pass; anything else gets the tensor, which is made then, once,
at its old cost. torch's override protocol (`__torch_function__`) tells a promise what it meets. It
is no torch.Tensor: methods, operators and attributes of one work on it, `isinstance` alone does
not.

    Level      F.interpolate(level, ...)
    Pyramid    torch.cat of maps, some of them Levels
    Sum        a map + Levels
    Gate       a sigmoid, which waits for its product

torch.compile and torch.export trace through all of this and see the operators only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stripctx import functional
from stripctx._compat import same_sizes
from stripctx.fusion import cost
from stripctx.ops import checks
from stripctx.ops.upsample import MOST_LEVELS

Function = Callable[..., Any]


class Lazy:
    """A tensor to be, of a known shape, dtype and device."""

    shape: torch.Size
    inputs: tuple[Tensor, ...]  # what it is made from

    def __init__(self, shape: Sequence[int], inputs: Sequence[Tensor]) -> None:
        self.shape = torch.Size(shape)
        self.inputs = tuple(inputs)
        self.made: Tensor | None = None
        self.versions = [_version(one) for one in self.inputs]
        self.grad_enabled = torch.is_grad_enabled()

    def make(self) -> Tensor:
        raise NotImplementedError

    def tensor(self) -> Tensor:
        if self.made is None:
            self.check()
            self.made = self.make()
        return self.made

    def check(self) -> None:
        """Whatever takes the inputs must find what the network's own forward would have seen."""
        if [_version(one) for one in self.inputs] != self.versions:
            raise RuntimeError(
                "fuse: a map changed in place while its interpolation waited for a convolution; "
                "unfuse the module, or change a copy"
            )
        if self.grad_enabled and not torch.is_grad_enabled() and _inside_function():
            raise RuntimeError(
                "fuse: an interpolated map went into a torch.autograd.Function, which saw no "
                "tensor and would lose its gradient; unfuse the module or, if this is "
                "checkpointing, use checkpoint(..., use_reentrant=False)"
            )

    @property
    def waits(self) -> bool:
        return self.made is None

    # What code asks before it decides; none of it makes the tensor.

    @property
    def dtype(self) -> torch.dtype:
        return self.inputs[0].dtype

    @property
    def device(self) -> torch.device:
        return self.inputs[0].device

    @property
    def layout(self) -> torch.layout:
        return torch.strided

    @property
    def is_cuda(self) -> bool:
        return self.inputs[0].is_cuda

    @property
    def requires_grad(self) -> bool:
        return self.grad_enabled and any(one.requires_grad for one in self.inputs)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        return True

    def contiguous(self, *, memory_format: torch.memory_format = torch.contiguous_format) -> Any:
        """Whoever consumes it chooses the format."""
        return (
            self
            if memory_format is torch.contiguous_format
            else self._call("contiguous", memory_format=memory_format)
        )

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.tensor(), name)(*[made(a) for a in args], **kwargs)

    @classmethod
    def __torch_function__(
        cls,
        function: Function,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        consumer = CONSUMERS.get(function)
        if consumer is not None:
            result = consumer(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return function(
            *[made(value) for value in args], **{name: made(v) for name, v in kwargs.items()}
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # protocols ask; a promise has no others than its class
            raise AttributeError(name)
        return getattr(self.tensor(), name)


class Level(Lazy):
    """A map to be interpolated, with the arguments of `F.interpolate`."""

    def __init__(
        self,
        level: Tensor,
        size: Sequence[int],
        mode: str,
        align_corners: bool | None,
        scale_factor: tuple[float, float] | None,
    ) -> None:
        super().__init__((*level.shape[:2], *size), (level,))
        self.level, self.mode, self.scale_factor = level, mode, scale_factor
        self.align_corners = bool(align_corners) if mode == "bilinear" else None
        self.place = cost.here()

    def make(self) -> Tensor:
        """As F.interpolate does, which the scope would catch."""
        scales = self.scale_factor
        size = None if scales else list(self.shape[2:])
        aten = torch.ops.aten
        if self.mode == "bilinear":
            return aten.upsample_bilinear2d.vec(self.level, size, self.align_corners, scales)
        if self.mode == "nearest":
            return aten.upsample_nearest2d.vec(self.level, size, scales)
        return aten._upsample_nearest_exact2d.vec(self.level, size, scales)

    @property
    def is_identity(self) -> bool:
        return same_sizes(self.level.shape, self.shape)


class Pyramid(Lazy):
    """Maps side by side, to be concatenated: tensors of one size, and levels to be interpolated to
    it."""

    def __init__(self, parts: Sequence[Tensor | Level]) -> None:
        first = parts[0]
        inputs = [part.level if isinstance(part, Level) else part for part in parts]
        channels = sum(part.shape[1] for part in parts)
        super().__init__((first.shape[0], channels, *first.shape[2:]), inputs)
        self.parts = list(parts)

    def make(self) -> Tensor:
        return torch.cat([made(part) for part in self.parts], 1)

    def conv(self, weight: Tensor, bias: Tensor | None, padding: Any, dilation: Any) -> Any:
        """The convolution over it; NotImplemented where it is not cheaper so."""
        if not _alike(*self.inputs):
            return NotImplemented
        size, kernel = self.shape[2:], weight.shape[2:]
        parts = [
            part.level if isinstance(part, Level) and part.waits and part.is_identity else part
            for part in self.parts
        ]
        wait = [
            isinstance(part, Level)
            and part.waits
            and cost.pays(part.level.shape, size, weight.shape[0], kernel)
            for part in parts
        ]
        cost.record(self, weight, wait)
        if not any(wait):
            return NotImplemented
        self.check()
        maps = [
            part.level if w and isinstance(part, Level) else made(part)
            for part, w in zip(parts, wait, strict=True)
        ]
        if all(wait):  # a map of no channels says how large
            maps.append(maps[0].new_empty((self.shape[0], 0, *size)))
            wait.append(False)
        x_index = wait.index(False)
        levels = [*parts[:x_index], *parts[x_index + 1 :]]
        waits = [*wait[:x_index], *wait[x_index + 1 :]]
        ways = [
            (part.mode, part.align_corners, part.scale_factor)
            if w and isinstance(part, Level)
            else ("nearest", None, None)
            for part, w in zip(levels, waits, strict=True)
        ]
        modes, corners, scales = (list(each) for each in zip(*ways, strict=True))
        return functional.pyramid_conv(
            maps[x_index],
            [*maps[:x_index], *maps[x_index + 1 :]],
            weight,
            bias,
            padding=padding,
            dilation=dilation,
            mode=modes,
            align_corners=corners,
            scale_factor=scales,
            x_index=x_index,
        )


class Sum(Lazy):
    """A map and levels that are added to it, in that order."""

    def __init__(self, x: Tensor, levels: Sequence[Level]) -> None:
        super().__init__(x.shape, [x, *(level.level for level in levels)])
        self.x, self.levels = x, list(levels)

    def make(self) -> Tensor:
        return self._sum(functional.pyramid_add)

    def relu(self) -> Tensor:
        self.check()
        return self._sum(functional.pyramid_add_relu)

    def _sum(self, function: Function) -> Tensor:
        levels = self.levels
        cost.note(levels)
        return function(
            self.x,
            [one.level for one in levels],
            mode=[one.mode for one in levels],
            align_corners=[one.align_corners for one in levels],
            scale_factor=[one.scale_factor for one in levels],
        )


class Gate(Lazy):
    """A sigmoid to be taken: waits for the map that it gates."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits.shape, (logits,))
        self.place = cost.here()

    def make(self) -> Tensor:
        return self.inputs[0].sigmoid()


def holds_promise(value: Any) -> bool:
    """Whether an argument is a promise or a sequence with one."""
    if isinstance(value, (list, tuple)):
        return any(isinstance(one, Lazy) for one in value)
    return isinstance(value, Lazy)


def made(value: Any) -> Any:
    """The value with every promise in it kept."""
    if isinstance(value, Lazy):
        return value.tensor()
    if isinstance(value, (list, tuple)) and any(isinstance(one, Lazy) for one in value):
        return type(value)([made(one) for one in value])
    return value


def _alike(*tensors: Tensor) -> bool:
    """Of one dtype and device, without which cat and conv2d have rules of their own."""
    first = tensors[0]
    return all(one.dtype == first.dtype and one.device == first.device for one in tensors)


def _version(x: Tensor) -> int:
    """How often x was changed in place, where that is counted."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version


def _inside_function() -> bool:
    """Whether a torch.autograd.Function's forward runs: the one kind of code that turns gradients
    off and has them all the same."""
    if torch.compiler.is_compiling():
        return False
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "forward":
            values = list(frame.f_locals.values())[:1]
            if values and isinstance(values[0], torch.autograd.function.BackwardCFunction):
                return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


# Consumers: what a promise meets. NotImplemented where the tensor is wanted after all.


def _cat(tensors: Any, dim: int = 0, **options: Any) -> Any:
    """Of maps of one size, each a tensor, a level or a concatenation that waits."""
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
    return Pyramid(parts) if len(parts) <= cost.MOST_PARTS else NotImplemented


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
    if not plain or groups != 1 or stride not in (1, (1, 1), [1, 1]) or isinstance(padding, str):
        return NotImplemented
    return input.conv(weight, bias, padding, dilation)


def _is_plain(weight: Any) -> bool:
    """A dense tensor, or what stands for one in a trace: nothing with a convolution of its own."""
    if not isinstance(weight, Tensor) or weight.layout is not torch.strided or weight.is_quantized:
        return False
    if torch.compiler.is_compiling():
        return True
    return not type(weight).__module__.startswith(("torch.distributed", "torchao"))


def _add(a: Any, b: Any, *, alpha: Any = 1) -> Any:
    """Of a map and a level of its shape, on either side, or of such a sum and either."""
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
    if any(one.shape != x.shape or not _alike(x, one.level) for one in levels):
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


_NN = torch.nn.functional
CONSUMERS: dict[Function, Function] = {
    torch.cat: _cat,
    torch.concat: _cat,
    torch.concatenate: _cat,
    torch.conv2d: _conv2d,
    torch.add: _add,
    torch.Tensor.add: _add,
    torch.Tensor.__add__: _add,
    torch.Tensor.__radd__: _add,
    torch.relu: _relu,
    _NN.relu: _relu,
    torch.Tensor.relu: _relu,
    _NN.dropout: _dropout,
    _NN.dropout2d: _dropout,
    _NN.pad: _pad,
    torch.mul: _product,
    torch.Tensor.mul: _product,
    torch.Tensor.__mul__: _product,
    torch.Tensor.__rmul__: _product,
}


# Python looks operators up in the class, past `__getattr__`.
_CONSUMING = {"__add__": _add, "__radd__": _add, "__mul__": _product, "__rmul__": _product}
_OPERATORS = (
    *("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv"),
    *("itruediv", "floordiv", "pow", "rpow", "mod", "matmul", "rmatmul", "neg", "pos", "abs"),
    *("invert", "and", "or", "xor", "lt", "le", "gt", "ge", "eq", "ne", "getitem", "setitem"),
    *("len", "iter", "contains", "bool", "float", "int"),
)


def _operator(name: str) -> Function:
    def call(self: Lazy, *args: Any) -> Any:
        if name in _CONSUMING:
            result = _CONSUMING[name](self, *args)
            if result is not NotImplemented:
                return result
        return self._call(name, *args)

    return call


for _name in _OPERATORS:
    setattr(Lazy, f"__{_name}__", _operator(f"__{_name}__"))
