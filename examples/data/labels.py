"""What labels mean: classes, their colours, and the values that stand for them in label files.

In memory a label is the class's index, 0 to K - 1, or IGNORE, whatever the files hold.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

IGNORE = 255
TABLES = Path(__file__).parent / "classes"
_REFUSED = -1


class DataError(Exception):
    """Something about a dataset's files; the message starts with the file's name."""


class Class(NamedTuple):
    name: str
    colour: tuple[int, int, int]  # in figures


@dataclass(frozen=True)
class Labelling:
    """The classes of a dataset and the values of its label files.

    Args:
        classes: K of them, at most 255.
        values: what stands for each in the files.
        ignored: the values of pixels that count nowhere. All others are an error.
    """

    classes: tuple[Class, ...]
    values: tuple[int, ...]
    ignored: frozenset[int] = frozenset({IGNORE})
    _table: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < len(self.classes) <= IGNORE or len(self.classes) != len(self.values):
            raise ValueError(
                f"Labelling: classes must be 1 to {IGNORE}, with a value each, "
                f"got {len(self.classes)} and {len(self.values)} values"
            )
        table = np.full(256, _REFUSED, np.int16)
        table[sorted(self.ignored)] = IGNORE
        table[list(self.values)] = np.arange(len(self.values))
        object.__setattr__(self, "_table", table)

    @property
    def palette(self) -> np.ndarray:
        """uint8 (K, 3)."""
        return np.array([each.colour for each in self.classes], np.uint8)

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.classes]

    def decode(self, values: np.ndarray, path: Path | str) -> np.ndarray:
        """The values of a label file, integers (H, W), as labels, uint8 (H, W)."""
        if values.size and not (values.min() >= 0 and values.max() < len(self._table)):
            self._refuse(values, ~np.isin(values, np.arange(len(self._table))), path)
        labels = self._table[values]
        if (labels == _REFUSED).any():
            self._refuse(values, labels == _REFUSED, path)
        return labels.astype(np.uint8)

    def encode(self, labels: np.ndarray) -> np.ndarray:
        """Labels or predictions as values of the dataset's files, uint8."""
        spare = min(self.ignored) if self.ignored else IGNORE
        table = np.full(256, spare, np.uint8)
        table[: len(self.values)] = self.values
        return table[labels]

    def _refuse(self, values: np.ndarray, wrong: np.ndarray, path: Path | str) -> None:
        found = ", ".join(map(str, np.unique(values[wrong])[:5]))
        known = f"{_ranges(self.values)}, ignored {_ranges(self.ignored) or 'none'}"
        raise DataError(f"{path}: labels must be among {known}; got {found}")


def from_table(
    name: str, ignored: Iterable[int] = (IGNORE,), *, without: Sequence[str] = ()
) -> Labelling:
    """The labelling in `classes/<name>.csv`; classes in `without` are ignored."""
    with (TABLES / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if row["name"] not in without]
    dropped = {int(row["value"]) for row in rows if row["name"] in without}
    return Labelling(
        tuple(
            Class(row["name"], (int(row["red"]), int(row["green"]), int(row["blue"])))
            for row in kept
        ),
        tuple(int(row["value"]) for row in kept),
        (frozenset(ignored) | dropped) - {int(row["value"]) for row in kept},
    )


def numbered(classes: int | Sequence[str], ignored: Iterable[int] = (IGNORE,)) -> Labelling:
    """Classes 0 to K - 1 by number or by name, in the colours of PASCAL VOC."""
    names = [f"class {i}" for i in range(classes)] if isinstance(classes, int) else list(classes)
    colours = [pascal_colour(index) for index in range(len(names))]
    kept = range(len(names))
    return Labelling(
        tuple(Class(*each) for each in zip(names, colours, strict=True)),
        tuple(kept),
        frozenset(ignored) - set(kept),
    )


def pascal_colour(index: int) -> tuple[int, int, int]:
    """PASCAL VOC's colour map: the bits of the index, in turn, are high bits of the channels."""
    channels = [0, 0, 0]
    for bit in range(8):
        channels[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
    return channels[0], channels[1], channels[2]


def _ranges(values: Iterable[int]) -> str:
    """1, 2, 3, 7 as 1-3, 7."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
