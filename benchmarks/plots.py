"""Plots from result files: bars of time and peak memory, fused against its peers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

from benchmarks import results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart by every kind of sight.
COLOURS = {"fused": "#0072B2", "eager": "#BDBDBD", "compile": "#E69F00"}
LABELS = {"fused": "stripctx", "eager": "PyTorch eager", "compile": "torch.compile"}
STYLE = {
    "font.family": "DejaVu Sans",
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


def bars(axes: Axes, values: dict[str, float], unit: str, title: str) -> None:
    """One horizontal bar a candidate, its value written at its end, the first one on top."""
    names = list(values)
    drawn = axes.barh(
        [LABELS[name] for name in names],
        list(values.values()),
        color=[COLOURS[name] for name in names],
        height=0.62,
    )
    axes.bar_label(
        drawn, [f"{results.three_digits(value)} {unit}" for value in values.values()], padding=4
    )
    axes.invert_yaxis()
    axes.set_xlim(0, max(values.values()) * 1.3)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(title)


def draw(result: dict[str, Any], path: Path) -> None:
    """Times relative to eager PyTorch at the first shape, one group an operator and pass."""
    from matplotlib.figure import Figure

    from benchmarks.report import MODES, headline, shape_text

    entries = headline(result)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 0.62 * len(entries) + 1.1), layout="constrained")
        axes = figure.subplots()
        height = 0.26
        for index, name in enumerate(COLOURS):
            measured = [
                (row, results.median_ms(entry["candidates"][name]), entry)
                for row, entry in enumerate(entries)
                if name in entry["candidates"]
            ]
            if not measured:
                continue
            shares = [ms / results.median_ms(e["candidates"]["eager"]) for _, ms, e in measured]
            drawn = axes.barh(
                [row + (index - 1) * height for row, _, _ in measured],
                shares,
                height=height * 0.92,
                color=COLOURS[name],
                label=LABELS[name],
            )
            texts = [f"{results.three_digits(ms)} ms" for _, ms, _ in measured]
            axes.bar_label(drawn, texts, padding=3, fontsize=7.5)
        axes.set_yticks(
            range(len(entries)), [f"{e['operator']}\n{MODES[e['mode']]}" for e in entries]
        )
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlabel("time, eager PyTorch = 1 (shorter is faster)")
        axes.margins(x=0.1)
        first = entries[0]
        axes.set_title(
            f"{shape_text(first['shape'])}, {first['dtype']}, {first['layout']}, "
            f"{result['machine'].get('gpu') or result['machine']['processor']}"
        )
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
