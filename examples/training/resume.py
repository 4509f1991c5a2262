"""Decides whether a run resumes from the checkpoint in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from examples.training import checkpoint, recipe
from examples.training.processes import Processes
from examples.training.recipe import Recipe, RecipeError

# Settings that a resumed run may change: they do not affect the result.
_FREE = {
    "data": {"root", "train_images", "train_labels", "val_images", "val_labels", "max_pixels"},
    "network": {"weights", "start"},
    "train": {"workers", "save_every"},
    "evaluation": {"protocol", "options"},
}


def kept(folder: Path, settings: Recipe, processes: Processes) -> dict[str, Any] | None:
    """The checkpoint in the folder if it is of this recipe, else None.

    Raises:
        RecipeError: the checkpoint is of another recipe.
    """
    path = folder / checkpoint.LAST
    readable = processes.first and path.exists()
    state = processes.share(checkpoint.read(path) if readable else None)
    if state is None:
        return None
    trained = recipe.to_dict(recipe.from_dict(state["recipe"]))  # with defaults of newer settings
    for section, own in recipe.to_dict(settings).items():
        for name, value in own.items():
            before = trained[section][name]
            if before != value and name not in _FREE.get(section, ()):
                raise RecipeError(
                    f"{section}.{name}: is {value}, but {path} was trained with {before}; "
                    "choose another folder for a new run"
                )
    return state
