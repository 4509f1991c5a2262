"""Writes tables from result files into the documentation.

    python -m benchmarks.report              update README.md and docs/**/*.md
    python -m benchmarks.report --check      exit status 1 if a document is not up to date
    python -m benchmarks.report --show strip print every entry of benchmarks/results/strip.json

A pair of comments marks a table in a document; everything between them is replaced:

    <!-- benchmarks:strip -->       one row per operator and mode, at the first shape; then the same
    <!-- /benchmarks:strip -->      on CUDA, if strip-cuda.json exists
    <!-- benchmarks:labels-short --> losses and label maps, for the README
    <!-- benchmarks:operators -->   one row per operator of all families, forward and backward
    <!-- /benchmarks:operators -->
    <!-- benchmarks:networks -->    whole networks before and after fuse; as networks-short only
    <!-- /benchmarks:networks -->   times and products
    <!-- benchmarks:exported -->   third-party networks before and after fuse, exported to ONNX
    <!-- /benchmarks:exported -->
    <!-- benchmarks:decoders -->    convolutions over interpolated maps, each dtype and layout
    <!-- /benchmarks:decoders -->
    <!-- benchmarks:tricks -->      the optimisations of the CPU kernels and their gains
    <!-- /benchmarks:tricks -->
    <!-- benchmarks:model -->       the estimates of tests/speed_model.py for CUDA operators
    <!-- /benchmarks:model -->
    <!-- benchmarks:camvid -->      mIoU of networks on road scenes; camvid-classes by class
    <!-- /benchmarks:camvid -->
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import (
    camvid_table,
    decoders_table,
    family_table,
    footnote,
    lines,
    machine_text,
    model_table,
    networks_table,
    operators_table,
    tricks_table,
)

RESULTS = Path(__file__).resolve().parent / "results"
REPOSITORY = RESULTS.parent.parent
FAMILIES = ("strip", "pyramid", "upsample", "height", "encoding", "labels")
BLOCK = re.compile(
    r"(?P<open><!-- benchmarks:(?P<name>[\w-]+) -->\n)"
    r".*?(?P<close><!-- /benchmarks:(?P=name) -->)",
    re.DOTALL,
)


def read(path: Path) -> dict[str, Any]:
    """The entries of a result file, without failed cases."""
    result: dict[str, Any] = json.loads(path.read_text())
    result["entries"] = [entry for entry in result["entries"] if "error" not in entry]
    return result


def update(text: str, folder: Path = RESULTS) -> str:
    """`text` with all blocks updated; blocks without measurements are left empty."""

    def render(match: re.Match[str]) -> str:
        if match["name"] == "operators":
            found = [read(path) for path in existing(folder, FAMILIES)]
            entries = [entry for result in found for entry in result["entries"]]
            notes = dict.fromkeys(machine_text(result["machine"]) for result in found)
            blocks = [f"{operators_table(entries)}\n\n{'; '.join(notes)}.\n"] if found else []
        elif match["name"] == "model":
            blocks = [f"{model_table(path)}\n" for path in existing(folder, ["model"])]
        elif match["name"] in ("networks", "networks-short", "exported"):
            found = [
                read(path) for path in existing(folder, [match["name"].removesuffix("-short")])
            ]
            short = match["name"] == "networks-short"
            blocks = [
                f"{networks_table(result['entries'], short=short)}\n\n{footnote(result)}\n"
                for result in found
                if result["entries"]
            ]
        elif match["name"] in ("camvid", "camvid-classes"):
            found = [read(path) for path in existing(folder, ["camvid"])]
            blocks = [camvid_table(result, match["name"]) for result in found]
        elif match["name"] in ("decoders", "tricks"):
            table = decoders_table if match["name"] == "decoders" else tricks_table
            found = [read(path) for path in existing(folder, [match["name"]])]
            blocks = [
                f"{table(result['entries'])}\n\n{machine_text(result['machine'])}.\n"
                for result in found
            ]
        else:
            file = match["name"].removesuffix("-short")
            found = [read(p) for p in existing(folder, [file, f"{file}-cuda"])]
            blocks = [
                f"{family_table(lines(match['name'], result['entries']))}\n\n{footnote(result)}\n"
                for result in found
            ]
        return f"{match['open']}{chr(10).join(blocks)}{match['close']}"

    return BLOCK.sub(render, text)


def existing(folder: Path, names: Sequence[str]) -> list[Path]:
    return [path for name in names if (path := folder / f"{name}.json").is_file()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to read")
    parser.add_argument("--documents", type=Path, nargs="*", help="default: README.md docs/**/*.md")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    parser.add_argument("--show", metavar="NAME", help="print a result file's table")
    options = parser.parse_args(arguments)
    if options.show:
        result = read(options.results / f"{options.show}.json")
        of_networks = options.show in ("networks", "exported")
        entries = result["entries"]
        table = networks_table(entries) if of_networks else family_table(entries, every=True)
        print(table, footnote(result), sep="\n\n")
        return 0
    documents = options.documents
    if documents is None:
        documents = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    return bring_up_to_date(documents, lambda text: update(text, options.results), options.check)


def bring_up_to_date(documents: Sequence[Path], update: Callable[[str], str], check: bool) -> int:
    """Rewrites documents that `update` changes; with `check` only prints their names and returns
    1."""
    stale = {
        path: text for path in documents if (text := update(path.read_text())) != path.read_text()
    }
    for path, text in stale.items():
        print(f"{path.name}: {'out of date' if check else 'updated'}", file=sys.stderr)
        if not check:
            path.write_text(text)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
