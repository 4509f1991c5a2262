"""evaluate.py and predict.py end to end, with a network trained for a second."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import scene_files
import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from training_runs import small, train  # noqa: E402

from examples import evaluate, figures, predict, videos  # noqa: E402
from examples.data import catalogue  # noqa: E402
from examples.data.augment import normalise, to_tensor  # noqa: E402
from examples.data.labels import IGNORE, DataError  # noqa: E402
from examples.training import checkpoint  # noqa: E402

CAMVID = list(range(12))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and CamVid's two validation images."""
    folder = tmp_path_factory.mktemp("run")
    scene_files.write_camvid(folder / "camvid", CAMVID)
    changes = ("data.name=camvid", f"data.root={folder / 'camvid'}", "train.steps=2")
    settings = small(folder, *changes, "train.batch=2", "augmentation.crop=[12,16]")
    train(settings, folder)
    return folder


def evaluated(run: Path, output: Path, *more: str) -> int:
    given = [str(run / "best.pt"), "--output", str(output), "--device", "cpu"]
    return evaluate.main([*given, *more])


def predicted(run: Path, source: Path, output: Path, *more: str) -> int:
    given = [str(run / "best.pt"), str(source), "--output", str(output), "--device", "cpu"]
    return predict.main([*given, *more])


# Scores.


def test_evaluate_counts_every_pixel(run: Path, tmp_path: Path) -> None:
    assert evaluated(run, tmp_path) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    trained = checkpoint.load_network(run / "best.pt")
    scenes = catalogue.open_split(trained.recipe.data, "val")
    confusion = np.zeros((11, 11), int)
    for scene in (scenes[0], scenes[1]):
        image = normalise(to_tensor(scene.image), trained.recipe.augmentation)
        with torch.no_grad():
            classes = trained.network(image[None])["out"][0].argmax(0).numpy()
        for true, guess in zip(scene.labels.ravel(), classes.ravel(), strict=True):
            if true != IGNORE:
                confusion[true, guess] += 1
    assert found["confusion"] == confusion.tolist()
    right = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - right
    assert found["miou"] == pytest.approx(np.mean((right / np.maximum(union, 1))[union > 0]))
    assert found["pixel_accuracy"] == pytest.approx(right.sum() / confusion.sum())
    assert list(found["iou"]) == trained.labelling.names
    assert found["protocol"]["name"] == "WholeImage"


