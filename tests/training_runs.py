"""Training runs of a second or two for tests: a recipe, and two processes that run it."""

from __future__ import annotations

import sys
from pathlib import Path

import process_group

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from examples.training import recipe  # noqa: E402
from examples.training.processes import Processes  # noqa: E402
from examples.training.trainer import StoppedError, Trainer  # noqa: E402

SMALL = """
data: {name: scenes, height: 40, width: 64, train_count: 13, val_count: 2}
augmentation: {crop: [32, 32], scale: [0.5, 2.0], rotation: 10, blur_chance: 0.5}
network: {name: fcn, backbone: tiny}
optimizer:
  rate: 0.02
  groups:
    - {match: head, rate: 10}
train: {batch: 4, epochs: 4, workers: 0, validate_every: 2, save_every: 2, log_every: 1, seed: 3}
"""


def small(folder: Path, *changes: str) -> recipe.Recipe:
    path = folder / "small.yaml"
    path.write_text(SMALL)
    return recipe.load(path, changes)


def train(settings: recipe.Recipe, folder: Path) -> Trainer:
    trainer = Trainer(settings, folder)
    trainer.run()
    return trainer


def stop_after(trainer: Trainer, step: int) -> None:
    """Ends the run as a SIGTERM in that step would."""
    learn = trainer._learn

    def learn_and_stop(*arguments: object) -> None:
        learn(*arguments)
        trainer.stopping = trainer.step == step

    trainer._learn = learn_and_stop


def train_in_processes(rank: int, folder: Path, ways: dict[str, tuple[str, ...]]) -> None:
    """The work of each process of a group, for the recipes of several changes: the second is asked
    to stop after three steps, then both resume. The first writes into folder/many/NAME."""
    for name, changes in ways.items():
        settings = recipe.load(folder / "small.yaml", changes)
        own = folder / ("many" if rank == 0 else "elsewhere") / name
        first = Trainer(settings, own, Processes(rank, process_group.SIZE))
        if rank == 1:
            stop_after(first, 3)
        try:
            first.run()
        except StoppedError:
            second = Trainer(settings, own, Processes(rank, process_group.SIZE))
            assert second.step == 3
            second.run()
