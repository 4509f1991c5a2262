"""How many bytes and operations every operator needs, the only place where these facts stand.

A floor is what the formula cannot do without: every input read once, every output written once, no
intermediate result. `floor` gives an operator's; the share of it that a kernel reaches is measured
in the benchmarks. A CUDA kernel may have to move more, because several blocks visit one operand or
leave partial sums for a second stage: `CUDA_EXTRA` says how much, and tests/test_cuda_traffic.py
holds the bytes that the emulator counts to `cuda_traffic`, floor plus extra, within 5 %.

Operations count additions, multiplications, divisions, comparisons and exponentials as one each, so
a sigmoid is 4 (negation, exponential, addition, division) and a multiply-add 2.

Shapes: x (N, C, H, W); rows (N, C, H, 1); cols (N, C, 1, W). Importable without torch.
"""

from __future__ import annotations

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
        """Bytes of a sum: float32's, or float64's for float64."""
        return max(4, self.element_size)

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


# The encoding family. x is (N, D, H, W) with D = C; K is 32 everywhere, as in both networks.

CODES = 32


def parameters(shape: Shape) -> int:
    """Elements of codewords and scale."""
    return CODES * (shape.channels + 1)


def encoded(shape: Shape) -> int:
    return shape.batch * CODES * shape.channels


def encode(shape: Shape) -> Floor:
    """Two products of matrices, x.c and a.x, and a softmax of 5 operations an assignment."""
    return shape.floor(
        read=shape.map + parameters(shape),
        written=encoded(shape),
        operations=CODES * (4 * shape.map + 5 * shape.pixels),
    )


def encode_backward(shape: Shape) -> Floor:
    """Five products: x.c, x.G, q.x, and a.G and q.c toward x; the softmax and its derivative."""
    return shape.floor(
        read=shape.map + parameters(shape) + encoded(shape),
        written=shape.map + parameters(shape),
        operations=CODES * (10 * shape.map + 12 * shape.pixels),
    )


def channel_gate(shape: Shape) -> Floor:
    """Multiplies, adds, rectifies."""
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


# Interpolation: the pyramid and height families' other half. A level of b stands for b x b cells;
# between two cells an element costs 3 operations, and its adjoint 4.

PSP_BINS = (1, 2, 3, 6)  # pyramid_concat's levels, of C / 4 channels each, and the taps'
MPM_BINS = (20, 12)  # pyramid_add_relu's levels
KERNEL = 3  # rows and columns of the convolution whose taps are added
GATE_ROWS = 16  # row_gate's logits a channel


def square_cells(bins: tuple[int, ...]) -> int:
    return sum(b * b for b in bins)


def level_cells(shape: Shape, bins: tuple[int, ...], channels: int) -> int:
    """Elements of the levels."""
    return shape.batch * channels * square_cells(bins)


INDEX_SIZE = 8  # an int64 for each maximum


def pyramid_pool(shape: Shape) -> Floor:
    """Each element enters one cell's sum, however many levels there are; a division a bin."""
    bins = level_cells(shape, PSP_BINS, shape.channels)
    return shape.floor(read=shape.map, written=bins, operations=shape.map + bins)


def pyramid_pool_backward(shape: Shape) -> Floor:
    """A division and an addition a bin: the gradient is the same all over a cell."""
    bins = level_cells(shape, PSP_BINS, shape.channels)
    return shape.floor(read=bins, written=shape.map, operations=2 * bins)


def pyramid_max_pool(shape: Shape) -> Floor:
    bins = level_cells(shape, PSP_BINS, shape.channels)
    values = shape.floor(read=shape.map, written=bins, operations=shape.map)
    return values + Floor(written=INDEX_SIZE * bins)


def pyramid_max_pool_backward(shape: Shape) -> Floor:
    bins = level_cells(shape, PSP_BINS, shape.channels)
    values = shape.floor(read=bins, written=shape.map, operations=bins)
    return values + Floor(read=INDEX_SIZE * bins)


