"""Reads an image or a label map from a file, with errors that name the file and the reason."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from examples.data.labels import DataError

MAX_PIXELS = 178_956_970  # Pillow's own limit
_BROKEN = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)
_SIXTEEN_BITS = 65535
_pillows_limit = threading.Lock()


class Reading(NamedTuple):
    """white: the value of a white pixel in grey images of more than 8 bits; 0 stands for the
    maximum of 16-bit images. max_pixels: larger images are refused."""

    white: float = 0.0
    max_pixels: int = MAX_PIXELS


PLAIN = Reading()


def read_image(path: Path, reading: Reading = PLAIN, *, upright: bool = False) -> np.ndarray:
    """Reads uint8 (H, W, 3) from any format that Pillow supports. `upright` applies the EXIF
    orientation; datasets' labels correspond to the pixels as stored in the file."""
    with opened(path, reading) as file:
        try:
            image = ImageOps.exif_transpose(file) if upright else file
            if image.mode.startswith(("I", "F")):
                grey = _eight_bits(np.asarray(image), image.mode, file.format, path, reading.white)
                return np.repeat(grey[..., None], 3, 2)
            return np.asarray(image.convert("RGB"))
        except _BROKEN as error:
            raise DataError(f"{path}: cannot be read as an image ({error})") from None


def read_values(path: Path, reading: Reading = PLAIN, *, colours: bool = False) -> np.ndarray:
    """Reads integers (H, W) from an image with one channel or with a palette; with `colours`, uint8
    (H, W, 3) from one with 8 bits per channel or with a palette."""
    with opened(path, reading) as file:
        if colours:
            if file.mode.startswith(("I", "F")):
                raise DataError(f"{path}: labels must be in colour, got an image of {file.mode}")
            return np.asarray(file.convert("RGB"))
        values = np.asarray(file)
        if values.ndim == 2 and values.dtype.kind == "f" and (values == np.rint(values)).all():
            values = values.astype(np.int64)
        if values.ndim != 2 or values.dtype.kind not in "bui":
            raise DataError(
                f"{path}: labels must have one channel, got an image of {file.mode}; "
                "data.values maps colours to classes"
            )
    return values.astype(np.int64) if values.dtype != np.uint8 else values


def size(path: Path, reading: Reading = PLAIN) -> tuple[int, int]:
    """Height and width, without decoding the pixels. Raises DataError, as `opened` does."""
    with opened(path, reading, decoded=False) as file:
        return file.height, file.width


def opened(path: Path, reading: Reading, *, decoded: bool = True) -> Image.Image:
    """Opens an image and decodes it.

    Raises:
        DataError: the file does not exist, cannot be read, or is too large.
    """
    try:
        file = _header(path)
        pixels = file.width * file.height
        if pixels > reading.max_pixels:
            raise DataError(
                f"{path}: {file.height} x {file.width} are {pixels} pixels, more than "
                f"data.max_pixels, {reading.max_pixels}; raise it if you trust the file"
            )
        if reading.white and _is_deep_colour(file):
            raise DataError(f"{path}: has colours of 16 bits, and data.white is for grey images")
        if decoded:
            file.load()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such image") from None
    except _BROKEN as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from None
    return file


def _header(path: Path) -> Image.Image:
    """Opens a file without Pillow's global size limit; `max_pixels` replaces it."""
    with _pillows_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _is_deep_colour(file: Image.Image) -> bool:
    """Whether Pillow will keep only the upper 8 of 16 bits per channel; must precede decoding."""
    parts = getattr(file, "tile", None)
    coded = str(parts[0][3]) if parts else ""
    return file.mode in ("RGB", "RGBA", "LA") and ";16" in coded


def _eight_bits(
    values: np.ndarray, mode: str, form: str | None, path: Path, white: float
) -> np.ndarray:
    """Grey values of more than 8 bits as uint8: 0 is black, `white` and above is white."""
    if not white and (mode.startswith("I;16") or (mode == "I" and form == "PNG")):
        white = _SIXTEEN_BITS  # older versions of Pillow read 16-bit PNGs as I
    if not white:
        kind = "floating-point" if mode == "F" else "32-bit"
        raise DataError(
            f"{path}: is a {kind} image, {values.min():g} to {values.max():g}: "
            "data.white must be the value of its white pixels"
        )
    if not np.isfinite(values).all():
        raise DataError(f"{path}: contains NaN or infinite pixels")
    return np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8)
