"""Plots from result files: bars of time against peers, the roofline, and growth with each size."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks import growth, results
from benchmarks.tables import MODES, shape_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart by every kind of sight.
COLOURS = {"fused": "#0072B2", "eager": "#BDBDBD", "compile": "#E69F00"}
LABELS = {"fused": "stripctx", "eager": "PyTorch eager", "compile": "torch.compile"}
MANY = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = "os^Dv"
LONGEST = 2.0  # times eager
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],  # the first that the reader has
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


def bars_figure(result: dict[str, Any], path: Path) -> None:
    """Times relative to eager PyTorch at each operator's first shape, one group a pass. A bar
    beyond LONGEST is cut there; its time is written beside it all the same."""
    entries = results.headline(result)
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
                [min(share, LONGEST) for share in shares],
                height=height * 0.92,
                color=COLOURS[name],
                label=LABELS[name],
            )
            texts = [
                f"{results.three_digits(ms)} ms" + (" (cut)" if share > LONGEST else "")
                for share, (_, ms, _) in zip(shares, measured, strict=True)
            ]
            axes.bar_label(drawn, texts, padding=3, fontsize=7.5)
        axes.set_yticks(
            range(len(entries)),
            [f"{e['operator']}\n{MODES[e['mode']]}, {shape_text(e['shape'])}" for e in entries],
            fontsize=8,
        )
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlabel("time, eager PyTorch = 1 (shorter is faster)")
        axes.margins(x=0.1, y=0.01)
        first = entries[0]
        axes.set_title(f"{first['dtype']}, {first['layout']}, {where(result)}")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        save(figure, path)


def growth_figure(result: dict[str, Any], path: Path) -> None:
    """Time against N, C and H = W on logarithmic axes, where that was measured."""
    grown = growth.series(result)
    if not grown:
        return
    operators = list(dict.fromkeys(each.operator for each in grown))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        panels = dict(zip(growth.SIZES, figure.subplots(1, 3, sharey=True), strict=True))
        for each in grown:
            axes, colour = panels[each.axis], MANY[operators.index(each.operator) % len(MANY)]
            label = f"{each.operator}: work to the {each.slope():.2f}"
            axes.loglog(each.sizes, each.times["fused"], "o-", color=colour, ms=4, label=label)
            if "eager" in each.times:
                eager = each.times["eager"]
                axes.loglog(each.sizes, eager, "--", color=colour, lw=1, alpha=0.6)
            axes.set_xticks(each.sizes, [str(size) for size in each.sizes])
        for axis, axes in panels.items():
            axes.set_xlabel(axis.replace("=", " = "))
            axes.minorticks_off()
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=6.5, frameon=False, loc="upper left")
        low, high = panels["N"].get_ylim()
        panels["N"].set_ylim(low, high * 2 ** len(operators))  # room for the legends
        panels["N"].set_ylabel("ms, forward and backward")
        panels["N"].set_title(f"stripctx; dashed: PyTorch eager. {where(result)}")
        save(figure, path)


def roofline_figure(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Operations a second, forward and backward, against operations a byte of the floor, below what
    copies and products of matrices reached in the same runs."""
    entries = [
        entry
        for result in found
        for entry in results.headline(result)
        if entry["mode"] == "fwd+bwd" and "floor" in entry
    ]
    if not entries:
        return
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        axes = figure.subplots()
        for number, entry in enumerate(entries):
            floor, candidates = entry["floor"], entry["candidates"]
            intensity = floor["operations"] / floor["bytes"]
            rates = {
                name: floor["operations"] / results.median_ms(candidates[name]) / 1e6
                for name in ("fused", "eager")
            }
            colour = MANY[number % len(MANY)]
            marker = MARKERS[number // len(MANY) % len(MARKERS)]
            point = {"color": colour, "marker": marker, "ls": "", "ms": 6}
            axes.loglog(intensity, rates["fused"], label=entry["operator"], **point)
            axes.loglog(intensity, rates["eager"], fillstyle="none", alpha=0.7, **point)
        _roof(axes, entries)
        axes.set_xlabel("operations a byte that must move")
        axes.set_ylabel("Gop/s, forward and backward")
        axes.set_title(f"filled: stripctx, hollow: PyTorch eager. {where(found[0])}")
        figure.legend(loc="outside right upper", fontsize=7.5, frameon=False)
        save(figure, path)


def _roof(axes: Axes, entries: Sequence[dict[str, Any]]) -> None:
    """The median copy's bytes a second as a slope, the best product's operations as a level."""
    rates: dict[str, list[float]] = {"copy": [], "product": []}
    for entry in entries:
        floor = entry["floor"]
        amount = floor["bytes" if floor["by"] == "copy" else "operations"]
        rates[floor["by"]].append(amount / results.median_ms(floor) / 1e6)
    left, right = axes.get_xlim()
    if rates["copy"]:
        copy = statistics.median(rates["copy"])
        end = max(rates["product"], default=copy * right) / copy
        axes.plot([left, end], [left * copy, end * copy], color="black", lw=1)
        axes.annotate(f"copy: {copy:.0f} GB/s", (left, left * copy), (6, 10),
                      textcoords="offset points", fontsize=8)  # fmt: skip
    if rates["product"]:
        level = max(rates["product"])
        start = level / statistics.median(rates["copy"]) if rates["copy"] else left
        axes.plot([start, max(right, start)], [level, level], color="black", lw=1)
        axes.annotate(f"product: {level:.0f} GFLOP/s", (right, level), (-4, 4), ha="right",
                      textcoords="offset points", fontsize=8)  # fmt: skip


def where(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return str(machine.get("gpu") or machine["processor"])


def save(figure: Figure, path: Path) -> None:
    """The same bytes for the same results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
