"""Markdown tables of benchmark results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import camvid_tables

CANDIDATES = ("fused", "eager", "compile")
PAIR = ("own", "fused")  # candidates of whole networks
MODES = {
    "fwd": "forward",
    "fwd+bwd": "forward, backward",
    "inference": "inference",
    "training": "training step",
}

Entry = dict[str, Any]


def headline(entries: Sequence[Entry]) -> list[Entry]:
    """The first entry of each operator and mode: first shape, dtype and layout."""
    first: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        first.setdefault((entry["operator"], entry["mode"]), entry)
    return list(first.values())


def lines(name: str, entries: Sequence[Entry]) -> list[Entry]:
    """The entries of a family's table: for labels, all shapes."""
    if not name.startswith("labels"):
        return headline(entries)
    first = entries[0]
    found = [e for e in entries if (e["dtype"], e["layout"]) == (first["dtype"], first["layout"])]
    # Bytes are not the limit of these operators, so the share of the floor is omitted.
    found = [{key: value for key, value in e.items() if key != "floor"} for e in found]
    return found if name == "labels" else [e for e in found if is_short(e)]


def is_short(entry: Entry) -> bool:
    """The entries of the labels family shown in the README."""
    shown = {("upsample_cross_entropy", "fwd+bwd"), ("upsample_argmax", "fwd")}
    *_, height, width = entry["shape"]
    small = entry["shape"][0] == 1 and height == width < 512
    return (entry["operator"], entry["mode"]) in shown and not small


def family_table(entries: Sequence[Entry], *, every: bool = False) -> str:
    """Times and peaks of all candidates, the shortest time in bold. Columns without measurements
    are omitted. `every` adds dtype and layout."""
    headers = ["", "shape", *(["dtype", "layout"] if every else []), "pass", *CANDIDATES]
    headers += ["of the floor", "peak memory: fused", *CANDIDATES[1:]]
    rows = []
    for entry in entries:
        measured = [entry["candidates"].get(name) for name in CANDIDATES]
        times = [time_text(each) for each in measured]
        shortest = time_text(min(filter(None, measured), key=median))
        rows.append(
            [
                f"`{entry['operator']}`",
                shape_text(entry["shape"]),
                *([entry["dtype"], entry["layout"]] if every else []),
                MODES[entry["mode"]],
                *(f"**{text}**" if text == shortest else text for text in times),
                share_text(entry),
                *(peak_text(each) for each in measured),
            ]
        )
    return present(headers, rows, left=5 if every else 3)


def operators_table(entries: Sequence[Entry]) -> str:
    """Forward and backward of every function, and the speed-up over the faster peer."""
    rows = []
    for entry in headline(entries):
        if entry["mode"] != "fwd+bwd" or not entry["operator"].islower():
            continue
        measured = {name: entry["candidates"].get(name) for name in CANDIDATES}
        times = {name: median(each) for name, each in measured.items() if each}
        peers = [time for name, time in times.items() if name != "fused"]
        rows.append(
            [
                f"`{entry['operator']}`",
                shape_text(entry["shape"]),
                *map(time_text, measured.values()),
                f"{min(peers) / times['fused']:.2f}x",
                share_text(entry),
                *map(peak_text, measured.values()),
            ]
        )
    headers = ["", "shape", *CANDIDATES, "times the faster peer", "of the floor"]
    headers += ["peak memory: fused", *CANDIDATES[1:]]
    return markdown(headers, rows, left=2)


def networks_table(entries: Sequence[Entry], *, short: bool = False) -> str:
    """Times before and after fuse, and with torch.compile, with the factors between them; products
    of convolutions over interpolated maps; peaks."""
    headers = ["", "image", "pass", "own", "fused", "times as fast", "products"]
    headers += ["own, compiled", "fused, compiled", "times as fast"]
    headers += ["peak memory: own", "fused", "own, compiled", "fused, compiled"]
    rows = []
    for entry in entries:
        of = entry["candidates"].get
        plain, compiled = ([of("own"), of("fused")], [of(f"{x}, compiled") for x in PAIR])
        before, after = entry["products"]["before"], entry["products"]["after"]
        rows.append(
            [
                entry["network"],
                shape_text(entry["shape"]),
                MODES[entry["mode"]],
                *map(time_text, plain),
                factor_text(*plain),
                f"{before / 1e9:.3g} G → {after / 1e9:.3g} G",
                *map(time_text, compiled),
                factor_text(*compiled),
                *map(peak_text, [*plain, *compiled]),
            ]
        )
    if short:
        headers, rows = headers[:7], [row[:7] for row in rows]
    return present(headers, rows, left=3)


def decoders_table(entries: Sequence[Entry]) -> str:
    """Milliseconds of each candidate, without and with the backward pass; the usual dtype first."""
    first = ("float32", "contiguous")
    rows = []
    for entry in sorted(entries, key=lambda entry: (entry["dtype"], entry["layout"]) != first):
        row = [entry["decoder"], entry["dtype"], entry["layout"]]
        for mode in ("forward", "forward and backward"):
            ms = {name: statistics.median(taken) for name, taken in entry["ms"][mode].items()}
            row += [f"{ms[name]:.1f}" if name in ms else "" for name in CANDIDATES]
            row.append(f"{ms['eager'] / ms['fused']:.2f}x")
            row.append(f"{ms['floor'] / ms['fused']:.0%}" if "floor" in ms else "")
        rows.append(row)
    ways = [*CANDIDATES[1:], "times eager", "of the floor"]
    headers = ["", "dtype", "layout", "forward: fused", *ways, "with backward: fused", *ways]
    return present(headers, rows, left=3)


