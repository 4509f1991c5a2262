"""Datasets by name, and the `data` section of a recipe."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from examples import ranges
from examples.data import layouts, mapping, naming
from examples.data.generated import GeneratedScenes
from examples.data.images import MAX_PIXELS, Reading
from examples.data.labels import IGNORE, LARGEST, DataError, Labelling, from_table
from examples.data.naming import NAME
from examples.data.pairs import Pair, PairedFiles, Scenes
from examples.ranges import number, within
from examples.street.scenes import SHORTEST

SPLITS = ("train", "val")
OF_FOLDERS = ("classes", "values", "table", "colours")  # settings for `folders` only


@dataclass
class Data:
    """The scenes of a run.

    name: one of `names()`.
    root: the dataset's folder; see `examples.data.layouts`.
    train_on_val: whether to train on the validation scenes too, as for a submission.
    class_uniform: the share of an epoch that is drawn class by class, as crops around a location of
        the class in any scene; see `examples.data.centroids`. The rest are whole scenes.
    tile: the side in pixels of the tiles in which classes are located.
    coarse: classes whose centroids in Cityscapes' coarse labels are drawn too.
    white: the value of a white pixel in grey images of more than 8 bits, such as 4095; 0 stands for
        65535 in 16-bit images, and refuses images of 32 bits or floats.
    max_pixels: larger images are refused: small files can decompress to more than memory holds.
    The other settings are for `folders`, a pair of folders per split, and for generated `scenes`.
    image_name, label_name: patterns of file names; see `examples.data.naming`.
    classes: the names of K classes. Without `values` the files contain 0 to K - 1.
    values: the meaning of the values or colours in label files, such as {0: soil, 255: plant} or
        {'128 64 0': soil}; a value without a name is ignored. See `examples.data.mapping`.
    table: a CSV file that sets classes, values and colours.
    ignored: values of label files that are ignored.
    colours: of classes in figures, where other than PASCAL VOC's, such as {soil: 128 64 0}.
    """

    name: str = "scenes"
    root: str = ""
    train_on_val: bool = False
    class_uniform: float = number(0.0, low=0, high=1)
    tile: int = number(1024, low=1)
    coarse: list[str] = field(default_factory=list)
    white: float = number(0.0, low=0)
    max_pixels: int = number(MAX_PIXELS, low=1)
    train_images: str = ""
    train_labels: str = ""
    val_images: str = ""
    val_labels: str = ""
    image_name: str = ""
    label_name: str = "{name}.png"
    classes: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    table: str = ""
    ignored: list[int] = field(
        default_factory=lambda: [IGNORE], metadata=within(low=0, high=LARGEST)
    )
    colours: dict[str, str] = field(default_factory=dict)
    height: int = number(256, low=SHORTEST)
    width: int = number(512, low=SHORTEST)
    train_count: int = number(200, low=1)
    val_count: int = number(40, low=1)

    @property
    def reading(self) -> Reading:
        return Reading(self.white, self.max_pixels)

    def check(self) -> None:
        """Raises ValueError for invalid settings."""
        ranges.check("data", self)
        if self.coarse and not (self.name == "cityscapes" and self.class_uniform):
            raise ValueError(
                "data.coarse: is for cityscapes with data.class_uniform, "
                f"got {self.name} with {self.class_uniform}"
            )
        for setting in OF_FOLDERS:
            if getattr(self, setting) and self.name != "folders":
                raise ValueError(f"data.{setting}: is for data.name=folders, got {self.name}")
        if self.name == "folders":
            self._check_folders()

    def _check_folders(self) -> None:
        for pattern in ("image_name", "label_name"):
            if value := getattr(self, pattern):
                naming.check(f"data.{pattern}", value)
        twice = [name for name, count in Counter(self.classes).items() if count > 1]
        if twice:
            raise ValueError(f"data.classes: must be different names, got {twice[0]!r} twice")
        if "" in self.classes:
            raise ValueError("data.classes: must be names, got an empty one")
        if self.classes or self.values:
            _own_labelling(self)

    def resolved(self) -> Data:
        """The same with the table's settings and no table, so that a checkpoint needs no file.

        Raises:
            DataError: the table is invalid.
        """
        if not self.table:
            return self
        found = mapping.read_table(Path(self.table).expanduser())
        return replace(self, table="", **found._asdict())


class _Known(NamedTuple):
    labelling: Callable[[], Labelling]
    pairs: Callable[[Path, str], list[Pair]]


_KNOWN = {
    "ade20k": _Known(lambda: from_table("ade20k", {0}), layouts.ade20k),
    "camvid": _Known(lambda: from_table("camvid", {11}), layouts.camvid),
    # labelIds: 0 to 33, and -1, a licence plate, which a PNG stores as 255
    "cityscapes": _Known(
        lambda: from_table("cityscapes", {*range(34), IGNORE}), layouts.cityscapes
    ),
    "pascal_context": _Known(
        lambda: from_table("pascal_context", without=["background"]), layouts.pascal_context
    ),
    "pascal_context_60": _Known(lambda: from_table("pascal_context"), layouts.pascal_context),
    "voc": _Known(lambda: from_table("voc"), layouts.voc),
    "voc_original": _Known(
        lambda: from_table("voc"), functools.partial(layouts.voc, additional=False)
    ),
}


def names() -> list[str]:
    """The available datasets; pascal_context_60 counts the background as a class, voc_original
    leaves out the additional annotations."""
    return sorted([*_KNOWN, "folders", "scenes"])


def labelling(data: Data) -> Labelling:
    """The labelling of a dataset, determined without reading its files."""
    if data.name in _KNOWN:
        return _KNOWN[data.name].labelling()
    if data.name == "scenes":
        return GeneratedScenes.labelling
    if data.name == "folders":
        if not data.classes and not data.values:
            raise DataError("data.classes: must name the classes of a pair of folders, got none")
        return _own_labelling(data)
    raise DataError(f"data.name: must be one of {', '.join(names())}, got {data.name!r}")


def _own_labelling(data: Data) -> Labelling:
    """The labelling of `folders`; raises ValueError with the name of an invalid setting."""
    if data.values:
        return mapping.mapped(data.classes, data.values, data.ignored, data.colours)
    return mapping.numbered(data.classes, data.ignored, data.colours)


def open_split(data: Data, split: str) -> Scenes:
    """Opens the scenes for training (`train`) or for scoring (`val`).

    Raises:
        DataError: a file, folder or setting is missing; the message names it.
    """
    if split not in SPLITS:
        raise ValueError(f"open_split: split must be one of {', '.join(SPLITS)}, got {split!r}")
    classes = labelling(data)
    if data.name == "scenes":
        count = data.train_count if split == "train" else data.val_count
        return GeneratedScenes(split, count, data.height, data.width)
    if data.name == "folders":
        images, labels = (_folder(data, f"{split}_{part}") for part in ("images", "labels"))
        found = naming.paired(images, labels, data.image_name, data.label_name or f"{NAME}.png")
        return PairedFiles(found, classes, images, data.reading)
    root, pairs = _folder(data, "root"), _KNOWN[data.name].pairs
    found = pairs(root, split)
    if split == "train" and data.train_on_val:
        found += pairs(root, "val")
    return PairedFiles(found, classes, root, data.reading)


def open_training(data: Data) -> tuple[Scenes, int]:
    """The training scenes, and the number of those that every epoch uses. Later ones are
    Cityscapes' coarse scenes for class-uniform sampling, present if `coarse` names classes.

    Raises:
        DataError: as `open_split`.
    """
    scenes = open_split(data, "train")
    if not data.coarse:
        return scenes, len(scenes)
    for name in data.coarse:
        if name not in scenes.labelling.names:
            known = ", ".join(scenes.labelling.names)
            raise DataError(f"data.coarse: must be among {known}, got {name}")
    assert isinstance(scenes, PairedFiles)
    root = _folder(data, "root")
    together = scenes.pairs + layouts.cityscapes(root, "train_extra", "gtCoarse")
    return PairedFiles(together, scenes.labelling, root, data.reading), len(scenes)


def _folder(data: Data, setting: str) -> Path:
    value = getattr(data, setting)
    if not value:
        kind = "" if data.name == "folders" else f" of {data.name}"
        raise DataError(f"data.{setting}: must be a folder{kind}, got none")
    return Path(value).expanduser()
