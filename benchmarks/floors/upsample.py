"""The pyramid family's interpolation. To interpolate an element between two cells costs 3
operations, and the adjoint 4."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from benchmarks.floors.base import (
    Extra,
    Floor,
    FloorOf,
    Launches,
    Product,
    ProductOf,
    Shape,
    launch_of,
    multiply_adds,
)
from benchmarks.floors.pyramid import PSP_BINS, level_cells

# Sides of the kernels under whose taps a decoder's level of half the map's size is added.
HALF_LEVELS = {"a level of half the size": 1, "half the size, 3 x 3 taps": 3}
MPM_BINS = (20, 12)  # levels of pyramid_add_relu: SPNet's mixed pooling
KERNEL = 3  # size of the convolution whose taps are added
PRODUCT_CHANNELS = 32  # of a block of add_pixel_products_cuda.cu


def level_lines(shape: Shape, bins: tuple[int, ...], channels: int) -> int:
    """The number of elements of the levels, interpolated along W only."""
    return shape.batch * channels * shape.width * sum(bins)


def pyramid_concat(shape: Shape) -> Floor:
    """x is copied to the result."""
    quarter = shape.channels // 4
    maps = len(PSP_BINS) * quarter * shape.pixels
    return shape.floor(
        read=shape.map + level_cells(shape, PSP_BINS, quarter),
        written=shape.map + maps,
        operations=3 * (maps + level_lines(shape, PSP_BINS, quarter)),
    )


def pyramid_concat_backward(shape: Shape) -> Floor:
    """The gradients of the levels only; that of x is a view."""
    quarter = shape.channels // 4
    maps = len(PSP_BINS) * quarter * shape.pixels
    return shape.floor(
        read=maps,
        written=level_cells(shape, PSP_BINS, quarter),
        operations=4 * (maps + level_lines(shape, PSP_BINS, quarter)),
    )


def half(shape: Shape) -> Shape:
    """The next coarser map in a feature pyramid, the level of pyramid_add."""
    return replace(shape, height=-(-shape.height // 2), width=-(-shape.width // 2))


def pyramid_add(shape: Shape) -> Floor:
    level = half(shape)
    lines = level.batch * level.channels * level.height * shape.width
    return shape.floor(
        read=shape.map + level.map, written=shape.map, operations=4 * shape.map + 3 * lines
    )


def pyramid_add_backward(shape: Shape) -> Floor:
    """The gradient of the level only; that of x is the gradient of the result."""
    level = half(shape)
    lines = level.batch * level.channels * level.height * shape.width
    return shape.floor(read=shape.map, written=level.map, operations=4 * (shape.map + lines))


def pyramid_add_relu(shape: Shape) -> Floor:
    lines = level_lines(shape, MPM_BINS, shape.channels)
    return shape.floor(
        read=shape.map + level_cells(shape, MPM_BINS, shape.channels),
        written=shape.map,
        operations=(1 + 4 * len(MPM_BINS)) * shape.map + 3 * lines,
    )


def pyramid_add_relu_backward(shape: Shape) -> Floor:
    """Reads the gradient and the output, which serves as the mask."""
    lines = level_lines(shape, MPM_BINS, shape.channels)
    return shape.floor(
        read=2 * shape.map,
        written=shape.map + level_cells(shape, MPM_BINS, shape.channels),
        operations=(1 + 4 * len(MPM_BINS)) * shape.map + 4 * lines,
    )


def pyramid_taps_add(shape: Shape) -> Floor:
    """A weighted sum of two cells per element, level and row of the kernel."""
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


def half_cells(shape: Shape, kernel: int) -> tuple[int, int]:
    """The cells of a level of half the size under all taps, and the elements of its rows after
    interpolation along one axis."""
    rows, columns = -(-shape.height // 2), -(-shape.width // 2)
    channels = shape.batch * shape.channels * kernel
    return channels * kernel * rows * columns, channels * rows * shape.width


def half_level(shape: Shape, kernel: int) -> Floor:
    cells, lines = half_cells(shape, kernel)
    operations = 4 * kernel * (shape.map + lines)
    return shape.floor(read=shape.map + cells, written=shape.map, operations=operations)


def half_level_backward(shape: Shape, kernel: int) -> Floor:
    cells, lines = half_cells(shape, kernel)
    operations = 4 * kernel * (shape.map + lines)
    return shape.floor(read=shape.map, written=cells, operations=operations)


def pyramid_conv_product(shape: Shape) -> Product:
    """One tap of the convolution from the C channels of x to C / 4."""
    return shape.pixels, shape.channels, shape.channels // 4


def pyramid_conv(shape: Shape) -> Floor:
    """From x and PSPNet's levels, with C / 4 channels each, to C / 4 channels: the convolution of
    x, a 1 x 1 convolution of the levels' few cells per tap, and the sum of the taps."""
    quarter = replace(shape, channels=shape.channels // 4)
    cells = level_cells(quarter, PSP_BINS, quarter.channels)
    taps = KERNEL**2
    weight = taps * quarter.channels * (shape.channels + len(PSP_BINS) * quarter.channels)
    operations = taps * multiply_adds(pyramid_conv_product(shape))
    operations += taps * 2 * cells * quarter.channels + pyramid_taps_add(quarter).operations
    return shape.floor(
        read=shape.map + cells + weight + quarter.channels,
        written=quarter.map,
        operations=operations,
    )


def pyramid_conv_backward(shape: Shape) -> Floor:
    """Twice the products, for the gradients of x and levels and of the weight; the bias is not
    read."""
    quarter = replace(shape, channels=shape.channels // 4)
    forward = pyramid_conv(shape)
    products = forward.operations - pyramid_taps_add(quarter).operations
    return Floor(
        read=forward.bytes - quarter.channels * shape.element_size,
        written=forward.read,
        operations=2 * products + pyramid_taps_add_backward(quarter).operations + quarter.map,
    )


def pyramid_add_extra(
    shape: Shape, launches: Launches, bins: tuple[int, ...], channels: int, taps: int = 1
) -> Floor:
    """Reads of the levels' cells: each column tile of each chunk of rows reads the cells that it
    needs (walk_cuda.cu). `channels` counts the taps x taps maps of each level. add_products_cuda.cu
    reads every cell once, add_pixel_products_cuda.cu once for each group of rows."""
    if "pyramid_add_products" in launches:
        return Floor()
    cells = level_cells(shape, bins, channels)
    if "pyramid_add_pixel_products" in launches:
        tiles = shape.batch * -(-channels // taps**2 // PRODUCT_CHANNELS)
        groups = launches["pyramid_add_pixel_products"].grid[0] // tiles
        return shape.floor(read=(groups - 1) * cells, written=0, operations=0)
    layout, launch = launch_of(launches, "pyramid_add_walk")
    (_, _, chunks), (lanes, slots, _) = launch.grid, launch.block
    rows = math.ceil(math.ceil(shape.height / chunks) / 4) * 4
    columns = slots if layout == "_pixels" else 4 * lanes if shape.width % 4 == 0 else 64
    read = sum(
        cells_staged(b, shape.height, rows, taps) * cells_staged(b, shape.width, columns, taps)
        for b in bins
    )
    read *= shape.batch * channels // taps**2
    return shape.floor(read=read - cells, written=0, operations=0)


def cells_staged(cells: int, extent: int, span: int, taps: int) -> int:
    """The cells along one axis that all tiles of `span` positions copy to shared memory, over all
    taps, with corners aligned. A tile copies a fixed number of cells, an upper bound on what any
    tile reads, from the first cell that it reads for the tap; fewer at the level's end."""
    most = min(cells, (span - 1) * cells // max(1, extent - 1) + 3)
    scale = (cells - 1) / (extent - 1) if extent > 1 else 0
    total = 0
    for begin in range(0, extent, span):
        for tap in range(taps):
            position = min(max(begin + tap - taps // 2, 0), extent - 1)
            total += min(most, cells - min(math.floor(scale * position + 1e-6), cells - 1))
    return total


def pyramid_concat_extra(shape: Shape, launches: Launches) -> Floor:
    """torch copies x, which is not counted."""
    copied = shape.floor(read=-shape.map, written=-shape.map, operations=0)
    return copied + pyramid_add_extra(shape, launches, PSP_BINS, shape.channels // 4)


def pyramid_add_relu_extra(shape: Shape, launches: Launches) -> Floor:
    return pyramid_add_extra(shape, launches, MPM_BINS, shape.channels)


def pyramid_taps_add_extra(shape: Shape, launches: Launches) -> Floor:
    return pyramid_add_extra(shape, launches, PSP_BINS, KERNEL**2 * shape.channels, KERNEL)


def cells_handed_on(cells: int, extent: int, span: int, taps: int) -> tuple[int, int]:
    """The cells along one axis that all tiles of `span` positions reduce, over all taps, with
    corners aligned; and how many of these no other tile reads."""
    scale = (cells - 1) / (extent - 1) if extent > 1 else 0

    def first(position: int) -> int:
        return min(math.floor(scale * min(max(position, 0), extent - 1) + 1e-6), cells - 1)

    total = alone = 0
    for tap in range(taps):
        at = [first(position + tap - taps // 2) for position in range(extent)]
        for begin in range(0, extent, span):
            end = min(begin + span, extent)
            low = at[begin] if begin else 0
            high = min(cells, max(at[end - 1] + 2, at[end])) if end < extent else cells
            before = at[begin - 1] if begin else -2
            after = at[end] if end < extent else cells
            total += high - low
            alone += sum(before < i - 1 and after > i for i in range(low, high))
    return total, alone


def pyramid_add_backward_extra(
    shape: Shape, launches: Launches, bins: tuple[int, ...], channels: int, taps: int = 1
) -> Floor:
    """Nothing for contiguous planes. Of channels_last maps, each tile writes a partial sum, in
    float32, of each cell that several tiles read, and a second kernel reads them once."""
    if "pyramid_fold_pixels" not in launches:
        return Floor()
    _, launch = launch_of(launches, "pyramid_fold_pixels")
    (_, _, chunks), (_, slots, _) = launch.grid, launch.block
    parts = 0
    for b in bins:
        rows = cells_handed_on(b, shape.height, math.ceil(shape.height / chunks), taps)
        columns = cells_handed_on(b, shape.width, slots, taps)
        parts += rows[0] * columns[0] - rows[1] * columns[1]
    parts *= 4 * shape.batch * channels
    return Floor(read=parts, written=parts)


def pyramid_concat_backward_extra(shape: Shape, launches: Launches) -> Floor:
    """One call per level, for its own channels of the gradient."""
    extra = Floor()
    for level in PSP_BINS:
        channels = shape.channels // 4
        extra += pyramid_add_backward_extra(shape, launches, (level,), channels)
    return extra


def pyramid_add_relu_backward_extra(shape: Shape, launches: Launches) -> Floor:
    return pyramid_add_backward_extra(shape, launches, MPM_BINS, shape.channels)


def pyramid_taps_add_backward_extra(shape: Shape, launches: Launches) -> Floor:
    return pyramid_add_backward_extra(shape, launches, PSP_BINS, shape.channels, KERNEL)


FLOORS: dict[str, FloorOf] = {
    "pyramid_concat": pyramid_concat,
    "pyramid_concat_backward": pyramid_concat_backward,
    "pyramid_add": pyramid_add,
    "pyramid_add_backward": pyramid_add_backward,
    "pyramid_add_relu": pyramid_add_relu,
    "pyramid_add_relu_backward": pyramid_add_relu_backward,
    "pyramid_taps_add": pyramid_taps_add,
    "pyramid_taps_add_backward": pyramid_taps_add_backward,
    "pyramid_conv": pyramid_conv,
    "pyramid_conv_backward": pyramid_conv_backward,
}
VARIANTS: dict[str, FloorOf] = {}  # by "operator, what is particular", as in operators.py
for _what, _kernel in HALF_LEVELS.items():
    VARIANTS[f"pyramid_taps_add, {_what}"] = partial(half_level, kernel=_kernel)
    VARIANTS[f"pyramid_taps_add_backward, {_what}"] = partial(half_level_backward, kernel=_kernel)
PRODUCTS: dict[str, ProductOf] = {"pyramid_conv": pyramid_conv_product}
CUDA_EXTRA: dict[str, Extra] = {
    "pyramid_concat": pyramid_concat_extra,
    "pyramid_concat_backward": pyramid_concat_backward_extra,
    "pyramid_add_relu": pyramid_add_relu_extra,
    "pyramid_add_relu_backward": pyramid_add_relu_backward_extra,
    "pyramid_taps_add": pyramid_taps_add_extra,
    "pyramid_taps_add_backward": pyramid_taps_add_backward_extra,
}
