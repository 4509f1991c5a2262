"""Tables and plots from result files; no number in a document is typed by hand.

    python -m benchmarks.report              bring README.md and docs/*.md up to date; draw plots
    python -m benchmarks.report --check      exit status 1 if a document is not up to date
    python -m benchmarks.report --show strip print every entry of benchmarks/results/strip.json

A document says where a table goes by a pair of comments, between which everything is replaced:

    <!-- benchmarks:strip -->       one line an operator and mode, at the first shape
    <!-- /benchmarks:strip -->
    <!-- benchmarks:strip all -->   every entry
    <!-- /benchmarks:strip -->
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results

REPOSITORY = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?P<open><!-- benchmarks:(?P<name>[\w-]+)(?P<all> all)? -->\n)"
    r".*?(?P<close><!-- /benchmarks:(?P=name) -->)",
    re.DOTALL,
)
MODES = {"fwd": "forward", "fwd+bwd": "forward, backward"}


def update(text: str, folder: Path = results.FOLDER) -> str:
    """`text` with every block made anew from its result file."""

    def render(match: re.Match[str]) -> str:
        path = folder / f"{match['name']}.json"
        if not path.is_file():
            return match["open"] + match["close"]  # not measured yet
        result = results.read(path)
        table = full_table(result) if match["all"] else summary_table(result)
        return f"{match['open']}{table}\n{footnote(result)}\n{match['close']}"

    return BLOCK.sub(render, text)


def is_up_to_date(document: Path, folder: Path = results.FOLDER) -> bool:
    text = document.read_text()
    return update(text, folder) == text


def summary_table(result: dict[str, Any]) -> str:
    """The first shape, first dtype and layout: times and peaks of all candidates side by side."""
    headers = ["", "pass", "fused", "eager", "compile", "of the floor", "peak memory: fused"]
    headers += ["eager", "compile"]
    rows = []
    for entry in headline(result):
        measured = [entry["candidates"].get(name) for name in ("fused", "eager", "compile")]
        times = [time_text(each) for each in measured]
        times[0] = f"**{times[0]}**"
        peaks = [peak_text(each) for each in measured]
        name = f"`{entry['operator']}`"
        rows.append([name, MODES[entry["mode"]], *times, share_text(entry), *peaks])
    return markdown(headers, rows, left=2)


def headline(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of the first shape, dtype and layout that were measured."""
    entries: list[dict[str, Any]] = result["entries"]
    same = ("shape", "dtype", "layout")
    return [entry for entry in entries if all(entry[key] == entries[0][key] for key in same)]


def full_table(result: dict[str, Any]) -> str:
    """One line an entry."""
    headers = ["operator", "shape", "dtype", "layout", "pass", "median (p20 to p80)", "rate"]
    headers += ["of the floor", "peak memory", "vs eager", "vs compile"]
    rows = []
    for entry in result["entries"]:
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
                rate_text(entry),
                share_text(entry),
                peak_text(fused),
                speedup_text(entry, "eager"),
                speedup_text(entry, "compile"),
            ]
        )
    return markdown(headers, rows, left=5)


def footnote(result: dict[str, Any]) -> str:
    """What was measured and on what."""
    machine, first = result["machine"], result["entries"][0]
    on = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    facts = [on, f"torch {machine['torch']}", machine["compiler"], f"commit {machine['commit']}"]
    facts.append(machine["date"])
    return (
        f"\nFirst line: {shape_text(first['shape'])}, {first['dtype']}, {first['layout']}. "
        f"Medians of interleaved samples; {machine['kernels']} kernels. "
        f"{', '.join(fact for fact in facts if fact)}.\n"
    )


def time_text(measured: dict[str, Any] | None) -> str:
    return "" if measured is None else f"{results.three_digits(results.median_ms(measured))} ms"


def peak_text(measured: dict[str, Any] | None) -> str:
    peak = measured.get("peak_bytes") if measured else None
    return "" if peak is None else f"{peak / 2**20:.1f} MiB"


def shape_text(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)


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
    if peer not in entry["candidates"]:
        return ""
    fused, other = (results.median_ms(entry["candidates"][name]) for name in ("fused", peer))
    return f"{other / fused:.2f}x"


def markdown(headers: list[str], rows: list[list[str]], left: int) -> str:
    """A table whose first `left` columns are flush left, the others flush right."""
    rule = ["---"] * left + ["---:"] * (len(headers) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [headers, rule, *rows])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="folder to read")
    parser.add_argument("--documents", type=Path, nargs="*", help="default: README.md docs/*.md")
    parser.add_argument("--plots", type=Path, default=REPOSITORY / "docs" / "figures")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    parser.add_argument("--show", metavar="NAME", help="print a result file's table")
    options = parser.parse_args(arguments)
    if options.show:
        result = results.read(options.results / f"{options.show}.json")
        print(full_table(result), footnote(result), sep="\n")
        return 0
    documents = options.documents
    if documents is None:
        found = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
        documents = [path for path in found if path.is_file()]
    stale = [path for path in documents if not is_up_to_date(path, options.results)]
    if options.check:
        for path in stale:
            print(f"{path.name}: out of date; run python -m benchmarks.report", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(update(path.read_text(), options.results))
        print(f"updated {path.name}")
    from benchmarks import plots

    for path in sorted(options.results.glob("*.json")):
        plot = options.plots / f"benchmarks-{path.stem}.svg"
        plots.draw(results.read(path), plot)
        print(f"drew {plot.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
