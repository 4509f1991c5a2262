"""Locates the classes in all scenes, once per run; the result is cached in the run's folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from examples.data import centroids
from examples.data.pairs import Scenes
from examples.training.lookup import look_up
from examples.training.processes import Processes

CENTROIDS = "centroids.npz"


def find_centroids(
    scenes: Scenes,
    tile: int,
    folder: Path,
    processes: Processes,
    *,
    console: Console | None = None,
    readers: int = 2,
) -> np.ndarray:
    """The centroids of every class in every scene, as `examples.data.centroids` describes them.

    Args:
        tile: the side of a tile, in pixels.
        folder: of the run, where centroids.npz is written.
        console: where progress is shown; None shows nothing.
        readers: threads that read label files.

    Raises:
        DataError: in every process, if any of them finds a broken label file.
    """
    classes = len(scenes.labelling.classes)

    def find(number: int) -> np.ndarray:
        return centroids.of_scene(number, scenes.labels(number), classes, tile)

    return look_up(
        scenes,
        find,
        folder / CENTROIDS,
        processes,
        title="looking for the classes",
        how=tile,
        console=console,
        readers=readers,
    )
