"""Tables in Markdown from result files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import growth, results

MODES = {
    "fwd": "forward",
    "fwd+bwd": "forward, backward",
    "inference": "inference",
    "training": "training step",
}


def summary_table(result: dict[str, Any]) -> str:
    """Each operator's first shape, dtype and layout in each mode: times and peaks of all
    candidates, the shortest time in bold. Columns of what nobody measured are left out."""
    headers = ["", "shape", "pass", "fused", "eager", "compile", "of the floor"]
    headers += ["peak memory: fused", "eager", "compile"]
    rows = []
    for entry in results.headline(result):
        candidates = [entry["candidates"].get(name) for name in ("fused", "eager", "compile")]
        shortest = time_text(min(filter(None, candidates), key=results.median_ms))
        times = [time_text(each) for each in candidates]
        times = [f"**{text}**" if text == shortest else text for text in times]
        peaks = [peak_text(each) for each in candidates]
        names = [f"`{entry['operator']}`", shape_text(entry["shape"]), MODES[entry["mode"]]]
        rows.append([*names, *times, share_text(entry), *peaks])
    columns = [column for column in zip(headers, *rows, strict=True) if any(column[1:])]
    headers, *rows = zip(*columns, strict=True)
    return markdown(headers, rows, left=3)


def full_table(result: dict[str, Any]) -> str:
    """One line an entry, but those of `growth_table`."""
    headers = ["operator", "shape", "dtype", "layout", "pass", "median (p20 to p80)", "bytes"]
    headers += ["rate", "of the floor", "peak memory", "vs eager", "vs compile"]
    entries = [entry for entry in result["entries"] if "axis" not in entry]
    with_kernels = any("kernels" in entry["candidates"]["fused"] for entry in entries)
    rows = []
    for entry in entries:
        fused = entry["candidates"]["fused"]
        low, high = (results.three_digits(ms) for ms in results.spread_ms(fused))
        rows.append(
            [
                f"`{entry['operator']}`",
                shape_text(entry["shape"]),
                entry["dtype"],
                entry["layout"],
                MODES[entry["mode"]],
                f"{time_text(fused)} ({low} to {high})",
                bytes_text(entry),
                rate_text(entry),
                share_text(entry),
                peak_text(fused),
                speedup_text(entry, "eager"),
                speedup_text(entry, "compile"),
                *([kernels_text(entry)] if with_kernels else []),
            ]
        )
    return markdown(headers + ["kernels"] * with_kernels, rows, left=5)


def growth_table(result: dict[str, Any]) -> str:
    """The exponent of time as a power of the floor's work, by function and axis; "" where nothing
    was measured."""
    found = {(each.operator, each.axis): each for each in growth.series(result)}
    if not found:
        return ""
    rows = [
        [
            f"`{operator}`",
            *(
                f"{found[operator, axis].slope():.2f}" if (operator, axis) in found else ""
                for axis in growth.SIZES
            ),
        ]
        for operator in dict.fromkeys(operator for operator, _ in found)
    ]
    return markdown(["time grows as work to the power", *growth.SIZES], rows, left=1)


def footnote(result: dict[str, Any]) -> str:
    """What was measured and on what."""
    first = result["entries"][0]
    return (
        f"First lines: {first['dtype']}, {first['layout']}. Medians of interleaved samples; "
        f"{result['machine']['kernels']} kernels. {machine_text(result['machine'])}."
    )


def machine_text(machine: dict[str, Any]) -> str:
    on = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    facts = [on, f"torch {machine['torch']}", machine["compiler"], f"commit {machine['commit']}"]
    return ", ".join(fact for fact in [*facts, machine["date"]] if fact)


def time_text(measured: dict[str, Any] | None) -> str:
    return "" if measured is None else f"{results.three_digits(results.median_ms(measured))} ms"


def peak_text(measured: dict[str, Any] | None) -> str:
    peak = measured.get("peak_bytes") if measured else None
    return "" if peak is None else f"{peak / 2**20:.1f} MiB"


def shape_text(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)


def bytes_text(entry: dict[str, Any]) -> str:
    """The floor's."""
    return f"{entry['floor']['bytes'] / 1e6:.1f} MB" if "floor" in entry else ""


def share_text(entry: dict[str, Any]) -> str:
    """How near the fused time comes to that of the floor's copy or product."""
    if "floor" not in entry:
        return ""
    fused = results.median_ms(entry["candidates"]["fused"])
    return f"{results.median_ms(entry['floor']) / fused:.0%}"


def rate_text(entry: dict[str, Any]) -> str:
    """The floor's bytes or operations a second of the fused time."""
    if "floor" not in entry:
        return ""
    seconds = results.median_ms(entry["candidates"]["fused"]) / 1e3
    if entry["floor"]["by"] == "copy":
        return f"{entry['floor']['bytes'] / seconds / 1e9:.1f} GB/s"
    return f"{entry['floor']['operations'] / seconds / 1e9:.0f} GFLOP/s"


def speedup_text(entry: dict[str, Any], peer: str) -> str:
    return f"{results.speedup(entry, peer):.2f}x" if peer in entry["candidates"] else ""


def kernels_text(entry: dict[str, Any]) -> str:
    """How many kernels each candidate launches."""
    return " / ".join(str(each.get("kernels", "")) for each in entry["candidates"].values())


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A table whose first `left` columns are flush left, the others flush right."""
    rule = ["---"] * left + ["---:"] * (len(headers) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [headers, rule, *rows])
