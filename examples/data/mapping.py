"""Maps the values or colours of custom label files to classes.

A recipe defines the mapping as `data.values`, or names a table, a CSV file with a line per value:

    name,value,red,green,blue
    soil,0,128,64,0
    plant,255,0,160,0

Lines with the same name are one class; a line without a name is ignored. Without the column
`value`, label files are images in these colours; with it, the colours are used in figures and are
optional. The columns `r,g,b` are accepted too, as in CamVid's class_dict.csv.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from examples.data.labels import (
    IGNORE,
    LARGEST,
    Class,
    Colour,
    DataError,
    Labelling,
    pascal_colour,
)

_COLUMNS = {"r": "red", "g": "green", "b": "blue", "class": "name", "id": "value"}


class Table(NamedTuple):
    """The contents of a table, in the form of `data.classes`, `data.values` and `data.colours`."""

    classes: list[str]
    values: dict[str, str]
    colours: dict[str, str]


def read_table(path: Path) -> Table:
    """Raises DataError for an invalid table."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [_named_row(row) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from None
    classes: list[str] = []
    values: dict[str, str] = {}
    colours: dict[str, str] = {}
    for line, row in enumerate(rows, 2):
        name, value = row.get("name"), row.get("value", "")
        colour = " ".join(row.get(channel, "") for channel in ("red", "green", "blue")).strip()
        key = value or colour
        if name is None or not key:
            raise DataError(
                f"{path}: must have the columns name and value, or name, red, green, blue; "
                f"line {line} has {', '.join(f'{k}={v}' for k, v in row.items()) or 'none'}"
            )
        if key in values:
            raise DataError(f"{path}: {key} occurs twice, again in line {line}")
        values[key] = name
        if name and name not in classes:
            classes.append(name)
            if colour:
                colours[name] = colour
    return Table(classes, values, colours)


def mapped(
    classes: Sequence[str],
    values: Mapping[str, str],
    ignored: Sequence[int],
    colours: Mapping[str, str],
) -> Labelling:
    """The labelling that `data.values` defines.

    Args:
        classes: K names in order; if empty, in the order of their first values.
        values: maps a number such as "255", or a colour such as "128 64 0" or "#804000", to the
            name of its class; an empty name means ignored.
        ignored: further values that are ignored.
        colours: of classes in figures.

    Raises:
        ValueError: a setting is invalid; the message starts with it.
    """
    names = list(classes) or list(dict.fromkeys(name for name in values.values() if name))
    if not 2 <= len(names) <= IGNORE:
        raise ValueError(f"data.classes: must be 2 to {IGNORE}, got {len(names)}")
    meaning = _meaning(names, values)
    first = [next(key for key, k in meaning.items() if k == each) for each in range(len(names))]
    every = tuple(
        Class(name, key if isinstance(key, tuple) else colour)
        for name, key, colour in zip(names, first, _shown(names, colours), strict=True)
    )
    if isinstance(first[0], tuple):
        if list(ignored) not in ([], [IGNORE]):
            raise ValueError(
                "data.ignored: must be empty if data.values has colours; give ignored colours "
                f"an empty name, got {list(ignored)}"
            )
        own = tuple(range(len(names)))
        return Labelling(every, own, frozenset(), colours=tuple(meaning.items()))
    of_classes = {key: k for key, k in meaning.items() if k != IGNORE}
    unlabelled = meaning.keys() - of_classes.keys()
    return Labelling(
        every,
        tuple(first),
        frozenset(unlabelled) | _free(ignored, {key: names[k] for key, k in of_classes.items()}),
        others=tuple((key, k) for key, k in of_classes.items() if key != first[k]),
    )


def _meaning(names: Sequence[str], values: Mapping[str, str]) -> dict[Any, int]:
    """The class index or IGNORE by value or by colour; every class must have one."""
    for name in values.values():
        if name and name not in names:
            raise ValueError(f"data.values: must name {', '.join(names)}, got {name!r}")
    found = {_key(key): names.index(name) if name else IGNORE for key, name in values.items()}
    if len({type(key) for key in found}) > 1 or len(found) < len(values):
        raise ValueError(
            "data.values: must be all numbers or all colours, each once, "
            f"got {', '.join(map(str, values))}"
        )
    for number, name in enumerate(names):
        if number not in found.values():
            raise ValueError(
                f"data.values: must have a value for each class, got none for {name!r}"
            )
    return found


def _shown(names: Sequence[str], colours: Mapping[str, str]) -> list[Colour]:
    """The classes' colours in figures."""
    for name in colours:
        if name not in names:
            raise ValueError(f"data.colours: must name {', '.join(names)}, got {name!r}")
    given = {name: _colour("data.colours", text) for name, text in colours.items()}
    return [given.get(name, pascal_colour(number)) for number, name in enumerate(names)]


def _free(ignored: Sequence[int], classes: Mapping[int, str]) -> frozenset[int]:
    """The ignored values without those of classes; only the default may overlap with classes."""
    for value in ignored:
        if value in classes and list(ignored) != [IGNORE]:
            raise ValueError(
                f"data.ignored: must not contain values of classes, but {value} is "
                f"{classes[value]!r} in data.values"
            )
    return frozenset(ignored) - classes.keys()


def numbered(
    classes: int | Sequence[str],
    ignored: Sequence[int] = (IGNORE,),
    colours: Mapping[str, str] = {},
) -> Labelling:
    """Classes 0 to K - 1, given as a number or as names, by default in PASCAL VOC's colours."""
    names = [f"class {i}" for i in range(classes)] if isinstance(classes, int) else list(classes)
    return mapped(names, {str(i): name for i, name in enumerate(names)}, ignored, colours)


def _key(text: str) -> int | Colour:
    if re.fullmatch(r"\s*\d+\s*", text):
        value = int(text)
        if value > LARGEST:
            raise ValueError(f"data.values: must be 0 to {LARGEST}, got {value}")
        return value
    return _colour("data.values", text)


def _colour(setting: str, text: str) -> Colour:
    """Parses 128 64 0, with or without commas, or #804000."""
    if found := re.fullmatch(r"\s*#([0-9a-fA-F]{6})\s*", text):
        red, green, blue = bytes.fromhex(found[1])
        return red, green, blue
    channels = re.split(r"[\s,]+", text.strip(" []()"))
    if len(channels) != 3 or not all(
        re.fullmatch(r"\d{1,3}", c) and int(c) < 256 for c in channels
    ):
        raise ValueError(f"{setting}: must be like '128 64 0' or '#804000', got {text!r}")
    return int(channels[0]), int(channels[1]), int(channels[2])


def _named_row(row: Mapping[str | None, str | None]) -> dict[str, str]:
    """Renames the columns to those of our own tables."""
    known = {
        (key or "").strip().lower(): (value or "").strip() for key, value in row.items() if key
    }
    return {_COLUMNS.get(key, key): value for key, value in known.items()}
