"""Tensors that wait for whoever consumes them.

An interpolated map is a promise. A convolution over its concatenation with others takes the small
maps instead, a sum takes them in one pass; anything else gets the tensor, which is made then, once,
at its old cost. torch's override protocol (`__torch_function__`) tells a promise what it meets. It
is no torch.Tensor: methods, operators and attributes of one work on it, `isinstance` alone does
not.

Which promises there are stands in promises.py, what takes one in consumers.py and labels.py.
torch.compile and torch.export trace through all of this and see the operators only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]

# What a promise does when a function of torch meets it, or a method of a tensor is called on it;
# NotImplemented where the tensor is wanted after all. Filled by fusion/consumers.py and labels.py.
CONSUMERS: dict[Function, Function] = {}
METHODS: dict[str, Function] = {}


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
        return partial(self._meet, name) if name in METHODS else getattr(self.tensor(), name)

    def _meet(self, method: str, *args: Any, **kwargs: Any) -> Any:
        result = METHODS[method](self, *args, **kwargs)
        return self._call(method, *args, **kwargs) if result is NotImplemented else result


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


# Python looks operators up in the class, past `__getattr__`.
_OPERATORS = (
    *("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv"),
    *("itruediv", "floordiv", "pow", "rpow", "mod", "matmul", "rmatmul", "neg", "pos", "abs"),
    *("invert", "and", "or", "xor", "lt", "le", "gt", "ge", "eq", "ne", "getitem", "setitem"),
    *("len", "iter", "contains", "bool", "float", "int"),
)


def _operator(name: str) -> Function:
    def call(self: Lazy, *args: Any) -> Any:
        return self._meet(name, *args) if name in METHODS else self._call(name, *args)

    return call


for _name in _OPERATORS:
    setattr(Lazy, f"__{_name}__", _operator(f"__{_name}__"))
