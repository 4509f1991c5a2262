"""Training: an interrupted run resumes with the same curve, two processes equal one, files stay
intact."""

from __future__ import annotations

import csv
import functools
import io
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import process_group
import pytest
import scene_files
import torch
from PIL import Image
from rich.console import Console

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from training_runs import small, stop_after, train, train_in_processes  # noqa: E402

from examples import train as command  # noqa: E402
from examples.data.augment import Key  # noqa: E402
from examples.data.labels import DataError  # noqa: E402
from examples.training import (  # noqa: E402
    batches,
    checkpoint,
    log,
    networks,
    objective,
    processes,
    recipe,
)
from examples.training.processes import Processes  # noqa: E402
from examples.training.progress import Display  # noqa: E402
from examples.training.recipe import RecipeError  # noqa: E402
from examples.training.trainer import StoppedError, Trainer  # noqa: E402


def curve(folder: Path) -> list[list[str]]:
    return [[row[name] for name in log.CURVE] for row in log.read(folder / "log.csv")]


def assert_same_run(folder: Path, other: Path) -> None:
    """The logs are equal except for the time, and the last checkpoints bitwise equal."""
    assert curve(folder) == curve(other)
    ours, theirs = (checkpoint.read(each / checkpoint.LAST) for each in (folder, other))
    for part in ("network", "optimizer", "step", "scores", "best"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


# Interrupted and resumed runs.


@pytest.mark.slow
def test_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """A run is killed after some steps, between checkpoints, together with its reader process, or
    asked to stop, as by a scheduler; then it goes on, once by the same command."""
    changes = (
        "train.epochs=8", "train.workers=1", "data.class_uniform=0.5", "data.tile=20",
    )  # fmt: skip
    settings = small(tmp_path, *changes)

    def start(folder: str) -> subprocess.Popen[str]:
        """With this process's number of threads, on which a library's sums depend."""
        command = [
            sys.executable, str(REPOSITORY / "examples" / "train.py"), str(tmp_path / "small.yaml"),
            *changes, "--output", str(tmp_path / folder), "--device", "cpu",
        ]  # fmt: skip
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    for folder, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGTERM)):
        run = start(folder)
        path = tmp_path / folder / "log.csv"
        until = time.monotonic() + 300
        while not (path.exists() and path.read_text().count("\n") >= 6):
            assert run.poll() is None and time.monotonic() < until, run.communicate()
            time.sleep(0.001)
        os.killpg(run.pid, number)
        said, errors = run.communicate(timeout=60)
        assert run.returncode == (3 if number == signal.SIGTERM else -signal.SIGKILL), errors
        assert 2 <= checkpoint.read(tmp_path / folder / checkpoint.LAST)["step"] < 24
        if number == signal.SIGTERM:
            assert "repeat the command to resume" in said.replace("\n", " ")
    run = start("stopped")
    train(settings, tmp_path / "killed")
    train(settings, tmp_path / "whole")
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    assert checkpoint.read(tmp_path / "whole" / checkpoint.LAST)["step"] == 24
    for folder in ("killed", "stopped"):
        assert_same_run(tmp_path / "whole", tmp_path / folder)


@pytest.mark.slow
def test_run_stopped_at_any_step_goes_on(tmp_path: Path) -> None:
    """Also between log rows, whose means it restores; with dropout and reader processes."""
    settings = small(tmp_path, "train.log_every=4", "train.save_every=0", "train.workers=1")
    train(settings, tmp_path / "whole")
    for step in (2, 5):
        stopped = Trainer(settings, tmp_path / f"{step}")
        stop_after(stopped, step)
        with pytest.raises(StoppedError, match=f"after step {step} of 12"):
            stopped.run()
        train(settings, tmp_path / f"{step}")
        assert_same_run(tmp_path / "whole", tmp_path / f"{step}")


def test_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    settings = small(tmp_path, "train.epochs=1")
    train(settings, tmp_path / "run")
    before = curve(tmp_path / "run")
    train(settings, tmp_path / "run")
    assert curve(tmp_path / "run") == before


def test_other_recipe_does_not_go_on(tmp_path: Path) -> None:
    train(small(tmp_path, "train.epochs=1"), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"optimizer\.rate: is 0\.5, but .*last\.pt .*0\.02"):
        Trainer(small(tmp_path, "train.epochs=1", "optimizer.rate=0.5"), tmp_path / "run")
    Trainer(small(tmp_path, "train.epochs=1", "train.workers=3"), tmp_path / "run")


# Checkpoints.


def save_again_and_again(path: Path) -> None:
    torch.set_num_threads(1)  # the parent's threads do not exist in a forked process
    for step in range(1_000_000):
        checkpoint.save(path, {"step": step, "weights": torch.full((50_000,), float(step))})


