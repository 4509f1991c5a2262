"""The table and the curves of the CamVid runs."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
from rich.table import Table

from examples import figures

LABELS = {
    "fcn": "FCN",
    "pspnet": "PSPNet",
    "spnet": "SPNet (mixed pooling)",
    "deeplabv3plus_hanet": "DeepLabv3+ with HANet",
    "encnet": "EncNet",
}
# Okabe and Ito's palette, told apart by every kind of sight.
COLOURS = {
    "fcn": "#7F7F7F",
    "pspnet": "#0072B2",
    "spnet": "#D55E00",
    "deeplabv3plus_hanet": "#009E73",
    "encnet": "#CC79A7",
}


def by_network(entries: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The seeds of every network."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        found.setdefault(entry["network"], []).append(entry)
    return found


def percent(values: list[float]) -> str:
    """A mean, and with several seeds the standard deviation over them."""
    mean = f"{statistics.mean(values):.1%}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values) * 100:.1f}"


def table(entries: list[dict[str, Any]]) -> Table:
    """A column a network, means over the seeds; below the scores, every class."""
    networks = by_network(entries)
    drawn = Table()
    drawn.add_column("")
    for name in networks:
        drawn.add_column(name.replace("_", " "), justify="right")
    for row, score in (("mIoU", "miou"), ("pixel accuracy", "pixel_accuracy")):
        drawn.add_row(row, *(percent([run[score] for run in runs]) for runs in networks.values()))
    sizes = (f"{runs[0]['parameters'] / 1e6:.1f} M" for runs in networks.values())
    drawn.add_row("parameters", *sizes, end_section=True)
    for each in entries[0]["iou"]:
        drawn.add_row(
            each, *(percent([run["iou"][each] for run in runs]) for runs in networks.values())
        )
    return drawn


def draw(result: dict[str, Any], path: Path) -> None:
    """Training loss and validation mIoU: a line a network, the mean of its seeds in their range."""
    from matplotlib.figure import Figure

    entries = result["entries"]
    with mpl.rc_context(figures.STYLE):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, runs in by_network(entries).items():
            for axes, curve, value in (
                (left, "loss", "cross_entropy"),
                (right, "validation", "miou"),
            ):
                steps = runs[0][curve]["steps"]
                seeds = list(zip(*(run[curve][value] for run in runs), strict=True))
                means = [statistics.mean(seed) for seed in seeds]
                axes.plot(steps, means, color=COLOURS[name], label=LABELS[name], linewidth=1.5)
                axes.fill_between(
                    steps,
                    [min(seed) for seed in seeds],
                    [max(seed) for seed in seeds],
                    color=COLOURS[name],
                    alpha=0.15,
                    linewidth=0,
                )
        seeds = len({entry["seed"] for entry in entries})
        left.set(title="Cross-entropy, training", xlabel="step")
        right.set(title="mIoU, validation", xlabel="step")
        right.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        figure.suptitle(
            f"CamVid, ResNet-18 from random weights, {seeds} seed{'s' * (seeds > 1)}",
            x=0.01,
            ha="left",
        )
        figure.savefig(path, metadata={"Date": None})
