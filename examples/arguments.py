"""Arguments common to evaluate.py and predict.py: network, protocol, device."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from examples import protocols
from examples.commands import count, positive
from examples.data import catalogue
from examples.data.labels import Labelling
from examples.inference import View
from examples.protocols import Protocol
from examples.training import checkpoint, networks, recipe
from examples.training.checkpoint import CheckpointError
from examples.training.recipe import Recipe, RecipeError
from stripctx import upstream


@dataclass
class Subject:
    """A network in eval mode and its testing protocol."""

    network: nn.Module
    recipe: Recipe
    labelling: Labelling
    view: View


def add(parser: argparse.ArgumentParser, *, inputs: bool = False) -> None:
    """Adds the arguments that `subject` reads and, with `inputs`, the files to segment."""
    parser.add_argument(
        "network",
        type=Path,
        help="a checkpoint of train.py, such as best.pt, or a recipe (YAML) with --weights",
    )
    if inputs:
        parser.add_argument("input", type=Path, help="an image, a video, or a folder of them")
    parser.add_argument("changes", nargs="*", help="settings to override, as data.root=~/camvid")
    parser.add_argument("--weights", type=Path, help="a published checkpoint for the recipe")
    look = parser.add_argument_group("protocol", "by default the recipe's")
    look.add_argument("--protocol", choices=protocols.PROTOCOLS)
    look.add_argument("--scales", type=positive, nargs="+", help="such as 0.5 0.75 1 1.25 1.5 1.75")
    look.add_argument("--flip", action=argparse.BooleanOptionalAction, help="mirrored images too")
    look.add_argument("--crop", type=count, help="the side of sliding windows, in pixels")
    look.add_argument("--base-size", type=count, help="the long side at scale 1")
    parser.add_argument("--batch", type=count, default=4, help="windows per batch")
    parser.add_argument("--store", choices=("cpu",), help="keep the scores of large images here")
    parser.add_argument("--precision", choices=recipe.PRECISIONS, default="float32")
    parser.add_argument("--device", default="", choices=("", "cpu", "cuda"))


def subject(options: argparse.Namespace, device: torch.device) -> Subject:
    """The network and the protocol that the arguments specify.

    Raises:
        RecipeError, CheckpointError, DataError, ValueError: an argument is invalid.
    """
    if options.weights:
        settings = recipe.load(options.network, options.changes)
        network = _published(settings, options.weights).to(device).eval()
    else:
        if options.network.suffix in (".yaml", ".yml"):
            raise RecipeError(f"--weights: is required for a recipe, {options.network}")
        trained = checkpoint.load_network(options.network, device)
        settings = recipe.from_dict(recipe.to_dict(trained.recipe), options.changes)
        _check(options.network, trained.recipe, settings)
        network = trained.network
    return Subject(
        network,
        settings,
        catalogue.labelling(settings.data),
        View(
            settings.augmentation,
            _protocol(options, settings),
            options.precision,
            options.batch,
            options.store,
        ),
    )


def subjects(options: argparse.Namespace, device: torch.device) -> list[Subject]:
    """The network that the arguments specify, and those of `--against`; all are evaluated on the
    first one's data.

    Raises:
        RecipeError, CheckpointError, DataError, ValueError: an argument is invalid.
    """
    found = [subject(options, device)]
    names = found[0].labelling.names
    for path in options.against:
        other = argparse.Namespace(**{**vars(options), "network": path, "weights": None})
        found.append(subject(other, device))
        if (theirs := found[-1].labelling.names) != names:
            raise RecipeError(
                f"--against: must have the {len(names)} classes of {options.network}, but {path} "
                f"has {len(theirs)}{_first_other(names, theirs)}"
            )
    return found


def _first_other(names: list[str], theirs: list[str]) -> str:
    pairs = zip(names, theirs, strict=False)
    return next((f", {b!r} for {a!r}" for a, b in pairs if a != b), "")


def _check(path: Path, trained: Recipe, settings: Recipe) -> None:
    """Raises if the changes alter the trained network or its classes."""
    if settings.network != trained.network:
        raise RecipeError(f"network: is defined by {path} and cannot be changed")
    known, asked = (len(catalogue.labelling(each.data).classes) for each in (trained, settings))
    if known != asked:
        raise RecipeError(
            f"data.name: must have the {known} classes of {path}, "
            f"but {settings.data.name} has {asked}"
        )


def _published(settings: Recipe, path: Path) -> nn.Module:
    """Builds a recipe's network and loads weights in its own or in a published layout."""
    classes = len(catalogue.labelling(settings.data).classes)
    network = networks.build(settings.network, classes, pretrained=False)
    try:
        network.load_state_dict(upstream.read(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except Exception as error:  # torch.load documents no exceptions; pickle and zipfile raise many
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{path}: does not fit the recipe ({reason})") from None
    return network


def _protocol(options: argparse.Namespace, settings: Recipe) -> Protocol:
    """The protocol; omitted options are taken from the recipe if it has the same protocol."""
    written = settings.evaluation
    name = options.protocol or written.protocol
    known = written.options if name == written.protocol else {}
    given = {key: getattr(options, key) for key in ("scales", "flip", "crop", "base_size")}
    changed = {key: value for key, value in given.items() if value is not None}
    return protocols.create(name, **{**known, **changed})
