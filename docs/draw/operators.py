"""One figure a family of operators: what they compute, on small examples."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.patches import Rectangle
from torch import Tensor

from docs.draw import fields, style
from docs.draw.fields import MAP
from docs.draw.style import Page
from examples.street import scenes
from stripctx import functional

BINS = (1, 2, 3, 6)
BIN_COLOURS = {1: style.SKY, 2: style.BLUE, 3: style.GREEN, 6: style.ORANGE}


def class_map(*names: str) -> Tensor:
    """(1, 1, H, W): where the street shows one of these classes, by share of the position."""
    _, labels = fields.street(3 * MAP[0], 3 * MAP[1])
    chosen = [index for index, each in enumerate(scenes.CLASSES) if each.name in names]
    mask = torch.from_numpy(np.isin(labels, chosen))[None, None].double()
    return F.avg_pool2d(mask, 3)


def strip() -> Page:
    """A map, its two strips, their sum, and the map gated by that."""
    x = class_map("pole", "sign", "lane mark")
    rows, cols = functional.strip_pool(x)
    summed = functional.strip_add_relu(rows - rows.mean(), cols - cols.mean())
    logits = 2 * summed / summed.std() - 3
    gated = functional.sigmoid_gate(x, logits)
    page = Page(1.72)
    width, height, side = 2.15, 1.08, 0.3
    grey = style.ramp(style.INK)
    axes = page.axes(0, 0.22, width, height)
    style.picture(axes, levels(x), cmap=grey, vmin=0, vmax=1)
    style.bare(axes, frame=True)
    axes.set_title("x: poles, signs, lane marks")
    right = page.axes(width + 0.06, 0.22, side, height)
    right.fill_betweenx(np.arange(MAP[0]), rows.flatten(), color=style.BLUE, lw=0)
    right.set_ylim(MAP[0] - 0.5, -0.5)
    below = page.axes(0, 0.22 + height + 0.06, width, side)
    below.fill_between(np.arange(MAP[1]), cols.flatten(), color=style.VERMILLION, lw=0)
    below.set_xlim(-0.5, MAP[1] - 0.5)
    below.invert_yaxis()
    for each in (right, below):
        style.bare(each)
    page.text(width + 0.06, 0.06, "rows", color=style.BLUE, fontsize=7.5)
    page.text(width + 0.06, 0.22 + height + 0.1, "cols", color=style.VERMILLION, fontsize=7.5)
    for left, values, title in (
        (3.05, summed / summed.max(), "strip_add_relu of both"),
        (5.75, gated, "sigmoid_gate of x by it"),
    ):
        axes = page.axes(left, 0.22, width, height)
        style.picture(axes, levels(values), cmap=grey, vmin=0, vmax=1)
        style.bare(axes, frame=True)
        axes.set_title(title)
        page.arrow((left - 0.43, 0.76), (left - 0.07, 0.76))
    return page


def levels(x: Tensor, count: int = 16) -> np.ndarray:
    """A map of few values: a small file."""
    rounded: np.ndarray = (x[0, 0] * count).round().div(count).numpy()
    return rounded


def windows(size: int, bins: int) -> list[tuple[int, int]]:
    """First and last + 1 of every bin."""
    return [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]


def pyramid() -> Page:
    """The windows of all levels on an axis of 13 positions, and the cells they cut a map into."""
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


def height() -> Page:
    """A map, the gates of its rows from eight logits, and their product."""
    image, _ = fields.street(2 * MAP[0], 2 * MAP[1])
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].double().mean(1, keepdim=True) / 255
    x = F.avg_pool2d(x, 2)
    road = [each.name for each in scenes.CLASSES].index("road")
    share = torch.from_numpy(fields.classes_by_row(64)[:, road]).clamp(0.02, 0.98)
    gates = functional.row_pool(share.view(1, 1, -1, 1), 8)
    logits = gates.logit()
    out = functional.row_gate(x, logits)
    rows = functional.row_gate(torch.ones_like(x), logits)[0, 0, :, 0].numpy()
    page = Page(1.75)
    for left, values, title in ((0, x, "x"), (5.4, out, "row_gate(x, logits)")):
        axes = page.axes(left, 0.22, 2.5, 1.25)
        style.picture(axes, levels(values, 24), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title)
    axes = page.axes(3.05, 0.22, 1.8, 1.25)
    axes.set_title("gates: 8 logits, 36 rows")
    axes.barh(range(MAP[0]), rows, height=0.8, color=style.light(style.BLUE, 0.5), lw=0)
    centres = (np.arange(8) + 0.5) * MAP[0] / 8 - 0.5
    axes.plot(
        logits.sigmoid().flatten(),
        centres,
        "o",
        ms=4.5,
        color=style.VERMILLION,
        label="sigmoid(logits)",
    )
    axes.set_ylim(MAP[0] - 0.5, -0.5)
    axes.set_xlim(0, 1.03)
    axes.set_xticks((0, 0.5, 1))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.legend(frameon=False, fontsize=7.5, loc="upper right", handletextpad=0, borderaxespad=0)
    return page
