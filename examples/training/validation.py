"""How good a network is while it is trained: whole images at their own size, one look each."""

from __future__ import annotations

import torch
from torch import nn

from examples.data.augment import Augmentation, normalise, to_tensor
from examples.data.pairs import Scenes
from examples.inference import infer
from examples.metrics import Scores, SegmentationScores
from examples.protocols import WholeImage
from examples.training.processes import Processes


def validate(
    network: nn.Module,
    scenes: Scenes,
    settings: Augmentation,
    *,
    precision: str,
    processes: Processes,
) -> Scores:
    """The scores over all scenes, which the processes share out.

    Args:
        network: in eval mode, on the device of the processes.
        settings: how images were normalised in training.
        precision: of autocast.
    """
    device, dtype = processes.device, getattr(torch, precision)
    scores = SegmentationScores(len(scenes.labelling.classes), device=device)
    for index in range(processes.rank, len(scenes), processes.size):
        scene = scenes[index]
        image = normalise(to_tensor(scene.image), settings).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            found = infer(network, image, WholeImage()).argmax(0)
        scores.update(found, torch.from_numpy(scene.labels).to(device).long())
    return scores.compute()
