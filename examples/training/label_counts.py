"""What the labels of a run hold, before it starts: how often each class occurs, and what cannot be
trained or scored with them."""

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
    """The pixels of each class, and last those without a label, int64 (scenes, K + 1).

    Args:
        split: of which scenes; counts_<split>.npz in the folder keeps what was found.
        folder: of the run.
        console: where progress is shown; None shows nothing.
        readers: threads that read label files.

    Raises:
        DataError: in every process, where one of them finds a broken label file, or one of another
            size than its image.
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
    """Looks at the labels of training and validation, and says what is amiss.

    Args:
        own: whether nobody else has looked at them: every pixel is counted, then. Of others it is
            seen to that validation has any.
        counted: whether to count those of training in any case.

    Returns:
        What `count` found for training, where it was counted.

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
    """Checks the labels of a run, and weighs the classes where its recipe says so.

    Args:
        scenes: for training; every epoch draws from the first `drawn`.
        folder: of the run.

    Returns:
        One weight a class, or none.

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
        console.print(f"weights of the classes: {said}", highlight=False, markup=False)
    return found


def check_labelled(validation: Scenes) -> None:
    """That there is something to score; reads label files up to the first with a label.

    Raises:
        DataError: no scene has a label, or a label file is broken.
    """
    if not any((validation.labels(i) != IGNORE).any() for i in range(len(validation))):
        raise _nothing_to_score(len(validation))


def judge(names: list[str], train: np.ndarray, val: np.ndarray | None) -> list[str]:
    """What is to be said of the labels at the start, in lines.

    Args:
        names: of the K classes.
        train, val: what `count` found.

    Raises:
        DataError: training would learn nothing, or nothing could be scored.
    """
    seen, scenes = train[:, :-1].sum(0), len(train)
    found = [name for name, pixels in zip(names, seen, strict=True) if pixels]
    if len(found) < 2:
        unlabelled = train[:, -1].sum() / max(train.sum(), 1)
        only = f"all pixels with a label are {found[0]!r}" if found else "no pixel has a label"
        raise DataError(
            f"data.classes: {only} in {scenes} training scenes ({unlabelled:.1%} of the pixels are "
            "ignored); data.values says which values are which class, like "
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
