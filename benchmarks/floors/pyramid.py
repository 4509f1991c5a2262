"""The pyramid family's pooling: means and maxima of PSPNet's bins. Level b has b x b bins."""

from __future__ import annotations

from benchmarks.floors.base import Extra, Floor, FloorOf, Launches, Shape, launch_of

PSP_BINS = (1, 2, 3, 6)
INDEX_SIZE = 8  # int64, one per maximum


def square_cells(bins: tuple[int, ...]) -> int:
    return sum(b * b for b in bins)


def level_cells(shape: Shape, bins: tuple[int, ...], channels: int) -> int:
    """The number of elements of the levels."""
    return shape.batch * channels * square_cells(bins)


def pyramid_pool(shape: Shape) -> Floor:
    """One addition per element for any number of levels, and one division per bin."""
    bins = level_cells(shape, PSP_BINS, shape.channels)
    return shape.floor(read=shape.map, written=bins, operations=shape.map + bins)


def pyramid_pool_backward(shape: Shape) -> Floor:
    """A division and an addition per bin: the gradient is constant on a cell."""
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


def parts_of_bins(shape: Shape, launches: Launches, state: int) -> Floor:
    """Partial results of `state` bytes per bin and chunk of rows that overlaps it, if there are
    several chunks: written by one kernel, read by the next. Each boundary between chunks is assumed
    to split a row of bins of every level."""
    _, launch = launch_of(launches, "pyramid_pool")
    chunks = launch.grid[1]
    parts = square_cells(PSP_BINS) + (chunks - 1) * sum(PSP_BINS)
    size = shape.batch * shape.channels * parts * state if chunks > 1 else 0
    return Floor(read=size, written=size)


def pyramid_pool_extra(shape: Shape, launches: Launches) -> Floor:
    return parts_of_bins(shape, launches, shape.accumulate_size)


def pyramid_max_pool_extra(shape: Shape, launches: Launches) -> Floor:
    """The partial result of a bin is a maximum and its index."""
    return parts_of_bins(shape, launches, 2 * shape.accumulate_size)


def pyramid_max_pool_backward_extra(shape: Shape, launches: Launches) -> Floor:
    """The kernel stores zeros, then the element of each bin's maximum a second time. The bins that
    several chunks of rows read again are not counted."""
    return shape.floor(read=0, written=level_cells(shape, PSP_BINS, shape.channels), operations=0)


FLOORS: dict[str, FloorOf] = {
    "pyramid_pool": pyramid_pool,
    "pyramid_pool_backward": pyramid_pool_backward,
    "pyramid_max_pool": pyramid_max_pool,
    "pyramid_max_pool_backward": pyramid_max_pool_backward,
}
CUDA_EXTRA: dict[str, Extra] = {
    "pyramid_pool": pyramid_pool_extra,
    "pyramid_max_pool": pyramid_max_pool_extra,
    "pyramid_max_pool_backward": pyramid_max_pool_backward_extra,
}