def tricks_table(entries: Sequence[Entry]) -> str:
    """The slowdown of an operator without an optimisation, over the layouts that use it."""
    cases: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for entry in entries:
        operator = f"`{entry['operator']}`"
        if "case" in entry:
            operator += f", {entry['case']}"
        pairs = zip(entry["with_ms"], entry["without_ms"], strict=True)
        ratio = statistics.median(without / own for own, without in pairs)
        case = cases.setdefault((entry["trick"], entry["instead"], operator), {})
        case.setdefault(entry["dtype"], []).append(ratio)
    headers = ["trick", "without it", "operator", "float32", "bfloat16"]
    rows = [
        [*case, *(mean_text(ratios.get(dtype)) for dtype in headers[3:])]
        for case, ratios in cases.items()
    ]
    return markdown(headers, rows, left=3)


def mean_text(ratios: Sequence[float] | None) -> str:
    return f"{statistics.geometric_mean(ratios):.2f}" if ratios else ""


def present(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A table without the columns that have no measurements."""
    columns = [column for column in zip(headers, *rows, strict=True) if any(column[1:])]
    named, *lines = (list(row) for row in zip(*columns, strict=True))
    return markdown(named, lines, left)


def factor_text(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    return f"{median(before) / median(after):.2f}" if before and after else ""


def camvid_table(result: dict[str, Any], name: str) -> str:
    """Scores with a description of the training, or the scores of every class."""
    facts, entries = result["machine"], result["entries"]
    if name == "camvid-classes":
        return f"{markdown(*camvid_tables.classes(entries), left=1)}\n"
    table = markdown(*camvid_tables.scores(entries), left=1)
    how = camvid_tables.settings(facts["recipe"], entries)
    return f"{table}\n\n{how}. {machine_text(facts)}.\n"


def model_table(path: Path) -> str:
    """The share of a copy that the speed model gives each operator, and what limits it, at the
    larger and the smaller batch. All its figures are in the file."""
    found = json.loads(path.read_text())
    column = {name: k for k, name in enumerate(found["model"]["head"])}
    cells: dict[str, dict[tuple[str, str, str], str]] = {}
    columns: list[tuple[str, str, str]] = []
    for row in found["rows"]:
        batch = row[column["shape"]].partition("x")[0]
        key = (batch, row[column["dtype"]], row[column["layout"]])
        if key not in columns:
            columns.append(key)
        bound = row[column["bound by"]]
        text = row[column["of copy"]] + ("" if bound == "bytes" else f" {bound}")
        cells.setdefault(row[column["operator"]], {})[key] = text
    columns.sort(key=lambda key: -int(key[0]))  # stable
    headers = ["", *(f"batch {batch}, {dtype}, {layout}" for batch, dtype, layout in columns)]
    rows = []
    for name, by in cells.items():
        operator, comma, what = name.partition(",")
        rows.append([f"`{operator}`{comma}{what}", *(by.get(key, "") for key in columns)])
    return markdown(headers, rows, left=1)


def footnote(result: dict[str, Any]) -> str:
    """The conditions and the machine of the measurement."""
    first = {"dtype": "float32", "layout": "contiguous", **result["entries"][0]}
    return (
        f"{first['dtype']}, {first['layout']}. Medians of interleaved samples; "
        f"{result['machine']['kernels']} kernels. {machine_text(result['machine'])}."
    )


def machine_text(machine: dict[str, Any]) -> str:
    threads = machine["threads"]
    on = machine.get("gpu") or f"{machine['processor']}, {threads} thread{'s' * (threads != 1)}"
    facts = [on, f"torch {machine['torch']}", machine["compiler"], f"commit {machine['commit']}"]
    return ", ".join(fact for fact in [*facts, machine["date"]] if fact)


def median(measured: dict[str, Any]) -> float:
    """The median in milliseconds of a candidate or a floor."""
    return statistics.median(measured["samples_ms"])


def time_text(measured: dict[str, Any] | None) -> str:
    """Formats a time with at least three digits, without an exponent."""
    if measured is None:
        return ""
    value = median(measured)
    decimals = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f} ms"


def peak_text(measured: dict[str, Any] | None) -> str:
    peak = measured.get("peak_bytes") if measured else None
    return "" if peak is None else f"{peak / 2**20:.1f} MiB"


def share_text(entry: Entry) -> str:
    """The time of the floor's copy or product, as a percentage of the fused time."""
    if "floor" not in entry:
        return ""
    return f"{median(entry['floor']) / median(entry['candidates']['fused']):.0%}"


def shape_text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table; the first `left` columns are left-aligned, the others right-aligned."""
    rule = ["---"] * left + ["---:"] * (len(headers) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [headers, rule, *rows])
