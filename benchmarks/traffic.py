"""Counts the memory traffic of a layer by intercepting all operators it calls, PyTorch's and ours.

Each operator counts as reading its operands once and writing its results once, the minimum. Layers
can run on meta tensors, which have no data, in milliseconds. tests/test_docs.py compares the counts
of our operators with their floors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

FREE = ("_unsafe_view", "detach", "empty", "new_empty")  # in addition to torch's view operators


@dataclass
class Traffic:
    """Bytes read and written, and multiply-adds of products, by the kind of operator."""

    bytes: dict[str, int] = field(default_factory=dict)
    multiply_adds: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The bytes of all kinds."""
        return sum(self.bytes.values())

    @property
    def products(self) -> int:
        """The multiply-adds of all kinds."""
        return sum(self.multiply_adds.values())

    def add(self, kind: str, bytes: int, multiply_adds: int) -> None:
        self.bytes[kind] = self.bytes.get(kind, 0) + bytes
        self.multiply_adds[kind] = self.multiply_adds.get(kind, 0) + multiply_adds


class Counting(TorchDispatchMode):
    """Adds the traffic of every operator to `traffic`. Views and uninitialised memory are free.

    torch's FlopCounterMode cannot be used: its hooks on modules fail with torch.autograd.grad for
    parameters. Only its formulas for single operators are used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(FREE):
            moved = moved_bytes(args) + moved_bytes(result)
            multiply_adds = operations(func, args, kwargs or {}, result) // 2
            self.traffic.add(kind_of(func), moved, multiply_adds)
        return result


def kind_of(func: Any) -> str:
    name: str = func.overloadpacket.__name__
    if func.namespace == "stripctx":
        return f"`{name.removesuffix('_backward')}`"
    if func.overloadpacket in flop_registry:
        return "convolutions, products"
    return "norms" if "batch_norm" in name else "additions, activations, copies"


def operations(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """The operations of convolutions and matrix products, including ours, as torch counts them."""
    if func.overloadpacket in flop_registry:
        count: int = flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        return count
    return 0


def moved_bytes(value: Any) -> int:
    """The bytes of all tensors in a nested value; an expanded dimension counts as size 1."""
    return sum(
        tensor.element_size() * elements(tensor.shape, tensor.stride()) for tensor in flat(value)
    )


def elements(sizes: Iterable[int], strides: Iterable[int]) -> int:
    count = 1
    for size, stride in zip(sizes, strides, strict=True):
        count *= size if stride else 1
    return count


def flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from flat(each)


def count(layer: nn.Module, maps: list[Tensor]) -> tuple[Traffic, Traffic]:
    """The traffic of a forward and a backward pass, with gradients of all maps and parameters."""
    wanted = [*maps, *(p for p in layer.parameters() if p.requires_grad)]
    with Counting() as forward:
        results = list(flat(layer(*maps)))
    gradients = [torch.empty_like(each) for each in results]
    with Counting() as backward:
        torch.autograd.grad(results, wanted, gradients, allow_unused=True)
    return forward.traffic, backward.traffic
