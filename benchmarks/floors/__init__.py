"""How many bytes and operations every operator needs, the only place where these facts stand.

A floor is what the formula cannot do without: every input read once, every output written once, no
intermediate result. `floor` gives an operator's; the share of it that a kernel reaches is measured
in the benchmarks. A CUDA kernel may have to move more, because several blocks visit one operand or
leave partial sums for a second stage: `CUDA_EXTRA` says how much, and tests/test_cuda_traffic.py
holds the bytes that the emulator counts to `cuda_traffic`, floor plus extra, within 5 %.

Operations count additions, multiplications, divisions, comparisons and exponentials as one each, so
a sigmoid is 4 (negation, exponential, addition, division) and a multiply-add 2. Where most of them
are products of matrices, `PRODUCTS` says of what size.

One file a family; shapes are (N, C, H, W). Importable without torch.
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
from benchmarks.floors.upsample import KERNEL, MPM_BINS

__all__ = [
    "CODES",
    "CUDA_EXTRA",
    "FLOORS",
    "GATE_ROWS",
    "KERNEL",
    "MPM_BINS",
    "PRODUCTS",
    "PSP_BINS",
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
    """What the operator's CUDA kernels move together, counted at their loads and stores. One that
    CUDA_EXTRA does not list moves its floor and no more."""
    least = floor(operator, shape)
    return least + CUDA_EXTRA[operator](shape, launches) if operator in CUDA_EXTRA else least
