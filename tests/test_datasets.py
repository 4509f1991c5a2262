"""The reader of each dataset on a tiny folder in its layout, and errors for invalid files."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracles
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import scene_files  # noqa: E402

from examples.data import catalogue, labels  # noqa: E402
from examples.data.catalogue import Data  # noqa: E402
from examples.data.labels import IGNORE, DataError  # noqa: E402

CITY_VALUES = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
context = functools.partial(
    scene_files.write_pascal,
    labels="SegmentationClassContext", lists="SegmentationContext", first="train",
)  # fmt: skip
voc, voc_augmented = (
    functools.partial(scene_files.write_pascal, labels=folder, lists="Segmentation", first=first)
    for folder, first in (("SegmentationClass", "train"), ("SegmentationClassAug", "trainaug"))
)

# Dataset, function that writes it, values of its classes in order, ignored values.
LAYOUTS: list[tuple[str, Callable[..., None], list[int], list[int]]] = [
    ("cityscapes", scene_files.write_cityscapes, CITY_VALUES, [0, 3, 9, 29, 255]),
    ("ade20k", scene_files.write_ade20k, list(range(1, 151)), [0]),
    ("pascal_context", context, list(range(1, 60)), [0, 255]),
    ("pascal_context_60", context, list(range(60)), [255]),
    ("voc", voc, list(range(21)), [255]),
    ("voc", voc_augmented, list(range(21)), [255]),
    ("voc_original", voc, list(range(21)), [255]),
    ("camvid", scene_files.write_camvid, list(range(11)), [11]),
]


@pytest.mark.parametrize("split", catalogue.SPLITS)
@pytest.mark.parametrize(("name", "write", "values", "ignored"), LAYOUTS)
def test_reader(
    name: str,
    write: Callable[..., None],
    values: list[int],
    ignored: list[int],
    split: str,
    tmp_path: Path,
) -> None:
    write(tmp_path, values + ignored)
    scenes = catalogue.open_split(Data(name=name, root=str(tmp_path)), split)
    assert len(scenes) == 2
    assert len(scenes.labelling.classes) == len(values)
    number = {value: index for index, value in enumerate(values)}
    raw = scene_files.values_among(values + ignored)
    expected = [[number.get(value, IGNORE) for value in row] for row in raw.tolist()]
    for index in range(2):
        scene = scenes[index]
        assert scene.image.shape == (*scene_files.SIZE, 3) and scene.image.dtype == np.uint8
        assert scene.labels.dtype == np.uint8
        np.testing.assert_array_equal(scene.labels, expected)
        known = np.isin(raw, values)
        np.testing.assert_array_equal(scenes.labelling.encode(scene.labels)[known], raw[known])


def test_classes_have_distinct_names_and_colours() -> None:
    for name in ("cityscapes", "ade20k", "pascal_context_60", "voc", "camvid"):
        classes = catalogue.labelling(Data(name=name)).classes
        assert len({each.name for each in classes}) >= len(classes) - 2  # ADE20K has duplicates
        assert all(each.name == each.name.strip() and each.name for each in classes)
    named = {each.name: each.colour for each in catalogue.labelling(Data(name="voc")).classes}
    assert named["person"] == (192, 128, 128) == labels.pascal_colour(15)
    without = catalogue.labelling(Data(name="pascal_context"))
    assert [each.name for each in without.classes[:2]] == ["aeroplane", "bag"]
    cityscapes = catalogue.labelling(Data(name="cityscapes"))
    assert cityscapes.names[10] == "sky" and cityscapes.values[10] == 23


def test_colours_are_the_published_ones() -> None:
    """Compares with mmseg's colours and names."""
    oracles.mmseg()
    published = importlib.import_module("mmseg.utils.class_names")
    for name, theirs in (("ade20k", "ade"), ("cityscapes", "cityscapes"), ("voc", "voc")):
        classes = catalogue.labelling(Data(name=name)).classes
        palette = getattr(published, f"{theirs}_palette")()
        assert [list(each.colour) for each in classes] == palette
        if name != "ade20k":  # its classes have many names each
            assert [each.name.replace(" ", "") for each in classes] == [
                each.replace(" ", "") for each in getattr(published, f"{theirs}_classes")()
            ]


