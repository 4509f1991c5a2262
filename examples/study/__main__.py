"""Does context help? Five networks with one backbone, from random weights, on real road scenes:

    python -m examples.study --data PATH                        three seeds to convergence, a GPU
    python -m examples.study --data PATH --budget short         one seed, a CPU

PATH holds CamVid with SegNet's split: train/images, train/labels, val/images, val/labels. All
networks have the same recipe, seeds and number of steps; no result picks a checkpoint. Killed at
any moment, the same command goes on. Every number is written to examples/study/results, the curves
beside the checkpoints; runs of other networks and seeds that stand there are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from examples.commands import ArgumentError, count
from examples.data.files import replaced
from examples.data.labels import DataError
from examples.study import report
from examples.training import log, processes, recipe
from examples.training.trainer import StoppedError, Trainer

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
# resnet18 has no bottlenecks for strip pooling: what is compared of SPNet is its mixed pooling
NETWORKS: dict[str, dict[str, Any]] = {
    "fcn": {},
    "pspnet": {},
    "spnet": {"strip_pooling": False},
    "deeplabv3plus_hanet": {},
    "encnet": {},
}


class Budget(NamedTuple):
    size: str
    epochs: int | None = None  # other than the recipe's

    def __str__(self) -> str:
        return f"{self.size}-{self.epochs}" if self.epochs else self.size

    def recipe(self, changes: Sequence[str] = ()) -> recipe.Recipe:
        epochs = [f"train.epochs={self.epochs}"] if self.epochs else []
        return recipe.load(HERE / f"{self.size}.yaml", [*epochs, *changes])


class Run(NamedTuple):
    network: str
    seed: int

    def settings(self, budget: Budget, data: Path) -> recipe.Recipe:
        """The budget's recipe for this network and seed."""
        options = [
            f"network.options.{key}={value}" for key, value in NETWORKS[self.network].items()
        ]
        changes = [f"network.name={self.network}", f"train.seed={self.seed}", f"data.root={data}"]
        return budget.recipe([*changes, *options])


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    console = Console()
    budget = Budget(options.budget, options.epochs)
    try:
        here = processes.join(options.device)
    except ArgumentError as refusal:
        print(f"study: {refusal}", file=sys.stderr)
        return 2
    entries = []
    for run in [Run(name, seed) for seed in options.seeds for name in options.networks]:
        console.print(f"[bold]{run.network}[/], seed {run.seed}", highlight=False)
        folder = options.runs / str(budget) / f"{run.network}-{run.seed}"
        try:
            trainer = Trainer(run.settings(budget, options.data), folder, here, console)
            trainer.run()
        except (recipe.RecipeError, DataError) as refusal:
            print(f"study: {refusal}", file=sys.stderr)
            return 2
        except StoppedError as stop:
            console.print(f"{stop}; the same command goes on", highlight=False)
            return 3
        entries.append(entry(run, trainer))
    path = RESULTS / f"{budget}.json"
    facts = {"torch": torch.__version__, "device": here.device.type, "recipe": shared(budget)}
    found = {"machine": facts, "entries": together(path, facts["recipe"], entries)}
    write(path, found)
    curves = options.runs / f"{budget}.svg"
    report.draw(found, curves)
    console.print(report.table(found["entries"]))
    console.print(f"Wrote {path} and {curves}", style="bold", markup=False)
    return 0


def write(path: Path, found: dict[str, Any]) -> None:
    """One run a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine, entries = json.dumps(found["machine"], indent=1), map(json.dumps, found["entries"])
    lines = ",\n".join(entries)
    with replaced(path) as file:
        file.write(f'{{"machine": {machine},\n"entries": [\n{lines}\n]}}\n'.encode())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.study", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, required=True, help="CamVid's folder")
    parser.add_argument("--budget", choices=("short", "long"), default="long")
    parser.add_argument("--epochs", type=count, help="other than the budget's; a result of its own")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, help="0 1 2; 0 for the short budget")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "camvid", help="checkpoints")
    parser.add_argument("--device", default="", choices=("", "cpu", "cuda"))
    options = parser.parse_args(arguments)
    options.seeds = options.seeds or ([0] if options.budget == "short" else [0, 1, 2])
    return options


def shared(budget: Budget) -> dict[str, Any]:
    """What all networks of a budget have in common; no paths."""
    settings = recipe.to_dict(budget.recipe())
    return {name: settings[name] for name in ("augmentation", "loss", "optimizer", "train")}


def together(
    path: Path, settings: dict[str, Any], entries: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The entries and those of other runs by the same recipe in the file, by network and seed."""
    before = json.loads(path.read_text()) if path.exists() else {"machine": {}, "entries": []}
    written = before["machine"].get("recipe", {})
    whole = recipe.to_dict(recipe.from_dict(written))  # with settings that came later
    same = all(whole[section] == values for section, values in settings.items())
    kept = before["entries"] if written and same else []
    known = {(each["network"], each["seed"]): each for each in [*kept, *entries]}
    order = list(NETWORKS)
    return [known[key] for key in sorted(known, key=lambda key: (order.index(key[0]), key[1]))]


def entry(run: Run, trainer: Trainer) -> dict[str, Any]:
    """What a complete run found: its curves, and the scores of its last weights."""
    path = trainer.folder / "log.csv"
    scores = trainer.validate()
    names = trainer.labelling.names
    steps, losses = log.curve(path, "out")
    validated, mious = log.curve(path, "miou")
    _, seconds = log.curve(path, "seconds")
    return {
        "network": run.network,
        "seed": run.seed,
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
        "miou": round(scores.miou, 5),
        "pixel_accuracy": round(scores.pixel_accuracy, 5),
        "iou": {n: round(v, 5) for n, v in zip(names, scores.iou.tolist(), strict=True)},
        "loss": {"steps": steps, "cross_entropy": [round(loss, 4) for loss in losses]},
        "validation": {"steps": validated, "miou": [round(miou, 5) for miou in mious]},
        "seconds": round(seconds[-1], 1),
    }


if __name__ == "__main__":
    sys.exit(main())
