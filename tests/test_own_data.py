"""Custom data: label values and colours by class, file name patterns, and error messages."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from training_runs import small  # noqa: E402

from examples.data import catalogue, naming  # noqa: E402
from examples.data.catalogue import Data  # noqa: E402
from examples.data.labels import IGNORE, Class, DataError, Labelling  # noqa: E402
from examples.training import recipe  # noqa: E402
from examples.training.recipe import RecipeError  # noqa: E402

PICTURES = (2, 3)


def data(tmp_path: Path, *changes: str) -> Data:
    folders = [f"data.train_{part}={tmp_path}/{part}" for part in ("images", "labels")]
    return small(tmp_path, "data.name=folders", *folders, *changes).data


def labelled(*changes: str, tmp_path: Path) -> Labelling:
    return catalogue.labelling(data(tmp_path, *changes))


def write(path: Path, values: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((*PICTURES, 3), np.uint8) if values is None else values
    Image.fromarray(pixels).save(path)


# Values.


def test_masks_of_0_and_255(tmp_path: Path) -> None:
    found = labelled("data.values={0: soil, 255: plant}", tmp_path=tmp_path)
    assert found.names == ["soil", "plant"] and found.ignored == frozenset()
    values = np.array([[0, 255, 255]])
    assert found.decode(values, "a.png").tolist() == [[0, 1, 1]]
    assert found.encode(np.array([[0, 1]])).tolist() == [[0, 255]]


def test_values_are_merged_ignored_and_ordered(tmp_path: Path) -> None:
    given = "data.values={7: road, 8: road, 1000: car, 3: '', 4: }"
    found = labelled(given, "data.classes=[car, road]", "data.ignored=[0]", tmp_path=tmp_path)
    assert found.names == ["car", "road"] and found.values == (1000, 7)
    assert found.decode(np.array([7, 8, 1000, 0, 3, 4]), "a").tolist() == [1, 1, 0, *[IGNORE] * 3]
    written = found.encode(np.array([0, 1, IGNORE]))
    assert written.dtype == np.uint16 and written.tolist() == [1000, 7, 0]
    with pytest.raises(
        DataError, match=r"^a: labels must be among 7-8, 1000, ignored 0, 3-4; got 5"
    ):
        found.decode(np.array([5]), "a")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data.classes=[a,b]", "data.ignored=[0]"], "data.ignored: .* 0 is 'a'"),
        (["data.values={0: a, 1: b}", "data.ignored=[1,255]"], "data.ignored: .* 1 is 'b'"),
        (["data.classes=[a,b]", "data.ignored=[300000]"], "data.ignored: must be 0 to 65535"),
        (["data.classes=[a,b]", "data.ignored=[-1]"], "data.ignored: must be 0 to 65535"),
        (["data.classes=[a,b,a]"], "data.classes: must be different names, got 'a' twice"),
        (["data.classes=[a,'']"], "data.classes: must be names, got an empty one"),
        (["data.classes=[a]"], "data.classes: must be 2 to 255, got 1"),
        ([f"data.classes={list(range(300))}"], "data.classes: must be 2 to 255, got 300"),
        (["data.classes=[a]", "data.values={0: a, 1: c}"], "data.classes: must be 2 to 255, got 1"),
        (["data.classes=[a,b]", "data.values={0: a, 1: c}"], "data.values: .* name a, b, got 'c'"),
        (["data.classes=[a,b]", "data.values={0: a}"], "data.values: .* got none for 'b'"),
        (["data.values={0: a, '1 2 3': b}"], "data.values: must be all numbers or all colours"),
        (["data.values={1: a, 01: b}"], "data.values: must be all numbers .* each once"),
        (["data.values={0: a, 70000: b}"], "data.values: must be 0 to 65535, got 70000"),
        (["data.values={0: a, red: b}"], "data.values: must be like '128 64 0'.* got 'red'"),
        (["data.values={0: a, 0: b}"], "data.values: cannot be read"),
        (["data.classes=[a,b]", "data.colours={a: blue}"], "data.colours: must be like '128"),
        (["data.classes=[a,b]", "data.colours={c: 1 2 3}"], "data.colours: .* name a, b, got 'c'"),
        (["data.values={1 2 3: a, 4 5 6: b}", "data.ignored=[0]"], "data.ignored: must be empty"),
        (["data.name=voc", "data.classes=[a,b]"], "data.classes: is for data.name=folders"),
        (["data.label_name=mask.png"], "data.label_name: must be a file's name with {name} once"),
        (["data.table=none.csv"], "none.csv: cannot be read as a table"),
    ],
)  # fmt: skip
def test_invalid_settings(changes: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"^{words}"):
        data(tmp_path, *changes)


def test_another_dataset_drops_custom_labels(tmp_path: Path) -> None:
    """A network trained on custom data is scored on a published dataset by its name alone."""
    own = small(tmp_path, "data.name=folders", "data.values={0: soil, 255: plant}")
    other = recipe.from_dict(recipe.to_dict(own), ["data.name=voc"]).data
    assert (other.name, other.classes, other.values) == ("voc", [], {})
    kept = recipe.from_dict(recipe.to_dict(own), ["data.name=folders", "data.root=x"]).data
    assert kept.values == own.data.values
    with pytest.raises(RecipeError, match=r"^data\.classes: is for data\.name=folders, got voc"):
        recipe.from_dict(recipe.to_dict(own), ["data.name=voc", "data.classes=[a,b]"])


# Colours.


def test_label_files_in_colour(tmp_path: Path) -> None:
    given = "data.values={'128 64 0': soil, '#00a000': plant, '1,2,3': plant, 0 0 0: }"
    pixels = np.array([[[128, 64, 0], [0, 160, 0], [1, 2, 3]], [[0, 0, 0]] * 3], np.uint8)
    write(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.png", pixels)
    scenes = catalogue.open_split(data(tmp_path, given), "train")
    expected = [[0, 1, 1], [IGNORE] * 3]
    assert scenes[0].labels.tolist() == expected
    Image.fromarray(pixels).quantize(8).save(tmp_path / "labels" / "a.png")  # with a palette
    assert scenes[0].labels.tolist() == expected
    classes = scenes.labelling.classes
    assert [each.colour for each in classes] == [(128, 64, 0), (0, 160, 0)]
    shown = scenes.labelling.encode(np.array([[0, 1, IGNORE]]))
    assert shown.tolist() == [[[128, 64, 0], [0, 160, 0], [0, 0, 0]]]
    pixels[0, 0] = (9, 8, 7)
    write(tmp_path / "labels" / "a.png", pixels)
    with pytest.raises(DataError, match=r"a\.png: colours must be among .* got \[9, 8, 7\]"):
        scenes.labels(0)


def test_colours_need_a_table(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.png")
    scenes = catalogue.open_split(data(tmp_path, "data.classes=[a,b]"), "train")
    with pytest.raises(DataError, match=r"one channel, got an image of RGB; data\.values maps"):
        scenes.labels(0)


# Tables.


def test_table_of_colours(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "\ufeffname, r, g, b\nsoil,1,2,3\nplant,4,5,6\nsoil,7,8,9\n,0,0,0\n"
    )
    found = data(tmp_path, f"data.table={tmp_path}/t.csv")
    assert (found.table, found.classes) == ("", ["soil", "plant"])  # the file is no longer needed
    assert catalogue.labelling(found).colours == (
        ((1, 2, 3), 0), ((4, 5, 6), 1), ((7, 8, 9), 0), ((0, 0, 0), IGNORE)
    )  # fmt: skip


def test_table_of_values(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("name,value,red,green,blue\noff,10,1,2,3\n,0\nno,255,4,5,6\n")
    found = catalogue.labelling(data(tmp_path, f"data.table={tmp_path}/t.csv"))
    assert (found.names, found.values, found.ignored) == (["off", "no"], (10, 255), {0})
    assert found.palette.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class,colour\na,1\n", "must have the columns name and value, .* line 2 has"),
        ("name,value\na,1\nb,1\n", "1 occurs twice, again in line 3"),
        ("name,value\n", "data.classes: must name the classes"),
    ],
)
def test_invalid_tables(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises((RecipeError, DataError), match=words):
        labelled(f"data.table={tmp_path}/t.csv", tmp_path=tmp_path)


def test_duplicate_names_keep_separate_scores() -> None:
    classes = [Class("bin", (0, 0, 0)), Class("car", (1, 1, 1)), Class("bin", (2, 2, 2))]
    assert Labelling(tuple(classes), (3, 5, 8)).names == ["bin", "car", "bin (8)"]


# File names.


@pytest.mark.parametrize(
    ("files", "patterns"),
    [
        ([("a.jpg", "a.png"), ("b.png", "b.png")], ("", "{name}.png")),
        ([("a.jpg", "a_mask.png")], ("", "{name}_mask.png")),
        ([("a.jpg", "a.tif"), ("b.jpg", "b.png")], ("", "{name}.*")),
        ([("a_sat.jpg", "a_mask.png")], ("{name}_sat.jpg", "{name}_mask.png")),
        ([("img_[1].jpg", "mask_[1].png")], ("img_{name}.jpg", "mask_{name}.png")),
        ([("a_42_rgb.png", "a_7_seg.png")], ("{name}_*_rgb.png", "{name}_*_seg.png")),
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_label_files_of_other_names(
    files: list[tuple[str, str]], patterns: tuple[str, str], together: bool, tmp_path: Path
) -> None:
    if together and files[0][0] == "a.jpg":  # only the pattern identifies label files
        files = [pair for pair in files if pair[0] != pair[1] and "*" not in patterns[1]]
    folders = (tmp_path / "a", tmp_path / "a") if together else (tmp_path / "a", tmp_path / "b")
    for folder in folders:
        folder.mkdir(exist_ok=True)
    for pair in files:
        for folder, name in zip(folders, pair, strict=True):
            write(folder / name)
    found = naming.paired(*folders, *patterns)
    assert [(pair.image.name, pair.labels.name) for pair in found] == files
    assert all(pair.labels.parent == folders[1] for pair in found)


def test_errors_of_file_names(tmp_path: Path) -> None:
    images, labels = tmp_path / "a", tmp_path / "b"
    write(images / "1.jpg")
    labels.mkdir()
    with pytest.raises(DataError, match=f"^{labels}/1.png: missing, the labels of {images}/1.jpg$"):
        naming.paired(images, labels, "", "{name}.png")
    write(labels / "1_mask.png")
    words = r"1_mask\.png exists: data\.label_name=\{name\}_mask\.png"
    with pytest.raises(DataError, match=words):
        naming.paired(images, labels, "", "{name}.png")
    write(labels / "1_mask.tif")
    with pytest.raises(
        DataError, match=r"1_mask\.tif: is a second label file with the name of 1_mask\.png"
    ):
        naming.paired(images, labels, "", "{name}_mask.*")
    write(images / "1.png")
    with pytest.raises(DataError, match=r"1\.png: is a second image with the name of 1\.jpg"):
        naming.paired(images, labels, "", "{name}_mask.png")
