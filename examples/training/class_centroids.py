"""Finds where the classes lie in all scenes, once, by all processes, and kept beside the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from examples.data import centroids
from examples.data.labels import DataError
from examples.data.pairs import Scenes
from examples.data.prefetch import prefetch
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

    From centroids.npz in the run's folder, where it was found in these labels; else every label
    file is read, shared out to the processes, and the file written.

    Args:
        tile: the side of a tile, in pixels.
        folder: of the run; the first process's is used.
        console: where progress is shown; None shows nothing.
        readers: threads that read label files.

    Raises:
        DataError: in every process, where one of them finds a broken label file.
    """
    path, kept = folder / CENTROIDS, None
    if processes.first:
        found_in = centroids.version(scenes.version(), tile)
        kept = centroids.read(path, found_in)
    kept = processes.share(kept)
    if kept is not None:
        return kept
    if console is not None:
        console.print(f"looking for the classes in {len(scenes)} scenes, once", highlight=False)
    found: list[np.ndarray] | DataError
    try:
        found = list(_own(scenes, tile, processes, console, readers))
    except DataError as error:
        found = error
    together = processes.gather(found)
    for each in together:
        if isinstance(each, DataError):
            raise each
    every = centroids.joined(part for parts in together for part in parts)
    if processes.first:
        centroids.save(path, every, found_in)
    return every


def _own(
    scenes: Scenes, tile: int, processes: Processes, console: Console | None, readers: int
) -> Iterator[np.ndarray]:
    """The centroids of this process's scenes, scene by scene."""
    classes = len(scenes.labelling.classes)
    own = range(processes.rank, len(scenes), processes.size)

    def find(number: int) -> np.ndarray:
        return centroids.of_scene(number, scenes.labels(number), classes, tile)

    with Progress(
        TextColumn("looking for the classes"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=console is None or not console.is_terminal,
    ) as bar:
        yield from bar.track(prefetch(find, own, readers), len(own))
