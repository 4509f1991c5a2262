"""The strip family. x is (N, C, H, W), rows (N, C, H, 1), cols (N, C, 1, W)."""

from __future__ import annotations

from benchmarks.floors.base import (
    SIGMOID_OPERATIONS,
    Extra,
    Floor,
    FloorOf,
    Launches,
    Product,
    ProductOf,
    Shape,
    gate_extra,
    launch_of,
    multiply_adds,
    partial_sums,
    visits,
)


def strip_pool(shape: Shape) -> Floor:
    """A mean of n elements is n - 1 additions and a division; each element is part of two means."""
    return shape.floor(read=shape.map, written=shape.strips, operations=2 * shape.map)


def strip_pool_backward(shape: Shape) -> Floor:
    return shape.floor(read=shape.strips, written=shape.map, operations=shape.strips + shape.map)


def strip_add_relu(shape: Shape) -> Floor:
    return shape.floor(read=shape.strips, written=shape.map, operations=2 * shape.map)


def strip_add_relu_backward(shape: Shape) -> Floor:
    """Recomputes the sign of the sum (an addition, a comparison), then sums each row and column."""
    return shape.floor(
        read=shape.map + shape.strips,
        written=shape.strips,
        operations=4 * shape.map - shape.strips,
    )


def sigmoid_gate(shape: Shape) -> Floor:
    """Adds the bias, applies the sigmoid, multiplies."""
    return shape.floor(
        read=2 * shape.map + shape.channels,
        written=shape.map,
        operations=(2 + SIGMOID_OPERATIONS) * shape.map,
    )


def sigmoid_gate_backward(shape: Shape) -> Floor:
    """With s = sigmoid(logits + bias): grad * s, its product with x and 1 - s, and the sum of that
    for the gradient of the bias."""
    return shape.floor(
        read=3 * shape.map + shape.channels,
        written=2 * shape.map + shape.channels,
        operations=(6 + SIGMOID_OPERATIONS) * shape.map - shape.channels,
    )


def strip_gate_product(shape: Shape) -> Product:
    """The 1x1 convolution from M to C channels."""
    return shape.pixels, shape.middle.channels, shape.channels


def strip_conv(shape: Shape) -> Floor:
    """A convolution whose input is never written to memory."""
    middle, weight = shape.middle, shape.channels * shape.middle.channels
    return Floor(operations=multiply_adds(strip_gate_product(shape))) + shape.floor(
        read=middle.strips + weight,
        written=shape.map,
        operations=strip_add_relu(middle).operations,
    )


def strip_gate(shape: Shape) -> Floor:
    """A convolution whose input and output are never written to memory."""
    middle, weight = shape.middle, shape.channels * shape.middle.channels
    return Floor(operations=multiply_adds(strip_gate_product(shape))) + shape.floor(
        read=shape.map + middle.strips + weight + shape.channels,
        written=shape.map,
        operations=strip_add_relu(middle).operations + sigmoid_gate(shape).operations,
    )


def strip_gate_backward(shape: Shape) -> Floor:
    """Two convolutions, given the logits: for the gradients of the strips and of the weight."""
    middle, weight = shape.middle, shape.channels * shape.middle.channels
    pointwise = strip_add_relu_backward(middle) + sigmoid_gate_backward(shape)
    return Floor(operations=2 * multiply_adds(strip_gate_product(shape))) + shape.floor(
        read=3 * shape.map + middle.strips + weight + shape.channels,
        written=shape.map + middle.strips + weight + shape.channels,
        operations=pointwise.operations,
    )


