"""Tables and plots from result files; no number in a document is typed by hand.

    python -m benchmarks.report              bring README.md and docs/*.md up to date; draw plots
    python -m benchmarks.report --check      exit status 1 if a document is not up to date
    python -m benchmarks.report --show strip print every entry of benchmarks/results/strip.json

A document says where something goes by a pair of comments, between which everything is replaced:

    <!-- benchmarks:strip -->       one line an operator and mode, its first shape; two plots;
                                    then the same on CUDA, if strip-cuda.json is there
    <!-- /benchmarks:strip -->
    <!-- benchmarks:strip all -->   every entry
    <!-- /benchmarks:strip -->
    <!-- benchmarks:scorecard -->   all families against what stripctx asks of itself; two plots
    <!-- /benchmarks:scorecard -->
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks import results, scorecard, tables

REPOSITORY = Path(__file__).resolve().parent.parent
FIGURES = REPOSITORY / "docs" / "figures"
BLOCK = re.compile(
    r"(?P<open><!-- benchmarks:(?P<name>[\w-]+)(?P<all> all)? -->\n)"
    r".*?(?P<close><!-- /benchmarks:(?P=name) -->)",
    re.DOTALL,
)


def update(text: str, folder: Path = results.FOLDER, figures: str = "") -> str:
    """`text` with every block made anew from its result files; `figures` is the folder of the plots
    as seen from the document. What was not measured yet is left empty."""

    def render(match: re.Match[str]) -> str:
        if match["name"] == "scorecard":
            body = scorecard_block(results.families(folder), figures)
        else:
            paths = [folder / f"{match['name']}{device}.json" for device in ("", "-cuda")]
            blocks = [
                family_block(path, bool(match["all"]), figures) for path in paths if path.is_file()
            ]
            body = "\n".join(blocks)
        return f"{match['open']}{body}{match['close']}"

    return BLOCK.sub(render, text)


def family_block(path: Path, every_entry: bool, figures: str) -> str:
    result = results.read(path)
    table = tables.full_table(result) if every_entry else tables.summary_table(result)
    growth = tables.growth_table(result)
    parts = [table, *([growth] if growth else []), tables.footnote(result)]
    parts.append(image(figures, f"benchmarks-{path.stem}", "These times, eager PyTorch = 1"))
    if growth:
        parts.append(image(figures, f"growth-{path.stem}", "Time against N, C and H = W"))
    return "\n\n".join(parts) + "\n"


def scorecard_block(found: dict[str, dict[str, Any]], figures: str) -> str:
    if not found:
        return ""
    machines = dict.fromkeys(tables.machine_text(result["machine"]) for result in found.values())
    parts = [scorecard.tables(list(found.values())), "; ".join(machines) + "."]
    parts.append(image(figures, "benchmarks-scorecard", "Time of the ten, forward and backward"))
    parts.append(image(figures, "roofline", "Operations a second against operations a byte"))
    return "\n\n".join(parts) + "\n"


def image(figures: str, name: str, text: str) -> str:
    return f"![{text}]({figures}/{name}.svg)"


def updated(document: Path, folder: Path = results.FOLDER, figures: Path = FIGURES) -> str:
    """What the document should say."""
    return update(document.read_text(), folder, os.path.relpath(figures, document.parent))


def draw_all(folder: Path, figures: Path) -> None:
    """Bars and growth of every result file; bars and roofline of all families together."""
    from benchmarks import plots  # matplotlib takes a second

    for path in sorted(folder.glob("*.json")):
        result = results.read(path)
        plots.bars_figure(result, figures / f"benchmarks-{path.stem}.svg")
        plots.growth_figure(result, figures / f"growth-{path.stem}.svg")
    found = list(results.families(folder).values())
    if found:
        plots.bars_figure(scorecard.ten(found), figures / "benchmarks-scorecard.svg")
        plots.roofline_figure(found, figures / "roofline.svg")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="folder to read")
    parser.add_argument("--documents", type=Path, nargs="*", help="default: README.md docs/**/*.md")
    parser.add_argument("--plots", type=Path, default=FIGURES)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    parser.add_argument("--show", metavar="NAME", help="print a result file's table")
    options = parser.parse_args(arguments)
    if options.show:
        result = results.read(options.results / f"{options.show}.json")
        parts = (tables.full_table(result), tables.growth_table(result), tables.footnote(result))
        print(*(part for part in parts if part), sep="\n\n")
        return 0
    documents = options.documents
    if documents is None:
        found = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
        documents = [path for path in found if path.is_file()]
    texts = {path: updated(path, options.results, options.plots) for path in documents}
    stale = {path: text for path, text in texts.items() if path.read_text() != text}
    if options.check:
        for path in stale:
            print(f"{path.name}: out of date; run python -m benchmarks.report", file=sys.stderr)
        return 1 if stale else 0
    for path, text in stale.items():
        path.write_text(text)
        print(f"updated {path.name}")
    draw_all(options.results, options.plots)
    return 0


if __name__ == "__main__":
    sys.exit(main())
