"""What stripctx asks of itself on a CPU, and whether the result files show it.

Float32, contiguous, forward and backward, at the paper's shape with a batch of one. An operator's
limit is how many times faster than the better of eager PyTorch and torch.compile it could be if
nothing but its floor cost time, as estimated from the traffic of both; three quarters of that are
asked for. Beside inputs, outputs and gradients, an operator may hold some share of x.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import growth, results
from benchmarks.floors import CODES
from benchmarks.tables import MODES, markdown, shape_text, time_text

LIMITS = {
    "strip_pool": 3.0,
    "strip_gate": 1.2,
    "pyramid_pool": 8.0,
    "pyramid_concat": 5.0,
    "pyramid_add_relu": 8.0,
    "pyramid_conv": 1.9,
    "row_pool": 2.5,
    "row_gate": 1.7,
    "encode": 2.5,
    "channel_gate": 4.5,
}
OF_THE_LIMIT = 0.75
OVER_EAGER, OVER_PEERS = 3.0, 2.6  # geometric means
HEAD = "PyramidPoolingConv"  # PSPNet's, over eager
HEAD_OVER_EAGER = {"fwd": 1.8, "fwd+bwd": 1.6}
LINEAR = 1.15  # the largest exponent of time as a power of the work that passes for linear
SHARE_OF_X = 0.05
ELEMENT_SIZE = {"float32": 4, "bfloat16": 2}

Entry = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A requirement, what was measured, and whether it is met; None where nothing was measured."""

    what: str
    asked: str
    measured: str
    met: bool | None

    @property
    def verdict(self) -> str:
        return {True: "met", False: "**missed**", None: "not measured"}[self.met]


def tables(found: Sequence[dict[str, Any]]) -> str:
    """Of the result files together: the operators, then everything else."""
    entries = [entry for result in found for entry in result["entries"]]
    return f"{operators_table(entries)}\n\n{requirements_table(found)}"