def test_evaluate_shows_a_table_and_a_picture(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(run, tmp_path) == 0
    shown = capsys.readouterr().out
    for words in ("mIoU", "pixel accuracy", "pedestrian", "confusion.png"):
        assert words in shown
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 400


def test_evaluate_by_a_protocol(run: Path, tmp_path: Path) -> None:
    sliding = (
        "--store",
        "cpu",
        "--protocol",
        "semseg",
        "--scales",
        "0.5",
        "1.5",
        "--crop",
        "10",
        "--flip",
    )
    assert evaluated(run, tmp_path, *sliding) == 0
    protocol = json.loads((tmp_path / "scores.json").read_text())["protocol"]
    assert protocol["name"] == "SemsegSliding" and protocol["flip"] is True
    assert protocol["scales"] == [0.5, 1.5] and protocol["crop"] == 10


def test_evaluate_published_weights_by_a_recipe(run: Path, tmp_path: Path) -> None:
    trained = checkpoint.load_network(run / "best.pt")
    torch.save({"state_dict": trained.network.state_dict()}, tmp_path / "published.pth")
    given = [str(run / "recipe.yaml"), "--weights", str(tmp_path / "published.pth")]
    more = ["--output", str(tmp_path / "a"), "--readers", "1", "--device", "cpu"]
    assert evaluate.main([*given, *more]) == 0
    assert evaluated(run, tmp_path / "b") == 0
    published, own = ((tmp_path / each / "scores.json").read_text() for each in "ab")
    assert published == own


def test_evaluate_networks_side_by_side(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other networks score as they do alone, by their own recipes, on the first one's data."""
    monkeypatch.setenv("COLUMNS", "300")
    trained = checkpoint.load_network(run / "best.pt").recipe
    changes = ("network.name=pspnet", "augmentation.mean=[0.1,0.2,0.3]", "data.name=camvid")
    root = f"data.root={trained.data.root}"
    sizes = ("train.steps=1", "train.batch=2", "augmentation.crop=[12,16]")
    train(small(tmp_path, *changes, root, *sizes), tmp_path / "other")
    other = str(tmp_path / "other" / "best.pt")
    assert evaluated(run, tmp_path / "both", "--against", other, "--against", other) == 0
    shown = capsys.readouterr().out
    assert evaluated(run, tmp_path / "first") == 0
    given = [other, "--output", str(tmp_path / "second"), "--device", "cpu"]
    assert evaluate.main(given) == 0
    both, first, second = (
        json.loads((tmp_path / name / "scores.json").read_text())
        for name in ("both", "first", "second")
    )
    assert both.pop("against") == [{"file": other, **second}] * 2 and both == first
    assert first["confusion"] != second["confusion"]
    (row,) = (line for line in shown.splitlines() if "mIoU" in line)
    difference = 100 * (second["miou"] - first["miou"])
    expected = [f"{first['miou']:.2%}", *[f"{second['miou']:.2%}", f"{difference:+.2f}"] * 2]
    assert re.findall(r"[-+]?\d[\d.]*%?", row) == expected


def test_side_by_side_needs_the_same_classes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small(tmp_path, "train.steps=1"), tmp_path / "scenes")
    other = tmp_path / "scenes" / "best.pt"
    assert evaluated(run, tmp_path / "out", "--against", str(other)) == 2
    said = capsys.readouterr().err
    words = f"--against: must have the 11 classes of {run / 'best.pt'}, but {other} has 10, '"
    assert said.startswith(f"evaluate: {words}") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


# Errors of evaluate.py, with the name of the file.


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("broken", "val/images/1.jpg", "cannot be read as an image"),
        ("missing", "val/labels/2.png", "missing, the labels of"),
        ("size", "val/labels/1.png", "must be as large as .*, 12 x 16, got 10 x 16"),
        ("label", "val/labels/1.png", "must be among 0-10, ignored 11; got 13"),
    ],
)
def test_evaluate_names_the_file(
    kind: str,
    name: str,
    message: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "camvid"
    shutil.copytree(run / "camvid", root)
    if kind == "missing":
        (root / name).unlink()
    elif kind == "broken":
        (root / name).write_bytes((root / name).read_bytes()[:300])
    else:
        height = 10 if kind == "size" else 12
        values = np.full((height, 16), 13 if kind == "label" else 0, np.uint8)
        Image.fromarray(values).save(root / name)
    output = tmp_path / "out"
    assert evaluated(run, output, f"data.root={root}") == 2
    said = capsys.readouterr().err
    assert re.fullmatch(f"evaluate: {re.escape(str(root / name))}: .*{message}.*\n", said)
    assert not output.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nowhere.pt"], "nowhere.pt: there is no such checkpoint"),
        (["CHECKPOINT", "data.root=''"], "data.root: must be a folder of camvid, got none"),
        (["CHECKPOINT", "data.naem=x"], "naem"),
        (["CHECKPOINT", "--crop", "5"], "the protocol 'whole' takes flip, padding, scales"),
        (["CHECKPOINT", "data.name=voc"], "best.pt, but voc has 21"),
        (["CHECKPOINT", "network.backbone=resnet18"], "best.pt and cannot be changed"),
        (["RECIPE", "--weights", "nowhere.pth"], "nowhere.pth: there is no such file"),
        (["RECIPE", "--weights", "RECIPE"], "recipe.yaml: does not fit the recipe"),
    ],
)
def test_evaluate_refuses_arguments(
    given: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"CHECKPOINT": str(run / "best.pt"), "RECIPE": str(run / "recipe.yaml")}
    output = ["--output", str(tmp_path / "out"), "--device", "cpu"]
    assert evaluate.main([*(known.get(each, each) for each in given), *output]) == 2
    said = capsys.readouterr().err
    assert said.startswith("evaluate: ") and message in said and said.count("\n") == 1


# Pictures.


def test_predict_an_image(run: Path, tmp_path: Path) -> None:
    source = run / "camvid" / "val" / "images" / "1.jpg"
    assert predicted(run, source, tmp_path) == 0
    assert {each.name for each in tmp_path.iterdir()} == {
        "1_labels.png", "1_overlay.png", "1_legend.png"
    }  # fmt: skip
    trained = checkpoint.load_network(run / "best.pt")
    with Image.open(source) as file:
        image = np.asarray(file.convert("RGB"))
    with torch.no_grad():
        seen = normalise(to_tensor(image), trained.recipe.augmentation)
        expected = trained.network(seen[None])["out"][0].argmax(0).numpy()
    palette = trained.labelling.palette
    with Image.open(tmp_path / "1_labels.png") as file:
        assert (np.asarray(file) == expected).all()
        assert (np.asarray(file.convert("RGB")) == palette[expected]).all()
    with Image.open(tmp_path / "1_overlay.png") as file:
        mixed = np.rint(image * 0.45 + palette[expected] * 0.55)
        assert (np.asarray(file) == mixed).all()


