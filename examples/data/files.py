"""Finds files in folders; writes files atomically."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = ".partial"


def listed(folder: Path, suffixes: Collection[str], pattern: str = "*") -> list[Path]:
    """The files with one of these suffixes (case-insensitive), sorted by name. Hidden files are
    skipped, such as the `._street.png` that macOS writes on other file systems."""
    return sorted(
        path
        for path in folder.glob(pattern)
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def check_writable(folder: Path) -> None:
    """Raises OSError if files cannot be written into a folder, which need not exist yet; leaves no
    files behind."""
    place = folder
    while not place.exists():
        place = place.parent
    with tempfile.TemporaryFile(dir=place):
        pass


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that atomically replaces `path` at the end of the block, after an fsync. A
    killed process leaves either the old or the new file."""
    temporary = path.with_name(path.name + _TEMPORARY)
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Syncs the folder, so that the new name survives a power failure."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
