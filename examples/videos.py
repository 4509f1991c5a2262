"""Reads and writes videos: animated GIF and WebP by Pillow, others by imageio's ffmpeg."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from examples.data.labels import DataError

ANIMATED = {".gif", ".webp"}
SUFFIXES = {".gif", ".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}


def is_video(path: Path) -> bool:
    """Whether the file is a video, by its suffix; for GIF and WebP, by the number of frames."""
    suffix = path.suffix.lower()
    if suffix not in ANIMATED:
        return suffix in SUFFIXES
    try:
        with Image.open(path) as file:
            return getattr(file, "n_frames", 1) > 1
    except (OSError, ValueError, SyntaxError):
        return False  # read_image will report the error


class Source:
    """The frames of a video, uint8 (H, W, 3), one after another.

    Attributes:
        rate: frames per second.
        length: the number of frames; None if the file does not state it.

    Raises:
        DataError: the file cannot be read, or its library is missing.
    """

    rate: float
    length: int | None

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix.lower() in ANIMATED:
            with self._opened() as file:
                self.length = int(getattr(file, "n_frames", 1))
                self.rate = 1000 / (file.info.get("duration") or 100)
        else:
            with self._reader() as reader:
                facts = reader.get_meta_data()
                self.rate = float(facts["fps"])
                self.length = round(self.rate * facts["duration"]) or None

    def __iter__(self) -> Iterator[np.ndarray]:
        if self.path.suffix.lower() in ANIMATED:
            with self._opened() as file:
                for frame in ImageSequence.Iterator(file):
                    yield np.asarray(frame.convert("RGB"))
        else:
            with self._reader() as reader:
                yield from reader

    def _opened(self) -> Image.Image:
        try:
            return Image.open(self.path)
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{self.path}: cannot be read as a video ({error})") from None

    def _reader(self) -> Any:
        library = _imageio(self.path)
        try:
            return library.get_reader(self.path, format="FFMPEG")
        except (OSError, ValueError, RuntimeError, IndexError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"{self.path}: cannot be read as a video ({reason[0]})") from None


def write(path: Path, frames: Iterable[np.ndarray], rate: float) -> None:
    """Writes frames (H, W, 3) uint8 of equal size as a video, in the format of the suffix."""
    if path.suffix.lower() not in ANIMATED:
        # macro_block_size: H.264 needs even sides, so frames are enlarged by at most a row and a
        # column.
        options: dict[str, Any] = {"format": "FFMPEG", "fps": rate, "macro_block_size": 2}
        with _imageio(path).get_writer(path, **options) as writer:
            for frame in frames:
                writer.append_data(frame)
        return
    pictures = (Image.fromarray(frame) for frame in frames)
    first = next(pictures, None)
    if first is None:
        raise DataError(f"{path}: needs at least one frame")
    milliseconds = round(1000 / rate)
    first.save(path, save_all=True, append_images=pictures, duration=milliseconds, loop=0)


def _imageio(path: Path) -> Any:
    try:
        importlib.import_module("imageio_ffmpeg")
        return importlib.import_module("imageio.v2")
    except ImportError:
        raise DataError(
            f"{path}: videos need imageio and its ffmpeg: pip install stripctx[video]"
        ) from None