def pack_of(shape: Shape) -> int:
    """Channels per pack of a channels_last map: 16 bytes, 8 for half types, or one channel."""
    widths = [16 // shape.element_size, 8 // shape.element_size]
    return next((n for n in widths if shape.channels % n == 0 and n >= 4), 1)


def sides(shape: Shape) -> tuple[tuple[int, int], ...]:
    return (shape.height, shape.width), (shape.width, shape.height)


def pairs(count: int) -> int:
    """The rows or columns that warps of reduce_small_pixels read, two each."""
    return -(-count // 2) * 2


def steps(shape: Shape, length: int) -> int:
    """The positions that such a warp reads of each: a step has as many as a pack has channels, and
    it takes eight steps at a time, or four at the end."""
    pack = pack_of(shape)
    many = -(-length // pack)
    return pack * (many // 8 * 8 + (0, 4, 8)[-(-(many % 8) // 4)])


def strip_pool_extra(shape: Shape, launches: Launches) -> Floor:
    """Partial sums of rows if W is divided into tiles, and of cols if H is divided into chunks.
    Small channels_last maps have neither, but are read twice, the second time from a cache."""
    layout, launch = launch_of(launches, "strip_reduce")
    if layout == "_small_pixels":
        channels = shape.batch * shape.channels
        read = sum(pairs(a) * steps(shape, b) for a, b in sides(shape)) * channels
        return Floor(read=(read - shape.map) * shape.element_size)
    _, tiles, chunks = launch.grid
    extra = Floor()
    if tiles > 1:
        extra += partial_sums(shape, shape.rows, tiles)
    if chunks > 1:
        extra += partial_sums(shape, shape.cols, chunks)
    return extra


def strip_add_relu_backward_extra(shape: Shape, launches: Launches) -> Floor:
    """As strip_pool_extra, and reads of the strips to recompute the sign. On contiguous maps, each
    tile reads its rows, and each slot (threadIdx.y) of each chunk its cols; the slots of a block
    read the same cols at about the same time. On channels_last maps, each slot of a warp reads the
    rows once per tile of 64 columns."""
    layout, launch = launch_of(launches, "strip_reduce")
    (_, tiles, chunks), (_, slots, _) = launch.grid, launch.block
    pack = pack_of(shape)
    if layout == "_small_pixels":  # each slot reads the mask of its own two rows or columns
        channels = shape.batch * shape.channels
        read = sum(pack * pairs(a) + pairs(a) // 2 * steps(shape, b) for a, b in sides(shape))
        operands = Floor(read=(read * channels - shape.strips) * shape.element_size)
        return strip_pool_extra(shape, launches) + operands
    if layout == "_pixels":
        operands = visits(shape, shape.rows, pack * -(-shape.width // 64))
        operands += visits(shape, shape.cols, chunks)
        return strip_pool_extra(shape, launches) + operands
    operands = visits(shape, shape.rows, tiles) + visits(shape, shape.cols, chunks * slots)
    return strip_pool_extra(shape, launches) + operands


def strip_expand_extra(shape: Shape, launches: Launches) -> Floor:
    """Each tile reads its rows, and each chunk its cols; on contiguous maps, each slot of each
    chunk does."""
    layout, launch = launch_of(launches, "strip_expand")
    (_, tiles, chunks), (_, slots, _) = launch.grid, launch.block
    times = chunks * slots if layout == "_planes" else chunks
    return visits(shape, shape.rows, tiles) + visits(shape, shape.cols, times)


def sigmoid_gate_extra(shape: Shape, launches: Launches) -> Floor:
    return gate_extra(shape, launches, "sigmoid_gate", shape.channels)


def sigmoid_gate_backward_extra(shape: Shape, launches: Launches) -> Floor:
    return gate_extra(shape, launches, "sigmoid_gate_backward", shape.channels)


FLOORS: dict[str, FloorOf] = {
    "strip_pool": strip_pool,
    "strip_pool_backward": strip_pool_backward,
    "strip_add_relu": strip_add_relu,
    "strip_add_relu_backward": strip_add_relu_backward,
    "sigmoid_gate": sigmoid_gate,
    "sigmoid_gate_backward": sigmoid_gate_backward,
    "strip_conv": strip_conv,
    "strip_gate": strip_gate,
    "strip_gate_backward": strip_gate_backward,
}
PRODUCTS: dict[str, ProductOf] = {"strip_gate": strip_gate_product}
CUDA_EXTRA: dict[str, Extra] = {
    "strip_pool": strip_pool_extra,
    "strip_pool_backward": strip_expand_extra,
    "strip_add_relu": strip_expand_extra,
    "strip_add_relu_backward": strip_add_relu_backward_extra,
    "sigmoid_gate": sigmoid_gate_extra,
    "sigmoid_gate_backward": sigmoid_gate_backward_extra,
}