def level_lines(shape: Shape, bins: tuple[int, ...], channels: int) -> int:
    """Elements of the levels' rows at the map's width."""
    return shape.batch * channels * shape.width * sum(bins)


def pyramid_concat(shape: Shape) -> Floor:
    """x is copied."""
    quarter = shape.channels // 4
    maps = len(PSP_BINS) * quarter * shape.pixels
    return shape.floor(
        read=shape.map + level_cells(shape, PSP_BINS, quarter),
        written=shape.map + maps,
        operations=3 * (maps + level_lines(shape, PSP_BINS, quarter)),
    )


def pyramid_concat_backward(shape: Shape) -> Floor:
    """Of the levels: the gradient of x is a view."""
    quarter = shape.channels // 4
    maps = len(PSP_BINS) * quarter * shape.pixels
    return shape.floor(
        read=maps,
        written=level_cells(shape, PSP_BINS, quarter),
        operations=4 * (maps + level_lines(shape, PSP_BINS, quarter)),
    )


def pyramid_add_relu(shape: Shape) -> Floor:
    lines = level_lines(shape, MPM_BINS, shape.channels)
    return shape.floor(
        read=shape.map + level_cells(shape, MPM_BINS, shape.channels),
        written=shape.map,
        operations=(1 + 4 * len(MPM_BINS)) * shape.map + 3 * lines,
    )


def pyramid_add_relu_backward(shape: Shape) -> Floor:
    """Reads the gradient and the output that it is masked by."""
    lines = level_lines(shape, MPM_BINS, shape.channels)
    return shape.floor(
        read=2 * shape.map,
        written=shape.map + level_cells(shape, MPM_BINS, shape.channels),
        operations=(1 + 4 * len(MPM_BINS)) * shape.map + 4 * lines,
    )


def pyramid_taps_add(shape: Shape) -> Floor:
    """Per element and level, two cells for each row of the kernel."""
    lines = level_lines(shape, PSP_BINS, KERNEL * shape.channels)
    return shape.floor(
        read=shape.map + level_cells(shape, PSP_BINS, KERNEL**2 * shape.channels),
        written=shape.map,
        operations=4 * KERNEL * (len(PSP_BINS) * shape.map + lines),
    )


def pyramid_taps_add_backward(shape: Shape) -> Floor:
    lines = level_lines(shape, PSP_BINS, KERNEL * shape.channels)
    return shape.floor(
        read=shape.map,
        written=level_cells(shape, PSP_BINS, KERNEL**2 * shape.channels),
        operations=4 * KERNEL * (len(PSP_BINS) * shape.map + lines),
    )


def row_gate(shape: Shape) -> Floor:
    logits = shape.batch * shape.channels * GATE_ROWS
    return shape.floor(
        read=shape.map + logits,
        written=shape.map,
        operations=shape.map + SIGMOID_OPERATIONS * logits + 3 * shape.rows,
    )


def row_gate_backward(shape: Shape) -> Floor:
    """Toward x a product, toward the gates a product and a sum."""
    logits = shape.batch * shape.channels * GATE_ROWS
    return shape.floor(
        read=2 * shape.map + logits,
        written=shape.map + logits,
        operations=3 * shape.map + (SIGMOID_OPERATIONS + 3) * logits + 7 * shape.rows,
    )


FLOORS: dict[str, Callable[[Shape], Floor]] = {
    "pyramid_pool": pyramid_pool,
    "pyramid_pool_backward": pyramid_pool_backward,
    "pyramid_max_pool": pyramid_max_pool,
    "pyramid_max_pool_backward": pyramid_max_pool_backward,
    "pyramid_concat": pyramid_concat,
    "pyramid_concat_backward": pyramid_concat_backward,
    "pyramid_add_relu": pyramid_add_relu,
    "pyramid_add_relu_backward": pyramid_add_relu_backward,
    "pyramid_taps_add": pyramid_taps_add,
    "pyramid_taps_add_backward": pyramid_taps_add_backward,
    "row_gate": row_gate,
    "row_gate_backward": row_gate_backward,
    "encode": encode,
    "encode_backward": encode_backward,
    "channel_gate": channel_gate,
    "channel_gate_backward": channel_gate_backward,
    "strip_pool": strip_pool,
    "strip_pool_backward": strip_pool_backward,
    "strip_add_relu": strip_add_relu,
    "strip_add_relu_backward": strip_add_relu_backward,
    "sigmoid_gate": sigmoid_gate,
    "sigmoid_gate_backward": sigmoid_gate_backward,
    "strip_gate": strip_gate,
    "strip_gate_backward": strip_gate_backward,
}


