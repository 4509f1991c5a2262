"""Datasets by name: what a recipe's `data` section may say, and the dataset that it means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from examples.data import layouts
from examples.data.generated import GeneratedScenes
from examples.data.labels import IGNORE, DataError, Labelling, from_table, numbered
from examples.data.pairs import Pair, PairedFiles, Scenes

SPLITS = ("train", "val")


@dataclass
class Data:
    """Which scenes.

    name: one of `names()`.
    root: the dataset's folder; see `examples.data.layouts`.
    train_on_val: whether training sees the dataset's validation scenes too, as for a submission.
    The others are for `folders`, a pair of folders a split, and for `scenes`, the generated ones.
    """

    name: str = "scenes"
    root: str = ""
    train_on_val: bool = False
    train_images: str = ""
    train_labels: str = ""
    val_images: str = ""
    val_labels: str = ""
    classes: list[str] = field(default_factory=list)  # names of the values 0, 1, ... in the files
    ignored: list[int] = field(default_factory=lambda: [IGNORE])  # values that count nowhere
    height: int = 256
    width: int = 512
    train_count: int = 200
    val_count: int = 40


class _Known(NamedTuple):
    labelling: Callable[[], Labelling]
    pairs: Callable[[Path, str], list[Pair]]


_KNOWN = {
    "ade20k": _Known(lambda: from_table("ade20k", {0}), layouts.ade20k),
    "camvid": _Known(lambda: from_table("camvid", {11}), layouts.camvid),
    # labelIds: 0 to 33, and -1, a licence plate's, which a PNG holds as 255
    "cityscapes": _Known(
        lambda: from_table("cityscapes", {*range(34), IGNORE}), layouts.cityscapes
    ),
    "pascal_context": _Known(
        lambda: from_table("pascal_context", without=["background"]), layouts.pascal_context
    ),
    "pascal_context_60": _Known(lambda: from_table("pascal_context"), layouts.pascal_context),
    "voc": _Known(lambda: from_table("voc"), layouts.voc),
}


def names() -> list[str]:
    """The datasets that there are; pascal_context_60 counts the background as a class."""
    return sorted([*_KNOWN, "folders", "scenes"])


def labelling(data: Data) -> Labelling:
    """The classes of a dataset, without a look at its files."""
    if data.name in _KNOWN:
        return _KNOWN[data.name].labelling()
    if data.name == "scenes":
        return GeneratedScenes.labelling
    if data.name == "folders":
        if not data.classes:
            raise DataError("data.classes: must name the classes of a pair of folders, got none")
        return numbered(data.classes, data.ignored)
    raise DataError(f"data.name: must be one of {', '.join(names())}, got {data.name!r}")


def open_split(data: Data, split: str) -> Scenes:
    """The scenes for training (`train`) or for scoring (`val`).

    Raises:
        DataError: the name of the file or folder that is missing, or of the setting.
    """
    if split not in SPLITS:
        raise ValueError(f"open_split: split must be one of {', '.join(SPLITS)}, got {split!r}")
    classes = labelling(data)
    if data.name == "scenes":
        count = data.train_count if split == "train" else data.val_count
        return GeneratedScenes(split, count, data.height, data.width)
    if data.name == "folders":
        images, labels = (_folder(data, f"{split}_{part}") for part in ("images", "labels"))
        return PairedFiles(layouts.folders(images, labels), classes, images)
    root, pairs = _folder(data, "root"), _KNOWN[data.name].pairs
    found = pairs(root, split)
    if split == "train" and data.train_on_val:
        found += pairs(root, "val")
    return PairedFiles(found, classes, root)


def _folder(data: Data, setting: str) -> Path:
    value = getattr(data, setting)
    if not value:
        raise DataError(f"data.{setting}: must be a folder of {data.name}, got none")
    return Path(value).expanduser()
