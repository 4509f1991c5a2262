"""Checkpoints: written atomically, read without executing code from the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from examples.data import catalogue
from examples.data.files import replaced
from examples.data.labels import Labelling
from examples.training import networks, recipe
from examples.training.recipe import Recipe

LAST, BEST = "last.pt", "best.pt"
FORMAT = 1


class CheckpointError(Exception):
    """The file is not a checkpoint of examples/train.py; the message starts with its name."""


def weights(state: dict[str, Any]) -> dict[str, Any]:
    """The weights of a checkpoint's network: their moving average if there is one."""
    return state["average"]["network"] if state.get("average") else state["network"]


@dataclass
class Trained:
    """A network from a checkpoint, in eval mode, and its recipe and dataset."""

    network: nn.Module
    recipe: Recipe
    labelling: Labelling
    step: int
    scores: dict[str, float]


def save(path: Path, state: dict[str, Any]) -> None:
    """Replaces `path` atomically: a killed process leaves the old file or the new one."""
    with replaced(path) as file:
        torch.save({"format": FORMAT, **state}, file)


def read(path: Path | str) -> dict[str, Any]:
    """Reads a file that `save` wrote, onto the CPU.

    Raises:
        CheckpointError: the file cannot be read, or is not a checkpoint of examples/train.py.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint") from None
    except Exception as error:  # torch.load documents no exceptions; pickle and zipfile raise many
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({reason})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is not a checkpoint of examples/train.py")
    return state


def load_network(path: Path | str, device: torch.device | str = "cpu") -> Trained:
    """Loads the trained network of a checkpoint, such as `best.pt`.

    Example:
        >>> trained = load_network("runs/camvid/best.pt")
        >>> trained.network(images)["out"]
    """
    state = read(path)
    made_by = recipe.from_dict(state["recipe"])
    labelling = catalogue.labelling(made_by.data)
    network = networks.build(made_by.network, len(labelling.classes), pretrained=False)
    network.load_state_dict(weights(state))
    return Trained(network.to(device).eval(), made_by, labelling, state["step"], state["scores"])
