"""Scores a network on labelled scenes, during and after training."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from examples.data.labels import DataError
from examples.data.pairs import Scene, Scenes
from examples.data.prefetch import prefetch
from examples.inference import View
from examples.metrics import Scores, SegmentationScores
from examples.training.processes import Processes

Watch = Callable[[Iterable[Scene], int], Iterable[Scene]]


def score(
    network: nn.Module,
    scenes: Scenes,
    view: View,
    *,
    processes: Processes,
    readers: int = 2,
    watch: Watch | None = None,
) -> Scores:
    """The scores over all scenes, which are divided between the processes.

    Args:
        network: in eval mode, on the device of the processes.
        view: how the network is applied to a scene.
        readers: threads that read scenes ahead.
        watch: wraps the iterator over this process's scenes, given their number, to show progress.

    Raises:
        DataError: a scene cannot be read (the message names the file), or none has labels.
    """
    own = range(processes.rank, len(scenes), processes.size)
    read: Iterable[Scene] = prefetch(scenes.__getitem__, own, readers)
    scores = SegmentationScores(len(scenes.labelling.classes), device=processes.device)
    for scene in watch(read, len(own)) if watch else read:
        target = torch.from_numpy(scene.labels).to(processes.device)
        scores.update(view.classes(network, scene.image), target)
    found = scores.compute()
    if not found.confusion.any():
        raise DataError(f"no pixel of the {len(scenes)} scenes to score has a label")
    return found
