"""Trains a network by a recipe:

    python examples/train.py examples/recipes/scenes.yaml --output runs/scenes
    python examples/train.py examples/recipes/camvid.yaml data.root=~/camvid train.batch=8
    torchrun --nproc-per-node 8 examples/train.py examples/recipes/ade20k_pspnet50.yaml ...

Writes checkpoints (last.pt, best.pt), log.csv and the complete recipe into the output folder.
Repeating the same command resumes an interrupted run.

Exit status: 0; 1 if the loss is no longer finite; 2 for an invalid recipe, dataset or folder; 3 if
it was asked to stop early.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rich.console import Console

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from examples.commands import ArgumentError, Parser, check_output  # noqa: E402
from examples.data.labels import DataError  # noqa: E402
from examples.training import loggers, processes, recipe  # noqa: E402
from examples.training.checkpoint import CheckpointError  # noqa: E402
from examples.training.networks import describe  # noqa: E402
from examples.training.processes import Processes  # noqa: E402
from examples.training.recipe import RecipeError  # noqa: E402
from examples.training.trainer import StoppedError, Trainer  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = Parser("train", description="Trains a segmentation network by a recipe.")
    parser.add_argument("recipe", type=Path, help="a YAML file, as in examples/recipes")
    parser.add_argument("changes", nargs="*", help="settings to override, such as train.batch=8")
    parser.add_argument("--output", type=Path, help="the run's folder (default: runs/RECIPE)")
    parser.add_argument(
        "--log-to",
        action="append",
        default=[],
        help="an additional logger: tensorboard or module:function, see training/loggers.py",
    )
    parser.add_argument("--device", default="", choices=("", "cpu", "cuda"))
    options = parser.parse_intermixed_args(arguments)
    folder = options.output or Path("runs") / options.recipe.stem
    here, console = Processes(), Console()
    try:
        here = processes.join(options.device)
        settings = recipe.load(options.recipe, options.changes)
        if here.first:
            check_output(folder)
        makers = [loggers.find(name) for name in options.log_to]
        trainer = Trainer(settings, folder, here, console, loggers=makers)
        if here.first:
            console.print(
                f"{describe(trainer.network)}, {len(trainer.labelling.classes)} classes, "
                f"{trainer.scenes} scenes, {trainer.steps} steps of {settings.train.batch}",
                highlight=False,
            )
        trainer.run()
    except FloatingPointError as failure:
        print(f"train: {failure}", file=sys.stderr)
        return 1
    except (ArgumentError, RecipeError, DataError, CheckpointError) as refusal:
        # A worker's error includes the worker's traceback; its last line is the message.
        said = re.sub(r"^[\w.]+Error: ", "", str(refusal).splitlines()[-1])
        print(f"train: {said}", file=sys.stderr)
        return 2
    except StoppedError as stop:
        if here.first:
            console.print(f"{stop}; repeat the command to resume", highlight=False)
        return 3
    finally:
        processes.leave()
    if here.first:
        console.print(f"Wrote {folder}", style="bold", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