def floor(operator: str, shape: Shape) -> Floor:
    """The floor of the operator of this name."""
    return FLOORS[operator](shape)


# What CUDA kernels move beyond the floor, from how they were launched. csrc/cuda says what a block
# and a thread own; what they read again comes from a cache unless said otherwise.


@dataclass(frozen=True)
class Launch:
    """Blocks and threads of a kernel, each (x, y, z)."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]


Launches = Mapping[str, Launch]  # the kernels that one call ran, by name

PLANE_BYTES = 40 * 1024  # of a gradient that csrc/cuda/upsample_backward.cu keeps in a block


def launch_of(launches: Launches, family: str) -> tuple[str, Launch]:
    """The one kernel whose name begins so: the layout decides between ..._planes and ..._pixels."""
    ((kernel, launch),) = ((k, v) for k, v in launches.items() if k.startswith(family))
    return kernel.removeprefix(family), launch


def partial_sums(shape: Shape, results: int, parts: int) -> Floor:
    """`parts` sums of each of `results`, written by one stage and read by the next."""
    size = results * parts * shape.accumulate_size
    return Floor(read=size, written=size, operations=results * max(0, parts - 1))


def visits(shape: Shape, elements: int, times: int) -> Floor:
    """An operand that is read `times` times: all but the first are extra."""
    return Floor(read=elements * (times - 1) * shape.element_size)


def strip_pool_extra(shape: Shape, launches: Launches) -> Floor:
    """Pieces of rows where W is cut into tiles, pieces of cols where H is cut into chunks."""
    _, launch = launch_of(launches, "strip_reduce")
    _, tiles, chunks = launch.grid
    extra = Floor()
    if tiles > 1:
        extra += partial_sums(shape, shape.rows, tiles)
    if chunks > 1:
        extra += partial_sums(shape, shape.cols, chunks)
    return extra


def strip_add_relu_backward_extra(shape: Shape, launches: Launches) -> Floor:
    """The same, and the sign's operands: each tile reads its rows, each slot (threadIdx.y) of each
    chunk its cols. The slots of a block read them at once: one trip to memory."""
    _, launch = launch_of(launches, "strip_reduce")
    (_, tiles, chunks), (_, slots, _) = launch.grid, launch.block
    operands = visits(shape, shape.rows, tiles) + visits(shape, shape.cols, chunks * slots)
    return strip_pool_extra(shape, launches) + operands


def strip_broadcast_extra(shape: Shape, launches: Launches) -> Floor:
    """Each tile reads its rows, each chunk its cols; on contiguous maps each slot for itself."""
    layout, launch = launch_of(launches, "strip_broadcast")
    (_, tiles, chunks), (_, slots, _) = launch.grid, launch.block
    times = chunks * slots if layout == "_planes" else chunks
    return visits(shape, shape.rows, tiles) + visits(shape, shape.cols, times)


def sigmoid_gate_extra(shape: Shape, launches: Launches) -> Floor:
    """The bias, once a block that owns a piece of a plane or once a thread that owns channels."""
    layout, launch = launch_of(launches, "sigmoid_gate")
    if layout.endswith("_planes"):
        return visits(shape, shape.channels, shape.batch * launch.grid[1])
    return visits(shape, shape.channels, launch.grid[0] * launch.block[1])


def sigmoid_gate_backward_extra(shape: Shape, launches: Launches) -> Floor:
    """The same, and a sum of the bias's gradient from each block."""
    layout, launch = launch_of(launches, "sigmoid_gate_backward")
    parts = shape.batch * launch.grid[1] if layout == "_planes" else launch.grid[0]
    return sigmoid_gate_extra(shape, launches) + partial_sums(shape, shape.channels, parts)


