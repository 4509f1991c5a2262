"""The height family: HANet's rows."""

from __future__ import annotations

from benchmarks.floors.base import SIGMOID_OPERATIONS, Extra, Floor, FloorOf, Launches, Shape

GATE_ROWS = 16  # results of row_pool and logits of row_gate, per channel


def gate_rows(shape: Shape) -> int:
    """The number of elements of the pooled rows, or of the logits."""
    return shape.batch * shape.channels * GATE_ROWS


def row_pool(shape: Shape) -> Floor:
    """An addition per element and a division per result. The rows that two bands share, if the
    number of bands does not divide H, count once."""
    rows = gate_rows(shape)
    return shape.floor(read=shape.map, written=rows, operations=shape.map + rows)


def row_pool_backward(shape: Shape) -> Floor:
    """A division and an addition per band."""
    rows = gate_rows(shape)
    return shape.floor(read=rows, written=shape.map, operations=2 * rows)


def row_gate(shape: Shape) -> Floor:
    logits = gate_rows(shape)
    return shape.floor(
        read=shape.map + logits,
        written=shape.map,
        operations=shape.map + SIGMOID_OPERATIONS * logits + 3 * shape.rows,
    )


def row_gate_backward(shape: Shape) -> Floor:
    """A product for the gradient of x; a product and a sum for the gradient of the gates."""
    logits = gate_rows(shape)
    return shape.floor(
        read=2 * shape.map + logits,
        written=shape.map + logits,
        operations=3 * shape.map + (SIGMOID_OPERATIONS + 3) * logits + 7 * shape.rows,
    )


def row_gate_extra(shape: Shape, launches: Launches) -> Floor:
    """Two logits are read per row and channel, instead of each logit once."""
    logits = gate_rows(shape)
    return shape.floor(read=2 * shape.rows - logits, written=0, operations=0)


def row_gate_backward_extra(shape: Shape, launches: Launches) -> Floor:
    """As row_gate_extra, and each logit is read once more. If a second kernel computes the
    gradient of the logits, the first writes sums over W and the second reads them twice."""
    sums = shape.rows * shape.accumulate_size
    again = Floor(read=gate_rows(shape) * shape.element_size)
    if "row_gate_backward_logits" in launches:
        again += Floor(read=2 * sums, written=sums)
    return row_gate_extra(shape, launches) + again


FLOORS: dict[str, FloorOf] = {
    "row_pool": row_pool,
    "row_pool_backward": row_pool_backward,
    "row_gate": row_gate,
    "row_gate_backward": row_gate_backward,
}
CUDA_EXTRA: dict[str, Extra] = {
    "row_gate": row_gate_extra,
    "row_gate_backward": row_gate_backward_extra,
}
