"""Images and label maps read from files, with errors for mismatched pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from examples.data.images import PLAIN, Reading, read_image, read_values, size
from examples.data.labels import DataError, Labelling


class Scene(NamedTuple):
    """An image uint8 (H, W, 3), its labels uint8 (H, W) with IGNORE for unlabelled pixels, and the
    name used in messages and for predictions."""

    image: np.ndarray
    labels: np.ndarray
    name: str


class Scenes(Protocol):
    """A dataset of labelled images, indexed by number."""

    labelling: Labelling

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...

    def labels(self, index: int) -> np.ndarray:
        """The labels of a scene, without its image."""
        ...

    def checked_labels(self, index: int) -> np.ndarray:
        """The labels of a scene, after checking that the image has the same size."""
        ...

    def version(self) -> str:
        """A string that changes when the labels change."""
        ...


class Pair(NamedTuple):
    image: Path
    labels: Path


class PairedFiles:
    """Image files and their label files.

    Raises:
        DataError: there is no pair, or a label file is missing; on reading, a file is broken, an
            image and its labels differ in size, or a value is unknown.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        labelling: Labelling,
        where: Path | str,
        reading: Reading = PLAIN,
    ) -> None:
        if not pairs:
            raise DataError(f"{where}: contains no images")
        for pair in pairs:
            if not pair.labels.is_file():
                raise DataError(f"{pair.labels}: missing, the labels of {pair.image}")
        self.pairs, self.labelling, self.reading = list(pairs), labelling, reading

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Scene:
        pair = self.pairs[index]
        image, labels = read_image(pair.image, self.reading), self.labels(index)
        self._check_size(pair, image.shape[:2], labels)
        return Scene(image, labels, pair.image.stem)

    def labels(self, index: int) -> np.ndarray:
        path = self.pairs[index].labels
        in_colour = bool(self.labelling.colours)
        return self.labelling.decode(read_values(path, self.reading, colours=in_colour), path)

    def checked_labels(self, index: int) -> np.ndarray:
        """The labels of a scene, after comparing their size with the image's header."""
        pair, labels = self.pairs[index], self.labels(index)
        self._check_size(pair, size(pair.image, self.reading), labels)
        return labels

    def _check_size(self, pair: Pair, image: tuple[int, ...], labels: np.ndarray) -> None:
        if image != labels.shape:
            height, width = labels.shape
            raise DataError(
                f"{pair.labels}: must be as large as {pair.image}, "
                f"{image[0]} x {image[1]}, got {height} x {width}"
            )

    def version(self) -> str:
        """Hashes the names, sizes and modification times of the label files."""
        meaning = (
            self.labelling.values,
            sorted(self.labelling.ignored),
            self.labelling.others,
            self.labelling.colours,
        )
        known = hashlib.sha256(repr(meaning).encode())
        for pair in self.pairs:
            facts = pair.labels.stat()
            known.update(f"{pair.labels.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
        return known.hexdigest()
