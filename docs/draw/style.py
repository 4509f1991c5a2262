"""The style of all figures in the documentation: colours, fonts, and a page measured in inches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from examples.figures import STYLE as PLOTS

# Okabe and Ito's palette
BLUE, ORANGE, VERMILLION, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
SKY, PURPLE, YELLOW = "#56B4E9", "#CC79A7", "#F0E442"
INK, FAINT, PALE = "#222222", "#7A7A7A", "#D9D9D9"
WIDTH = 8.0  # in inches, of every figure

STYLE = PLOTS | {
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlepad": 5,
    "axes.linewidth": 0.6,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "mathtext.default": "regular",
}


class Page:
    """A figure on which elements are placed in inches from its upper left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDTH, height))

    def axes(self, left: float, top: float, width: float, height: float, **options: Any) -> Axes:
        box = (left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(box, **options)

    def text(self, left: float, top: float, text: str, **options: Any) -> None:
        options = {"va": "top"} | options
        self.figure.text(left / WIDTH, 1 - top / self.height, text, **options)

    def arrow(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draws an arrow between two points in inches."""
        where = {"xycoords": "figure fraction", "textcoords": "figure fraction"}
        self.figure.add_artist(
            mpl.text.Annotation(
                "",
                (end[0] / WIDTH, 1 - end[1] / self.height),
                (start[0] / WIDTH, 1 - start[1] / self.height),
                arrowprops={"arrowstyle": "-|>", "color": FAINT, "lw": 0.9, "shrinkA": 0},
                **where,
            )
        )

    def save(self, path: Path) -> None:
        """Saves as SVG, with the same bytes on every run, or in another format that matplotlib
        supports."""
        if path.suffix != ".svg":
            self.figure.savefig(path, dpi=160)
            return
        self.figure.savefig(path, metadata={"Date": None, "Creator": None})
        text = re.sub(r"(\d\.\d\d)\d+", r"\1", path.read_text())  # 0.01 points
        path.write_text(re.sub(r"\s*\n\s*", "\n", text))


def picture(axes: Axes, values: np.ndarray, **options: Any) -> Any:
    """Draws pixels unsmoothed and without ticks; the file contains no more pixels than the
    array."""
    bare(axes)
    return axes.imshow(values, interpolation="none", aspect="auto", **options)


def bare(axes: Axes, *, frame: bool = False) -> None:
    axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(frame)


def mark(axes: Axes, row: int, column: int, colour: str = VERMILLION) -> None:
    """Marks the output position: a frame around one cell of a map."""
    box = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=colour, lw=1.1, zorder=5)
    axes.add_patch(box)


def light(colour: str, share: float) -> tuple[float, float, float]:
    """Mixes `colour` with a share of white."""
    r, g, b = mpl.colors.to_rgb(colour)
    return r + (1 - r) * share, g + (1 - g) * share, b + (1 - b) * share


def ramp(*colours: str) -> mpl.colors.Colormap:
    """A colour map from white to a colour, or between two colours through white."""
    ends = ["white", *colours] if len(colours) == 1 else [colours[0], "white", colours[1]]
    return mpl.colors.LinearSegmentedColormap.from_list("ramp", ends, N=65)


def legend(axes: Axes, entries: Sequence[tuple[Any, str]], **options: Any) -> None:
    """Colour patches and their names."""
    patches = [Rectangle((0, 0), 1, 1, fc=colour, ec=PALE, lw=0.5) for colour, _ in entries]
    names = [name for _, name in entries]
    options = {
        "frameon": False, "fontsize": 7.5, "handlelength": 0.9, "handleheight": 0.9,
        "handletextpad": 0.4, "borderaxespad": 0, "borderpad": 0,
    } | options  # fmt: skip
    axes.legend(patches, names, **options)
