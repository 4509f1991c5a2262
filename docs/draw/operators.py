"""One figure per operator family: what they compute, on small examples."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.patches import Rectangle

from docs.draw import style
from docs.draw.style import Page

BINS = (1, 2, 3, 6)
BIN_COLOURS = {1: style.SKY, 2: style.BLUE, 3: style.GREEN, 6: style.ORANGE}


def windows(size: int, bins: int) -> list[tuple[int, int]]:
    """The first position of every bin, and one past its last."""
    return [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]


def pyramid() -> Page:
    """The windows of all levels on an axis of 13 positions, and the cells they divide a map
    into."""
    size = 13
    cuts = sorted({cut for bins in BINS for window in windows(size, bins) for cut in window})
    page = Page(3.05)
    axes = page.axes(0.75, 0.25, 4.0, 2.55)
    axes.set_title("One axis: windows of 1, 2, 3 and 6 bins")
    for cut in cuts:
        axes.axvline(cut, color=style.PALE, lw=0.8, zorder=0)
    top, labels = 0.0, []
    for bins in BINS:
        start = top
        for index, (first, last) in enumerate(windows(size, bins)):
            level = top + index % 2 * 0.62
            face = style.light(BIN_COLOURS[bins], 0.25)
            axes.add_patch(Rectangle((first, level), last - first, 0.5, fc=face, ec="none"))
        top += 1.2 if bins > 1 else 0.6
        labels.append((start + (top - start) / 2 - 0.03, f"{bins} bin{'s' if bins > 1 else ''}"))
        top += 0.2
    for index, (first, last) in enumerate(pairwise(cuts)):
        shade = style.light(style.INK, 0.55 if index % 2 else 0.75)
        axes.add_patch(Rectangle((first, top + 0.15), last - first, 0.5, fc=shade, ec="none"))
    labels.append((top + 0.4, f"{len(cuts) - 1} cells"))
    axes.set_xlim(0, size)
    axes.set_ylim(top + 0.7, -0.1)
    axes.set_yticks([at for at, _ in labels], [text for _, text in labels])
    axes.set_xticks(np.arange(size) + 0.5, range(size))
    axes.tick_params(length=0, labelcolor=style.INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes = page.axes(5.3, 0.25, 2.55, 2.55)
    axes.set_title("A map: two bins are runs of cells")
    for i, (y0, y1) in enumerate(pairwise(cuts)):
        for j, (x0, x1) in enumerate(pairwise(cuts)):
            shade = style.light(style.INK, 0.84 if (i + j) % 2 else 0.93)
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fc=shade, ec="none"))
    for bins, i, j in ((2, 0, 0), (3, 1, 2)):
        (y0, y1), (x0, x1) = windows(size, bins)[i], windows(size, bins)[j]
        colour = BIN_COLOURS[bins]
        box = Rectangle((x0, y0), x1 - x0, y1 - y0, fc=(*style.light(colour, 0), 0.3), ec=colour)
        axes.add_patch(box)
        name = f"{bins} x {bins} bins: ({i}, {j})"
        axes.text(x0 + 0.25, y0 + 0.3, name, va="top", fontsize=7, color=colour, weight="bold")
    axes.set_xlim(0, size)
    axes.set_ylim(size, 0)
    style.bare(axes)
    return page


def interpolation(size: int, cells: int, align_corners: bool) -> np.ndarray:
    """(size, cells): the weight of every cell at every position."""
    unit = torch.eye(cells, dtype=torch.float64)[None]
    weights = F.interpolate(unit, size, mode="linear", align_corners=align_corners)[0]
    return weights.T.numpy()


def upsample() -> Page:
    """The weights of a level's cells along an axis, for both values of align_corners."""
    size, cells = 24, 4
    colours = (style.BLUE, style.VERMILLION, style.GREEN, style.PURPLE)
    page = Page(1.95)
    for index, aligned in enumerate((True, False)):
        axes = page.axes(0.35 + index * 4.1, 0.25, 3.5, 1.3)
        axes.set_title(f"align_corners={aligned}: weights of {cells} cells")
        weights = interpolation(size, cells, aligned)
        for cell, colour in enumerate(colours):
            (reached,) = np.nonzero(weights[:, cell])
            reached = np.arange(max(0, reached[0] - 1), min(size, reached[-1] + 2))
            axes.fill_between(reached, weights[reached, cell], color=colour, alpha=0.1, lw=0)
            axes.plot(reached, weights[reached, cell], "-o", ms=2.6, lw=1, color=colour)
            peak = weights[:, cell].argmax() if aligned else (cell + 0.5) * size / cells - 0.5
            axes.text(peak, 1.03, f"cell {cell}", ha="center", fontsize=7.5, color=colour)
        axes.set_xticks((0, 6, 12, 18, 23))
        axes.set_yticks((0, 0.5, 1))
        axes.set_ylim(0, 1.15)
        axes.set_xlim(-1, size)
        axes.set_xlabel(f"position of {size}", fontsize=7.5, labelpad=2)
    return page
