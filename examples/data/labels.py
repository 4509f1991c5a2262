"""Labellings: classes, their colours, and their values in label files.

In memory a label is the class's index, 0 to K - 1, or IGNORE, independent of the files' values.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

IGNORE = 255
LARGEST = 65535  # the largest value in a label file
TABLES = Path(__file__).parent / "classes"
_REFUSED = -1


class DataError(Exception):
    """A problem with a dataset's files; the message starts with the file's name."""


Colour = tuple[int, int, int]  # red, green, blue, 0 to 255


class Class(NamedTuple):
    name: str
    colour: Colour  # used in figures


@dataclass(frozen=True)
class Labelling:
    """The classes of a dataset and the values, or the colours, of its label files.

    Args:
        classes: at most 255.
        values: the value of each class in label files.
        ignored: values of ignored pixels. Values that are in no list are an error.
        others: further values, with the index of the class that each stands for.
        colours: for label files in colour, the class index or IGNORE of each colour; `values` are
            then not used for the files.
    """

    classes: tuple[Class, ...]
    values: tuple[int, ...]
    ignored: frozenset[int] = frozenset({IGNORE})
    others: tuple[tuple[int, int], ...] = ()
    colours: tuple[tuple[Colour, int], ...] = ()
    _table: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < len(self.classes) <= IGNORE or len(self.classes) != len(self.values):
            raise ValueError(
                f"Labelling: classes must be 1 to {IGNORE}, with a value each, "
                f"got {len(self.classes)} and {len(self.values)} values"
            )
        more = [value for value, _ in self.others]
        table = np.full(max(IGNORE, *self.values, *more, *self.ignored) + 1, _REFUSED, np.int16)
        table[sorted(self.ignored)] = IGNORE
        table[list(self.values)] = np.arange(len(self.values))
        table[more] = [number for _, number in self.others]
        object.__setattr__(self, "_table", table)

    @property
    def palette(self) -> np.ndarray:
        """The colours of the classes, uint8 (K, 3)."""
        return np.array([each.colour for each in self.classes], np.uint8)

    @property
    def names(self) -> list[str]:
        """One name per class; if a name occurs twice, the later one has its value appended."""
        found: list[str] = []
        for each, value in zip(self.classes, self.values, strict=True):
            found.append(each.name if each.name not in found else f"{each.name} ({value})")
        return found

    def decode(self, values: np.ndarray, path: Path | str) -> np.ndarray:
        """Converts the values of a label file, integers (H, W), or its colours, uint8 (H, W, 3), to
        labels, uint8 (H, W)."""
        if self.colours:
            return self._decode_colours(values, path)
        if values.size and not (values.min() >= 0 and values.max() < len(self._table)):
            self._refuse(values, ~np.isin(values, np.arange(len(self._table))), path)
        labels = self._table[values]
        if (labels == _REFUSED).any():
            self._refuse(values, labels == _REFUSED, path)
        return labels.astype(np.uint8)

    def encode(self, labels: np.ndarray) -> np.ndarray:
        """Converts labels or predictions to the dataset's format: values, uint8 or if necessary
        uint16, or colours, uint8 (H, W, 3)."""
        if self.colours:
            unlabelled = next((colour for colour, k in self.colours if k == IGNORE), (0, 0, 0))
            shown = np.full((256, 3), unlabelled, np.uint8)
            shown[: len(self.classes)] = self.palette
            return shown[labels]
        spare = min(self.ignored) if self.ignored else IGNORE
        kind = np.uint8 if max(*self.values, spare) < 256 else np.uint16
        table = np.full(256, spare, kind)
        table[: len(self.values)] = self.values
        return table[labels]

    def _decode_colours(self, colours: np.ndarray, path: Path | str) -> np.ndarray:
        known = np.array([_packed(np.array(colour)) for colour, _ in self.colours])
        order = np.argsort(known)
        asked = _packed(colours)
        place = np.searchsorted(known[order], asked).clip(max=len(known) - 1)
        wrong = known[order][place] != asked
        if wrong.any():
            found = ", ".join(str(c.tolist()) for c in np.unique(colours[wrong], axis=0)[:5])
            raise DataError(f"{path}: colours must be among data.values; got {found}")
        return np.array([k for _, k in self.colours], np.uint8)[order][place]

    def _refuse(self, values: np.ndarray, wrong: np.ndarray, path: Path | str) -> None:
        found = ", ".join(map(str, np.unique(values[wrong])[:5]))
        classes = (*self.values, *(value for value, _ in self.others))
        known = f"{_ranges(classes)}, ignored {_ranges(self.ignored) or 'none'}"
        raise DataError(f"{path}: labels must be among {known}; got {found}")


def _packed(colours: np.ndarray) -> np.ndarray:
    """Packs colours (..., 3) into one number each."""
    red, green, blue = np.moveaxis(colours.astype(np.int64), -1, 0)
    return red << 16 | green << 8 | blue


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


def pascal_colour(index: int) -> Colour:
    """PASCAL VOC's colour map: the bits of the index become the high bits of the channels in
    turn."""
    channels = [0, 0, 0]
    for bit in range(8):
        channels[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
    return channels[0], channels[1], channels[2]


def _ranges(values: Iterable[int]) -> str:
    """Formats 1, 2, 3, 7 as 1-3, 7."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
