"""Tables and plots against a result made by hand, and the documents that hold such tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import report, results

MIB = 2**20


def entry(mode: str, **candidates: tuple[float, int]) -> dict[str, Any]:
    return {
        "operator": "strip_pool",
        "shape": [1, 2, 3, 4],
        "dtype": "float32",
        "layout": "contiguous",
        "mode": mode,
        "candidates": {
            name: {"samples_ms": [ms / 2, ms, ms * 2], "peak_bytes": peak}
            for name, (ms, peak) in candidates.items()
        },
        "floor": {"by": "copy", "bytes": 4_000_000, "operations": 8, "samples_ms": [0.25]},
    }


MACHINE = {
    "processor": "Abacus",
    "threads": 2,
    "torch": "2.13.0",
    "compiler": "g++ 12",
    "kernels": "native",
    "commit": "0123456789ab",
    "date": "2026-01-02",
}
RESULT = {
    "machine": MACHINE,
    "entries": [
        entry("fwd", fused=(0.5, 1 * MIB), eager=(1.0, 3 * MIB), compile=(0.75, 2 * MIB)),
        entry("fwd+bwd", fused=(2.0, 1 * MIB), eager=(12.5, 3 * MIB)),
    ],
}
SUMMARY = """\
|  | pass | fused | eager | compile | of the floor | peak memory: fused | eager | compile |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| `strip_pool` | forward | **0.500 ms** | 1.00 ms | 0.750 ms | 50% | 1.0 MiB | 3.0 MiB | 2.0 MiB |
| `strip_pool` | forward, backward | **2.00 ms** | 12.5 ms |  | 12% | 1.0 MiB | 3.0 MiB |  |"""


def test_summary_table() -> None:
    assert report.summary_table(RESULT) == SUMMARY


def test_full_table() -> None:
    line = report.full_table(RESULT).splitlines()[2]
    assert line == (
        "| `strip_pool` | 1 x 2 x 3 x 4 | float32 | contiguous | forward "
        "| 0.500 ms (0.350 to 0.800) | 8.0 GB/s | 50% | 1.0 MiB | 2.00x | 1.50x |"
    )


def test_documents_are_kept_up_to_date(tmp_path: Path) -> None:
    results.write(tmp_path / "tiny.json", MACHINE, RESULT["entries"])
    assert json.loads((tmp_path / "tiny.json").read_text()) == RESULT
    document = tmp_path / "README.md"
    document.write_text("# A\n<!-- benchmarks:tiny -->\nold\n<!-- /benchmarks:tiny -->\nB\n")
    where = ["--results", str(tmp_path), "--documents", str(document)]
    assert report.main([*where, "--check"]) == 1
    assert report.main([*where, "--plots", str(tmp_path / "figures")]) == 0
    text = document.read_text()
    assert text.startswith("# A\n<!-- benchmarks:tiny -->\n")
    assert text.endswith("<!-- /benchmarks:tiny -->\nB\n")
    assert SUMMARY in text and "Abacus" in text and "old" not in text
    assert report.main([*where, "--check"]) == 0
    assert (tmp_path / "figures" / "benchmarks-tiny.svg").stat().st_size > 5_000


def test_nothing_is_reported_without_results(tmp_path: Path) -> None:
    block = "<!-- benchmarks:none -->\n{}<!-- /benchmarks:none -->\n"
    assert report.update(block.format("| 7 ms |\n"), tmp_path) == block.format("")


def test_repository_documents_are_up_to_date() -> None:
    assert report.main(["--check"]) == 0
