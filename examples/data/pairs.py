"""Reads images and their label maps from files, and says which file is wrong and why."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from examples.data.labels import DataError, Labelling

_BROKEN = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)


class Scene(NamedTuple):
    """An image uint8 (H, W, 3), its labels uint8 (H, W) with IGNORE where there are none, and the
    name that messages and predictions use."""

    image: np.ndarray
    labels: np.ndarray
    name: str


class Scenes(Protocol):
    """A dataset: labelled images by number."""

    labelling: Labelling

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...

    def labels(self, index: int) -> np.ndarray:
        """Those of a scene, without its image."""
        ...

    def version(self) -> str:
        """Another one where the labels are others."""
        ...


class Pair(NamedTuple):
    image: Path
    labels: Path


class PairedFiles:
    """Images and the files of their labels.

    Raises:
        DataError: there is no pair, or a label file is missing; when one is read, it is broken, of
            another size than its image, or holds a value that means nothing.
    """

    def __init__(self, pairs: Sequence[Pair], labelling: Labelling, where: Path | str) -> None:
        if not pairs:
            raise DataError(f"{where}: holds no images")
        for pair in pairs:
            if not pair.labels.is_file():
                raise DataError(f"{pair.labels}: missing, the labels of {pair.image}")
        self.pairs, self.labelling = list(pairs), labelling

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Scene:
        pair = self.pairs[index]
        image, labels = read_image(pair.image), self.labels(index)
        if image.shape[:2] != labels.shape:
            raise DataError(
                f"{pair.labels}: must be as large as {pair.image}, "
                f"{_size(image)}, got {_size(labels)}"
            )
        return Scene(image, labels, pair.image.stem)

    def labels(self, index: int) -> np.ndarray:
        path = self.pairs[index].labels
        return self.labelling.decode(read_values(path), path)

    def version(self) -> str:
        """By the names, sizes and times of the label files."""
        meaning = (self.labelling.values, sorted(self.labelling.ignored))
        known = hashlib.sha256(repr(meaning).encode())
        for pair in self.pairs:
            facts = pair.labels.stat()
            known.update(f"{pair.labels.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
        return known.hexdigest()


def read_image(path: Path, *, upright: bool = False) -> np.ndarray:
    """uint8 (H, W, 3), from any format that Pillow reads; `upright`: turned as its camera says,
    where the labels of a dataset go with the pixels as they lie in the file."""
    with _opened(path) as file:
        image = ImageOps.exif_transpose(file) if upright else file
        return np.asarray(image.convert("RGB"))


def read_values(path: Path) -> np.ndarray:
    """Integers (H, W), from a picture with one channel or with a palette."""
    with _opened(path) as file:
        values = np.asarray(file)
        if values.ndim != 2 or values.dtype.kind not in "bui":
            raise DataError(f"{path}: labels must have one channel, got an image of {file.mode}")
    return values.astype(np.int64) if values.dtype != np.uint8 else values


def _opened(path: Path) -> Image.Image:
    """The image, decoded."""
    try:
        file = Image.open(path)
        file.load()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such image") from None
    except _BROKEN as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from None
    return file


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"
