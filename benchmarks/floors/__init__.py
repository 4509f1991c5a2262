"""The minimum bytes and operations of every operator, defined in one place.

A floor is a lower bound: each input is read once, each output is written once, and intermediate
results are not stored. The benchmarks compare kernels with it. A CUDA kernel may move more bytes,
because several blocks read the same operand or write partial sums for a second kernel: `CUDA_EXTRA`
defines how many more, and tests/test_cuda_traffic.py checks that the bytes counted by the emulator
are within 5 % of `cuda_traffic`, the floor plus the extra bytes.

Additions, multiplications, divisions, comparisons and exponentials count as one operation each, so
a sigmoid is 4 (negation, exponential, addition, division) and a multiply-add 2. If most of an
operator's operations are a matrix product, `PRODUCTS` gives its sizes.

There is one file per family. Shapes are (N, C, H, W). The package does not import torch.
"""

from __future__ import annotations

from benchmarks.floors import encoding, height, labels, pyramid, strip, upsample
from benchmarks.floors.base import (
    Extra,
    Floor,
    FloorOf,
    Launch,
    Launches,
    Product,
    ProductOf,
    Shape,
    multiply_adds,
)
from benchmarks.floors.encoding import CODES
from benchmarks.floors.height import GATE_ROWS
from benchmarks.floors.pyramid import PSP_BINS
from benchmarks.floors.upsample import HALF_LEVELS, KERNEL, MPM_BINS, VARIANTS

__all__ = [
    "CODES",
    "CUDA_EXTRA",
    "FLOORS",
    "GATE_ROWS",
    "HALF_LEVELS",
    "KERNEL",
    "MPM_BINS",
    "PRODUCTS",
    "PSP_BINS",
    "VARIANTS",
    "Floor",
    "Launch",
    "Launches",
    "Product",
    "Shape",
    "cuda_traffic",
    "floor",
    "multiply_adds",
]

FLOORS: dict[str, FloorOf] = (
    strip.FLOORS
    | pyramid.FLOORS
    | upsample.FLOORS
    | height.FLOORS
    | encoding.FLOORS
    | labels.FLOORS
)
PRODUCTS: dict[str, ProductOf] = strip.PRODUCTS | upsample.PRODUCTS | encoding.PRODUCTS
CUDA_EXTRA: dict[str, Extra] = (
    strip.CUDA_EXTRA
    | pyramid.CUDA_EXTRA
    | upsample.CUDA_EXTRA
    | height.CUDA_EXTRA
    | encoding.CUDA_EXTRA
    | labels.CUDA_EXTRA
)


def floor(operator: str, shape: Shape) -> Floor:
    """The floor of the operator of this name."""
    return FLOORS[operator](shape)


def cuda_traffic(operator: str, shape: Shape, launches: Launches) -> Floor:
    """The bytes moved by all CUDA kernels of the operator, counted at their loads and stores; the
    floor for an operator that is not in CUDA_EXTRA."""
    least = floor(operator, shape)
    return least + CUDA_EXTRA[operator](shape, launches) if operator in CUDA_EXTRA else least
