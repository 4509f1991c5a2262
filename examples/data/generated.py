"""Street scenes as a dataset: drawn on demand, with a cache of the most recent ones."""

from __future__ import annotations

import functools

import numpy as np

from examples.data.labels import Labelling
from examples.data.pairs import Scene
from examples.street import scenes

VALIDATION_SEEDS = 1_000_000  # the seeds of validation scenes start here
_drawn = functools.lru_cache(maxsize=512)(scenes.scene)  # one cache per process


class GeneratedScenes:
    """`count` scenes of one size, identified by their seeds.

    Args:
        split: train or val; no scene is in both.
        count: the number of scenes.
        height, width: of each scene, in pixels.
    """

    labelling = Labelling(tuple(scenes.CLASSES), tuple(range(len(scenes.CLASSES))))

    def __init__(self, split: str, count: int, height: int, width: int) -> None:
        self.first = VALIDATION_SEEDS if split == "val" else 0
        self.count, self.height, self.width = count, height, width

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.count:
            raise IndexError(f"GeneratedScenes: index must be below {self.count}, got {index}")
        seed = self.first + index
        return Scene(*_drawn(seed, self.height, self.width), f"scene{seed:07}")

    def labels(self, index: int) -> np.ndarray:
        return self[index].labels

    def checked_labels(self, index: int) -> np.ndarray:
        return self.labels(index)

    def version(self) -> str:
        return f"{self.first} {self.count} {self.height} {self.width}"
