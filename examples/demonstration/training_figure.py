"""The lower part of the demo's figure: what the small networks learnt, and how fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from examples.demonstration.training import FUSED, PLAIN, WITHOUT, Study
from examples.figures import bars as draw_bars
from examples.figures import label_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from examples.demonstration.figure import Page

HEIGHT = 5.6  # in inches
GAP = 0.18
CURVES = 2.1
LINES = {
    WITHOUT: {"color": "#D55E00", "lw": 1.6},
    FUSED: {"color": "#0072B2", "lw": 4.0, "alpha": 0.45},
    PLAIN: {"color": "#222222", "lw": 1.0, "ls": (0, (4, 3))},
}


def draw(page: Page, left: float, top: float, width: float, study: Study) -> None:
    """Draws four pictures in a row below `top`, then the curves and the bars."""
    page.text(left, top, "A small network learns street scenes", fontsize=15, weight="bold")
    rows, columns = study.scene.labels.shape
    each = (width - 3 * GAP) / 4
    height = each * rows / columns
    maps = {"Truth": study.scene.labels}
    for title, label in (("Without context", WITHOUT), ("Pyramid pooling", FUSED)):
        maps[f"{title}: mIoU {study.scores[label]:.1%}"] = study.predictions[label]
    pictures = [("A scene it has not seen", Image.fromarray(study.scene.image))]
    pictures += [(title, label_map(labels, study.palette)) for title, labels in maps.items()]
    for place, (title, picture) in enumerate(pictures):
        axes = page.axes(left + place * (each + GAP), top + 0.75, each, height)
        axes.imshow(np.asarray(picture.convert("RGB")), interpolation="nearest", aspect="auto")
        axes.set_title(title)
        axes.set_axis_off()
    lower = top + 0.75 + height + 0.55
    _curves(page.axes(left + 0.4, lower, 0.52 * width, CURVES), study)
    indent = 0.52 * width + 1.75
    bars = page.axes(left + indent, lower + 0.35, width - indent, 0.75)
    times = {name: seconds * 1e3 for name, seconds in study.times.items()}
    draw_bars(bars, times, "ms", "Time of its context module")
    page.text(
        left + indent - 0.95,
        lower + 1.35,
        f"PyramidPoolingConv, forward and backward, features {study.features}.\n"
        f"In the first step the fused and the plain loss are at most {study.first_gap:.0e} apart,\n"
        f"on average over the run {study.mean_gap:.1%}: rounding, which training amplifies.",
        fontsize=8.5,
        color="#8A8A8A",
        linespacing=1.5,
    )


def _curves(axes: Axes, study: Study) -> None:
    for label, style in LINES.items():
        losses = study.losses[label]
        axes.plot(np.arange(1, len(losses) + 1), losses, label=label, **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(labelsize=8, which="both")
    axes.set_xlim(1, len(losses))
    axes.set_xlabel("step")
    axes.set_title("Training loss, mean of ten steps")
    axes.legend(frameon=False, fontsize=8.5)