def ten(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The operators' entries as a result file of their own, for a plot."""
    entries = [entry for result in found for entry in result["entries"]]
    chosen = [headline(entries, operator) for operator in LIMITS]
    return {"machine": found[0]["machine"], "entries": [entry for entry in chosen if entry]}


def operators_table(entries: Sequence[Entry]) -> str:
    headers = ["", "shape", "fused", "eager", "compile", "times the better", "limit"]
    headers += ["75 % of it", "", "held beside, of x", "at most", ""]
    rows = []
    for operator, limit in LIMITS.items():
        entry = headline(entries, operator)
        if entry is None:
            continue
        times = [time_text(entry["candidates"].get(c)) for c in ("fused", "eager", "compile")]
        ratio, asked = results.speedup_over_peers(entry), OF_THE_LIMIT * limit
        rows.append(
            [
                f"`{operator}`",
                shape_text(entry["shape"]),
                *times,
                f"{ratio:.2f}x",
                f"{limit:g}x",
                f"{asked:.2f}x",
                Line("", "", "", ratio >= asked).verdict,
                *held_cells(entry),
            ]
        )
    return markdown(headers, rows, left=2)


def held_cells(entry: Entry) -> list[str]:
    """Memory that the fused call holds beside its results, as a share of x."""
    x = math.prod(entry["shape"]) * ELEMENT_SIZE[entry["dtype"]]
    allowed = allowed_bytes(entry) / x
    held = held_bytes(entry)
    if held is None:
        return ["", f"{allowed:.1%}", Line("", "", "", None).verdict]
    return [f"{held / x:.1%}", f"{allowed:.1%}", Line("", "", "", held / x <= allowed).verdict]


def held_bytes(entry: Entry) -> int | None:
    fused = entry["candidates"]["fused"]
    peak: int | None = fused.get("peak_bytes")
    return None if peak is None else max(0, peak - fused["result_bytes"])


def allowed_bytes(entry: Entry) -> float:
    """strip_gate keeps the convolution's operand and its result; encode may keep assignments."""
    batch, _, height, width = entry["shape"]
    x = math.prod(entry["shape"]) * ELEMENT_SIZE[entry["dtype"]]
    if entry["operator"] == "strip_gate":
        return 2 * x
    if entry["operator"] == "encode":
        return batch * height * width * CODES * ELEMENT_SIZE["float32"]
    return SHARE_OF_X * x


def requirements_table(found: Sequence[dict[str, Any]]) -> str:
    entries = [entry for result in found for entry in result["entries"]]
    lines = [*means(entries), lowest(entries), *head(entries), *linear(found), halves(entries)]
    rows = [[line.what, line.asked, line.measured, line.verdict] for line in lines]
    return markdown(["", "asked", "measured", ""], rows, left=1)


def means(entries: Sequence[Entry]) -> list[Line]:
    """Over the ten, of which none may be missing, and each of their peers."""
    ten = [entry for operator in LIMITS if (entry := headline(entries, operator))]
    number = len(LIMITS)
    lines = []
    for asked, what, ratio in (
        (OVER_EAGER, "eager", lambda entry: results.speedup(entry, "eager")),
        (OVER_PEERS, "the better of eager and compile", results.speedup_over_peers),
    ):
        ratios = [ratio(entry) for entry in ten]
        mean = statistics.geometric_mean(ratios) if ratios else 0.0
        complete = len(ten) == number and (
            what == "eager" or all("compile" in entry["candidates"] for entry in ten)
        )
        measured = f"{mean:.2f}x" + ("" if complete else f" of {len(ten)}, incomplete")
        line = f"geometric mean of the {number}, times {what}"
        lines.append(Line(line, f"{asked:.1f}x", measured, mean >= asked if complete else None))
    return lines


def lowest(entries: Sequence[Entry]) -> Line:
    """Of every function and layer in float32 at every shape, forward too."""
    usual = [
        entry
        for entry in entries
        if entry["dtype"] == "float32" and "axis" not in entry and entry["mode"] in HEAD_OVER_EAGER
    ]
    what = "the slowest case in float32, times its better peer"
    if not usual:
        return Line(what, "1.0x", "", None)
    least = min(usual, key=results.speedup_over_peers)
    ratio = results.speedup_over_peers(least)
    case = f"`{least['operator']}`, {MODES[least['mode']]}, {shape_text(least['shape'])}"
    layout = "" if least["layout"] == "contiguous" else f", {least['layout']}"
    return Line(what, "1.0x", f"{ratio:.2f}x ({case}{layout})", ratio >= 1)


def head(entries: Sequence[Entry]) -> list[Line]:
    lines = []
    for mode, asked in HEAD_OVER_EAGER.items():
        entry = headline(entries, HEAD, mode)
        what = f"PSPNet's head, pooling to bottleneck, {MODES[mode]}, times eager"
        ratio = results.speedup(entry, "eager") if entry else None
        measured = "" if ratio is None else f"{ratio:.2f}x"
        met = None if ratio is None else ratio >= asked
        lines.append(Line(what, f"{asked:.1f}x", measured, met))
    return lines


def linear(found: Sequence[dict[str, Any]]) -> list[Line]:
    """The steepest function along each axis."""
    grown = [each for result in found for each in growth.series(result)]
    lines = []
    for axis in growth.SIZES:
        what = f"time as a power of the work, growing with {axis}"
        steepest = max((e for e in grown if e.axis == axis), key=growth.Series.slope, default=None)
        slope = steepest.slope() if steepest else None
        measured = f"{slope:.2f} (`{steepest.operator}`)" if steepest else ""
        met = None if slope is None else slope <= LINEAR
        lines.append(Line(what, f"1, up to {LINEAR}", measured, met))
    return lines


def halves(entries: Sequence[Entry]) -> Line:
    """bfloat16 against float32 at the same shape and layout, the slowest of the ten."""
    fused: dict[tuple[Any, ...], float] = {}
    for entry in entries:
        if entry["operator"] in LIMITS and entry["mode"] == "fwd+bwd" and "axis" not in entry:
            key = (entry["operator"], *entry["shape"], entry["layout"])
            fused[(*key, entry["dtype"])] = results.median_ms(entry["candidates"]["fused"])
    ratios = {
        key[:-1]: fused[(*key[:-1], "float32")] / ms
        for key, ms in fused.items()
        if key[-1] == "bfloat16" and (*key[:-1], "float32") in fused
    }
    what = "the slowest in bfloat16, times itself in float32"
    if not ratios:
        return Line(what, "1.0x", "", None)
    least = min(ratios, key=lambda key: ratios[key])
    measured = f"{ratios[least]:.2f}x (`{least[0]}`, {least[-1]})"
    return Line(what, "1.0x", measured, ratios[least] >= 1)


def headline(entries: Sequence[Entry], operator: str, mode: str = "fwd+bwd") -> Entry | None:
    """The operator's entry at its first shape in float32 and contiguous."""
    for entry in entries:
        same = (entry["operator"], entry["mode"], entry["dtype"], entry["layout"])
        if same == (operator, mode, "float32", "contiguous") and "axis" not in entry:
            return entry
    return None
