"""The demo from end to end, its error messages, and its scenes."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from examples import demo  # noqa: E402
from examples.data.pairs import Scene  # noqa: E402
from examples.demonstration import decoder, measure, network, training  # noqa: E402
from examples.street import scenes  # noqa: E402
from examples.training.trainer import Trainer  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's steps on smaller scenes, with fewer measurements."""
    data = {"height": 64, "width": 128, "train_count": 16, "val_count": 2}
    augmentation = training.RECIPE["augmentation"] | {"crop": [64, 128]}
    changed = training.RECIPE | {"data": data, "augmentation": augmentation}
    monkeypatch.setattr(training, "RECIPE", changed)
    monkeypatch.setattr(demo, "SIZE", (128, 256))
    monkeypatch.setattr(measure, "ROUNDS", 3)


def check_figure(path: Path) -> int:
    """Checks size and variety of colours of a figure; returns its height."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[0] > 900 and pixels.shape[1] > 1500
    assert path.stat().st_size > 200_000
    assert 0.1 < (pixels.min(2) < 250).mean() < 0.95
    corner = pixels[:20, :20]
    assert (corner == 255).all()
    return len(pixels)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_demo_draws_a_scene_and_trains(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figure includes the study; fused and plain results agree, and the demo says so."""
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    assert demo.main(["--seconds", "1", "--training", "1"]) == 0
    assert os.listdir(tmp_path) == ["demo.png"]
    assert check_figure(tmp_path / "demo.png") > 1700
    said = " ".join(capsys.readouterr().out.split())
    compared = ("agrees", "stripctx", "PyTorch eager", "torch.compile", "peak memory")
    fused = ("conv2d fuse: pyramid_conv, ", " products in 1 convolutions", "logits agree")
    trained = (
        "The fused and the plain curve agree",
        "context module, forward and backward: stripctx",
    )
    for words in (*compared, *fused, *trained):
        assert words in said
    scores = re.search(
        r"mIoU on unseen scenes: without context [\d.]+%, pyramid pooling, fused [\d.]+%", said
    )
    assert scores


