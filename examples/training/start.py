"""A run that starts from a network trained before, on other data or without a part of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from examples.training import checkpoint
from examples.training.recipe import RecipeError
from stripctx import upstream


def load(network: nn.Module, path: Path, num_classes: int) -> list[str]:
    """Fills a network from a checkpoint of examples/train.py or in a published layout.

    Classifiers of another number of classes, and modules that the file has not, keep their initial
    values; all else must fit.

    Returns:
        The names of the modules with parameters of initial values.

    Raises:
        RecipeError: the file cannot be read, or does not fit.
    """
    try:
        entries = upstream.read(path)
        entries = checkpoint.weights(entries) if "network" in entries else entries
        with _other_classes(network, num_classes) as others:
            result = network.load_state_dict(entries, strict=False)
    except FileNotFoundError:
        raise RecipeError(f"network.start: there is no file {path}") from None
    except Exception as error:  # torch.load documents none; pickle and zip raise many kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RecipeError(f"network.start: {path} does not fit ({reason})") from None
    own = dict(network.named_parameters())
    missing = [key for key in result.missing_keys if key in own]
    if result.unexpected_keys or len(missing) == len(own):
        listed = ", ".join(result.unexpected_keys[:4]) or "all"
        raise RecipeError(
            f"network.start: {path} does not fit ({len(result.unexpected_keys)} entries are none "
            f"of the network's: {listed})"
        )
    return sorted({key.rpartition(".")[0] for key in (*missing, *others)})


@contextmanager
def _other_classes(network: nn.Module, num_classes: int) -> Iterator[list[str]]:
    """While it lasts, entries with another number of classes are left out when loaded; their names
    are in the list. The hooks run after those that rename the entries of published files."""
    found: list[str] = []

    def keep(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
        for name, own in module.named_parameters(recurse=False):
            entry = state.get(prefix + name)
            if entry is None or entry.shape == own.shape or own.shape[0] != num_classes:
                continue
            if entry.shape[1:] == own.shape[1:]:
                found.append(prefix + name)
                state[prefix + name] = own.detach()

    hooks = [module.register_load_state_dict_pre_hook(keep) for module in network.modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
