"""Files that are found in folders; files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = ".partial"


def listed(folder: Path, suffixes: Collection[str], pattern: str = "*") -> list[Path]:
    """The files with one of these suffixes, in any case, by name. Hidden ones are none: what macOS
    leaves beside files on foreign disks (`._street.png`) ends as they do."""
    return sorted(
        path
        for path in folder.glob(pattern)
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def check_writable(folder: Path) -> None:
    """Raises OSError where files could not be written into a folder, which need not be there yet;
    leaves nothing behind."""
    place = folder
    while not place.exists():
        place = place.parent
    with tempfile.TemporaryFile(dir=place):
        pass


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write; `path` becomes it in one step when the block ends, and has outlived a power
    cut by then. A kill at any time leaves the old file or the new one."""
    temporary = path.with_name(path.name + _TEMPORARY)
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """The new name too must outlive a power cut."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
