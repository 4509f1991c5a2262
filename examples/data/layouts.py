"""The folder layouts of the datasets, as distributed.

| dataset | images | labels |
| --- | --- | --- |
| cityscapes | leftImg8bit/train/*/X_leftImg8bit.png | gtFine/train/*/X_gtFine_labelIds.png |
| its coarse labels | leftImg8bit/train_extra/*/X_leftImg8bit.png | gtCoarse/train_extra/... |
| ade20k | images/training/X.jpg | annotations/training/X.png |
| pascal_context | JPEGImages/X.jpg | SegmentationClassContext/X.png |
| voc | JPEGImages/X.jpg | SegmentationClassAug/X.png, or SegmentationClass |
| camvid | train/images/X.jpg | train/labels/X.png |

Roots: ADEChallengeData2016, VOC2010, VOC2012 and so on. The splits of the PASCAL datasets are
lists: ImageSets/SegmentationContext/train.txt and ImageSets/Segmentation/trainaug.txt, or
train.txt. The label PNGs of PASCAL Context are written by mmseg's converter.
"""

from __future__ import annotations

from pathlib import Path

from examples.data.files import listed
from examples.data.labels import DataError
from examples.data.pairs import Pair

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp"}


def folders(images: Path, labels: Path) -> list[Pair]:
    """Pairs every image of a folder with the PNG of the same name in another folder."""
    return [Pair(path, labels / f"{path.stem}.png") for path in _images(images)]


def cityscapes(root: Path, split: str, labels: str = "gtFine") -> list[Pair]:
    """The labels are the original labelIds; no preparation is needed. `gtCoarse` has the coarse
    labels, which include the split train_extra."""
    kept = existing(root / "leftImg8bit" / split)
    pairs = []
    for path in listed(kept, SUFFIXES, "*/*_leftImg8bit.png"):
        name = path.name.replace("_leftImg8bit", f"_{labels}_labelIds")
        pairs.append(Pair(path, root / labels / split / path.parent.name / name))
    return pairs


def ade20k(root: Path, split: str) -> list[Pair]:
    name = {"train": "training", "val": "validation"}[split]
    return folders(root / "images" / name, root / "annotations" / name)


def pascal_context(root: Path, split: str) -> list[Pair]:
    names = _listed(root / "ImageSets" / "SegmentationContext" / f"{split}.txt")
    return _named(root, names, "SegmentationClassContext")


def voc(root: Path, split: str, *, additional: bool = True) -> list[Pair]:
    """With the additional annotations (SBD) if they exist and `additional` is set."""
    augmented = additional and (root / "SegmentationClassAug").is_dir()
    lists = root / "ImageSets" / "Segmentation"
    name = "trainaug" if augmented and split == "train" else split
    labels = "SegmentationClassAug" if augmented else "SegmentationClass"
    return _named(root, _listed(lists / f"{name}.txt"), labels)


def camvid(root: Path, split: str) -> list[Pair]:
    return folders(root / split / "images", root / split / "labels")


def _named(root: Path, names: list[str], labels: str) -> list[Pair]:
    return [Pair(root / "JPEGImages" / f"{n}.jpg", root / labels / f"{n}.png") for n in names]


def _listed(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path}: missing, the list of the split's images")
    return path.read_text().split()


def _images(folder: Path) -> list[Path]:
    return listed(existing(folder), SUFFIXES)


def existing(folder: Path) -> Path:
    """Returns the folder; raises DataError if it does not exist."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    return folder
