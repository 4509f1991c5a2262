"""Which scenes each step sees, known for every step without those before it."""

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
    """The keys of every epoch. `len` is how many each epoch has."""

    def __len__(self) -> int: ...

    def epoch(self, number: int) -> list[Key]:
        """From the seed and the epoch's number alone."""
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
    """As many as there are scenes; a share of them around centroids of classes, as many of
    each class.

    The others are scenes, each at most once. Among the centroids of a class none comes twice before
    all have come once. HANet's class-uniform sampling, but that its shares are rounded down for
    every class, and that its epochs are shorter where a class occurs nowhere; here the other
    classes have its share.

    Args:
        scenes: how many there are.
        centroids: int32 (M, 4), as `examples.data.centroids` describes them. Those in scenes beyond
            `scenes` are drawn like all others.
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
            drawn = (self.uniform - part + parts - 1) // parts  # they sum to self.uniform
            order = rng.permutation(self.classes[kind])
            for turn in range(drawn):
                index, _, row, column = order[turn % len(order)].tolist()
                keys.append(Key(number, index, len(keys) + 1, (row, column)))
        return [keys[i] for i in rng.permutation(len(keys))]


class Batches(Sampler[list[Key]]):
    """The keys of this process's scenes, step by step, from step `start` to the last.

    What is left over at the end of an epoch is dropped. The processes share out the batch that one
    alone would see.

    Args:
        order: of each epoch.
        batch: scenes a step, of all processes together.
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
    """Reads batches ahead in other processes. Draws nothing from torch's global generator."""
    return DataLoader(
        scenes,
        batch_sampler=batches,
        num_workers=min(workers, os.cpu_count() or 1),
        pin_memory=batches.processes.device.type == "cuda",
        generator=torch.Generator(),
        worker_init_fn=_leave_group,
    )


def _leave_group(_: int) -> None:
    """torchrun and terminals signal the whole group of a process. That is for the one that trains:
    it goes on to the end of its step, and ends its readers itself."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
