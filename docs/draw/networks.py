"""The first figure of the README: measurements of whole networks before and after `fuse`."""

from __future__ import annotations

from typing import Any

from benchmarks import report, tables
from docs.draw import style
from docs.draw.style import Page

MODES = {
    "inference": "inference, one image of 512 x 512",
    "training": "training step, two of 256 x 256",
}
BARS = {
    "fused": ("fused", style.BLUE),
    "own, compiled": ("torch.compile", style.PALE),
    "fused, compiled": ("fused, then torch.compile", style.SKY),
}


def networks() -> Page:
    """The speed-up over the unmodified network in eager PyTorch."""
    entries = report.read(report.RESULTS / "networks.json")["entries"]
    names = list(dict.fromkeys(entry["network"] for entry in entries))
    height = 0.2 * len(names) * len(BARS) / 2 + 0.12 * len(names)
    page = Page(height + 0.95)
    for column, (mode, title) in enumerate(MODES.items()):
        axes = page.axes(2.15 + 3.0 * column, 0.3, 2.7, height)
        axes.set_title(title)
        found = {
            entry["network"]: entry["candidates"] for entry in entries if entry["mode"] == mode
        }
        for row, name in enumerate(names):
            draw(axes, row, found.get(name, {}))
        axes.axvline(1, color=style.FAINT, lw=0.8)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_yticks(range(len(names)), names if column == 0 else [""] * len(names))
        axes.tick_params(axis="y", length=0, labelcolor=style.INK)
        axes.set_xlim(left=0)
        axes.set_xlabel("times as fast as its own forward", fontsize=7.5, labelpad=2)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    entries_of_legend = [(colour, label) for label, colour in BARS.values()]
    place = {"loc": "upper right", "bbox_to_anchor": (1.0, -0.5 / height), "ncols": 3}
    style.legend(axes, entries_of_legend, **place)
    return page


def draw(axes: Any, row: int, candidates: dict[str, Any]) -> None:
    for index, (name, (_, colour)) in enumerate(BARS.items()):
        if name in candidates:
            factor = tables.median(candidates["own"]) / tables.median(candidates[name])
            at = row + 0.27 * (index - 1)
            axes.barh(at, factor, 0.24, color=colour)
            axes.text(factor + 0.03, at, f"{factor:.1f}", va="center", fontsize=6)
