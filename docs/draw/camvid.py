"""Figures of the study on road scenes: measured curves and label maps of the networks."""

from __future__ import annotations

import statistics
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
from PIL import Image

from benchmarks import report
from benchmarks.camvid_tables import NETWORKS, by_network, complete
from docs.draw import style
from docs.draw.style import Page

COLOURS = {
    "fcn": style.FAINT,
    "pspnet": style.BLUE,
    "spnet": style.VERMILLION,
    "deeplabv3plus_hanet": style.GREEN,
    "encnet": style.PURPLE,
    "upernet": style.ORANGE,
}


def camvid() -> Page:
    """Training cross-entropy and validation mIoU: means over the seeds, and their range."""
    entries = report.read(report.RESULTS / "camvid.json")["entries"]
    networks = by_network(complete(entries))
    page = Page(3.05)
    left, right = page.axes(0.5, 0.3, 3.2, 2.0), page.axes(4.5, 0.3, 3.2, 2.0)
    for name, runs in networks.items():
        draw(left, COLOURS[name], [run["loss"] for run in runs.values()], "cross_entropy")
        draw(right, COLOURS[name], [run["validation"] for run in runs.values()], "miou")
    left.set(title="Cross-entropy, training", xlabel="step")
    right.set(title="mIoU, validation", xlabel="step")
    right.yaxis.set_major_locator(mpl.ticker.MultipleLocator(0.05))
    right.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
    names = [(COLOURS[name], NETWORKS[name]) for name in networks]
    style.legend(left, names, loc="upper left", bbox_to_anchor=(0, -0.24), ncols=6)
    return page


def camvid_maps() -> Page:
    """The label maps of one scene by every network, as written by examples/predict.py."""
    page = Page(3.9)
    for place, (name, title) in enumerate(NETWORKS.items()):
        row, column = divmod(place, 3)
        axes = page.axes(0.1 + 2.6 * column, 0.25 + 1.9 * row, 2.4, 1.6)
        with Image.open(report.RESULTS / "camvid_maps" / f"{name}.png") as labels:
            half = labels.resize((labels.width // 2, labels.height // 2), Image.Resampling.NEAREST)
            axes.imshow(np.asarray(half.convert("RGB")), aspect="auto", interpolation="none")
        axes.set_title(title)
        axes.set_axis_off()
    return page


def draw(axes: Any, colour: str, curves: list[dict[str, Any]], value: str) -> None:
    steps = curves[0]["steps"]
    seeds = list(zip(*(curve[value] for curve in curves), strict=True))
    marker = "o" if len(steps) < 10 else None
    means = [statistics.mean(seed) for seed in seeds]
    axes.plot(steps, means, color=colour, lw=1.2, marker=marker, ms=3)
    lowest, highest = [min(seed) for seed in seeds], [max(seed) for seed in seeds]
    axes.fill_between(steps, lowest, highest, color=colour, alpha=0.15, lw=0)
