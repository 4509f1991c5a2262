"""Looks something up in every label file of a dataset, once: shared out to the processes, and kept
beside the run for those that follow."""

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
    """What `find` gives for the scenes, in their order, concatenated, in every process.

    From the file where it was found in these labels; else every label file is read, and the file
    written.

    Args:
        find: an array (m, ...), any m, for the number of a scene.
        path: the file; the first process's is used.
        title: what is looked for.
        how: of what the result depends on beside the labels.
        console: where progress is shown; None shows nothing.
        readers: threads that read label files.

    Raises:
        DataError: in every process, where one of them finds a broken label file.
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
    """Of this process's scenes, scene by scene."""
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
    """None where there is no such file, or a broken one, or one of other labels."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            found, known = kept[path.stem], str(kept["found_in"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return found if known == found_in else None
