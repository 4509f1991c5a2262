"""The demo's figure: the scene, the prediction, strip pooling's means and gate, timings, a network
before and after fuse and, if there was time to train, the curves of the small networks."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from examples import figures
from examples.demonstration import decoder, training_figure
from examples.demonstration.training import Study

INK, FAINT, ROWS, COLUMNS = "#222222", "#8A8A8A", "#0072B2", "#D55E00"
STYLE = figures.STYLE | {"text.color": INK, "axes.labelcolor": INK}

# sizes in inches
WIDTH, MARGIN, GAP = 13.0, 0.4, 0.5
TALLEST = 6.0
TITLE, LEGEND, PROFILE, BARS = 0.62, 0.35, 0.55, 0.95


@dataclass
class Content:
    """The data of the figure. Maps are (H, W); times in ms and peaks in MiB, by candidate."""

    image: np.ndarray
    labels: np.ndarray
    prediction: np.ndarray
    palette: list[tuple[str, tuple[int, int, int]]]
    labels_title: str
    prediction_title: str
    feature: np.ndarray
    gate: np.ndarray
    channel: int
    channels: int
    times: dict[str, float]
    peaks: dict[str, float]
    measured: str
    footnote: str
    decoder: decoder.Outcome
    study: Study | None = None


def draw(content: Content, path: Path) -> None:
    """Writes the PNG atomically."""
    with mpl.rc_context(STYLE):
        figure = compose(content)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                figure.savefig(file, format="png")
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


class Page:
    """A figure on which axes are placed in inches from its upper left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDTH, height), dpi=130)

    def axes(self, left: float, top: float, width: float, height: float, **options: Any) -> Axes:
        box = (left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(box, **options)

    def text(self, left: float, top: float, text: str, **options: Any) -> None:
        self.figure.text(left / WIDTH, 1 - top / self.height, text, va="top", **options)


def compose(content: Content) -> Figure:
    """Lays out two pictures, two maps and four groups of bars."""
    rows, columns = content.image.shape[:2]
    half = (WIDTH - 2 * MARGIN - GAP) / 2
    width = min(half, TALLEST * columns / rows)
    height = width * rows / columns
    map_width = width - PROFILE - 0.1
    map_height = map_width * rows / columns
    second = MARGIN + half + GAP
    maps = TITLE + 0.3 + height + LEGEND + 0.45
    bars = maps + map_height + PROFILE + 0.65
    fused = bars + BARS + 0.5
    lower = fused + decoder.BARS + 0.45
    page = Page(lower + (training_figure.HEIGHT if content.study else 0) + 0.1)
    page.text(MARGIN, 0.22, "Strip pooling on one image", fontsize=15, weight="bold")

    _picture(page.axes(MARGIN, TITLE + 0.3, width, height), content.image, "The picture")
    _prediction(page.axes(second, TITLE + 0.3, width, height), content)
    _feature(page, MARGIN, maps, map_width, map_height, content)
    _gate(page, second, maps, map_width, map_height, content)
    indent = 1.0
    axes = page.axes(MARGIN + indent, bars, half - indent, BARS)
    figures.bars(axes, content.times, "ms", f"Time of {content.measured}")
    if content.peaks:
        axes = page.axes(second + indent, bars, half - indent, BARS)
        figures.bars(axes, content.peaks, "MiB", f"Peak memory of {content.measured}")
    decoder.draw(page, MARGIN, fused, WIDTH - 2 * MARGIN, content.decoder)
    if content.study:
        training_figure.draw(page, MARGIN, lower, WIDTH - 2 * MARGIN, content.study)
    page.text(MARGIN, page.height - 0.3, content.footnote, fontsize=7.5, color=FAINT)
    return page.figure


def _picture(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image, interpolation="lanczos", aspect="auto")
    axes.set_title(title)
    _bare(axes)


def _prediction(axes: Axes, content: Content) -> None:
    """The prediction with the ground truth in a corner, and a legend of the classes that occur."""
    colours = np.array([colour for _, colour in content.palette], np.uint8)
    _picture(axes, colours[content.prediction], content.prediction_title)
    inset = axes.inset_axes((0.685, 0.02, 0.305, 0.305))
    inset.imshow(colours[content.labels], interpolation="lanczos", aspect="auto")
    inset.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    for spine in inset.spines.values():
        spine.set(visible=True, color="white", linewidth=2)
    shield = {"facecolor": INK, "alpha": 0.7, "edgecolor": "none", "pad": 1.5}
    inset.text(
        0.03, 0.92, content.labels_title, transform=inset.transAxes, va="top",
        fontsize=6.5, color="white", bbox=shield,
    )  # fmt: skip
    present = np.union1d(np.unique(content.labels), np.unique(content.prediction))
    patches = [
        Patch(facecolor=colours[i] / 255, edgecolor="#BBBBBB", lw=0.6, label=content.palette[i][0])
        for i in present
    ]
    axes.legend(
        handles=patches, loc="upper left", bbox_to_anchor=(0, -0.01, 1, 0), mode="expand",
        ncols=len(patches), frameon=False, fontsize=7.3, handlelength=0.9, handleheight=0.9,
        handletextpad=0.35, columnspacing=0.4, borderaxespad=0.1, borderpad=0.1,
    )  # fmt: skip


def _feature(
    page: Page, left: float, top: float, width: float, height: float, content: Content
) -> None:
    """One channel, with its row means to the right and its column means below."""
    feature = content.feature
    axes = page.axes(left, top, width, height)
    axes.imshow(feature, cmap="Greys", aspect="auto", vmax=np.quantile(feature, 0.995))
    axes.set_title(f"Feature {content.channel} of {content.channels}, its row and column means")
    right = page.axes(left + width + 0.08, top, PROFILE, height, sharey=axes)
    below = page.axes(left, top + height + 0.08, width, PROFILE, sharex=axes)
    rows, columns = feature.mean(1), feature.mean(0)
    right.fill_betweenx(np.arange(len(rows)), rows, color=ROWS, alpha=0.22, lw=0)
    right.plot(rows, np.arange(len(rows)), color=ROWS, lw=1.4)
    right.set_xlim(0, max(rows.max() * 1.05, 1e-6))
    right.set_title("rows", color=ROWS, fontsize=8.5, weight="normal")
    below.fill_between(np.arange(len(columns)), columns, color=COLUMNS, alpha=0.22, lw=0)
    below.plot(np.arange(len(columns)), columns, color=COLUMNS, lw=1.4)
    below.set_ylim(max(columns.max() * 1.05, 1e-6), 0)
    page.text(left + width + 0.1, top + height + 0.1, "columns", color=COLUMNS, fontsize=8.5)
    for each in (axes, right, below):
        _bare(each)


def _gate(
    page: Page, left: float, top: float, width: float, height: float, content: Content
) -> None:
    """The gate of the same channel."""
    axes = page.axes(left, top, width, height)
    drawn = axes.imshow(content.gate, cmap="magma", aspect="auto")
    axes.set_title(f"Its learnt gate, from the means of all {content.channels} features")
    _bare(axes)
    bar = page.figure.colorbar(drawn, cax=page.axes(left + width + 0.08, top, 0.13, height))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2)
    page.text(
        left,
        top + height + 0.14,
        "output = feature x gate\n"
        "gate = sigmoid(conv 1x1(relu(conv 3x1(row means) + conv 1x3(column means))))",
        fontsize=8.5,
        color=FAINT,
        linespacing=1.5,
    )


def _bare(axes: Axes) -> None:
    axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
