"""Pairs image files with label files by file name patterns.

    data.label_name={name}_mask.png          street.jpg and street_mask.png
    data.image_name={name}_sat.jpg           0001_sat.jpg ...
    data.label_name={name}_mask.png          ... and 0001_mask.png, in one folder too

`{name}` is the common part of both names, `*` matches anything.
"""

from __future__ import annotations

import re
from pathlib import Path

from examples.data.files import listed
from examples.data.labels import DataError
from examples.data.layouts import SUFFIXES, existing
from examples.data.pairs import Pair

NAME = "{name}"


def check(setting: str, pattern: str) -> None:
    """Raises ValueError for an invalid pattern."""
    if pattern.count(NAME) != 1 or "/" in pattern:
        raise ValueError(f"{setting}: must be a file's name with {NAME} once, got {pattern!r}")


def paired(images: Path, labels: Path, image_name: str, label_name: str) -> list[Pair]:
    """Pairs every image of a folder with its label file.

    Args:
        image_name: the pattern of images; if empty, all files with an image's suffix.
        label_name: the pattern of label files.

    Raises:
        DataError: a folder or an image's label file is missing, or a name matches two files.
    """
    named_labels = _named(labels, label_name)
    named_images = _named(images, image_name or f"{NAME}.*")
    if images.resolve() == labels.resolve():
        marks = {path for paths in named_labels.values() for path in paths}
        kept = {name: [p for p in paths if p not in marks] for name, paths in named_images.items()}
        named_images = {name: paths for name, paths in kept.items() if paths}
    return [
        Pair(_only(paths, "image"), _labels(paths[0], name, named_labels, labels, label_name))
        for name, paths in named_images.items()
    ]


def _labels(
    image: Path, name: str, known: dict[str, list[Path]], folder: Path, pattern: str
) -> Path:
    if name in known:
        return _only(known[name], "label file")
    missing = folder / pattern.replace(NAME, name)
    others = [path.name for path in listed(folder, SUFFIXES) if name in path.name and path != image]
    hint = ""
    if others:
        near = min(others, key=len)
        hint = f"; {near} exists: data.label_name={near.replace(name, NAME, 1)}"
    raise DataError(f"{missing}: missing, the labels of {image}{hint}")


def _named(folder: Path, pattern: str) -> dict[str, list[Path]]:
    """The images of a folder that match a pattern, by the text that matches {name}."""
    parts = re.split(r"(\{name\}|\*)", pattern)
    known = {NAME: "(?P<name>.+)", "*": ".*"}
    fits = re.compile("".join(known.get(part, re.escape(part)) for part in parts))
    found: dict[str, list[Path]] = {}
    for path in listed(existing(folder), SUFFIXES):
        if match := fits.fullmatch(path.name):
            found.setdefault(match["name"], []).append(path)
    return found


def _only(paths: list[Path], kind: str) -> Path:
    if len(paths) > 1:
        raise DataError(f"{paths[1]}: is a second {kind} with the name of {paths[0].name}")
    return paths[0]
