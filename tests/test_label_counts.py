"""The report on labels before a run: classes that do not occur, splits without labels."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import scene_files
from PIL import Image
from rich.console import Console

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from training_runs import small  # noqa: E402

from examples import evaluate  # noqa: E402
from examples.data import catalogue  # noqa: E402
from examples.data.labels import DataError  # noqa: E402
from examples.training import label_counts  # noqa: E402
from examples.training.processes import Processes  # noqa: E402
from examples.training.trainer import Trainer  # noqa: E402


def write(root: Path, split: str, number: int, values: list[int]) -> None:
    filled = np.resize(np.array(values), scene_files.SIZE)
    scene_files.write_pair(
        root / split / "images" / f"{number}.png", root / split / "labels" / f"{number}.png", filled
    )


def changes(root: Path, *more: str) -> list[str]:
    folders = [
        f"data.{split}_{part}={root}/{split}/{part}"
        for split in catalogue.SPLITS
        for part in ("images", "labels")
    ]
    sizes = ["augmentation.crop=[12,16]", "train.batch=2"]
    return ["data.name=folders", "data.classes=[soil,plant,stone]", *folders, *sizes, *more]


def started(root: Path, *more: str) -> str:
    """The output of a run about its labels."""
    console = Console(record=True, width=200)
    Trainer(small(root, *changes(root, *more)), root / "run", console=console)
    return console.export_text()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in catalogue.SPLITS:
        for number in (1, 2):
            write(tmp_path, split, number, [0, 1, 255])
    return tmp_path


def test_pixels_are_counted_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, "train", 2, [0, 0, 2])
    data = small(root, *changes(root)).data
    scenes = catalogue.open_split(data, "train")
    found = label_counts.count(scenes, "train", root / "run", Processes())
    assert found.tolist() == [[64, 64, 0, 64], [128, 0, 64, 0]]
    monkeypatch.setattr(type(scenes), "labels", None)
    again = label_counts.count(scenes, "train", root / "run", Processes())
    np.testing.assert_array_equal(found, again)


def test_processes_divide_the_counting(root: Path) -> None:
    """Results are in the order of the scenes, regardless of the process that counted them."""
    for number, values in ((1, [0]), (2, [1]), (3, [2])):
        write(root, "train", number, values)
    scenes = catalogue.open_split(small(root, *changes(root)).data, "train")
    whole = label_counts.count(scenes, "train", root / "one", Processes())

    class Two(Processes):
        def share(self, value: object) -> object:
            return value

        def gather(self, value: list[np.ndarray]) -> list[list[np.ndarray]]:
            assert len(value) == 2
            return [value, [whole[1:2]]]

    assert label_counts.count(scenes, "train", root / "two", Two(0, 2)).tolist() == whole.tolist()
    assert whole.argmax(1).tolist() == [0, 1, 2]


def test_an_absent_class_is_reported(root: Path) -> None:
    assert "data.classes: no training scene has a pixel of stone" in started(root)
    write(root, "train", 1, [0, 1, 2])
    said = started(root)
    assert "no training scene" not in said
    assert "data.classes: no validation scene has a pixel of stone" in said
    write(root, "val", 1, [0, 1, 2])
    assert "data.classes:" not in started(root)


def test_masks_of_0_and_255_are_refused(root: Path) -> None:
    """If 255 is ignored, only the background would be left, with an mIoU of 100 %."""
    for number in (1, 2):
        write(root, "train", number, [0, 255])
    with pytest.raises(DataError) as refusal:
        started(root, "data.classes=[soil,plant]")
    assert str(refusal.value) == (
        "data.classes: all labelled pixels are 'soil' in 2 training scenes (50.0% of the "
        "pixels are ignored); data.values assigns values to classes, such as "
        "{0: soil, 255: plant}"
    )
    for number in (1, 2):
        write(root, "val", number, [0, 255])
    assert "data.classes:" not in started(
        root, "data.classes=[soil,plant]", "data.values={0: soil, 255: plant}"
    )


def test_training_scenes_without_labels(root: Path) -> None:
    for number in (1, 2):
        write(root, "train", number, [255])
    with pytest.raises(DataError, match=r"^data\.classes: no pixel has a label in 2 training"):
        started(root)


@pytest.mark.parametrize("name", ["folders", "camvid"])
def test_validation_scenes_without_labels(name: str, root: Path) -> None:
    values = [255 if name == "folders" else 11]
    for number in (1, 2):
        write(root, "val", number, values)
    more = ["data.name=camvid", "data.classes=[]", f"data.root={root}"] if name == "camvid" else []
    with pytest.raises(DataError, match=r"^train\.validate_every: no pixel of 2 validation scenes"):
        if name == "camvid":
            write(root, "train", 1, [0, 1, 2, 11])
            for split in catalogue.SPLITS:
                rename(root / split / "images")
        started(root, *more)
    started(root, *more, "train.validate_every=0")


def rename(folder: Path) -> None:
    """CamVid's images have names of JPEGs."""
    for path in folder.glob("*.png"):
        path.rename(path.with_suffix(".jpg"))


def test_a_broken_label_file_is_found_at_the_start(root: Path) -> None:
    path = root / "train" / "labels" / "2.png"
    Image.new("L", scene_files.SIZE[::-1], 77).save(path)
    with pytest.raises(DataError, match=f"^{path}: labels must be among 0-2, ignored 255; got 77"):
        started(root)


def test_labels_of_another_size_are_found_at_the_start(root: Path) -> None:
    path = root / "val" / "labels" / "2.png"
    Image.new("L", (5, 7), 1).save(path)
    image = root / "val" / "images" / "2.png"
    with pytest.raises(DataError, match=f"^{path}: .* as {image}, 12 x 16, got 7 x 5$"):
        started(root)


def test_large_images_are_found_at_the_start(root: Path) -> None:
    with pytest.raises(DataError, match=r"1\.png: 12 x 16 are 192 pixels, more than data"):
        started(root, "data.max_pixels=191")


def test_scoring_scenes_without_labels(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Trainer(small(root, *changes(root, "train.steps=1")), root / "run").run()
    for number in (1, 2):
        write(root, "val", number, [255])
    given = [str(root / "run" / "best.pt"), "--output", str(root / "out"), "--device", "cpu"]
    assert evaluate.main(given) == 2
    said = capsys.readouterr().err
    assert said == "evaluate: no pixel of the 2 scenes to score has a label\n"
    assert not (root / "out").exists()
