"""The scenes of each step, computed without iterating over the steps before it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from examples.data.augment import Augmented, Key
from examples.training.processes import Processes


class Order(Protocol):
    """The keys of every epoch; `len` is their number per epoch."""

    def __len__(self) -> int: ...

    def epoch(self, number: int) -> list[Key]:
        """The keys of an epoch, a function of the seed and the epoch's number only."""
        ...


class EveryScene:
    """Every scene once an epoch."""

    def __init__(self, scenes: int, seed: int) -> None:
        self.scenes, self.seed = scenes, seed

    def __len__(self) -> int:
        return self.scenes

    def epoch(self, number: int) -> list[Key]:
        order = np.random.default_rng((self.seed, number)).permutation(self.scenes)
        return [Key(number, index) for index in order.tolist()]


class ClassUniform:
    """Class-uniform sampling: a share of the epoch is crops around centroids of classes, equally
    many of each class. The other keys are whole scenes, each at most once; an epoch has as many
    keys as there are scenes.

    A centroid is not repeated before all others of its class have been drawn. This is HANet's
    class-uniform sampling with two differences: HANet rounds the share of every class down, and its
    epochs are shorter if a class does not occur; here the other classes take its share.

    Args:
        scenes: their number.
        centroids: int32 (M, 4), as `examples.data.centroids` describes them. They may be in scenes
            with an index of `scenes` or above; these are drawn like the others.
        share: 0 to 1.
    """

    def __init__(self, scenes: int, centroids: np.ndarray, share: float, seed: int) -> None:
        self.scenes, self.seed = scenes, seed
        self.classes = [centroids[centroids[:, 1] == each] for each in np.unique(centroids[:, 1])]
        self.uniform = round(share * scenes) if self.classes else 0

    def __len__(self) -> int:
        return self.scenes

    def epoch(self, number: int) -> list[Key]:
        rng = np.random.default_rng((self.seed, number))
        plain = rng.permutation(self.scenes)[: self.scenes - self.uniform]
        keys = [Key(number, index) for index in plain.tolist()]
        parts = len(self.classes)
        for part, kind in enumerate(rng.permutation(parts).tolist()):
            drawn = (self.uniform - part + parts - 1) // parts  # these sum to self.uniform
            order = rng.permutation(self.classes[kind])
            for turn in range(drawn):
                index, _, row, column = order[turn % len(order)].tolist()
                keys.append(Key(number, index, len(keys) + 1, (row, column)))
        return [keys[i] for i in rng.permutation(len(keys))]


class Batches(Sampler[list[Key]]):
    """The keys of this process's scenes, step by step, from step `start` to the last.

    An incomplete batch at the end of an epoch is dropped. Each batch is divided between the
    processes; their union is the batch that a single process would use.

    Args:
        order: the order of each epoch.
        batch: scenes per step over all processes.
    """

    def __init__(
        self, order: Order, batch: int, *, start: int, steps: int, processes: Processes
    ) -> None:
        self.order, self.batch, self.processes = order, batch, processes
        self.start, self.steps = start, steps
        self.steps_per_epoch = len(order) // batch

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        known, keys = -1, list[Key]()
        for step in range(self.start, self.steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != known:
                known, keys = epoch, self.order.epoch(epoch)
            whole = keys[place * self.batch : (place + 1) * self.batch]
            yield whole[self.processes.rank :: self.processes.size]


def loader(scenes: Augmented, batches: Batches, workers: int) -> DataLoader:
    """Reads batches ahead in worker processes. Does not use torch's global random generator."""
    return DataLoader(
        scenes,
        batch_sampler=batches,
        num_workers=min(workers, os.cpu_count() or 1),
        pin_memory=batches.processes.device.type == "cuda",
        generator=torch.Generator(),
        worker_init_fn=_leave_group,
    )


def _leave_group(_: int) -> None:
    """torchrun and terminals send signals to the whole process group. Only the training process
    should receive them: it finishes its step, and stops its workers itself."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
