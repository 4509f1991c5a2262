"""Tables from manually written results, and the documents that contain them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import family, report, tables

MIB = 2**20


def entry(mode: str, operator: str = "strip_pool", **candidates: Any) -> dict[str, Any]:
    """An entry; `candidates` are pairs of milliseconds and bytes, other keywords override
    fields."""
    others = {key: candidates.pop(key) for key in ("shape", "dtype", "floor") if key in candidates}
    return {
        "operator": operator,
        "shape": [1, 2, 3, 4],
        "dtype": "float32",
        "layout": "contiguous",
        "mode": mode,
        "candidates": {
            name: {"samples_ms": [ms / 2, ms, ms * 2], "peak_bytes": peak, "result_bytes": 0}
            for name, (ms, peak) in candidates.items()
        },
        "floor": {"by": "copy", "bytes": 4_000_000, "operations": 8, "samples_ms": [0.25]},
    } | others


MACHINE = {
    "processor": "Abacus",
    "threads": 2,
    "torch": "2.13.0",
    "compiler": "g++ 12",
    "kernels": "native",
    "commit": "0123456789ab",
    "date": "2026-01-02",
}
ENTRIES = [
    entry("fwd", fused=(0.5, 1 * MIB), eager=(1.0, 3 * MIB), compile=(0.75, 2 * MIB)),
    entry("fwd+bwd", fused=(2.0, 1 * MIB), eager=(12.5, 3 * MIB)),
    entry("fwd", fused=(9.0, 0), eager=(9.0, 0), dtype="bfloat16"),
    entry("fwd", "encode", fused=(1.0, 0), eager=(0.5, 0), shape=[5, 6, 7, 8]),
    entry("fwd+bwd", "encode", fused=(3.0, 0), eager=(3.001, 0), shape=[9, 6, 7, 8]),
    entry("fwd+bwd", "encode", fused=(5.0, 0), eager=(5.0, 0), shape=[5, 6, 7, 8]),
    entry("fwd+bwd", "StripPooling", fused=(5.0, 0), eager=(5.0, 0)),
]
SUMMARY = """\
|  | shape | pass | fused | eager | compile | of the floor | peak memory: fused | eager | compile |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| `strip_pool` | 1 x 2 x 3 x 4 | forward | **0.500 ms** | 1.00 ms | 0.750 ms | 50% | 1.0 MiB \
| 3.0 MiB | 2.0 MiB |
| `strip_pool` | 1 x 2 x 3 x 4 | forward, backward | **2.00 ms** | 12.5 ms |  | 12% | 1.0 MiB \
| 3.0 MiB |  |
| `encode` | 5 x 6 x 7 x 8 | forward | 1.00 ms | **0.500 ms** |  | 25% | 0.0 MiB | 0.0 MiB |  |
| `encode` | 9 x 6 x 7 x 8 | forward, backward | **3.00 ms** | **3.00 ms** |  | 8% | 0.0 MiB \
| 0.0 MiB |  |"""


def test_family_table() -> None:
    assert tables.family_table(tables.headline(ENTRIES[:6])) == SUMMARY


def test_a_table_omits_columns_without_measurements() -> None:
    one = entry("training", "pspnet", fused=(2.0, 0), eager=(1.0, MIB))
    del one["floor"]
    header, _, line = tables.family_table([one]).splitlines()
    assert header == "|  | shape | pass | fused | eager | peak memory: fused | eager |"
    assert line == (
        "| `pspnet` | 1 x 2 x 3 x 4 | training step | 2.00 ms | **1.00 ms** | 0.0 MiB | 1.0 MiB |"
    )


def test_table_of_every_entry() -> None:
    lines = tables.family_table(ENTRIES, every=True).splitlines()
    assert len(lines) == 2 + 7
    assert lines[4].startswith("| `strip_pool` | 1 x 2 x 3 x 4 | bfloat16 | contiguous | forward |")


def test_operators_are_compared_with_their_faster_peer() -> None:
    """Forward and backward at the first shape; layers are in other tables."""
    both = entry("fwd+bwd", "row_gate", fused=(2.0, 0), eager=(5.0, 0), compile=(3.0, 0))
    lines = tables.operators_table([*ENTRIES, both]).splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == ["strip_pool", "encode", "row_gate"]
    assert "| 2.00 ms | 5.00 ms | 3.00 ms | 1.50x | 12% |" in lines[4]


def test_documents_are_kept_up_to_date(tmp_path: Path) -> None:
    family.write(tmp_path / "strip.json", MACHINE, ENTRIES)
    assert json.loads((tmp_path / "strip.json").read_text())["entries"] == ENTRIES
    document = tmp_path / "README.md"
    block = "<!-- benchmarks:{0} -->\nold\n<!-- /benchmarks:{0} -->\n"
    document.write_text(f"# A\n{block.format('strip')}B\n{block.format('operators')}C\n")
    where = ["--results", str(tmp_path), "--documents", str(document)]
    assert report.main([*where, "--check"]) == 1
    assert report.main(where) == 0
    text = document.read_text()
    assert text.startswith("# A\n<!-- benchmarks:strip -->\n")
    assert "<!-- /benchmarks:strip -->\nB\n<!-- benchmarks:operators -->\n" in text
    assert text.endswith("<!-- /benchmarks:operators -->\nC\n")
    assert SUMMARY in text and text.count("Abacus") == 2 and "old" not in text
    assert report.main([*where, "--check"]) == 0


def test_results_of_a_gpu_are_appended(tmp_path: Path) -> None:
    family.write(tmp_path / "strip.json", MACHINE, ENTRIES)
    family.write(tmp_path / "strip-cuda.json", MACHINE | {"gpu": "Loom"}, ENTRIES[:1])
    text = report.update("<!-- benchmarks:strip -->\n<!-- /benchmarks:strip -->\n", tmp_path)
    assert text.index("Abacus") < text.index("Loom")


def test_tricks_report_the_time_without_over_the_time_with(tmp_path: Path) -> None:
    trick = {"trick": "abacus", "instead": "fingers", "operator": "add", "dtype": "float32"}
    entries = [
        {**trick, "layout": "contiguous", "with_ms": [1, 2, 1], "without_ms": [2, 4, 9]},
        {**trick, "layout": "channels_last", "with_ms": [1], "without_ms": [8]},
    ]
    family.write(tmp_path / "tricks.json", MACHINE, entries)
    text = report.update("<!-- benchmarks:tricks -->\n<!-- /benchmarks:tricks -->\n", tmp_path)
    assert "| abacus | fingers | `add` | 4.00 |  |" in text and "Abacus" in text


@pytest.mark.parametrize("name", ["none", "operators"])
def test_nothing_is_reported_without_results(name: str, tmp_path: Path) -> None:
    block = f"<!-- benchmarks:{name} -->\n{{}}<!-- /benchmarks:{name} -->\n"
    assert report.update(block.format("| 7 ms |\n"), tmp_path) == block.format("")


def test_the_model_of_the_cuda_kernels(tmp_path: Path) -> None:
    head = ["operator", "shape", "dtype", "layout", "kernel", "of copy", "bound by"]
    rows = [
        ["strip_pool", "1x2x3x4", "bfloat16", "contiguous", "reduce", "90%", "latency"],
        ["strip_pool", "16x2x3x4", "bfloat16", "contiguous", "reduce", "100%", "bytes"],
        ["row_gate", "1x2x3x4", "bfloat16", "contiguous", "gate", "7%", "instructions"],
    ]
    text = "<!-- benchmarks:model -->\nold\n<!-- /benchmarks:model -->"
    assert "old" not in report.update(text, tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"model": {"head": head}, "rows": rows}))
    lines = report.update(text, tmp_path).splitlines()
    assert lines[1:5] == [
        "|  | batch 16, bfloat16, contiguous | batch 1, bfloat16, contiguous |",
        "| --- | ---: | ---: |",
        "| `strip_pool` | 100% | 90% latency |",
        "| `row_gate` |  | 7% instructions |",
    ]


def test_repository_documents_are_up_to_date() -> None:
    assert report.main(["--check"]) == 0
