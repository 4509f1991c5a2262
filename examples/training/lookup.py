"""Computes something for every label file of a dataset, once: the work is divided between the
processes, and the result is cached in the run's folder."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from examples.data.files import replaced
from examples.data.labels import DataError
from examples.data.pairs import Scenes
from examples.data.prefetch import prefetch
from examples.training.processes import Processes


def look_up(
    scenes: Scenes,
    find: Callable[[int], np.ndarray],
    path: Path,
    processes: Processes,
    *,
    title: str,
    how: object = "",
    console: Console | None = None,
    readers: int = 2,
) -> np.ndarray:
    """The results of `find` for all scenes, concatenated in order, in every process.

    They are read from the file if it was computed from the same labels. Otherwise every label file
    is read, and the file is written.

    Args:
        find: returns an array (m, ...), with any m, for the index of a scene.
        path: the cache file; that of the first process is used.
        title: the title of the progress display.
        how: what the result depends on in addition to the labels; part of the cache's key.
        console: where progress is shown; None shows nothing.
        readers: threads that read label files.

    Raises:
        DataError: in every process, if any of them finds a broken label file.
    """
    kept, found_in = None, ""
    if processes.first:
        found_in = hashlib.sha256(f"{scenes.version()} {how}".encode()).hexdigest()
        kept = _read(path, found_in)
    kept = processes.share(kept)
    if kept is not None:
        return kept
    if console is not None:
        console.print(f"{title} in {len(scenes)} scenes, once", highlight=False)
    found: list[np.ndarray] | DataError
    try:
        found = list(_own(scenes, find, title, processes, console, readers))
    except DataError as error:
        found = error
    together = processes.gather(found)
    for each in together:
        if isinstance(each, DataError):
            raise each
    size = processes.size
    every = np.concatenate([together[i % size][i // size] for i in range(len(scenes))])
    if processes.first:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as file:
            arrays: dict[str, Any] = {path.stem: every, "found_in": np.array(found_in)}
            np.savez_compressed(file, **arrays)
    return every


def _own(
    scenes: Scenes,
    find: Callable[[int], np.ndarray],
    title: str,
    processes: Processes,
    console: Console | None,
    readers: int,
) -> Iterator[np.ndarray]:
    """The results for this process's scenes, one by one."""
    own = range(processes.rank, len(scenes), processes.size)
    with Progress(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=console is None or not console.is_terminal,
    ) as bar:
        yield from bar.track(prefetch(find, own, readers), len(own))


def _read(path: Path, found_in: str) -> np.ndarray | None:
    """The cached result; None if the file is missing, broken, or of other labels."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            found, known = kept[path.stem], str(kept["found_in"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return found if known == found_in else None
