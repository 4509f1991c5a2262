"""Images of predictions: label maps with palette, overlays, legends, confusion matrices; and the
style of plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from examples.data.labels import IGNORE, Class
from examples.metrics import Scores

# Okabe and Ito's palette, which is safe for colour-blind readers
COLOURS = {"fused": "#0072B2", "eager": "#BDBDBD", "compile": "#E69F00"}
LABELS = {"fused": "stripctx", "eager": "PyTorch eager", "compile": "torch.compile"}
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],  # in order of preference
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 10,
    "figure.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "stripctx",
}
NUMBERED = 24  # with up to this many classes, the cells of the confusion matrix show numbers


def label_map(labels: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Labels (H, W) as a palette image: its values are the labels, its colours the published ones;
    IGNORE is black."""
    picture = Image.fromarray(labels.astype(np.uint8))
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    picture.putpalette(table.tobytes())
    return picture


def overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray, share: float) -> np.ndarray:
    """Blends the colours of the labels into an image (H, W, 3) uint8; `share`, 0 to 1, is the
    opacity. Unlabelled pixels are unchanged."""
    known = labels != IGNORE
    colours = palette[np.where(known, labels, 0)]
    mixed = np.rint(image * (1 - share) + colours * share).astype(np.uint8)
    return np.where(known[..., None], mixed, image)


def legend(classes: Sequence[Class], shares: Sequence[float], *, rows: int = 20) -> Image.Image:
    """Every class's colour, name, and share of the pixels, in columns of `rows`."""
    font = ImageFont.load_default(15)
    texts = [f"{each.name}  {share:.1%}" for each, share in zip(classes, shares, strict=True)]
    line, box = 24, 16
    wide = box + 24 + round(max(font.getlength(text) for text in texts))
    columns = -(-len(texts) // rows)
    tall = min(rows, len(texts))
    picture = Image.new("RGB", (columns * wide + 8, tall * line + 8), "white")
    draw = ImageDraw.Draw(picture)
    for number, (each, text) in enumerate(zip(classes, texts, strict=True)):
        left, top = 8 + number // rows * wide, 8 + number % rows * line
        draw.rectangle(
            (left, top, left + box, top + box), fill=each.colour, outline=(120, 120, 120)
        )
        draw.text((left + box + 8, top + box / 2), text, fill=(34, 34, 34), font=font, anchor="lm")
    return picture


def confusion(names: Sequence[str], scores: Scores, path: Path) -> None:
    """Plots the confusion matrix as a PNG; every row is normalised to sum to 1."""
    counts = scores.confusion.double()
    shares = (counts / counts.sum(1, keepdim=True).clamp_min(1)).numpy()
    classes = len(names)
    numbered = classes <= NUMBERED
    side = 2.4 + (0.42 if numbered else 0.16) * classes
    style = {"font.size": 9 if numbered else 6, "axes.titlelocation": "left"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(side + 1, side), layout="constrained", dpi=110)
        axes = figure.subplots()
        drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(classes), names, rotation=90, parse_math=False)
        axes.set_yticks(range(classes), names, parse_math=False)
        axes.set(xlabel="predicted", ylabel="labelled")
        axes.set_title(f"mIoU {scores.miou:.2%}, pixel accuracy {scores.pixel_accuracy:.2%}")
        axes.tick_params(length=0)
        for i, j in np.argwhere(shares >= 0.005) if numbered else ():
            ink = "white" if shares[i, j] > 0.6 else "black"
            axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", color=ink)
        bar = figure.colorbar(drawn, ax=axes, shrink=0.6, format=mpl.ticker.PercentFormatter(1.0))
        bar.set_label("of the class's labelled pixels")
        figure.savefig(path)


def bars(axes: Axes, values: dict[str, float], unit: str, title: str) -> None:
    """One horizontal bar per candidate, labelled with its value, the first one on top."""
    drawn = axes.barh(
        [LABELS[name] for name in values],
        list(values.values()),
        color=[COLOURS[name] for name in values],
        height=0.62,
    )
    axes.bar_label(drawn, [f"{value:.3g} {unit}" for value in values.values()], padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values.values()) * 1.3)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(title)
