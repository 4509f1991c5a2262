"""Which scenes each step sees, known for every step without those before it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from examples.data.augment import Augmented, Key
from examples.training.processes import Processes


class Batches(Sampler[list[Key]]):
    """The keys of this process's scenes, step by step, from step `start` to the last.

    Every epoch has an order of its own, from the seed and its number; what is left over at its end
    is dropped. The processes share out the batch that one alone would see.

    Args:
        scenes: how many there are.
        batch: scenes a step, of all processes together.
    """

    def __init__(
        self, scenes: int, batch: int, *, start: int, steps: int, seed: int, processes: Processes
    ) -> None:
        self.scenes, self.batch, self.seed, self.processes = scenes, batch, seed, processes
        self.start, self.steps = start, steps
        self.steps_per_epoch = scenes // batch

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        known, order = -1, np.empty(0, int)
        for step in range(self.start, self.steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != known:
                known = epoch
                order = np.random.default_rng((self.seed, epoch)).permutation(self.scenes)
            whole = order[place * self.batch : (place + 1) * self.batch]
            share = whole[self.processes.rank :: self.processes.size]
            yield [Key(epoch, int(index)) for index in share]


def loader(scenes: Augmented, batches: Batches, workers: int) -> DataLoader:
    """Reads batches ahead in other processes. Draws nothing from torch's global generator."""
    return DataLoader(
        scenes,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=batches.processes.device.type == "cuda",
        generator=torch.Generator(),
    )
