"""Surveys the labels before a run: how often each class occurs, and whether they can be trained on
and scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from examples.data.labels import IGNORE, DataError
from examples.data.pairs import Scenes
from examples.training.balance import weights
from examples.training.lookup import look_up
from examples.training.processes import Processes
from examples.training.recipe import Recipe


def count(
    scenes: Scenes,
    split: str,
    folder: Path,
    processes: Processes,
    *,
    console: Console | None = None,
    readers: int = 2,
) -> np.ndarray:
    """Pixels per scene and class, int64 (scenes, K + 1); the last column counts unlabelled pixels.

    Args:
        split: the split of the scenes; the result is cached as counts_<split>.npz in the folder.
        folder: of the run.
        console: where progress is shown; None shows nothing.
        readers: threads that read label files.

    Raises:
        DataError: in every process, if any of them finds a label file that is broken or differs in
            size from its image.
    """
    classes = len(scenes.labelling.classes)

    def find(number: int) -> np.ndarray:
        pixels = np.bincount(scenes.checked_labels(number).ravel(), minlength=IGNORE + 1)
        return pixels[None, [*range(classes), IGNORE]]

    return look_up(
        scenes,
        find,
        folder / f"counts_{split}.npz",
        processes,
        title=f"counting the pixels of every class ({split})",
        console=console,
        readers=readers,
    )


def check_labels(
    scenes: Scenes,
    validation: Scenes | None,
    folder: Path,
    processes: Processes,
    *,
    own: bool,
    counted: bool = False,
    console: Console | None = None,
    readers: int = 2,
) -> np.ndarray | None:
    """Checks the labels of training and validation, and prints warnings.

    Args:
        own: whether these are the user's own data, whose pixels are all counted. For published
            datasets, only the presence of a label in validation is checked.
        counted: whether to count the training labels in any case.

    Returns:
        The result of `count` for training, if it was counted.

    Raises:
        DataError: as `count` and `judge`.
    """

    def counts(of: Scenes, split: str) -> np.ndarray:
        return count(of, split, folder, processes, console=console, readers=readers)

    if not own:
        if validation is not None:
            check_labelled(validation)
        return counts(scenes, "train") if counted else None
    train = counts(scenes, "train")
    val = None if validation is None else counts(validation, "val")
    for line in judge(scenes.labelling.names, train, val):
        if console is not None:
            console.print(line, style="bold", highlight=False, markup=False)
    return train


def class_weights(
    settings: Recipe,
    scenes: Scenes,
    drawn: int,
    validation: Scenes | None,
    folder: Path,
    processes: Processes,
    console: Console | None,
) -> list[float]:
    """Checks the labels of a run, and computes class weights if the recipe asks for them.

    Args:
        scenes: for training; every epoch draws from the first `drawn` ones.
        folder: of the run.

    Returns:
        One weight per class, or an empty list.

    Raises:
        DataError: as `check_labels`.
    """
    balance = settings.loss.balance
    counts = check_labels(
        scenes,
        validation,
        folder,
        processes,
        own=settings.data.name == "folders",
        counted=balance != "none",
        console=console,
        readers=settings.train.workers,
    )
    if balance == "none" or counts is None:
        return []
    found = weights(balance, counts[:drawn])
    if console is not None:
        listed = zip(scenes.labelling.names, found, strict=True)
        said = ", ".join(f"{name} {weight:.3g}" for name, weight in listed)
        console.print(f"class weights: {said}", highlight=False, markup=False)
    return found


def check_labelled(validation: Scenes) -> None:
    """Checks that there is a label to score; reads label files until one is found.

    Raises:
        DataError: no scene has a label, or a label file is broken.
    """
    if not any((validation.labels(i) != IGNORE).any() for i in range(len(validation))):
        raise _nothing_to_score(len(validation))


def judge(names: list[str], train: np.ndarray, val: np.ndarray | None) -> list[str]:
    """Warnings about the labels at the start of a run, one per line.

    Args:
        names: of the K classes.
        train, val: results of `count`.

    Raises:
        DataError: there is nothing to learn, or nothing to score.
    """
    seen, scenes = train[:, :-1].sum(0), len(train)
    found = [name for name, pixels in zip(names, seen, strict=True) if pixels]
    if len(found) < 2:
        unlabelled = train[:, -1].sum() / max(train.sum(), 1)
        only = f"all labelled pixels are {found[0]!r}" if found else "no pixel has a label"
        raise DataError(
            f"data.classes: {only} in {scenes} training scenes ({unlabelled:.1%} of the pixels are "
            "ignored); data.values assigns values to classes, such as "
            f"{{0: {names[0]}, 255: {names[1]}}}"
        )
    lines = []
    missing = [name for name, pixels in zip(names, seen, strict=True) if not pixels]
    if missing:
        lines.append(f"data.classes: no training scene has a pixel of {', '.join(missing)}")
    if val is None:
        return lines
    scored = val[:, :-1].sum(0)
    if not scored.any():
        raise _nothing_to_score(len(val))
    unscored = [n for n, t, v in zip(names, seen, scored, strict=True) if t and not v]
    if unscored:
        lines.append(f"data.classes: no validation scene has a pixel of {', '.join(unscored)}")
    return lines


def _nothing_to_score(scenes: int) -> DataError:
    return DataError(
        f"train.validate_every: no pixel of {scenes} validation scenes has a label; 0 trains "
        "without validation"
    )