def test_predict_a_folder_in_the_values_of_the_dataset(run: Path, tmp_path: Path) -> None:
    source = run / "camvid" / "val" / "images"
    values = ("--dataset-values", "data.name=folders", "data.classes=[a,b,c,d,e,f,g,h,i,j,k]")
    assert predicted(run, source, tmp_path, *values) == 0
    assert len(list(tmp_path.iterdir())) == 6
    with Image.open(tmp_path / "2_labels.png") as file:
        assert file.mode == "L" and np.asarray(file).max() < 11


def test_predict_applies_the_exif_orientation(run: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "level.png")
    turned = Image.Exif()
    turned[274] = 6  # tag 0x0112, the orientation: rotated for display
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "turned.png", exif=turned)
    assert predicted(run, tmp_path, tmp_path / "out") == 0
    for kind in ("labels", "overlay"):
        level, other = ((tmp_path / "out" / f"{n}_{kind}.png") for n in ("level", "turned"))
        assert (np.asarray(Image.open(level)) == np.asarray(Image.open(other))).all()


def test_predict_images_with_the_same_stem(run: Path, tmp_path: Path) -> None:
    """Neither overwrites the other's results."""
    for suffix in (".jpg", ".png"):
        shutil.copy(run / "camvid" / "val" / "images" / "1.jpg", tmp_path / f"same{suffix}")
    shutil.copy(run / "camvid" / "val" / "images" / "2.jpg", tmp_path / "other.jpg")
    assert predicted(run, tmp_path, tmp_path / "out") == 0
    assert {each.name for each in (tmp_path / "out").glob("*_labels.png")} == {
        "same.jpg_labels.png", "same.png_labels.png", "other_labels.png"
    }  # fmt: skip


def test_predict_an_animation(run: Path, tmp_path: Path) -> None:
    source = tmp_path / "drive.gif"
    frames = [Image.fromarray(np.full((12, 16, 3), 40 * i, np.uint8)) for i in range(4)]
    frames[0].save(source, save_all=True, append_images=frames[1:], duration=80)
    assert predicted(run, source, tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "drive_overlay.gif") as film:
        assert film.n_frames == 4 and film.size == (16, 12) and film.info["duration"] == 80
    maps = sorted((tmp_path / "out" / "drive_labels").iterdir())
    assert [each.name for each in maps] == [f"{i:06}.png" for i in range(4)]
    assert (tmp_path / "out" / "drive_legend.png").exists()


def test_predict_a_video(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    source = tmp_path / "drive.mp4"
    frames = [np.full((48, 64, 3), 20 * i, np.uint8) for i in range(5)]
    videos.write(source, frames, 10.0)
    assert predicted(run, source, tmp_path / "out") == 0
    film = videos.Source(tmp_path / "out" / "drive_overlay.mp4")
    assert film.rate == 10 and film.length == 5
    assert [frame.shape for frame in film] == [(48, 64, 3)] * 5


def test_a_video_without_its_library(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    source = tmp_path / "drive.mp4"
    source.write_bytes(b"not a film")
    monkeypatch.setattr(importlib, "import_module", absent)
    assert predicted(run, source, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "drive.mp4" in said and "pip install stripctx[video]" in said


@pytest.mark.parametrize("kind", ["missing", "empty", "broken", "text"])
def test_predict_names_the_file(
    kind: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / f"{kind}.png"
    if kind == "empty":
        source.mkdir()
    elif kind == "text":
        source.write_text("not an image")
    elif kind == "broken":
        shutil.copy(run / "camvid" / "val" / "labels" / "1.png", source)
        source.write_bytes(source.read_bytes()[:60])
    assert predicted(run, source, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"predict: {source}: ") and said.count("\n") == 1


def test_unlabelled_pixels_are_not_coloured() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    labels = np.full((4, 5), IGNORE)
    labels[1] = 1
    palette = np.array([(0, 0, 0), (200, 100, 50)], np.uint8)
    mixed = figures.overlay(image, labels, palette, 1.0)
    assert (mixed[1] == palette[1]).all() and (mixed[[0, 2, 3]] == image[[0, 2, 3]]).all()


def test_a_legend_of_many_classes_has_columns() -> None:
    classes = catalogue.labelling(catalogue.Data(name="ade20k")).classes
    drawn = figures.legend(classes, [1 / 150] * 150)
    assert drawn.height < 500 < drawn.width
    assert drawn.getpixel((8 + 8, 8 + 8)) == classes[0].colour


def test_a_broken_animation_is_named(tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    path.write_bytes(b"GIF89a")
    assert not videos.is_video(path)
    with pytest.raises(DataError, match=r"film\.gif: cannot be read"):
        videos.Source(path)
