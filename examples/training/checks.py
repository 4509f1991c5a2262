"""Checks of a recipe before anything is computed."""

from __future__ import annotations

import torch

from examples import protocols
from examples.training import networks, objective
from examples.training.processes import Processes, set_training
from examples.training.recipe import Recipe, RecipeError


def check(settings: Recipe, num_classes: int, processes: Processes) -> None:
    """Raises RecipeError with the name of an invalid setting."""
    written = settings.evaluation
    try:
        protocols.create(written.protocol, **written.options)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"evaluation: {error}") from None
    objective.check(settings.loss, num_classes)
    size, batch = processes.size, settings.train.batch
    if batch % size:
        raise RecipeError(f"train.batch: must be a multiple of {size} processes, got {batch}")
    synced = settings.train.norms == "sync" and processes.device.type == "cuda"
    if (batch if synced else batch // size) == 1:
        _check_one(settings, num_classes, size)


def _check_one(settings: Recipe, num_classes: int, size: int) -> None:
    """Checks that the network trains with a batch of one per process: batch norm over a map pooled
    to one pixel would see a single value per channel. Runs on shapes only (meta device)."""
    with torch.device("meta"):
        height, width = settings.augmentation.crop
        inputs = [torch.empty(1, 3, height, width)]
        try:
            network = networks.build(settings.network, num_classes, pretrained=False)
            set_training(network, frozen_norms=settings.train.norms == "frozen")
            if networks.takes_heights(network):
                inputs.append(torch.zeros(1, height, width, dtype=torch.uint8))
            with torch.no_grad():
                network(*inputs)
        except ValueError as error:
            raise RecipeError(
                f"train.batch: must be 2 or more for each process, got {settings.train.batch} for "
                f"{size} ({error}); train.norms=frozen allows one"
            ) from None
        except (RuntimeError, NotImplementedError):
            return  # not decidable from shapes alone
