"""Training's options: the average of the weights, weights of classes, loggers."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from training_runs import SMALL, small, stop_after, train  # noqa: E402

from examples import train as command  # noqa: E402
from examples.data import catalogue  # noqa: E402
from examples.training import balance, checkpoint, log, loggers  # noqa: E402
from examples.training.average import Average  # noqa: E402
from examples.training.recipe import RecipeError  # noqa: E402
from examples.training.trainer import StoppedError, Trainer  # noqa: E402

# Weight averaging.


def test_average_equals_the_recursion() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    average = Average(network, 0.25)
    expected = None
    for step in range(6):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape))
        network(torch.randn(4, 3))
        average.update(network)
        decay = min(0.25, (1 + step) / (10 + step))
        weight = network[0].weight.detach().clone()
        expected = weight if step == 0 else decay * expected + (1 - decay) * weight
        torch.testing.assert_close(average.network[0].weight, expected)
        assert torch.equal(average.network[1].running_var, network[1].running_var)
        assert not torch.equal(average.network[0].weight, weight) or step == 0
    again = Average(network, 0.25)
    again.load_state_dict(average.state_dict())
    for each in (average, again):
        each.update(network)
    assert torch.equal(average.network[0].weight, again.network[0].weight)


def test_the_average_is_scored_and_saved(tmp_path: Path) -> None:
    plain = train(small(tmp_path, "train.epochs=2"), tmp_path / "plain")
    trainer = train(small(tmp_path, "train.epochs=2", "train.average=0.9"), tmp_path / "run")
    last, best = (checkpoint.read(tmp_path / "run" / f"{name}.pt") for name in ("last", "best"))
    theirs, own = plain.network.state_dict(), trainer.average.network.state_dict()
    for key, value in own.items():
        assert torch.equal(last["network"][key], theirs[key])  # averaging does not change the steps
        assert torch.equal(best["network"][key], value)
        assert torch.equal(last["average"]["network"][key], value)
    assert not torch.equal(own["head.0.weight"], theirs["head.0.weight"])
    for name in ("last", "best"):
        loaded = checkpoint.load_network(tmp_path / "run" / f"{name}.pt").network
        assert torch.equal(loaded.state_dict()["head.0.weight"], own["head.0.weight"])
    start = f"network.start={tmp_path}/run/last.pt"
    started = Trainer(small(tmp_path, start), tmp_path / "next").network
    assert torch.equal(started.state_dict()["head.0.weight"], own["head.0.weight"])


def test_average_resumes(tmp_path: Path) -> None:
    settings = small(tmp_path, "train.epochs=2", "train.average=0.9")
    train(settings, tmp_path / "whole")
    stopped = Trainer(settings, tmp_path / "stopped")
    stop_after(stopped, 4)
    with pytest.raises(StoppedError):
        stopped.run()
    train(settings, tmp_path / "stopped")
    left, right = (checkpoint.read(tmp_path / f / checkpoint.LAST) for f in ("whole", "stopped"))
    torch.testing.assert_close(left["average"], right["average"], rtol=0, atol=0)
    assert left["average"]["steps"] == 6


# Class weights.

COUNTS = np.array([[90, 10, 0, 7], [50, 0, 0, 50]])


def test_weights_of_classes() -> None:
    shares = [140 / 150, 10 / 100]
    median = sum(shares) / 2
    expected = [median / shares[0], median / shares[1], 0]
    assert balance.weights("median", COUNTS) == pytest.approx(expected)
    expected = [1 / math.log(1.02 + 140 / 150), 1 / math.log(1.02 + 10 / 150), 0]
    assert balance.weights("log", COUNTS) == pytest.approx(expected)


def test_class_weights_follow_label_counts(tmp_path: Path) -> None:
    settings = small(tmp_path, "loss.balance=median", "train.epochs=1")
    trainer = train(settings, tmp_path / "run")
    scenes = catalogue.open_split(settings.data, "train")
    labels = [scenes.labels(i).ravel() for i in range(len(scenes))]
    counts = np.stack([np.bincount(each, minlength=256)[[*range(10), 255]] for each in labels])
    expected = torch.tensor(balance.weights("median", counts))
    torch.testing.assert_close(trainer.objective.weight, expected)
    assert len(expected.unique()) > 5
    plain = train(small(tmp_path, "train.epochs=1"), tmp_path / "plain")
    first = [log.curve(tmp_path / run / "log.csv", "out")[1][0] for run in ("run", "plain")]
    assert plain.objective.weight is None and first[0] != first[1]


def test_invalid_balance(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^loss\.balance: must be one of none, median, log"):
        small(tmp_path, "loss.balance=inverse")
    with pytest.raises(RecipeError, match=r"^loss\.balance: .* loss\.class_weights gives some"):
        small(tmp_path, "loss.balance=log", "loss.class_weights=[1,2]")


# Loggers.

MODULE = """
class Lines:
    def __init__(self, folder, recipe, step):
        self.path = folder / "lines.txt"
        self.lines = [f"{recipe['network']['name']} {step}"]
    def write(self, step, values):
        self.lines.append(f"{step} {' '.join(sorted(values))} {values.get('validation/miou', '')}")
    def close(self):
        self.path.write_text("\\n".join([*self.lines, "closed"]))
"""


def test_custom_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "lines_logger.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    given = ["small.yaml", "train.epochs=1", "--output", "run", "--device", "cpu"]
    assert command.main([*given, "--log-to", "lines_logger:Lines"]) == 0
    lines = (tmp_path / "run" / "lines.txt").read_text().splitlines()
    _, (miou,) = log.curve(tmp_path / "run" / "log.csv", "miou")
    assert lines[0] == "fcn 0" and lines[-1] == "closed"
    train_names = "train/aux train/loss train/out train/rate "
    assert lines[1:4] == [f"{step} {train_names}" for step in (1, 2, 3)]
    step, *names, value = lines[4].split()
    assert (step, names) == ("3", ["validation/miou", "validation/pixel_accuracy"])
    assert float(value) == pytest.approx(miou)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wandb", "--log-to: must be tensorboard or module:function, got wandb"),
        ("no_such_module:X", "--log-to: no_such_module:X cannot be imported"),
        ("math:X", "--log-to: math:X cannot be imported"),
    ],
)
def test_invalid_logger(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    given = [str(tmp_path / "small.yaml"), "--output", str(tmp_path / "run"), "--device", "cpu"]
    assert command.main([*given, "--log-to", name]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"train: {words}") and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_tensorboard_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(loggers.ArgumentError, match=r"pip install stripctx\[tensorboard\]"):
        loggers.find("tensorboard")


def test_tensorboard_has_the_curve(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = small(tmp_path, "train.epochs=2")
    make = [loggers.find("tensorboard")]
    stopped = Trainer(settings, tmp_path / "run", loggers=make)
    stop_after(stopped, 4)
    with pytest.raises(StoppedError):
        stopped.run()
    Trainer(settings, tmp_path / "run", loggers=make).run()
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    steps, losses = log.curve(tmp_path / "run" / "log.csv", "loss")
    events = found.Scalars("train/loss")
    assert [event.step for event in events] == steps == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in events] == pytest.approx(losses, rel=1e-6)
    assert [event.step for event in found.Scalars("validation/miou")] == [6]
