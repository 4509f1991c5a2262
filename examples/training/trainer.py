"""Trains the network of a recipe. A run can be killed at any step and resumed.

All random choices of a step follow from the seed, the step and the process. No random state has to
be saved, and a resumed run gives the same result as an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from examples.data import catalogue
from examples.data.augment import Augmented, Example
from examples.inference import View
from examples.metrics import Scores
from examples.protocols import WholeImage
from examples.scoring import score
from examples.training import (
    batches,
    checkpoint,
    checks,
    label_counts,
    networks,
    objective,
    recipe,
    resume,
    start,
)
from examples.training.average import Average
from examples.training.class_centroids import find_centroids
from examples.training.log import Log
from examples.training.loggers import Maker
from examples.training.processes import Processes, set_training
from examples.training.progress import Display
from examples.training.recipe import Recipe, RecipeError
from examples.training.signals import graceful


class StoppedError(Exception):
    """Raised after SIGTERM or SIGINT, once the checkpoint is written."""


class Trainer:
    """A training run: network, data, and a folder with last.pt, best.pt, log.csv and recipe.yaml.

    If the folder holds a checkpoint of the same recipe, the run resumes from it.

    Args:
        settings: the recipe.
        folder: of the run; created if missing.
        processes: the process group of the training.
        console: where progress is shown; None shows nothing.
        title: of the progress display; by default the network and the data set.
        loggers: factories of loggers that receive what log.csv does.

    Raises:
        RecipeError: a setting does not fit the data, the network or the folder's checkpoint.
        DataError: the data is missing.
    """

    def __init__(
        self,
        settings: Recipe,
        folder: Path,
        processes: Processes | None = None,
        console: Console | None = None,
        title: str = "",
        loggers: Sequence[Maker] = (),
    ) -> None:
        self.recipe, self.folder, self.loggers = settings, folder, loggers
        self.title = title or f"{settings.network.name} on {settings.data.name}"
        self.processes = processes or Processes()
        self.console = console if self.processes.first else None
        train = settings.train
        scenes, self.scenes = catalogue.open_training(settings.data)
        self.validation = (
            catalogue.open_split(settings.data, "val") if train.validate_every else None
        )
        self.labelling = scenes.labelling
        self.examples = Augmented(scenes, settings.augmentation, train.seed)
        self.steps_per_epoch = self.scenes // train.batch
        if self.steps_per_epoch == 0:
            raise RecipeError(f"train.batch: {self.scenes} scenes are too few for {train.batch}")
        self.steps = train.steps or train.epochs * self.steps_per_epoch
        device = self.processes.device
        torch.manual_seed(train.seed)
        classes = len(self.labelling.classes)
        checks.check(settings, classes, self.processes)
        kept = resume.kept(folder, settings, self.processes)
        network = networks.build(settings.network, classes, pretrained=kept is None)
        if settings.network.start and kept is None:
            anew = start.load(network, Path(settings.network.start).expanduser(), classes)
            if self.console is not None:
                listed = ", ".join(anew) or "nothing"
                said = f"{settings.network.start}: {listed} keeps its random initialisation"
                self.console.print(said, highlight=False, markup=False)
        network = network.to(device)
        self.layout = torch.channels_last if train.channels_last else torch.contiguous_format
        network = network.to(memory_format=self.layout)
        self.with_heights = networks.takes_heights(network)
        # The loss takes small logits; those at image size are never allocated.
        self.options = {"resize": False} if networks.may_resize(network) else {}
        self.forward = self.processes.distribute(network, train.norms)
        self.network = getattr(self.forward, "module", self.forward)
        if train.compile:
            self.forward = torch.compile(self.forward)
        self.optimizer = objective.optimizer(self.network, settings.optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "float16")
        self.average = Average(network, train.average) if train.average else None
        self.step, self.best = 0, -math.inf
        self.scores: dict[str, float] = {}
        self.sums: dict[str, float | Tensor] = {}
        self.summed = 0
        if kept is not None:
            self._restore(kept)
        self.stopping = False
        seen = (self.validation, self.folder, self.processes, self.console)
        of_classes = []
        if self.step < self.steps:
            of_classes = label_counts.class_weights(settings, scenes, self.scenes, *seen)
        loss = objective.Objective(settings.loss, classes, self.processes, self.network, of_classes)
        self.objective = loss.to(device)

    def run(self) -> None:
        """Trains to the last step. Raises StoppedError after SIGTERM or SIGINT."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = None
        if self.processes.first:
            values = recipe.to_dict(self.recipe)
            told = [make(self.folder, values, self.step) for make in self.loggers]
            log = Log(self.folder / "log.csv", self.step, told)
            (self.folder / "recipe.yaml").write_text(recipe.to_yaml(self.recipe))
        order = self._order()
        self.started = time.monotonic() - (log.seconds if log else 0.0)
        try:
            with (
                Display(self.console, self.title, self.step, self.steps) as display,
                graceful(self._stop),
            ):
                if self.step:
                    display.say(f"resuming at step {self.step} in {self.folder}")
                for example in self._examples(order):
                    self._learn(example)
                    self._after(log, display)
        finally:
            if log:
                log.close()

    def _order(self) -> batches.Order:
        """The order of the scenes in every epoch. May read every label file first."""
        data, seed = self.recipe.data, self.recipe.train.seed
        if not data.class_uniform or self.step == self.steps:
            return batches.EveryScene(self.scenes, seed)
        seen = (self.examples.scenes, data.tile, self.folder, self.processes)
        found = find_centroids(*seen, console=self.console, readers=self.recipe.train.workers)
        coarse = [self.labelling.names.index(name) for name in data.coarse]
        found = found[(found[:, 0] < self.scenes) | np.isin(found[:, 1], coarse)]
        return batches.ClassUniform(self.scenes, found, data.class_uniform, seed)

    def _examples(self, order: batches.Order) -> Iterator[Example]:
        train = self.recipe.train
        chosen = batches.Batches(
            order, train.batch, start=self.step, steps=self.steps, processes=self.processes
        )
        device = self.processes.device
        for image, labels, heights in batches.loader(self.examples, chosen, train.workers):
            yield Example(
                image.to(device, memory_format=self.layout, non_blocking=True),
                labels.to(device, non_blocking=True),
                heights.to(device, non_blocking=True),
            )

    def _learn(self, example: Example) -> None:
        """One optimiser step."""
        train, device = self.recipe.train, self.processes.device
        stream = np.random.SeedSequence((train.seed, self.step, self.processes.rank))
        torch.manual_seed(int(stream.generate_state(1, np.uint64)[0]))
        self.rate = objective.set_rate(self.optimizer, self.recipe.optimizer, self.step, self.steps)
        set_training(self.network, frozen_norms=train.norms == "frozen")
        dtype = getattr(torch, train.precision)
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            inputs = (example.image, example.heights) if self.with_heights else (example.image,)
            outputs = self.forward(*inputs, **self.options)
        terms = self.objective(outputs, example.labels)
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.network)
        values = torch.stack([value.detach().double() for value in terms.values()])
        means = self.processes.sum_(values) / self.processes.size
        for term, mean in zip(terms, means, strict=True):
            self.sums[term] = self.sums.get(term, 0.0) + mean
        self.summed += 1
        self.step += 1

    def _after(self, log: Log | None, display: Display) -> None:
        """Logs, validates and saves a checkpoint, as due after a step."""
        train = self.recipe.train
        epoch, within = divmod(self.step, self.steps_per_epoch)
        last, loss = self.step == self.steps, None
        if logged := self.step % train.log_every == 0 or last:
            loss = self._write_losses(log, epoch)
        display.step(self.step, loss)
        due = last or (within == 0 and epoch % max(1, train.validate_every) == 0)
        if due and self.validation is not None:
            self._validate(log, display)
        elif last or within == 0 or (train.save_every and self.step % train.save_every == 0):
            self._save()
        # `any` is collective: only called where all processes synchronise anyway
        if (logged or self.processes.size == 1) and self.processes.any(self.stopping) and not last:
            self._save()
            raise StoppedError(f"stopped after step {self.step} of {self.steps}")

    def _write_losses(self, log: Log | None, epoch: int) -> float:
        means = {name: float(total) / self.summed for name, total in self.sums.items()}
        loss = math.fsum(means.values())
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} before step {self.step}: {means}")
        self.sums, self.summed = {}, 0
        if log:
            log.write(
                step=self.step, epoch=epoch, rate=self.rate, loss=loss, **means,
                seconds=time.monotonic() - self.started,
            )  # fmt: skip
        return loss

    def validate(self) -> Scores:
        """Scores the network on whole images of the validation split."""
        if self.validation is None:
            raise RecipeError("train.validate_every: is 0, so there is nothing to validate on")
        train = self.recipe.train
        look = WholeImage((train.validate_scale,))
        view = View(self.recipe.augmentation, look, train.precision)
        network = self.average.network if self.average else self.network
        return score(network.eval(), self.validation, view, processes=self.processes)

    def _validate(self, log: Log | None, display: Display) -> None:
        scores = self.validate()
        self.scores = {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy}
        better = scores.miou > self.best
        self.best = max(scores.miou, self.best)
        display.validated(self.step, **self.scores)
        if log:
            epoch = self.step // self.steps_per_epoch
            seconds = time.monotonic() - self.started
            log.write(step=self.step, epoch=epoch, **self.scores, seconds=seconds)
        self._save(best=better)

    # Checkpoints.

    def _save(self, best: bool = False) -> None:
        if not self.processes.first:
            return
        values = recipe.to_dict(self.recipe)
        state = {"recipe": values, "step": self.step, "scores": self.scores}
        average = self.average.state_dict() if self.average else {}
        network = self.network.state_dict()
        if best:
            scored = average.get("network", network)
            checkpoint.save(self.folder / checkpoint.BEST, {**state, "network": scored})
        checkpoint.save(
            self.folder / checkpoint.LAST,
            {
                **state,
                "network": network,
                "average": average,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "best": self.best,
                "sums": {name: float(total) for name, total in self.sums.items()},
                "summed": self.summed,
            },
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.scores = state["step"], state["best"], state["scores"]
        self.sums, self.summed = dict(state["sums"]), state["summed"]

    def _stop(self) -> None:
        self.stopping = True