def encode_parameters_extra(shape: Shape, blocks: int, a_tile: int, a_block: int) -> Floor:
    """Codewords and G in float32: so many matrices (K, D) a tile and a block, from the first-level
    cache but for the first time."""
    positions = 32 if shape.channels <= 128 else 16
    tiles = shape.batch * -(-shape.height * shape.width // positions)
    matrices = CODES * shape.channels * (tiles * a_tile + blocks * a_block)
    return Floor(read=4 * (matrices + blocks * CODES))


def encode_extra(shape: Shape, launches: Launches) -> Floor:
    """The codewords, once or twice a tile; a part of every result from each block."""
    _, launch = launch_of(launches, "encode_tiles")
    blocks, a_tile = launch.grid[0], 2 if shape.channels <= 128 else 1
    extra = encode_parameters_extra(shape, blocks, a_tile, 3)
    parts = partial_sums(shape, encoded(shape), blocks // shape.batch)
    return extra + parts + shape.floor(read=-parameters(shape), written=0, operations=0)


def encode_backward_extra(shape: Shape, launches: Launches) -> Floor:
    """The codewords and G, for the assignments and again toward x; a part of the parameters'
    gradients from each block."""
    _, launch = launch_of(launches, "encode_backward_tiles")
    blocks, a_tile = launch.grid[0], 6 if shape.channels <= 128 else 4
    extra = encode_parameters_extra(shape, blocks, a_tile, 6)
    parts = partial_sums(shape, parameters(shape), blocks)
    once = parameters(shape) + encoded(shape)
    return extra + parts + shape.floor(read=-once, written=0, operations=0)


def channel_gate_extra(shape: Shape, launches: Launches) -> Floor:
    """The gate, once a block that owns a piece of a plane or once a thread that owns channels."""
    layout, launch = launch_of(launches, "channel_gate")
    gates = shape.batch * shape.channels
    if layout.endswith("_planes"):
        return visits(shape, gates, launch.grid[1])
    return visits(shape, gates, launch.grid[0] // shape.batch * launch.block[1])


def channel_gate_backward_extra(shape: Shape, launches: Launches) -> Floor:
    """The same, and a sum of the gate's gradient from each block."""
    layout, launch = launch_of(launches, "channel_gate_backward")
    parts = launch.grid[1] if layout == "_planes" else launch.grid[0] // shape.batch
    gates = shape.batch * shape.channels
    return channel_gate_extra(shape, launches) + partial_sums(shape, gates, parts)


def pyramid_add_extra(
    shape: Shape, launches: Launches, bins: tuple[int, ...], channels: int
) -> Floor:
    """The levels' cells, once a tile of columns and a chunk of rows."""
    _, launch = launch_of(launches, "pyramid_add")
    _, tiles, chunks = launch.grid
    return visits(shape, level_cells(shape, bins, channels), tiles * chunks)


def pyramid_concat_extra(shape: Shape, launches: Launches) -> Floor:
    """x goes by torch's own copy, which is not counted."""
    copied = shape.floor(read=-shape.map, written=-shape.map, operations=0)
    return copied + pyramid_add_extra(shape, launches, PSP_BINS, shape.channels // 4)


def pyramid_add_relu_extra(shape: Shape, launches: Launches) -> Floor:
    return pyramid_add_extra(shape, launches, MPM_BINS, shape.channels)


def pyramid_taps_add_extra(shape: Shape, launches: Launches) -> Floor:
    return pyramid_add_extra(shape, launches, PSP_BINS, KERNEL**2 * shape.channels)


def times_read(cells: int, positions: int) -> float:
    """How often a position is read where each cell gathers its own: it lies between two."""
    return 1 if cells == 1 else 2 - 1 / positions


def pyramid_reduce_extra(
    shape: Shape, launches: Launches, bins: tuple[int, ...], channels: int, *, taps: int, first: int
) -> Floor:
    """Contiguous planes that do not fit in a block's shared memory are summed along H from global
    memory, for each level and each row of taps. channels_last levels that do not fit together read
    the gradient once each; those that do not fit alone, four times, cell by cell. `first` of these
    visits is in the floor already. All this comes from a cache."""
    map = shape.pixels * channels
    if "pyramid_reduce_planes" in launches:
        if shape.height * shape.width * shape.element_size <= PLANE_BYTES:
            return Floor()
        times = taps * sum(times_read(b, shape.height) for b in bins) - first
    elif "pyramid_reduce_pixels" in launches:
        return Floor()
    else:
        times = len(bins) - first
        if "pyramid_gather_pixels" in launches:
            largest = max(bins)
            times += times_read(largest, shape.height) * times_read(largest, shape.width) - 1
    return Floor(read=round(map * times) * shape.element_size)


def pyramid_concat_backward_extra(shape: Shape, launches: Launches) -> Floor:
    """Each level by itself, from channels of its own."""
    extra = Floor()
    for level in PSP_BINS:
        channels = shape.channels // 4
        extra += pyramid_reduce_extra(shape, launches, (level,), channels, taps=1, first=1)
    return extra


def pyramid_add_relu_backward_extra(shape: Shape, launches: Launches) -> Floor:
    """What is read again is the masked gradient, of which the floor knows nothing."""
    return pyramid_reduce_extra(shape, launches, MPM_BINS, shape.channels, taps=1, first=0)


def pyramid_taps_add_backward_extra(shape: Shape, launches: Launches) -> Floor:
    return pyramid_reduce_extra(shape, launches, PSP_BINS, shape.channels, taps=KERNEL, first=1)


def row_gate_extra(shape: Shape, launches: Launches) -> Floor:
    """Two logits for every row and channel, instead of each once."""
    logits = shape.batch * shape.channels * GATE_ROWS
    return shape.floor(read=2 * shape.rows - logits, written=0, operations=0)


def row_gate_backward_extra(shape: Shape, launches: Launches) -> Floor:
    """The same; the sums over W, read by the two logits that each row lies between."""
    sums = shape.rows * shape.accumulate_size
    logits = shape.batch * shape.channels * GATE_ROWS * shape.element_size
    return row_gate_extra(shape, launches) + Floor(read=2 * sums + logits, written=sums)


CUDA_EXTRA: dict[str, Callable[[Shape, Launches], Floor]] = {
    "pyramid_concat": pyramid_concat_extra,
    "pyramid_concat_backward": pyramid_concat_backward_extra,
    "pyramid_add_relu": pyramid_add_relu_extra,
    "pyramid_add_relu_backward": pyramid_add_relu_backward_extra,
    "pyramid_taps_add": pyramid_taps_add_extra,
    "pyramid_taps_add_backward": pyramid_taps_add_backward_extra,
    "row_gate": row_gate_extra,
    "row_gate_backward": row_gate_backward_extra,
    "encode": encode_extra,
    "encode_backward": encode_backward_extra,
    "channel_gate": channel_gate_extra,
    "channel_gate_backward": channel_gate_backward_extra,
    "strip_pool": strip_pool_extra,
    "strip_pool_backward": strip_broadcast_extra,
    "strip_add_relu": strip_broadcast_extra,
    "strip_add_relu_backward": strip_add_relu_backward_extra,
    "sigmoid_gate": sigmoid_gate_extra,
    "sigmoid_gate_backward": sigmoid_gate_backward_extra,
}


def cuda_traffic(operator: str, shape: Shape, launches: Launches) -> Floor:
    """What the operator's CUDA kernels move together, counted at their loads and stores. One that
    CUDA_EXTRA does not list moves its floor and no more."""
    least = floor(operator, shape)
    return least + CUDA_EXTRA[operator](shape, launches) if operator in CUDA_EXTRA else least
