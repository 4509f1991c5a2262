"""Lazy tensors: results that are computed only if something needs them as tensors.

A convolution over a concatenation of lazily interpolated maps takes the small maps instead, and a
sum adds them in one pass. Any other use computes the tensor, once, at its usual cost. Functions of
torch are intercepted by torch's override protocol (`__torch_function__`). A lazy tensor is not a
torch.Tensor: it has the methods, operators and attributes of one, but `isinstance` is False.

The kinds of lazy tensors are in lazy_maps.py and labels.py, the functions that use them in
consumers.py and labels.py. torch.compile and torch.export trace through all of this and see the
operators only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]

# Implementations of torch's functions and of tensor methods for lazy tensors. They return
# NotImplemented where the tensor has to be computed. Filled by consumers.py and labels.py.
CONSUMERS: dict[Function, Function] = {}
METHODS: dict[str, Function] = {}


class Lazy:
    """A tensor of known shape, dtype and device that has not been computed yet."""

    shape: torch.Size
    inputs: tuple[Tensor, ...]  # the tensors that it is computed from

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
        """Raises if the inputs are no longer what the network's own forward would have used."""
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

    # Properties that code inspects; none of them computes the tensor.

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
        """The memory format is chosen when it is used."""
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
        if name.startswith("__"):  # e.g. __array__: only what the class defines
            raise AttributeError(name)
        return partial(self._meet, name) if name in METHODS else getattr(self.tensor(), name)

    def _meet(self, method: str, *args: Any, **kwargs: Any) -> Any:
        result = METHODS[method](self, *args, **kwargs)
        return self._call(method, *args, **kwargs) if result is NotImplemented else result


def is_lazy(value: Any) -> bool:
    """Whether an argument is lazy or a sequence with a lazy element."""
    if isinstance(value, (list, tuple)):
        return any(isinstance(one, Lazy) for one in value)
    return isinstance(value, Lazy)


def made(value: Any) -> Any:
    """The value with lazy tensors computed."""
    if isinstance(value, Lazy):
        return value.tensor()
    if isinstance(value, (list, tuple)) and any(isinstance(one, Lazy) for one in value):
        return type(value)([made(one) for one in value])
    return value


def _version(x: Tensor) -> int:
    """The in-place version counter of x; 0 where there is none."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version


def _inside_function() -> bool:
    """Whether the forward of a torch.autograd.Function is on the stack: it runs without gradients
    although its inputs may need them."""
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


# Python looks operators up in the class, not by `__getattr__`.
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
