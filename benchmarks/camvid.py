"""Tests whether context modules help on real road scenes: networks on one backbone with ImageNet
weights, with equal training budgets:

    python -m benchmarks.camvid --data ~/camvid --weights tf_efficientnet_lite0.pth

trains each network by examples/recipes/camvid_lite0.yaml, for one seed after another, and scores
its final weights on the whole images of the validation split; no checkpoint is selected by its
score. The same command resumes an interrupted run. benchmarks/results/camvid.json is written after
each run; entries of other runs by the same recipe are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import family, machine, packages
from benchmarks.camvid_tables import NETWORKS
from benchmarks.report import RESULTS
from examples.commands import ArgumentError
from examples.data.labels import DataError
from examples.training import log, processes, recipe
from examples.training.checkpoint import CheckpointError
from examples.training.trainer import StoppedError, Trainer

RECIPE = Path(__file__).resolve().parent.parent / "examples" / "recipes" / "camvid_lite0.yaml"
# Options of the network's function, in addition to the recipe's. Strip pooling in the backbone
# needs a ResNet; 512 channels at 1/4 of the image's size would cost twenty times the backbone.
OPTIONS = {"spnet": ["strip_pooling=false"], "upernet": ["head_channels=128"]}
SHARED = ("augmentation", "loss", "optimizer", "train", "evaluation")

Entry = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    console = Console()
    path = options.results / "camvid.json"
    try:
        here = processes.join(options.device)
        common = shared(recipe.load(RECIPE, options.changes))
        for seed in options.seeds:
            for network in options.networks:
                console.print(f"[bold]{network}[/], seed {seed}", highlight=False)
                settings = recipe.load(RECIPE, [*options.changes, *changes(options, network, seed)])
                trainer = Trainer(settings, options.runs / f"{network}-{seed}", here, console)
                trainer.run()
                facts = {**machine.describe(here.device.type), "recipe": common}
                found = [*kept(path, common), entry(network, seed, trainer)]
                family.write(path, facts, ordered(found))
    except (ArgumentError, recipe.RecipeError, DataError, CheckpointError) as refusal:
        print(f"camvid: {refusal}", file=sys.stderr)
        return 2
    except StoppedError as stop:
        console.print(f"{stop}; repeat the command to resume", highlight=False)
        return 3
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.camvid", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("changes", nargs="*", help="settings to override, such as train.epochs=20")
    parser.add_argument("--data", required=True, help="CamVid's folder, with SegNet's split")
    parser.add_argument("--weights", required=True, help="file of the backbone's weights")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--runs", type=Path, default=Path("runs") / "camvid", help="checkpoints")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write")
    parser.add_argument("--device", default="", choices=("", "cpu", "cuda"))
    return parser.parse_intermixed_args(arguments)


def changes(options: argparse.Namespace, network: str, seed: int) -> list[str]:
    """The changes to the recipe for one run."""
    own = [f"network.options.{option}" for option in OPTIONS.get(network, [])]
    files = [f"data.root={options.data}", f"network.weights={options.weights}"]
    return [f"network.name={network}", *own, f"train.seed={seed}", *files]


def shared(settings: recipe.Recipe) -> dict[str, Any]:
    """The settings common to all runs, without paths."""
    values = recipe.to_dict(settings)
    del values["train"]["seed"]
    network = {name: values["network"][name] for name in ("backbone", "options")}
    return {"network": network, **{section: values[section] for section in SHARED}}


def kept(path: Path, common: dict[str, Any]) -> list[Entry]:
    """The file's entries of runs by the same recipe."""
    if not path.exists():
        return []
    before = json.loads(path.read_text())
    entries: list[Entry] = before["entries"]
    return entries if before["machine"]["recipe"] == common else []


def ordered(entries: Sequence[Entry]) -> list[Entry]:
    """Sorted by network and seed; later entries replace earlier ones of the same run."""
    names = list(NETWORKS)
    runs = {(names.index(each["network"]), each["seed"]): each for each in entries}
    return [runs[key] for key in sorted(runs)]


def entry(network: str, seed: int, trainer: Trainer) -> Entry:
    """The results of a complete run: its curves, and the scores of its final weights."""
    path = trainer.folder / "log.csv"
    scores = trainer.validate()
    ious = zip(trainer.labelling.names, scores.iou.tolist(), strict=True)
    steps, losses = log.curve(path, "out")
    validated, mious = log.curve(path, "miou")
    _, seconds = log.curve(path, "seconds")
    return {
        "network": network,
        "seed": seed,
        "scenes": trainer.scenes,
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
        "miou": round(scores.miou, 5),
        "pixel_accuracy": round(scores.pixel_accuracy, 5),
        "iou": {name: round(iou, 5) for name, iou in ious},
        "loss": {"steps": steps, "cross_entropy": [round(loss, 4) for loss in losses]},
        "validation": {"steps": validated, "miou": [round(miou, 5) for miou in mious]},
        "seconds": round(seconds[-1], 1),
    }


if __name__ == "__main__":
    packages.load("timm")
    sys.exit(main())
