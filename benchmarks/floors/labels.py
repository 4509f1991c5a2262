"""The labels family: label maps and losses from logits several times smaller than the map, with one
class per channel. Targets are int64; per-pixel values have the dtype of the sums.
"""

from __future__ import annotations

from benchmarks.floors.base import Extra, Floor, FloorOf, Launches, Shape, partial_sums

LABEL_STRIDE = 8
STRIDES = {(150, 512, 512): 4}  # exceptions, by (classes, height, width)
TARGET_BYTES = 8

# Operations per class and pixel: interpolation, 2 multiply-adds (the other two are shared by rows);
# a subtraction, an exponential and an addition for the softmax; a comparison.
UP, SOFTMAX, COMPARE = 4, 3, 1

# Constants of csrc/labels/tile.cuh and adjoint.cuh.
TILE_ROWS, TILE_COLUMNS = 8, 128
CLASSES_AT_ONCE, HELD_SUMS, GRADIENT_BLOCKS = 4, 1024, 1056
LEAST_BAND, MOST_BAND, SPLITS = 4, 32, 4


def cells(shape: Shape) -> tuple[int, int]:
    """The height and width of the logits."""
    return small(shape.channels, shape.height, shape.width)


def small(classes: int, height: int, width: int) -> tuple[int, int]:
    """The height and width of the logits for an image of this size."""
    stride = STRIDES.get((classes, height, width), LABEL_STRIDE)
    return -(-height // stride), -(-width // stride)


def logits(shape: Shape) -> int:
    """The number of elements of the logits."""
    rows, columns = cells(shape)
    return shape.batch * shape.channels * rows * columns


def _floor(
    shape: Shape,
    *,
    maps_read: int = 0,
    maps_written: int = 0,
    label_bytes: int = 0,
    target: bool = True,
    gradient: bool = False,
    each: int,
    more_written: int = 0,
) -> Floor:
    """Reads of the logits, of the target (if `target`) and of `maps_read` maps with a value per
    pixel; writes of `maps_written` such maps, of labels, of the gradient of the logits (if
    `gradient`) and of `more_written` other values. `each` operations per class and pixel."""
    read = logits(shape) * shape.element_size + maps_read * shape.pixels * shape.accumulate_size
    written = maps_written * shape.pixels * shape.accumulate_size + shape.pixels * label_bytes
    return Floor(
        read=read + (shape.pixels * TARGET_BYTES if target else 0),
        written=written
        + (logits(shape) * shape.element_size if gradient else 0)
        + more_written * shape.accumulate_size,
        operations=each * shape.map,
    )


def upsample_argmax(shape: Shape) -> Floor:
    return _floor(shape, target=False, label_bytes=4, each=UP + COMPARE)


def upsample_softmax_max(shape: Shape) -> Floor:
    return _floor(shape, target=False, label_bytes=8, maps_written=1, each=UP + COMPARE + SOFTMAX)


def upsample_cross_entropy(shape: Shape) -> Floor:
    """Writes a map of log-sum-exps and two sums per row of pixels."""
    rows = 2 * shape.batch * shape.height
    return _floor(shape, maps_written=1, more_written=rows, each=UP + COMPARE + SOFTMAX)


def upsample_cross_entropy_backward(shape: Shape) -> Floor:
    """Each derivative needs a product and a difference, and is accumulated in two rows of cells."""
    return _floor(shape, maps_read=2, gradient=True, each=UP + SOFTMAX + 6)


def upsample_binary_cross_entropy(shape: Shape) -> Floor:
    rows = shape.batch * shape.channels * shape.height
    least = _floor(shape, target=False, more_written=rows, each=UP + 10)
    return least + shape.floor(read=shape.map, written=0, operations=0)


def upsample_binary_cross_entropy_backward(shape: Shape) -> Floor:
    """Reads a gradient per class and pixel."""
    least = _floor(shape, target=False, gradient=True, each=UP + 14)
    return (
        least
        + shape.floor(read=shape.map, written=0, operations=0)
        + Floor(read=shape.map * shape.accumulate_size)
    )


def upsample_dice(shape: Shape) -> Floor:
    sums = 3 * shape.batch * shape.channels
    return _floor(shape, maps_written=1, more_written=sums, each=UP + 2 * SOFTMAX + 1)


def upsample_dice_backward(shape: Shape) -> Floor:
    sums = 3 * shape.batch * shape.channels * shape.accumulate_size
    least = _floor(shape, maps_read=1, gradient=True, each=2 * (UP + SOFTMAX + 3) + 4)
    return least + Floor(read=sums)


def first_cell(position: int, count: int, extent: int) -> int:
    """The first of the two cells around a position, with align_corners=False."""
    source = max(0.0, (position + 0.5) * count / extent - 0.5)
    return min(int(source), count - 1)


def _spans(count: int, extent: int, tile: int) -> int:
    """The number of cells along one axis that its tiles read, in total."""
    total = 0
    for begin in range(0, extent, tile):
        last = min(begin + tile, extent) - 1
        second = min(first_cell(last, count, extent) + 1, count - 1)
        total += second - first_cell(begin, count, extent) + 1
    return total


def _staged(shape: Shape) -> int:
    """The elements of the logits that all tiles of pixels read. Adjacent tiles share cells."""
    rows, columns = cells(shape)
    of_tiles = _spans(rows, shape.height, TILE_ROWS) * _spans(columns, shape.width, TILE_COLUMNS)
    return shape.batch * shape.channels * of_tiles


def forward_extra(shape: Shape, launches: Launches) -> Floor:
    """Repeated reads of the cells that adjacent tiles share, mostly from the L2 cache."""
    return shape.floor(read=_staged(shape) - logits(shape), written=0, operations=0)


def _parts(shape: Shape, rows: int) -> Floor:
    """Partial sums along W, one per column tile; with a single tile the sum is the result."""
    parts = -(-shape.width // TILE_COLUMNS)
    return partial_sums(shape, rows, parts) if parts > 1 else Floor()


def cross_entropy_extra(shape: Shape, launches: Launches) -> Floor:
    return forward_extra(shape, launches) + _parts(shape, 2 * shape.batch * shape.height)


def binary_extra(shape: Shape, launches: Launches) -> Floor:
    return forward_extra(shape, launches) + _parts(
        shape, shape.batch * shape.channels * shape.height
    )


def dice_extra(shape: Shape, launches: Launches) -> Floor:
    """The logits are read twice; partial sums per tile."""
    parts = -(-shape.width // TILE_COLUMNS) * -(-shape.height // TILE_ROWS)
    again = shape.floor(read=2 * _staged(shape) - logits(shape), written=0, operations=0)
    return again + partial_sums(shape, 3 * shape.batch * shape.channels, parts)


def _cell_tiles(shape: Shape) -> tuple[int, int, int]:
    """The columns of cells, classes and rows of cells (a band) of a block."""
    rows, columns = cells(shape)
    tile = min(columns, max(1, (TILE_COLUMNS - 2) * columns // shape.width - 1))
    others = max(1, shape.batch * -(-columns // tile))
    most = min(shape.channels, max(CLASSES_AT_ONCE, HELD_SUMS // tile))
    splits = min(SPLITS, -(-GRADIENT_BLOCKS // (others * -(-rows // LEAST_BAND))))
    each = -(-shape.channels // splits)
    classes = min(most, -(-each // CLASSES_AT_ONCE) * CLASSES_AT_ONCE)
    bands = max(1, GRADIENT_BLOCKS // (others * -(-shape.channels // classes)))
    return tile, classes, min(max(-(-rows // bands), LEAST_BAND), MOST_BAND)


def _gradient(shape: Shape, pixel_bytes: int = 0, class_bytes: int = 0) -> Floor:
    """All reads of the kernel in adjoint.cuh: the logits, each row of cells once per band;
    `pixel_bytes` per pixel and block of classes; `class_bytes` per pixel and class. Bands and
    column tiles of cells overlap in pixels."""
    rows, columns = cells(shape)
    tile, classes, band = _cell_tiles(shape)
    blocks = -(-shape.channels // classes)
    row_counts = [0] * rows  # per row of cells: the rows of pixels whose first cell it is
    for h in range(shape.height):
        row_counts[first_cell(h, rows, shape.height)] += 1
    staged_rows = pixel_rows = 0
    for first in range(0, rows, band):
        top, last = max(0, first - 1), min(first + band, rows)
        staged_rows += min(last + 1, rows) - top
        pixel_rows += sum(row_counts[top:last])
    staged_columns = pixel_columns = 0
    for j in range(0, columns, tile):
        last = min(j + tile, columns)
        staged_columns += min(last + 1, columns) - max(0, j - 1)
        reading = [
            w
            for w in range(shape.width)
            if first_cell(w, columns, shape.width) < last
            and min(first_cell(w, columns, shape.width) + 1, columns - 1) >= j
        ]
        pixel_columns += len(reading)
    pixels = shape.batch * pixel_rows * pixel_columns
    return Floor(
        read=shape.batch * shape.channels * staged_rows * staged_columns * shape.element_size
        + pixels * (blocks * pixel_bytes + shape.channels * class_bytes)
    )


def cross_entropy_backward_extra(shape: Shape, launches: Launches) -> Floor:
    """The reads of the kernel that exceed the floor: several blocks read the same pixels."""
    all_reads = _gradient(shape, pixel_bytes=TARGET_BYTES + 2 * shape.accumulate_size)
    return Floor(read=all_reads.read - upsample_cross_entropy_backward(shape).read)


def binary_backward_extra(shape: Shape, launches: Launches) -> Floor:
    all_reads = _gradient(shape, class_bytes=shape.element_size + shape.accumulate_size)
    return Floor(read=all_reads.read - upsample_binary_cross_entropy_backward(shape).read)


def dice_backward_extra(shape: Shape, launches: Launches) -> Floor:
    """The kernel upsample_dice_dots reads the logits, the target and the log-sum-exps and writes a
    map of dot products, which the second kernel reads. Each block of both kernels reads the
    gradients of the sums."""
    size = shape.accumulate_size
    dots = _staged(shape) * shape.element_size + shape.pixels * (TARGET_BYTES + size)
    dots += launches["upsample_dice_dots"].grid[0] * 2 * shape.channels * size
    slopes = _gradient(shape, pixel_bytes=TARGET_BYTES + 2 * size)
    class_blocks = -(-shape.channels // _cell_tiles(shape)[1])
    blocks = launches["upsample_dice_backward"].grid[0] // class_blocks
    dots += blocks * 2 * shape.channels * size
    return Floor(
        read=dots + slopes.read - upsample_dice_backward(shape).read,
        written=shape.pixels * size,
    )


FLOORS: dict[str, FloorOf] = {
    "upsample_argmax": upsample_argmax,
    "upsample_softmax_max": upsample_softmax_max,
    "upsample_cross_entropy": upsample_cross_entropy,
    "upsample_cross_entropy_backward": upsample_cross_entropy_backward,
    "upsample_binary_cross_entropy": upsample_binary_cross_entropy,
    "upsample_binary_cross_entropy_backward": upsample_binary_cross_entropy_backward,
    "upsample_dice": upsample_dice,
    "upsample_dice_backward": upsample_dice_backward,
}
CUDA_EXTRA: dict[str, Extra] = {
    "upsample_argmax": forward_extra,
    "upsample_softmax_max": forward_extra,
    "upsample_cross_entropy": cross_entropy_extra,
    "upsample_cross_entropy_backward": cross_entropy_backward_extra,
    "upsample_binary_cross_entropy": binary_extra,
    "upsample_binary_cross_entropy_backward": binary_backward_extra,
    "upsample_dice": dice_extra,
    "upsample_dice_backward": dice_backward_extra,
}
