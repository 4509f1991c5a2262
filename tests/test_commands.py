"""The commands reject invalid arguments with a one-line error and status 2, before any work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import scene_files
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from training_runs import SMALL, small, train  # noqa: E402

from examples import evaluate, predict  # noqa: E402
from examples import train as command  # noqa: E402
from examples.training import checks, processes  # noqa: E402
from examples.training.processes import Processes  # noqa: E402
from examples.training.recipe import RecipeError  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, CamVid's images, and a file where a folder is expected."""
    folder = tmp_path_factory.mktemp("run")
    scene_files.write_camvid(folder / "camvid", list(range(12)))
    changes = ("data.name=camvid", f"data.root={folder / 'camvid'}", "train.steps=1")
    train(small(folder, *changes, "train.batch=2", "augmentation.crop=[12,16]"), folder)
    (folder / "file").write_text("in the way")
    return folder


def refused(main: object, given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The single line that a command prints."""
    try:
        status = main(given)
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr().err
    assert status == 2 and said.count("\n") == 1, said
    return said


# Training.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["train.batch=0"], "train.batch: must be positive, got 0"),
        (["train.batch=x"], "train.batch: Value 'x'"),
        (["--device", "cuda"], "--device: cuda needs 1 GPUs here"),
        (["--device", "tpu"], "--device: invalid choice: 'tpu'"),
        (["--output", "FILE"], "--output: FILE cannot be written (it is a file)"),
        (["--output", "FILE/below"], "--output: FILE/below cannot be written (Not a directory)"),
        (["--output", "/proc/none/run"], "--output: /proc/none/run cannot be written"),
        (["train.batch=1", "network.name=pspnet"], "train.batch: must be 2 or more"),
        (["evaluation.protocol=slide"], "evaluation: create: protocol must be one of"),
        (["evaluation.options={cropp: 3}"], "evaluation: create: the protocol 'whole' takes"),
        (["loss.options={min_kept: 3}"], "loss.options: cross_entropy takes none, got min_kept"),
        (
            ["loss.criterion=ohem_cross_entropy", "loss.options={threshold: x}"],
            "loss.options: '<' not supported",
        ),
        (["loss.class_weights=[0,0,0,0,0,0,0,0,0,0]"], "loss.class_weights: must contain"),
        (["data.height=31"], "data.height: must be 32 or more, got 31"),
        (["loss.criterion=class_presence"], "loss.criterion: must be a function of"),
        (["optimizer.groups=[{match: '('}]"], "optimizer.groups: '(' is not a regular expression"),
        (["network.weights=none.pth"], "none.pth"),
    ],
)
def test_train_refuses(
    given: list[str], words: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    file = str(run / "file")
    given = [each.replace("FILE", file) for each in given]
    output = [] if "--output" in given else ["--output", str(tmp_path / "out")]
    device = [] if "--device" in given else ["--device", "cpu"]
    said = refused(command.main, [str(tmp_path / "small.yaml"), *given, *output, *device], capsys)
    assert said.startswith("train: ") and words.replace("FILE", file) in said
    assert [each.name for each in tmp_path.iterdir()] == ["small.yaml"]


def test_each_process_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"^--device: cuda needs 3 GPUs here, .* finds 2$"):
        processes.join()


@pytest.mark.parametrize(
    ("network", "size", "batch", "device", "norms", "fits"),
    [
        ("fcn", 1, 1, "cpu", "sync", True),
        ("pspnet", 1, 1, "cpu", "sync", False),
        ("pspnet", 1, 2, "cpu", "sync", True),
        ("pspnet", 1, 1, "cpu", "frozen", True),
        ("pspnet", 2, 2, "cpu", "sync", False),
        ("pspnet", 2, 2, "cuda", "sync", True),
        ("pspnet", 2, 2, "cuda", "own", False),
        ("pspnet", 1, 1, "cuda", "sync", False),
        ("deeplabv3plus_hanet", 1, 1, "cpu", "sync", False),
    ],
)
def test_batch_norms_need_several_scenes_per_process(
    network: str, size: int, batch: int, device: str, norms: str, fits: bool, tmp_path: Path
) -> None:
    changes = (f"network.name={network}", f"train.batch={batch}", f"train.norms={norms}")
    here = Processes(0, size, torch.device(device))
    if fits:
        checks.check(small(tmp_path, *changes), 10, here)
    else:
        with pytest.raises(RecipeError, match=r"^train.batch: must be 2 or more for each process"):
            checks.check(small(tmp_path, *changes), 10, here)


def test_networks_that_pass_the_check_train_on_one_scene(tmp_path: Path) -> None:
    """Networks that pass the check train with a batch of one."""
    for name in ("fcn", "spnet"):
        settings = small(tmp_path, f"network.name={name}", "train.batch=1", "train.steps=1")
        train(settings, tmp_path / name)


# Scoring and segmenting.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["CHECKPOINT", "--batch", "0"], "--batch: must be a positive whole number, got 0"),
        (["CHECKPOINT", "--batch", "two"], "--batch: must be a positive whole number, got two"),
        (["CHECKPOINT", "--crop", "-5"], "--crop: must be a positive whole number, got -5"),
        (["CHECKPOINT", "--base-size", "0"], "--base-size: must be a positive whole number, got 0"),
        (["CHECKPOINT", "--scales", "1", "0"], "--scales: must be a positive number, got 0"),
        (["CHECKPOINT", "--scales", "nan"], "--scales: must be a positive number, got nan"),
        (["CHECKPOINT", "--device", "cuda"], "--device: cuda needs 1 GPUs here"),
        (["CHECKPOINT", "--output", "FILE"], "--output: FILE cannot be written (it is a file)"),
        (["CHECKPOINT", "--output", "FILE/x"], "--output: FILE/x cannot be written (Not a dir"),
        (["RECIPE"], "--weights: is required for a recipe, RECIPE"),
        (["CHECKPOINT", "--weights", "CHECKPOINT"], "CHECKPOINT: is not YAML"),
        (["CHECKPOINT", "data.max_pixels=0"], "data.max_pixels: must be positive, got 0"),
    ],
)
@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_evaluate_and_predict_refuse(
    name: str,
    given: list[str],
    words: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"CHECKPOINT": run / "best.pt", "RECIPE": run / "recipe.yaml", "FILE": run / "file"}
    for key, path in known.items():
        given, words = (
            [each.replace(key, str(path)) for each in given],
            words.replace(key, str(path)),
        )
    image = [str(run / "camvid" / "val" / "images" / "1.jpg")] if name == "predict" else []
    output = [] if "--output" in given else ["--output", str(tmp_path / "out")]
    device = [] if "--device" in given else ["--device", "cpu"]
    main = evaluate.main if name == "evaluate" else predict.main
    said = refused(main, [given[0], *image, *given[1:], *output, *device], capsys)
    assert said.startswith(f"{name}: ") and words in said
    assert not any(tmp_path.iterdir())


def test_evaluate_needs_readers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(evaluate.main, [str(run / "best.pt"), "--readers", "0"], capsys)
    assert said == "evaluate: --readers: must be a positive whole number, got 0\n"
