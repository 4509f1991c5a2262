"""Initializes a network from one that was trained on other data or lacks some modules."""

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
    """Loads a checkpoint of examples/train.py or a file in a published layout.

    Classifiers with another number of classes, and modules that are not in the file, keep their
    initial values; everything else must fit.

    Returns:
        The names of the modules that keep initial values.

    Raises:
        RecipeError: the file cannot be read or does not fit.
    """
    try:
        entries = upstream.read(path)
        entries = checkpoint.weights(entries) if "network" in entries else entries
        with _other_classes(network, num_classes) as others:
            result = network.load_state_dict(entries, strict=False)
    except FileNotFoundError:
        raise RecipeError(f"network.start: there is no file {path}") from None
    except Exception as error:  # torch.load documents no exceptions; pickle and zipfile raise many
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RecipeError(f"network.start: {path} does not fit ({reason})") from None
    own = dict(network.named_parameters())
    missing = [key for key in result.missing_keys if key in own]
    if result.unexpected_keys or len(missing) == len(own):
        listed = ", ".join(result.unexpected_keys[:4]) or "all"
        raise RecipeError(
            f"network.start: {path} does not fit ({len(result.unexpected_keys)} entries are not "
            f"in the network: {listed})"
        )
    return sorted({key.rpartition(".")[0] for key in (*missing, *others)})


@contextmanager
def _other_classes(network: nn.Module, num_classes: int) -> Iterator[list[str]]:
    """Within this context, loading skips entries with another number of classes and adds their
    names to the list. The hooks run after those that rename the entries of published files."""
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
