"""The last part of the demo: a small network learns generated street scenes, without a context
module, with one, and with one in plain PyTorch instead of the fused kernels.

The network is PSPNet on a backbone with a receptive field of 15 x 15 pixels; without the pyramid
it is FCN and otherwise identical.
"""

from __future__ import annotations

import contextlib
import copy
import math
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from examples.data.augment import normalise, to_tensor
from examples.data.pairs import Scene
from examples.demonstration import plain
from examples.demonstration.measure import Measured, measure
from examples.inference import View
from examples.training import log, recipe
from examples.training.trainer import Trainer

WITHOUT, FUSED, PLAIN = "without context", "pyramid pooling, fused", "pyramid pooling, plain"
LEAST, MOST = 12, 600  # steps
CALIBRATION = 8  # steps
AVERAGED = 10  # steps in the moving average of curves
DIGITS = 1e-8  # the relative precision of losses in the log
FIRST_BOUND = 1e-5  # bound of the relative gap of fused to plain loss in the first step
MEAN_BOUND = 0.03  # bound of its mean over the averaged curves: training amplifies rounding

NETWORKS: dict[str, dict[str, Any]] = {
    WITHOUT: {"name": "fcn", "options": {"aux": False, "dropout": 0.0}},
    FUSED: {"name": "pspnet", "options": {"aux": False, "dropout": 0.0, "head_channels": 24}},
}
NETWORKS[PLAIN] = NETWORKS[FUSED]
RECIPE: dict[str, Any] = {
    "data": {"height": 128, "width": 256, "train_count": 64, "val_count": 16},
    "augmentation": {"crop": [128, 256], "scale": [1.0, 1.25]},
    "optimizer": {"rate": 0.05, "weight_decay": 5e-4},
    "train": {"batch": 8, "workers": 0, "validate_every": 10_000, "save_every": 0, "log_every": 1},
}


@dataclass
class Study:
    """The results of three runs: predictions for an unseen scene, uint8 (H, W); averaged losses,
    one per step; mIoU on all unseen scenes; and the seconds of the context module."""

    scene: Scene
    palette: np.ndarray
    predictions: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]
    scores: dict[str, float]
    first_gap: float
    mean_gap: float
    times: dict[str, float]
    features: str

    @property
    def agrees(self) -> bool:
        """Whether both gaps are within their bounds."""
        return self.first_gap <= FIRST_BOUND and self.mean_gap <= MEAN_BOUND


def study(console: Console, seconds: float) -> Study:
    """Trains three networks for the same number of steps, in about `seconds` altogether."""
    with tempfile.TemporaryDirectory(prefix="stripctx-demo-") as name:
        folder = Path(name)
        with console.status("drawing scenes"):
            started = time.monotonic()
            steps = _affordable(folder, seconds / len(NETWORKS))
        console.print(
            f"Training {len(NETWORKS)} x {steps} steps on generated "
            f"scenes, which took {time.monotonic() - started:.0f} s to draw",
            highlight=False,
        )
        trainers = {label: _train(label, folder, steps, console) for label in NETWORKS}
        raw = {
            label: np.array(log.curve(_run(folder, label) / "log.csv", "loss")[1])
            for label in NETWORKS
        }
    losses = {label: _averaged(values) for label, values in raw.items()}
    first_gap = float(abs(raw[PLAIN][0] / raw[FUSED][0] - 1))
    mean_gap = float(np.abs(losses[PLAIN] / losses[FUSED] - 1).mean())
    unseen = trainers[FUSED].validation
    assert unseen is not None
    scene = unseen[0]
    measured, shape = _measure(trainers[FUSED])
    return Study(
        scene=scene,
        palette=unseen.labelling.palette,
        predictions={label: _predict(trainers[label], scene) for label in (WITHOUT, FUSED)},
        losses=losses,
        scores={label: trainer.scores["miou"] for label, trainer in trainers.items()},
        first_gap=max(DIGITS, first_gap),
        mean_gap=mean_gap,
        times={name: measured.median(name) for name in measured.times},
        features=" x ".join(map(str, shape)),
    )


def _run(folder: Path, label: str) -> Path:
    return folder / label.replace(" ", "_").replace(",", "")


def _settings(label: str, steps: int) -> recipe.Recipe:
    changed = {**RECIPE, "train": {**RECIPE["train"], "steps": steps}}
    return recipe.from_dict({**changed, "network": {"backbone": "tiny", **NETWORKS[label]}})


def _train(label: str, folder: Path, steps: int, console: Console | None) -> Trainer:
    trainer = Trainer(_settings(label, steps), _run(folder, label), console=console, title=label)
    with plain.instead() if label == PLAIN else contextlib.nullcontext():
        trainer.run()
    return trainer


def _affordable(folder: Path, seconds: float) -> int:
    """The number of steps that take `seconds`, from a short run that also draws the scenes."""
    trainer = Trainer(_settings(FUSED, CALIBRATION), folder / "calibration")
    for index in range(len(trainer.examples)):
        _ = trainer.examples.scenes[index]
    trainer.run()
    _, times = log.curve(folder / "calibration" / "log.csv", "seconds")
    each = float(np.median(np.diff(times[:CALIBRATION])))  # the last row is the validation's
    return min(MOST, max(LEAST, math.floor(seconds / each)))


def _averaged(losses: np.ndarray) -> np.ndarray:
    """The moving average over AVERAGED steps."""
    sums = np.cumsum(losses)
    sums[AVERAGED:] -= sums[:-AVERAGED].copy()
    return sums / np.minimum(np.arange(1, len(losses) + 1), AVERAGED)


def _predict(trainer: Trainer, scene: Scene) -> np.ndarray:
    view = View(trainer.recipe.augmentation)
    return view.classes(trainer.network.eval(), scene.image).byte().numpy()


def _measure(trainer: Trainer) -> tuple[Measured, tuple[int, ...]]:
    """Measures a copy of the context module on features of scenes, forward and backward."""
    network, scenes = trainer.network.eval(), trainer.examples.scenes
    context = copy.deepcopy(network.head[0]).train()
    images = [to_tensor(scenes[index].image) for index in range(RECIPE["train"]["batch"])]
    with torch.no_grad():
        features = network.extract(normalise(torch.stack(images), trainer.recipe.augmentation))[-1]
    candidates = {"fused": context, "eager": partial(plain.pyramid_pooling_conv, context)}
    found = measure(candidates, features, list(context.parameters()), backward=True)
    return found, tuple(features.shape)
