"""Building blocks of the floors: bytes and operations, sizes, launches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SIGMOID_OPERATIONS = 4


@dataclass(frozen=True)
class Floor:
    """Bytes read, bytes written, operations."""

    read: int = 0
    written: int = 0
    operations: int = 0

    @property
    def bytes(self) -> int:
        return self.read + self.written

    def __add__(self, other: Floor) -> Floor:
        return Floor(
            self.read + other.read,
            self.written + other.written,
            self.operations + other.operations,
        )


@dataclass(frozen=True)
class Shape:
    """Sizes of the map that an operator works on, and bytes per element.

    `hidden` is M, the channels between the strips and the gate's 1x1 convolution (0: as many as C).
    """

    batch: int
    channels: int
    height: int
    width: int
    element_size: int = 4
    hidden: int = 0

    @property
    def pixels(self) -> int:
        """Positions of the whole batch."""
        return self.batch * self.height * self.width

    @property
    def map(self) -> int:
        """Elements of x."""
        return self.pixels * self.channels

    @property
    def rows(self) -> int:
        """Elements of the strips (N, C, H, 1)."""
        return self.batch * self.channels * self.height

    @property
    def cols(self) -> int:
        """Elements of the strips (N, C, 1, W)."""
        return self.batch * self.channels * self.width

    @property
    def strips(self) -> int:
        """Elements of rows and cols together."""
        return self.rows + self.cols

    @property
    def accumulate_size(self) -> int:
        """Bytes of an accumulated value: float32, or float64 for float64."""
        return max(4, self.element_size)

    @property
    def middle(self) -> Shape:
        """The same positions with M channels."""
        channels = self.hidden or self.channels
        return Shape(self.batch, channels, self.height, self.width, self.element_size)

    def floor(self, *, read: int, written: int, operations: int) -> Floor:
        """Converts elements to bytes."""
        return Floor(read * self.element_size, written * self.element_size, operations)


FloorOf = Callable[[Shape], Floor]

Product = tuple[int, int, int]  # of matrices (rows, inner) by (inner, columns)
ProductOf = Callable[[Shape], Product]


def multiply_adds(product: Product) -> int:
    """The operations of a matrix product: a multiplication and an addition per term."""
    return 2 * math.prod(product)


# Bytes that CUDA kernels move in addition to the floor, computed from their launches. The comments
# of the kernels, csrc/*/*_cuda.cu, describe the work of a block and of a thread. Repeated reads hit
# a cache unless stated otherwise.


@dataclass(frozen=True)
class Launch:
    """The grid and block sizes of a kernel, each (x, y, z)."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]


Launches = Mapping[str, Launch]  # the kernels that one call launched, by name
Extra = Callable[[Shape, Launches], Floor]


def launch_of(launches: Launches, family: str) -> tuple[str, Launch]:
    """The one kernel whose name starts with `family`: the rest of its name, and its launch."""
    ((kernel, launch),) = ((k, v) for k, v in launches.items() if k.startswith(family))
    return kernel.removeprefix(family), launch


def partial_sums(shape: Shape, results: int, parts: int) -> Floor:
    """`parts` partial sums per result, written by one kernel and read by the next."""
    size = results * parts * shape.accumulate_size
    return Floor(read=size, written=size, operations=results * max(0, parts - 1))


def visits(shape: Shape, elements: int, times: int) -> Floor:
    """The extra bytes if an operand of `elements` elements is read `times` times."""
    return Floor(read=elements * (times - 1) * shape.element_size)


def gate_extra(shape: Shape, launches: Launches, family: str, parameters: int) -> Floor:
    """Reads of a gate's `parameters`, one per channel or plane, by the kernels of cuda/gate.cuh:
    once by every thread of a team that owns part of a contiguous plane, or that owns channels of a
    channels_last map. Partial sums of their gradient per team, in backward."""
    layout, launch = launch_of(launches, family)
    if layout.endswith("_planes"):
        pieces, threads = launch.grid[1], launch.block[0]
    else:
        pieces, threads = launch.grid[0] // shape.batch, launch.block[1]
    planes = shape.batch * shape.channels
    extra = Floor(read=(planes * pieces * threads - parameters) * shape.element_size)
    if "backward" not in family:
        return extra
    return extra + partial_sums(shape, parameters, planes // parameters * pieces)
