"""Tables, scorecard and plots against results made by hand, and the documents that hold them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import growth, report, results, scorecard, tables

MIB = 2**20
X_BYTES = 4 * 2 * 3 * 4  # of the made-up shape, in float32


def entry(mode: str, operator: str = "strip_pool", **candidates: Any) -> dict[str, Any]:
    """`candidates` are pairs of milliseconds and bytes, other keywords replace parts."""
    others = {key: candidates.pop(key) for key in ("shape", "dtype", "layout", "axis", "floor")
              if key in candidates}  # fmt: skip
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
RESULT = {
    "machine": MACHINE,
    "entries": [
        entry("fwd", fused=(0.5, 1 * MIB), eager=(1.0, 3 * MIB), compile=(0.75, 2 * MIB)),
        entry("fwd+bwd", fused=(2.0, 1 * MIB), eager=(12.5, 3 * MIB)),
        entry("fwd", fused=(9.0, 0), eager=(9.0, 0), dtype="bfloat16"),
        entry("fwd", "encode", fused=(1.0, 0), eager=(0.5, 0), shape=[5, 6, 7, 8]),
        entry("fwd+bwd", "encode", fused=(3.0, 0), eager=(3.001, 0), shape=[9, 6, 7, 8]),
        entry("fwd+bwd", "encode", fused=(5.0, 0), eager=(5.0, 0), shape=[5, 6, 7, 8]),
        *(
            entry("fwd+bwd", fused=(n**0.9, 0), eager=(n, 0), axis="N", shape=[n, 2, 3, 4],
                  floor={"by": "copy", "bytes": 96 * n, "operations": 8, "samples_ms": [0.1]})
            for n in (1, 2, 4)
        ),
    ],
}  # fmt: skip
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


def test_summary_table() -> None:
    assert tables.summary_table(RESULT) == SUMMARY


def test_summary_table_of_a_part() -> None:
    """Without torch.compile and floors it has no columns for them."""
    one = entry("training", "pspnet", fused=(2.0, 0), eager=(1.0, MIB))
    del one["floor"]
    header, _, line = tables.summary_table({"entries": [one]}).splitlines()
    assert header == "|  | shape | pass | fused | eager | peak memory: fused | eager |"
    assert line == (
        "| `pspnet` | 1 x 2 x 3 x 4 | training step | 2.00 ms | **1.00 ms** | 0.0 MiB | 1.0 MiB |"
    )


def test_full_table() -> None:
    lines = tables.full_table(RESULT).splitlines()
    assert len(lines) == 2 + 6
    assert lines[2] == (
        "| `strip_pool` | 1 x 2 x 3 x 4 | float32 | contiguous | forward "
        "| 0.500 ms (0.350 to 0.800) | 4.0 MB | 8.0 GB/s | 50% | 1.0 MiB | 2.00x | 1.50x |"
    )


def test_full_table_counts_kernels_where_that_was_measured() -> None:
    one = entry("fwd", fused=(0.5, 0), eager=(1.0, 0))
    one["candidates"]["fused"]["kernels"], one["candidates"]["eager"]["kernels"] = 1, 4
    header, _, line = tables.full_table({"entries": [one]}).splitlines()
    assert header.endswith("| kernels |")
    assert line.endswith("| 1 / 4 |")


def test_growth_is_the_exponent_of_the_work() -> None:
    (series,) = growth.series(RESULT)
    assert (series.operator, series.axis, series.sizes) == ("strip_pool", "N", (1, 2, 4))
    assert series.work == (96, 192, 384)
    assert series.slope() == pytest.approx(0.9)
    assert series.slope("eager") == pytest.approx(1.0)
    assert tables.growth_table(RESULT).splitlines()[2] == "| `strip_pool` | 0.90 |  |  |"
    assert tables.growth_table({"entries": RESULT["entries"][:2]}) == ""


# The scorecard.


def complete(times: float, compile_times: float, held: int) -> list[dict[str, Any]]:
    """All ten, so many times faster than eager and compile."""
    return [
        entry("fwd+bwd", operator, fused=(1, held), eager=(times, 0), compile=(compile_times, 0))
        for operator in scorecard.LIMITS
    ]


def cells(table: str, first: str) -> list[str]:
    """The cells of the line that begins so."""
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {first}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_an_operator_needs_three_quarters_of_its_limit() -> None:
    table = scorecard.operators_table(complete(9.0, 2.0, held=0))
    assert len(table.splitlines()) == 2 + 10
    row = cells(table, "`strip_pool`")
    assert row[2:9] == ["1.00 ms", "9.00 ms", "2.00 ms", "2.00x", "3x", "2.25x", "**missed**"]
    assert cells(table, "`strip_gate`")[8] == "met"
    assert cells(scorecard.operators_table(complete(2.25, 3.0, 0)), "`strip_pool`")[8] == "met"


@pytest.mark.parametrize(
    ("operator", "most", "text"),
    [
        ("row_gate", 0.05 * X_BYTES, "5.0%"),
        ("strip_gate", 2 * X_BYTES, "200.0%"),
        ("encode", 3 * 4 * 32 * 4, "1600.0%"),
    ],
)
def test_memory_beside_the_results(operator: str, most: float, text: str) -> None:
    for held, verdict in ((int(most), "met"), (int(most) + 1, "**missed**")):
        one = entry("fwd+bwd", operator, fused=(1, held + 7), eager=(1, 0))
        one["candidates"]["fused"]["result_bytes"] = 7
        assert scorecard.held_cells(one)[1:] == [text, verdict]
    one["candidates"]["fused"]["peak_bytes"] = None
    assert scorecard.held_cells(one) == ["", text, "not measured"]


def requirements(entries: list[dict[str, Any]]) -> str:
    return scorecard.requirements_table([{"machine": MACHINE, "entries": entries}])


def test_means_need_all_ten() -> None:
    table = requirements(complete(3.0, 2.5, 0))
    assert cells(table, "geometric mean of the 10, times eager")[1:] == ["3.0x", "3.00x", "met"]
    better = cells(table, "geometric mean of the 10, times the better")
    assert better[1:] == ["2.6x", "2.50x", "**missed**"]
    short = cells(requirements(complete(9.0, 9.0, 0)[1:]), "geometric mean of the 10, times eager")
    assert short[2:] == ["9.00x of 9, incomplete", "not measured"]
    without = complete(9.0, 9.0, 0)
    del without[0]["candidates"]["compile"]
    table = requirements(without)
    assert cells(table, "geometric mean of the 10, times eager")[3] == "met"
    assert cells(table, "geometric mean of the 10, times the better")[3] == "not measured"


def test_the_slowest_case_is_named() -> None:
    """Layers, other shapes and the forward count; bfloat16 and growth do not."""
    slow = entry("fwd", "MixedPooling", fused=(2, 0), eager=(1.5, 0), layout="channels_last")
    others = [
        entry("fwd", fused=(9, 0), eager=(1, 0), dtype="bfloat16"),
        entry("fwd", fused=(9, 0), eager=(1, 0), axis="N"),
    ]
    row = cells(requirements([*complete(3, 3, 0), slow, *others]), "the slowest case in float32")
    case = "0.75x (`MixedPooling`, forward, 1 x 2 x 3 x 4, channels_last)"
    assert row[1:] == ["1.0x", case, "**missed**"]


def test_the_head() -> None:
    head = [
        entry("fwd", scorecard.HEAD, fused=(1, 0), eager=(1.8, 0), compile=(1, 0)),
        entry("fwd+bwd", scorecard.HEAD, fused=(1, 0), eager=(1.5, 0)),
    ]
    lines = scorecard.head(head)
    assert [(line.asked, line.measured, line.met) for line in lines] == [
        ("1.8x", "1.80x", True),
        ("1.6x", "1.50x", False),
    ]
    assert [line.met for line in scorecard.head([])] == [None, None]


def test_linear_growth() -> None:
    n, c, side = scorecard.linear([RESULT])
    assert (n.measured, n.met) == ("0.90 (`strip_pool`)", True)
    assert (c.met, side.met) == (None, None)
    grown = [
        entry("fwd+bwd", fused=(size**2.4, 0), eager=(1, 0), axis="H=W", shape=[1, 1, size, size],
              floor={"by": "product", "bytes": 1, "operations": size**2, "samples_ms": [0.1]})
        for size in (8, 16, 32)
    ]  # fmt: skip
    line = scorecard.linear([{"entries": grown}])[2]
    assert (line.measured, line.met) == ("1.20 (`strip_pool`)", False)


def test_bfloat16_against_float32() -> None:
    usual = complete(3, 3, 0)
    fast = entry("fwd+bwd", fused=(0.5, 0), eager=(1, 0), dtype="bfloat16")
    slow = entry("fwd+bwd", "encode", fused=(1.25, 0), eager=(1, 0), dtype="bfloat16")
    other = entry("fwd+bwd", fused=(9, 0), eager=(1, 0), dtype="bfloat16", layout="channels_last")
    line = scorecard.halves([*usual, fast, slow, other])
    assert (line.measured, line.met) == ("0.80x (`encode`, contiguous)", False)
    assert scorecard.halves([*usual, fast, other]).met
    assert scorecard.halves(usual).met is None


# Documents.


def test_documents_are_kept_up_to_date(tmp_path: Path) -> None:
    results.write(tmp_path / "strip.json", MACHINE, RESULT["entries"])
    assert json.loads((tmp_path / "strip.json").read_text()) == RESULT
    document = tmp_path / "README.md"
    block = "<!-- benchmarks:{0} -->\nold\n<!-- /benchmarks:{0} -->\n"
    document.write_text(f"# A\n{block.format('strip')}B\n{block.format('scorecard')}C\n")
    where = ["--results", str(tmp_path), "--documents", str(document)]
    where += ["--plots", str(tmp_path / "figures")]
    assert report.main([*where, "--check"]) == 1
    assert report.main(where) == 0
    text = document.read_text()
    assert text.startswith("# A\n<!-- benchmarks:strip -->\n")
    assert "<!-- /benchmarks:strip -->\nB\n<!-- benchmarks:scorecard -->\n" in text
    assert text.endswith("<!-- /benchmarks:scorecard -->\nC\n")
    assert SUMMARY in text and "Abacus" in text and "old" not in text
    assert report.main([*where, "--check"]) == 0
    images = re.findall(r"\((figures/.*\.svg)\)", text)
    assert len(images) == 4
    assert all((tmp_path / image).stat().st_size > 5_000 for image in images)


def test_plots_are_the_same_every_time(tmp_path: Path) -> None:
    results.write(tmp_path / "strip.json", MACHINE, RESULT["entries"])
    for folder in ("a", "b"):
        report.draw_all(tmp_path, tmp_path / folder)
    plots = sorted((tmp_path / "a").iterdir())
    assert [path.name for path in plots] == [
        "benchmarks-scorecard.svg", "benchmarks-strip.svg", "growth-strip.svg", "roofline.svg",
    ]  # fmt: skip
    for path in plots:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_results_of_a_gpu_follow(tmp_path: Path) -> None:
    results.write(tmp_path / "strip.json", MACHINE, RESULT["entries"])
    results.write(tmp_path / "strip-cuda.json", MACHINE | {"gpu": "Loom"}, RESULT["entries"][:1])
    block = "<!-- benchmarks:strip -->\n<!-- /benchmarks:strip -->\n"
    text = report.update(block, tmp_path, "figures")
    assert text.index("Abacus") < text.index("figures/benchmarks-strip.svg") < text.index("Loom")
    assert "figures/benchmarks-strip-cuda.svg" in text and "growth-strip-cuda" not in text


def test_every_entry(tmp_path: Path) -> None:
    results.write(tmp_path / "strip.json", MACHINE, RESULT["entries"])
    block = "<!-- benchmarks:strip all -->\n{}<!-- /benchmarks:strip -->\n"
    assert tables.full_table(RESULT) in report.update(block.format(""), tmp_path)


@pytest.mark.parametrize("name", ["none", "scorecard"])
def test_nothing_is_reported_without_results(name: str, tmp_path: Path) -> None:
    block = f"<!-- benchmarks:{name} -->\n{{}}<!-- /benchmarks:{name} -->\n"
    assert report.update(block.format("| 7 ms |\n"), tmp_path) == block.format("")


def test_repository_documents_are_up_to_date() -> None:
    assert report.main(["--check"]) == 0