def test_demo_takes_a_picture(tmp_path: Path) -> None:
    """As a program, with the kernels that it chooses itself."""
    image, _ = scenes.scene(3, 150, 100)
    Image.fromarray(image).convert("LA").save(tmp_path / "upright.png")
    command = [sys.executable, str(REPOSITORY / "examples" / "demo.py"), "--image", "upright.png"]
    command += ["--seconds", "1", "--training", "0", "--output", "out.png", "--without-compile"]
    environment = {key: value for key, value in os.environ.items() if key != "STRIPCTX_BACKEND"}
    finished = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "no labels" in finished.stdout
    assert check_figure(tmp_path / "out.png") < 2500  # no training; the input image is upright


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "truncated", "small"])
def test_demo_refuses_files_that_are_not_images(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{kind}.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("not an image")
    elif kind != "missing":
        Image.fromarray(scenes.scene(0, 128, 128)[0]).save(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:900])
    elif kind == "small":
        Image.new("RGB", (200, 30)).save(path)
    assert demo.main(["--image", str(path), "--output", str(tmp_path / "out.png")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("demo: ") and said.count("\n") == 1 and path.name in said
    assert not (tmp_path / "out.png").exists()


def test_demo_refuses_an_invalid_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--output", "no/such/folder.png"]) == 2
    assert capsys.readouterr().err == "demo: no/such/folder.png: cannot be written\n"


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("--seconds", "0", "must be a positive number, got 0"),
        ("--seconds", "nan", "must be a positive number, got nan"),
        ("--training", "-1", "must be a number, 0 or more, got -1"),
        ("--training", "inf", "must be a number, 0 or more, got inf"),
        ("--seed", "-1", "must be a whole number, 0 or more, got -1"),
        ("--seed", "1.5", "must be a whole number, 0 or more, got 1.5"),
    ],
)
def test_demo_refuses_numbers_out_of_range(
    argument: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        demo.main([f"{argument}={value}"])
    assert left.value.code == 2
    assert capsys.readouterr().err == f"demo: {argument}: {words}\n"


# A network before and after fuse.


def test_fused_decoder_equals_the_decoder(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same parameters it needs fewer products; a difference is reported."""
    image = torch.randn(1, 3, 128, 192)
    outcome = decoder.before_and_after(Console(quiet=True), image, 5, width=128)
    assert outcome.agrees and outcome.error < 1e-5
    assert set(outcome.found.times) == {"fused", "eager"}
    before, after = outcome.products
    assert 0.3 * before < after < 0.4 * before
    losses = decoder.loss_of_small_logits(torch.randn(1, 5, 128, 192), image)
    assert losses.peaks["fused"] < losses.peaks["eager"] / 4
    monkeypatch.setattr(decoder, "BOUND", 0.0)
    assert not dataclasses.replace(outcome, error=1e-9).agrees


# Training.


def test_measuring_does_not_change_the_network(small: None, tmp_path: Path) -> None:
    """Measuring must not update the statistics of its norms."""
    trainer = Trainer(training._settings(training.FUSED, 1), tmp_path)
    before = copy.deepcopy(trainer.network.state_dict())
    found, shape = training._measure(trainer)
    assert shape == (8, 96, 16, 32) and set(found.times) == {"fused", "eager"}
    torch.testing.assert_close(trainer.network.state_dict(), before, rtol=0, atol=0)


def test_diverging_curves_are_reported(tmp_path: Path) -> None:
    image, labels = scenes.scene(0, 32, 64)
    found = training.Study(
        scene=Scene(image, labels, "scene"),
        palette=np.zeros((10, 3), np.uint8),
        predictions={},
        losses={},
        scores={},
        first_gap=1e-7,
        mean_gap=0.01,
        times={},
        features="",
    )
    assert found.agrees
    assert not dataclasses.replace(found, first_gap=1e-4).agrees
    assert not dataclasses.replace(found, mean_gap=0.1).agrees
    assert not dataclasses.replace(found, mean_gap=float("nan")).agrees


def test_curves_are_means_of_the_last_steps() -> None:
    losses = np.random.default_rng(0).random(35)
    expected = [losses[max(0, i - training.AVERAGED + 1) : i + 1].mean() for i in range(35)]
    np.testing.assert_allclose(training._averaged(losses), expected, rtol=1e-12)


# Scenes.


def test_scene_depends_only_on_its_seed() -> None:
    image, labels = scenes.scene(5, 96, 160)
    again, labels_again = scenes.scene(5, 96, 160)
    other, _ = scenes.scene(6, 96, 160)
    assert (image == again).all() and (labels == labels_again).all()
    assert (image != other).mean() > 0.5


@pytest.mark.parametrize("size", [(96, 160), (97, 53), (32, 200)])
def test_scene_has_the_requested_size(size: tuple[int, int]) -> None:
    image, labels = scenes.scene(1, *size)
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    assert labels.shape == size and labels.dtype == np.uint8
    assert labels.max() < len(scenes.CLASSES)


def test_scene_too_small() -> None:
    with pytest.raises(ValueError, match="at least 32, got 20 x 100"):
        scenes.scene(0, 20, 100)


def test_scenes_contain_every_class() -> None:
    labels = np.stack([scenes.scene(seed, 96, 192)[1] for seed in range(12)])
    counts = np.bincount(labels.ravel(), minlength=len(scenes.CLASSES))
    assert len(counts) == len(scenes.CLASSES) and (counts > 0).all()
    height = {name: np.nonzero(labels == index)[1].mean() for name, index in scenes.LABEL.items()}
    assert height["sky"] < height["building"] < height["car"] < height["road"]


def test_clusters_separate_colours() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:32, :, 2] = 220
    image[32:, :, 0] = 220
    labels = network.clusters(image, 2)
    assert (labels[:28] == 0).all() and (labels[36:] == 1).all()
