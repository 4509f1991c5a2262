"""Writes tiny datasets in the layouts of their distributions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (12, 16)


def write_pair(image: Path, labels: Path, values: np.ndarray) -> None:
    """Writes a random image and a label file with these values, and creates their folders."""
    pixels = np.random.default_rng(len(str(image))).integers(0, 256, (*values.shape, 3), np.uint8)
    for path, array in ((image, pixels), (labels, values.astype(np.uint8))):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def values_among(allowed: list[int], seed: int = 0) -> np.ndarray:
    """Random values that include each allowed one at least once."""
    rng = np.random.default_rng(seed)
    values = rng.choice(allowed, SIZE)
    values.ravel()[: len(allowed)] = allowed[: values.size]
    return values


def write_cityscapes(root: Path, allowed: list[int]) -> None:
    for split in ("train", "val"):
        for city in ("aachen", "ulm"):
            name = f"{city}_000000_000019"
            write_pair(
                root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png",
                root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png",
                values_among(allowed),
            )


def write_ade20k(root: Path, allowed: list[int]) -> None:
    for split in ("training", "validation"):
        for number in (1, 2):
            name = f"ADE_{split}_{number:08}"
            write_pair(
                root / "images" / split / f"{name}.jpg",
                root / "annotations" / split / f"{name}.png",
                values_among(allowed),
            )


def write_pascal(root: Path, allowed: list[int], labels: str, lists: str, first: str) -> None:
    """`first` is the name of the training split's list."""
    for split in (first, "val"):
        names = [f"2008_{split}{number}" for number in (1, 2)]
        (root / "ImageSets" / lists).mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / lists / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            write_pair(
                root / "JPEGImages" / f"{name}.jpg",
                root / labels / f"{name}.png",
                values_among(allowed),
            )


def write_camvid(root: Path, allowed: list[int]) -> None:
    for split in ("train", "val"):
        for number in (1, 2):
            write_pair(
                root / split / "images" / f"{number}.jpg",
                root / split / "labels" / f"{number}.png",
                values_among(allowed),
            )
