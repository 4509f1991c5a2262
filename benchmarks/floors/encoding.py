"""The encoding family. x is (N, D, H, W) with D = C; K is 32 everywhere, as in both networks."""

from __future__ import annotations

from benchmarks.floors.base import (
    Extra,
    Floor,
    FloorOf,
    Launch,
    Launches,
    Product,
    ProductOf,
    Shape,
    gate_extra,
    launch_of,
    partial_sums,
)

CODES = 32


def parameters(shape: Shape) -> int:
    """The number of elements of codewords and scale."""
    return CODES * (shape.channels + 1)


def encoded(shape: Shape) -> int:
    return shape.batch * CODES * shape.channels


def encode_product(shape: Shape) -> Product:
    """The product of positions and codewords."""
    return shape.pixels, shape.channels, CODES


def encode(shape: Shape) -> Floor:
    """Two matrix products, x.c and a.x, and a softmax with 5 operations per assignment."""
    return shape.floor(
        read=shape.map + parameters(shape),
        written=encoded(shape),
        operations=CODES * (4 * shape.map + 5 * shape.pixels),
    )


def encode_backward(shape: Shape) -> Floor:
    """Five products: x.c, x.G, q.x, and a.G and q.c for x; the softmax and its derivative."""
    return shape.floor(
        read=shape.map + parameters(shape) + encoded(shape),
        written=shape.map + parameters(shape),
        operations=CODES * (10 * shape.map + 12 * shape.pixels),
    )


def channel_gate(shape: Shape) -> Floor:
    """A multiplication, an addition and a ReLU."""
    return shape.floor(
        read=shape.map + shape.batch * shape.channels,
        written=shape.map,
        operations=3 * shape.map,
    )


def channel_gate_backward(shape: Shape) -> Floor:
    """The sign (3), the gradient of x (2) and the gate's sum (2)."""
    gates = shape.batch * shape.channels
    return shape.floor(
        read=2 * shape.map + gates,
        written=shape.map + gates,
        operations=7 * shape.map - gates,
    )


def encode_parameters_extra(shape: Shape, blocks: int, a_tile: int, a_block: int) -> Floor:
    """Reads of (K, D) matrices, the codewords and G, in float32: `a_tile` of them per tile of
    positions and `a_block` per block, mostly from the L1 cache."""
    positions = 32 if shape.channels <= 128 else 16
    tiles = shape.batch * -(-shape.height * shape.width // positions)
    matrices = CODES * shape.channels * (tiles * a_tile + blocks * a_block)
    return Floor(read=4 * (matrices + blocks * CODES))


def blocks_of(launch: Launch) -> int:
    """Grid: images, chunks of each."""
    return launch.grid[0] * launch.grid[1]


def encode_extra(shape: Shape, launches: Launches) -> Floor:
    """Reads of the codewords: once or twice per tile and three times per block; if they stay in
    shared memory, only twice per block. A partial sum of each result per block."""
    kind, launch = launch_of(launches, "encode_")
    blocks, a_tile, a_block = blocks_of(launch), 2 if shape.channels <= 128 else 1, 3
    if kind in ("resident", "float"):
        a_tile, a_block = 0, 2
    extra = encode_parameters_extra(shape, blocks, a_tile, a_block)
    parts = partial_sums(shape, encoded(shape), blocks // shape.batch)
    return extra + parts + shape.floor(read=-parameters(shape), written=0, operations=0)


def encode_backward_extra(shape: Shape, launches: Launches) -> Floor:
    """Reads of the codewords and G, for the assignments and for the gradient of x: four or six
    matrices per tile and six per block. If they stay in shared memory, only per block: the
    codewords three times and G twice (float32: twice and once). Partial sums of the parameters'
    gradients per block."""
    kind, launch = launch_of(launches, "encode_backward_")
    blocks, a_tile, a_block = blocks_of(launch), 6 if shape.channels <= 128 else 4, 6
    if kind in ("resident", "float"):
        a_tile, a_block = 0, 5 if kind == "resident" else 3
    extra = encode_parameters_extra(shape, blocks, a_tile, a_block)
    parts = partial_sums(shape, parameters(shape), blocks)
    once = parameters(shape) + encoded(shape)
    return extra + parts + shape.floor(read=-once, written=0, operations=0)


def channel_gate_extra(shape: Shape, launches: Launches) -> Floor:
    return gate_extra(shape, launches, "channel_gate", shape.batch * shape.channels)


def channel_gate_backward_extra(shape: Shape, launches: Launches) -> Floor:
    return gate_extra(shape, launches, "channel_gate_backward", shape.batch * shape.channels)


FLOORS: dict[str, FloorOf] = {
    "encode": encode,
    "encode_backward": encode_backward,
    "channel_gate": channel_gate,
    "channel_gate_backward": channel_gate_backward,
}
PRODUCTS: dict[str, ProductOf] = {"encode": encode_product}
CUDA_EXTRA: dict[str, Extra] = {
    "encode": encode_extra,
    "encode_backward": encode_backward_extra,
    "channel_gate": channel_gate_extra,
    "channel_gate_backward": channel_gate_backward_extra,
}