def test_checkpoint_is_whole_whenever_the_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": -1, "weights": torch.full((50_000,), -1.0)})
    for attempt in range(12):
        process = multiprocessing.get_context("fork").Process(
            target=save_again_and_again, args=(path,)
        )
        before = path.stat().st_mtime_ns
        process.start()
        until = time.monotonic() + 60
        while path.stat().st_mtime_ns == before:
            assert time.monotonic() < until
            time.sleep(0.001)
        time.sleep(0.0037 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        state = checkpoint.read(path)
        assert (state["weights"] == state["step"]).all()
    assert state["step"] > 0


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_file_that_is_no_checkpoint(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "some.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match=f"^{path}: "):
        checkpoint.read(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(checkpoint.CheckpointError, match="is not a checkpoint of"):
        checkpoint.read(path)


def test_trained_network_comes_back(tmp_path: Path) -> None:
    trainer = train(small(tmp_path, "train.epochs=2"), tmp_path / "run")
    trained = checkpoint.load_network(tmp_path / "run" / checkpoint.BEST)
    assert not trained.network.training and trained.recipe == trainer.recipe
    assert len(trained.labelling.classes) == 10 and trained.step == 6
    assert trained.scores["miou"] == trainer.best
    image = torch.randn(1, 3, 40, 56)
    trainer.network.eval()
    assert torch.equal(trained.network(image)["out"], trainer.network(image)["out"])


def test_run_starts_from_another(tmp_path: Path) -> None:
    """With other classes and more attentions: these are initialised, everything else is loaded."""
    options = "network.options={slots: [true,false,false,false,false]}"
    hanet = ("network.name=deeplabv3plus_hanet", "train.steps=1")
    plain = train(small(tmp_path, *hanet, options.replace("true", "false")), tmp_path / "first")
    scene_files.write_camvid(tmp_path / "camvid", list(range(12)))
    path = tmp_path / "first" / checkpoint.LAST
    data = ("data.name=camvid", f"data.root={tmp_path}/camvid", "train.batch=2")
    changes = (*hanet, options, *data, f"network.start={path}")
    console = Console(record=True, width=200)
    started = Trainer(small(tmp_path, *changes), tmp_path / "second", console=console)
    said = console.export_text()
    for name in ("aux_head.4", "head.final2.0", "head.hanet0.attention_first.0"):
        assert name in said
    assert "backbone" not in said and said.rstrip().endswith("keeps its random initialisation")
    before, after = plain.network.state_dict(), started.network.state_dict()
    kept = [key for key in before if not key.startswith(("aux_head.4", "head.final2"))]
    assert all(torch.equal(before[key], after[key]) for key in kept)
    assert len(after["aux_head.4.bias"]) == 11 and len(kept) > 40
    started.run()
    path.unlink()  # not needed to resume
    assert Trainer(small(tmp_path, *changes), tmp_path / "second").step == 1


def test_start_that_does_not_fit(tmp_path: Path) -> None:
    train(small(tmp_path, "train.steps=1"), tmp_path / "first")
    path = tmp_path / "first" / checkpoint.LAST
    for change, words in (
        (f"network.start={path}", "does not fit"),
        ("network.start=nowhere.pt", "there is no file nowhere.pt"),
        (f"network.start={tmp_path}/small.yaml", "does not fit"),
    ):
        with pytest.raises(RecipeError, match=f"network.start: .*{words}"):
            Trainer(small(tmp_path, "network.name=pspnet", change), tmp_path / "second")


def test_run_of_before_a_setting_came_goes_on(tmp_path: Path) -> None:
    settings = small(tmp_path, "train.epochs=1")
    train(settings, tmp_path / "run")
    path = tmp_path / "run" / checkpoint.LAST
    state = checkpoint.read(path)
    del state["recipe"]["data"]["class_uniform"], state["recipe"]["network"]["start"]
    checkpoint.save(path, state)
    assert Trainer(settings, tmp_path / "run").step == 3


# Several processes.


def write_scenes(root: Path) -> None:
    """Images with very different fractions of labelled pixels."""
    for split in ("train", "val"):
        for number in range(6):
            values = np.random.default_rng(number).integers(0, 11, (32, 32))
            values[: 5 * number] = 11
            folders = root / split / "images", root / split / "labels"
            scene_files.write_pair(
                folders[0] / f"{number}.jpg", folders[1] / f"{number}.png", values
            )


WAYS = {
    "fcn": (  # class weights from the labels of all scenes; the average is validated
        "network.options={dropout: 0.0}", "loss.balance=median", "train.average=0.5",
    ),
    "hanet": (  # its auxiliary loss is a mean over fewer pixels
        "network.name=deeplabv3plus_hanet",
        "network.options={dropout: 0.0, enlarge_aux: false, reduction: 8}",
        "loss.class_weights=[1,2,3,1,1,5,1,1,2,1,0.5]",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two runs of each way: one/NAME, and many/NAME by two processes, which are stopped
    once; only the first of them has the checkpoint."""
    folder = tmp_path_factory.mktemp("ways")
    write_scenes(folder / "camvid")
    common = (
        "data.name=camvid", f"data.root={folder}/camvid", "augmentation.scale=[0.7,1.0]",
        "train.norms=frozen", "train.batch=2", "train.epochs=2", "train.validate_every=2",
    )  # fmt: skip
    changes = {name: (*common, *way) for name, way in WAYS.items()}
    for name, way in changes.items():
        train(small(folder, *way), folder / "one" / name)
    process_group.run(train_in_processes, folder, folder, changes)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_two_processes_equal_one(name: str, ways: Path) -> None:
    """The same log and, up to rounding, the same network, with frozen norms and without dropout."""
    folders = ways / "one" / name, ways / "many" / name
    one, many = (checkpoint.read(folder / checkpoint.LAST) for folder in folders)
    assert one["step"] == many["step"] == 6
    averaged = "train.average=0.5" in WAYS[name]
    assert bool(one["average"]) == averaged
    for part in ("network", "average") if averaged else ("network",):
        torch.testing.assert_close(one[part], many[part], rtol=2e-4, atol=2e-5)
    for column in ("loss", "aux", "miou"):
        left, right = (log.curve(folder / "log.csv", column)[1] for folder in folders)
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_processes_share_out_every_batch() -> None:
    def steps(rank: int, size: int, start: int = 0) -> list[list[Key]]:
        here, order = Processes(rank, size), batches.EveryScene(11, seed=1)
        return list(batches.Batches(order, 4, start=start, steps=7, processes=here))

    alone = steps(0, 1)
    assert [len(keys) for keys in alone] == [4] * 7
    for epoch in range(3):
        seen = [key for keys in alone[2 * epoch : 2 * epoch + 2] for key in keys]
        assert {key.epoch for key in seen} == {epoch} and len({key.index for key in seen}) == 8
    assert alone[0:2] != alone[2:4]
    assert steps(0, 1, start=3) == alone[3:]
    for whole, first, second in zip(alone, steps(0, 2), steps(1, 2), strict=True):
        assert sorted(whole) == sorted(first + second) and len(first) == len(second) == 2


@pytest.mark.parametrize(
    ("norms", "kind", "synced"),
    [("sync", "cuda", True), ("own", "cuda", False), ("sync", "cpu", False)],
)
def test_norms_see_all_processes_on_gpus(
    norms: str, kind: str, synced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All norms, including those in HANet's attentions; as far as this can be tested without a
    GPU."""
    monkeypatch.setattr(processes, "DistributedDataParallel", lambda network, devices: network)
    network = networks.build(recipe.Network("deeplabv3plus_hanet", "tiny"), 5)
    here = Processes(0, 2, torch.device(kind, 0) if kind == "cuda" else torch.device(kind))
    found = [each for each in here.distribute(network, norms).modules() if is_norm(each)]
    assert len(found) > 20
    assert {isinstance(each, torch.nn.SyncBatchNorm) for each in found} == {synced}


def is_norm(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.modules.batchnorm._BatchNorm)


# Output.


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_loss_miou_and_time_left(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bar on a terminal, otherwise a line every half minute."""
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with Display(console, "pspnet on camvid", 10, 20) as display:
        for step in range(11, 16):
            display.step(step, 0.5)
        display.validated(15, 0.25, 0.75)
        for step in range(16, 19):
            display.step(step)
        display.bar.refresh()
    file: Any = console.file
    said = file.getvalue()
    assert "validation mIoU 25.00%, pixel accuracy 75.00%" in said
    if terminal:
        assert "pspnet on camvid" in said and "18/20" in said
        assert "loss 0.500, mIoU 25.0%" in said and "left" in said
    else:
        lines = [line for line in said.splitlines() if line.endswith(" left")]
        assert 2 <= len(lines) < 8
        assert re.fullmatch(
            r"step 1[6-8] of 20: loss 0\.500, mIoU 25\.0%, 0:0\d:\d\d left", lines[-1]
        )


# Optimization.


@pytest.mark.slow
def test_training_learns(tmp_path: Path) -> None:
    trainer = train(small(tmp_path, "train.epochs=30", "train.validate_every=30"), tmp_path / "run")
    _, losses = log.curve(tmp_path / "run" / "log.csv", "loss")
    assert losses[-1] < 0.7 * losses[0]
    assert trainer.scores["pixel_accuracy"] > 0.35  # ten classes


def test_rates_follow_groups_and_schedule() -> None:
    network = torch.nn.Module()
    network.backbone, network.head, network.hanet0 = (torch.nn.Linear(2, 2) for _ in range(3))
    groups = [recipe.Group("^head", 10.0), recipe.Group("hanet", 1.0, 1e-4)]
    settings = recipe.Optimizer(rate=0.1, weight_decay=5e-4, groups=groups)
    sgd = objective.optimizer(network, settings)
    decays = [group["weight_decay"] for group in sgd.param_groups]
    assert decays == [5e-4, 1e-4, 5e-4]
    assert objective.set_rate(sgd, settings, 25, 100) == pytest.approx(0.1 * 0.75**0.9)
    rates = [group["lr"] / (0.1 * 0.75**0.9) for group in sgd.param_groups]
    assert rates == pytest.approx([10, 1, 1])
    network.hanet0.weight.requires_grad_(False)
    assert sum(len(g["params"]) for g in objective.optimizer(network, settings).param_groups) == 5
    with pytest.raises(RecipeError, match="no parameter matches 'ppm'"):
        objective.optimizer(network, recipe.Optimizer(groups=[recipe.Group("ppm")]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ("train.precision=bfloat16", "train.channels_last=true"),
        ("train.precision=float16", "data.class_uniform=0.5"),
        ("train.compile=true",),
        ("network.name=deeplabv3plus_hanet", "network.options={pos_noise: 0.5}"),
        ("network.name=pspnet", "loss.criterion=ohem_cross_entropy", "loss.options={min_kept: 99}"),
    ],
)
def test_every_way_to_train_resumes(
    changes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile is replaced: Inductor would take half a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    settings = small(tmp_path, "train.epochs=1", *changes)
    train(settings, tmp_path / "whole")
    stopped = Trainer(settings, tmp_path / "stopped")
    stopped.stopping = True
    with pytest.raises(StoppedError, match="stopped after step 1 of "):
        stopped.run()
    train(settings, tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    values = [float(value) for value in log.curve(tmp_path / "whole" / "log.csv", "loss")[1]]
    assert np.isfinite(values).all()


# Errors.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("train.batch=99", "train.batch: 13 scenes are too few for 99"),
        ("loss.criterion=SegmentationLoss", "loss.criterion: must be a function"),
        ("loss.class_weights=[1,2]", "loss.class_weights: must be 10"),
        ("network.name=unet", "network.name: must be one of"),
        ("network.name=deepten", "network.name: deepten classifies images"),
        ("network.options={bins: 3}", "network: .*bins"),
    ],
)
def test_recipe_that_cannot_be_followed(change: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        Trainer(small(tmp_path, change), tmp_path / "run")


@pytest.mark.slow
def test_command_names_the_broken_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also in a reader process."""
    scene_files.write_camvid(tmp_path / "camvid", [0, 1, 11])
    broken = tmp_path / "camvid" / "train" / "labels" / "2.png"
    Image.fromarray(np.full(scene_files.SIZE, 77, np.uint8)).save(broken)
    changes = ("data.name=camvid", f"data.root={tmp_path}/camvid", "train.batch=2")
    with pytest.raises(DataError, match=f"{broken}: labels must be among"):
        train(small(tmp_path, *changes), tmp_path / "run")
    arguments = [str(tmp_path / "small.yaml"), *changes, "train.workers=1", "--device", "cpu"]
    assert command.main([*arguments, "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"train: {broken}: labels must be among")


def test_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    trainer = Trainer(small(tmp_path, "optimizer.rate=1e30"), tmp_path / "run")
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf)"):
        trainer.run()


def test_log_drops_what_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    first = log.Log(path, 0)
    for step in (1, 2, 3):
        first.write(step=step, epoch=0, loss=0.5, seconds=float(step))
    first.close()
    path.write_text(path.read_text() + "4,0,")
    assert [row["step"] for row in log.read(path)] == ["1", "2", "3"]
    second = log.Log(path, 2)
    assert second.seconds == 2.0
    second.write(step=3, epoch=0, loss=0.25)
    second.close()
    with path.open() as file:
        assert [row["loss"] for row in csv.DictReader(file)] == ["0.5", "0.5", "0.25"]


def test_same_curve_from_logits_of_either_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interpolated in the loss or before it."""
    settings = small(tmp_path)
    train(settings, tmp_path / "small")
    monkeypatch.setattr(networks, "may_resize", lambda network: False)
    train(settings, tmp_path / "wide")
    ours, theirs = (log.read(tmp_path / name / "log.csv") for name in ("small", "wide"))
    assert len(ours) == len(theirs) > 1
    for a, b in zip(ours, theirs, strict=True):
        if a["loss"]:
            assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-3)
