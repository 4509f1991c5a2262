"""Scores a network on labelled images:

    python examples/evaluate.py runs/camvid/best.pt data.root=~/camvid
    python examples/evaluate.py runs/camvid/best.pt --protocol semseg --crop 473 --flip \\
        --scales 0.5 0.75 1 1.25 1.5 1.75
    python examples/evaluate.py examples/recipes/ade20k_pspnet50.yaml --weights pspnet50.pth
    python examples/evaluate.py runs/a/best.pt --against runs/b/best.pt
    torchrun --nproc-per-node 8 examples/evaluate.py ...

Prints mIoU, pixel accuracy and the IoU of every class, and writes them and the underlying counts
to scores.json, and a picture of the confusion matrix to confusion.png. With --against, a table
compares the networks side by side; each is evaluated by its own recipe's protocol, unless the
command sets one for all. The protocols are the papers'; see protocols.py.

Exit status: 0; 2 for an invalid argument, file or recipe, which the message names.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from examples import arguments, figures, tables  # noqa: E402
from examples.commands import Parser, check_output, count  # noqa: E402
from examples.data import catalogue  # noqa: E402
from examples.data.labels import DataError  # noqa: E402
from examples.data.pairs import Scene  # noqa: E402
from examples.metrics import Scores  # noqa: E402
from examples.scoring import score  # noqa: E402
from examples.training import processes  # noqa: E402
from examples.training.checkpoint import CheckpointError  # noqa: E402
from examples.training.recipe import RecipeError  # noqa: E402


def main(given: list[str] | None = None) -> int:
    options = parse(given)
    console = Console()
    try:
        check_output(options.output)
        here = processes.join(options.device)
        subjects = arguments.subjects(options, here.device)
        first = subjects[0]
        scenes = catalogue.open_split(first.recipe.data, options.split)
        scores = [
            score(
                subject.network,
                scenes,
                subject.view,
                processes=here,
                readers=options.readers,
                watch=functools.partial(_watch, shown=here.first),
            )
            for subject in subjects
        ]
        if here.first:
            names, values = first.labelling.names, found(first, scores[0])
            if options.against:
                files = [str(path) for path in (options.network, *options.against)]
                console.print(tables.side_by_side(names, files, scores))
                pairs = list(zip(files, subjects, scores, strict=True))[1:]
                values["against"] = [{"file": f, **found(*each)} for f, *each in pairs]
            else:
                console.print(tables.of_one(names, scores[0]))
            write(options.output, values, names, scores[0])
            said = f"Wrote scores.json and confusion.png in {options.output}"
            console.print(said, style="bold", markup=False)
    except (RecipeError, CheckpointError, DataError, ValueError, OSError) as refusal:
        print(f"evaluate: {refusal}", file=sys.stderr)
        return 2
    finally:
        processes.leave()
    return 0


def parse(given: list[str] | None) -> argparse.Namespace:
    parser = Parser("evaluate", description="Scores a network on labelled images.")
    arguments.add(parser)
    parser.add_argument(
        "--against",
        type=Path,
        action="append",
        default=[],
        help="another checkpoint, to score on the same scenes; may be repeated",
    )
    parser.add_argument("--split", default="val", choices=catalogue.SPLITS)
    parser.add_argument("--output", type=Path, default=Path("evaluation"), help="output folder")
    parser.add_argument("--readers", type=count, default=2, help="threads that read images ahead")
    return parser.parse_intermixed_args(given)


def _watch(scenes: Iterable[Scene], count: int, *, shown: bool) -> Iterable[Scene]:
    return track(scenes, "scoring", count, disable=not shown)


def found(subject: arguments.Subject, scores: Scores) -> dict[str, Any]:
    """The entry of a network in scores.json."""
    names, look = subject.labelling.names, subject.view.protocol
    ious = [None if iou != iou else iou for iou in scores.iou.tolist()]
    return {
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "iou": dict(zip(names, ious, strict=True)),
        "protocol": {"name": type(look).__name__, **asdict(look)},
        "network": subject.recipe.network.name,
        "data": subject.recipe.data.name,
        "confusion": scores.confusion.tolist(),
    }


def write(folder: Path, values: dict[str, Any], names: list[str], scores: Scores) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(json.dumps(values, indent=1) + "\n")
    figures.confusion(names, scores, folder / "confusion.png")


if __name__ == "__main__":
    sys.exit(main())
