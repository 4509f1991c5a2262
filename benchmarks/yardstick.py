"""What a case at least needs, and a plain copy or product that needs as much: the floor, which is
timed beside the candidates.

A function's floor stands in benchmarks/floors. A layer's is counted: its arguments, parameters,
results and gradients once each, and the operations of its products as benchmarks/traffic.py has
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import measure, traffic
from benchmarks.floors import FLOORS, PRODUCTS, Floor, Product, Shape, multiply_adds
from benchmarks.inputs import Size, tensors

# A layer that computes more for each byte takes as long as its products, not as its traffic: about
# where one core of today's processors changes sides.
OPERATIONS_A_BYTE = 16


@dataclass(frozen=True)
class Yardstick:
    """`by` is "copy" or "product": of as many bytes, or of as many operations. `make` allocates the
    buffers of one."""

    least: Floor
    by: str
    make: Callable[[], measure.Run]


def of_function(operator: str, size: Size, dtype: torch.dtype, mode: str, device: str) -> Yardstick:
    shape = Shape(*size, element_size=dtype.itemsize)
    least = FLOORS[operator](shape)
    if mode != "fwd":
        least += FLOORS[f"{operator}_backward"](shape)
    if operator in PRODUCTS:
        return _by_product(least, PRODUCTS[operator](shape), dtype, device)
    return _by_copy(least, device)


def of_layer(
    layer: nn.Module,
    arguments: Sequence[Any],
    size: Size,
    run: Callable[[], list[Tensor]],
    device: str,
) -> Yardstick:
    """`run` is a call of the layer with these arguments that returns all results."""
    with traffic.Counting() as counting:
        results = run()
    least = Floor(
        read=sum(value.nbytes for value in [*tensors(arguments), *layer.parameters()]),
        written=sum(value.nbytes for value in results),
        operations=2 * counting.traffic.products,
    )
    if least.operations < OPERATIONS_A_BYTE * least.bytes:
        return _by_copy(least, device)
    shape = Shape(*size)
    columns = round(least.operations / multiply_adds((shape.pixels, shape.channels, 1)))
    product = (shape.pixels, shape.channels, min(columns, shape.channels))
    return _by_product(least, product, results[0].dtype, device)


def _by_copy(least: Floor, device: str) -> Yardstick:
    return Yardstick(least, "copy", partial(measure.copy_of, least.bytes, device))


def _by_product(least: Floor, product: Product, dtype: torch.dtype, device: str) -> Yardstick:
    """As many products of this size as make up the operations."""
    times = max(1, round(least.operations / multiply_adds(product)))

    def make() -> measure.Run:
        multiply = measure.product_of(*product, dtype, device)

        def products() -> None:
            for _ in range(times):
                multiply()

        return products

    return Yardstick(least, "product", make)
