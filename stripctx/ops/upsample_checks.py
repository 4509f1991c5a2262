"""Argument checks and helpers of the operators that interpolate levels.

Levels: 1 to 8 maps (N, C_l, h, w) of any size from 1 x 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stripctx.ops import checks
from stripctx.reference.upsample import MODES

MOST_LEVELS = 8
MOST = 2**31 - 1  # sums and products in the kernels then fit in 64 bits
MOST_TAPS = 2**15 - 1  # along one axis


def _check_count(name: str, argument: str, count: int) -> None:
    if not 1 <= count <= MOST_LEVELS:
        raise ValueError(f"{name}: {argument} must hold 1 to {MOST_LEVELS} tensors, got {count}")


def check_levels(
    name: str,
    argument: str,
    levels: Sequence[Tensor],
    first: str,
    other: Tensor,
    channels: int | None = None,
) -> None:
    """Levels have the batch size, dtype and device of `other`, and `channels` channels (or any
    number)."""
    _check_count(name, argument, len(levels))
    for i, level in enumerate(levels):
        item = f"{argument}[{i}]"
        checks.tensor(name, item, level, "(N, C, h, w)")
        checks.alike(name, item, level, first, other)
        expected = (other.size(0), level.size(1) if channels is None else channels)
        checks.size(name, item, level, (*expected, *level.shape[2:]))
        if level.size(2) < 1 or level.size(3) < 1:
            raise ValueError(
                f"{name}: {item} must have at least one row and one column, "
                f"got {checks.text(level.shape)}"
            )


def check_sizes(name: str, sizes: Sequence[int], each: int) -> None:
    """`sizes` has `each` numbers per level, the last two of which, its rows and columns, are
    positive."""
    if len(sizes) % each != 0:
        raise ValueError(f"{name}: sizes must hold {each} numbers a level, got {len(sizes)}")
    _check_count(name, "sizes", len(sizes) // each)
    if any(size < (0 if i % each < each - 2 else 1) for i, size in enumerate(sizes)):
        raise ValueError(f"{name}: sizes must be positive, got {checks.text(sizes)}")
    check_most(name, "sizes", sizes, MOST)


def check_interpolation(
    name: str,
    modes: Sequence[int],
    ratios: Sequence[float],
    cells: Sequence[int],
    extent: Sequence[int],
) -> None:
    """There are a mode and two ratios for each level, whose `cells` are (h, w), (h, w), ... No
    ratio is greater than input size over output size, so that no position reads past the level."""
    if len(modes) != len(cells) // 2 or any(mode not in MODES for mode in modes):
        raise ValueError(
            f"{name}: modes must hold a code from 0 to {len(MODES) - 1} a level, got {list(modes)}"
        )
    if len(ratios) != len(cells):
        raise ValueError(f"{name}: ratios must hold two numbers a level, got {list(ratios)}")
    for i, ratio in enumerate(ratios):
        if ratio != 0 and not 0 < ratio * extent[i % 2] <= cells[i] * (1 + 1e-6):
            raise ValueError(
                f"{name}: ratios must be from 0 to input size / output size, got {ratio} for "
                f"{cells[i]} / {extent[i % 2]}"
            )


def check_most(name: str, argument: str, values: Sequence[int], most: int) -> None:
    """Skips symbolic sizes: a comparison would add a bound to the exported program."""
    if any(isinstance(value, int) and value > most for value in values):
        raise ValueError(f"{name}: {argument} must be at most {most}, got {checks.text(values)}")


def format_of(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def sizes_of(levels: Sequence[Tensor]) -> list[int]:
    return [size for level in levels for size in level.shape[2:]]


def promote(*tensors: Tensor) -> list[Tensor]:
    """Converts all tensors to the widest dtype among them, as torch.cat does under autocast."""
    dtype = tensors[0].dtype
    for other in tensors[1:]:
        dtype = torch.promote_types(dtype, other.dtype)
    return [tensor.to(dtype) for tensor in tensors]
