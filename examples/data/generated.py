"""Street scenes as a dataset: drawn when first asked for, kept in memory."""

from __future__ import annotations

import numpy as np

from examples.data.labels import Labelling
from examples.data.pairs import Scene
from examples.street import scenes

VALIDATION_SEEDS = 1_000_000  # validation scenes are those from this seed on


class GeneratedScenes:
    """`count` scenes of one size, by their seeds.

    Args:
        split: train or val; no scene is in both.
        count: how many.
        height, width: of each, in pixels.
        kept: keeps drawn scenes in memory, 4 bytes a pixel; each process its own.
    """

    labelling = Labelling(tuple(scenes.CLASSES), tuple(range(len(scenes.CLASSES))))

    def __init__(
        self, split: str, count: int, height: int, width: int, *, kept: bool = True
    ) -> None:
        self.first = VALIDATION_SEEDS if split == "val" else 0
        self.count, self.height, self.width = count, height, width
        self.drawn: dict[int, tuple[np.ndarray, np.ndarray]] | None = {} if kept else None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.count:
            raise IndexError(f"GeneratedScenes: index must be below {self.count}, got {index}")
        seed = self.first + index
        found = None if self.drawn is None else self.drawn.get(index)
        if found is None:
            found = scenes.scene(seed, self.height, self.width)
            if self.drawn is not None:
                self.drawn[index] = found
        return Scene(*found, f"scene{seed:07}")
