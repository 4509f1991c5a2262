"""How many bytes and operations every operator needs, the only place where these facts stand.

A floor is what the formula cannot do without: every input read once, every output written once, no
intermediate result. `floor` gives an operator's; the share of it that a kernel reaches is measured
in the benchmarks. A CUDA kernel may have to move more, because several blocks visit one operand or
leave partial sums for a second stage: `CUDA_EXTRA` says how much, and the emulator's tests hold
every kernel's counted bytes to `cuda_traffic`, floor plus extra, within 5 %.

Operations count additions, multiplications, divisions, comparisons and exponentials as one each, so
a sigmoid is 4 (negation, exponential, addition, division) and a multiply-add 2.

Shapes: x (N, C, H, W); rows (N, C, H, 1); cols (N, C, 1, W). Importable without torch.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """Sizes of the map that an operator works on and bytes an element.

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
    def strips(self) -> int:
        """Elements of rows and cols together."""
        return self.batch * self.channels * (self.height + self.width)

    @property
    def middle(self) -> Shape:
        """The same positions with M channels."""
        channels = self.hidden or self.channels
        return Shape(self.batch, channels, self.height, self.width, self.element_size)

    def floor(self, *, read: int, written: int, operations: int) -> Floor:
        """From elements to bytes."""
        return Floor(read * self.element_size, written * self.element_size, operations)


# The strip family.


def strip_pool(shape: Shape) -> Floor:
    """A mean of n elements is n - 1 additions and a division; each element enters two."""
    return shape.floor(read=shape.map, written=shape.strips, operations=2 * shape.map)


def strip_pool_backward(shape: Shape) -> Floor:
    return shape.floor(read=shape.strips, written=shape.map, operations=shape.strips + shape.map)


def strip_add_relu(shape: Shape) -> Floor:
    return shape.floor(read=shape.strips, written=shape.map, operations=2 * shape.map)


def strip_add_relu_backward(shape: Shape) -> Floor:
    """Recomputes the sum's sign (an addition, a comparison), then adds up each row and column."""
    return shape.floor(
        read=shape.map + shape.strips,
        written=shape.strips,
        operations=4 * shape.map - shape.strips,
    )


def sigmoid_gate(shape: Shape) -> Floor:
    """Adds the bias, takes the sigmoid, multiplies."""
    return shape.floor(
        read=2 * shape.map + shape.channels,
        written=shape.map,
        operations=(2 + SIGMOID_OPERATIONS) * shape.map,
    )


def sigmoid_gate_backward(shape: Shape) -> Floor:
    """With s = sigmoid(logits + bias): grad * s, then times x and 1 - s, and the bias's sum."""
    return shape.floor(
        read=3 * shape.map + shape.channels,
        written=2 * shape.map + shape.channels,
        operations=(6 + SIGMOID_OPERATIONS) * shape.map - shape.channels,
    )


def gemm_operations(shape: Shape) -> int:
    """The 1x1 convolution from M to C channels."""
    return 2 * shape.map * shape.middle.channels


def strip_gate(shape: Shape) -> Floor:
    """One convolution whose operand is made and whose result is used without reaching memory."""
    middle, weight = shape.middle, shape.channels * shape.middle.channels
    return Floor(operations=gemm_operations(shape)) + shape.floor(
        read=shape.map + middle.strips + weight + shape.channels,
        written=shape.map,
        operations=strip_add_relu(middle).operations + sigmoid_gate(shape).operations,
    )


def strip_gate_backward(shape: Shape) -> Floor:
    """Two convolutions' worth of products, given the logits: toward the strips and the weight."""
    middle, weight = shape.middle, shape.channels * shape.middle.channels
    pointwise = strip_add_relu_backward(middle) + sigmoid_gate_backward(shape)
    return Floor(operations=2 * gemm_operations(shape)) + shape.floor(
        read=3 * shape.map + middle.strips + weight + shape.channels,
        written=shape.map + middle.strips + weight + shape.channels,
        operations=pointwise.operations,
    )


FLOORS: dict[str, Callable[[Shape], Floor]] = {
    "strip_pool": strip_pool,
    "strip_pool_backward": strip_pool_backward,
    "strip_add_relu": strip_add_relu,
    "strip_add_relu_backward": strip_add_relu_backward,
    "sigmoid_gate": sigmoid_gate,
    "sigmoid_gate_backward": sigmoid_gate_backward,
    "strip_gate": strip_gate,
    "strip_gate_backward": strip_gate_backward,
}

# What an operator's CUDA kernels move beyond its floor: operands that several blocks visit, partial
# sums written by one stage and read by the next. An operator that is not here moves its floor.
CUDA_EXTRA: dict[str, Callable[[Shape], Floor]] = {}


def floor(operator: str, shape: Shape) -> Floor:
    """The floor of an operator of this name."""
    return FLOORS[operator](shape)


def cuda_traffic(operator: str, shape: Shape) -> Floor:
    """What the operator's CUDA kernels move together, counted at their loads and stores."""
    extra = CUDA_EXTRA.get(operator)
    return floor(operator, shape) + extra(shape) if extra else floor(operator, shape)