def test_pair_of_folders(tmp_path: Path) -> None:
    scene_files.write_pair(
        tmp_path / "a" / "one.bmp", tmp_path / "b" / "one.png", np.array([[0, 1], [7, 9]])
    )
    data = Data(
        name="folders", classes=["soil", "plant"], ignored=[7, 9],
        train_images=str(tmp_path / "a"), train_labels=str(tmp_path / "b"),
    )  # fmt: skip
    scene = catalogue.open_split(data, "train")[0]
    assert scene.labels.tolist() == [[0, 1], [IGNORE, IGNORE]]
    with pytest.raises(DataError, match=r"data\.val_images"):
        catalogue.open_split(data, "val")
    data.classes = []
    with pytest.raises(DataError, match=r"data\.classes"):
        catalogue.open_split(data, "train")


def test_labels_with_a_palette_or_sixteen_bits(tmp_path: Path) -> None:
    scene_files.write_camvid(tmp_path, [0, 5, 11])
    folder = tmp_path / "train" / "labels"
    values = scene_files.values_among([0, 5, 11])
    indexed = Image.fromarray(values.astype(np.uint8))
    indexed.putpalette(bytes(range(256)) * 3)
    indexed.save(folder / "1.png")
    Image.fromarray(values.astype(np.uint16)).save(folder / "2.png")
    scenes = catalogue.open_split(Data(name="camvid", root=str(tmp_path)), "train")
    for index in range(2):
        np.testing.assert_array_equal(scenes[index].labels, np.where(values == 11, IGNORE, values))


def test_generated_scenes_are_reproducible() -> None:
    data = Data(height=40, width=64, train_count=3, val_count=2)
    train, again = (catalogue.open_split(data, "train") for _ in range(2))
    validation = catalogue.open_split(data, "val")
    assert (len(train), len(validation)) == (3, 2)
    assert (train[2].image == again[2].image).all() and (train[2].labels == again[2].labels).all()
    assert (train[0].image != validation[0].image).any()
    assert train[1].image.shape == (40, 64, 3)
    with pytest.raises(IndexError, match="index must be below 3, got 3"):
        train[3]


# Errors name the file.


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    scene_files.write_camvid(tmp_path, [0, 11])
    return tmp_path


def read_all(root: Path) -> None:
    scenes = catalogue.open_split(Data(name="camvid", root=str(root)), "train")
    for index in range(len(scenes)):
        _ = scenes[index]


@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
@pytest.mark.parametrize("part", ["images/2.jpg", "labels/2.png"])
def test_broken_file(camvid: Path, part: str, content: bytes | str) -> None:
    path = camvid / "train" / part
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    with pytest.raises(DataError, match=f"^{path}: cannot be read"):
        read_all(camvid)


def test_missing_label(camvid: Path) -> None:
    path = camvid / "train" / "labels" / "1.png"
    path.unlink()
    with pytest.raises(DataError, match=f"^{path}: missing"):
        read_all(camvid)


def test_wrong_size(camvid: Path) -> None:
    path = camvid / "train" / "labels" / "1.png"
    Image.new("L", (5, 7)).save(path)
    with pytest.raises(DataError, match=f"^{path}: .*12 x 16, got 7 x 5"):
        read_all(camvid)


@pytest.mark.parametrize("value", [12, 254, 300])
def test_label_out_of_range(camvid: Path, value: int) -> None:
    path = camvid / "train" / "labels" / "2.png"
    Image.fromarray(np.full(scene_files.SIZE, value, np.uint16)).save(path)
    with pytest.raises(DataError, match=f"^{path}: .*among 0-10, ignored 11; got {value}"):
        read_all(camvid)


def test_labels_in_colour(camvid: Path) -> None:
    path = camvid / "train" / "labels" / "2.png"
    Image.new("RGB", (16, 12)).save(path)
    with pytest.raises(DataError, match=f"^{path}: .*one channel.*RGB"):
        read_all(camvid)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train/images: there is no such folder"):
        read_all(tmp_path)
    (tmp_path / "train" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=f"^{tmp_path}: contains no images"):
        read_all(tmp_path)
    with pytest.raises(DataError, match=r"data\.root: must be a folder of voc, got none"):
        catalogue.open_split(Data(name="voc"), "train")
    with pytest.raises(DataError, match=r"train\.txt: missing, the list"):
        catalogue.open_split(Data(name="voc", root=str(tmp_path)), "train")
    with pytest.raises(DataError, match=r"data\.name: must be one of ade20k"):
        catalogue.open_split(Data(name="coco"), "train")
