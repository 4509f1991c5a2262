"""Result files: the machine, and one entry a line with every sample.

{"machine": {"processor": ..., "torch": ..., ...},
 "entries": [
  {"operator": "strip_pool", "shape": [1, 512, 60, 60], "dtype": "float32",
   "layout": "contiguous", "mode": "fwd",
   "axis": "N", where this size grows from entry to entry and nothing else,
   "floor": {"by": "copy", "bytes": ..., "operations": ..., "samples_ms": [...]},
   "candidates": {"fused": {"samples_ms": [...], "peak_bytes": ..., "result_bytes": ...},
                  "eager": ..., "compile": ...},    on CUDA also "kernels", how many are launched
   "failures": {"compile": "why it is not among the candidates"}},
  ...]}
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import Comparison
from benchmarks.measure import Samples
from benchmarks.yardstick import Yardstick

FOLDER = Path(__file__).resolve().parent / "results"
FAMILIES = ("strip", "pyramid", "upsample", "height", "encoding")


def entry(
    operator: str,
    shape: Sequence[int],
    comparison: Comparison,
    stick: Yardstick | None = None,
    **facts: str,
) -> dict[str, Any]:
    """One line of the file; `facts` are its dtype, layout, mode and axis."""
    line: dict[str, Any] = {"operator": operator, "shape": shape, **facts}
    if stick is not None and comparison.floor is not None:
        line["floor"] = {
            "by": stick.by,
            "bytes": stick.least.bytes,
            "operations": stick.least.operations,
            "samples_ms": milliseconds(comparison.floor),
        }
    line["candidates"] = candidates(comparison)
    if comparison.failures:
        line["failures"] = comparison.failures
    return line


def candidates(comparison: Comparison) -> dict[str, Any]:
    """The part of an entry that was measured on the candidates."""
    return {
        name: {
            "samples_ms": milliseconds(samples),
            "peak_bytes": comparison.peaks[name],
            "result_bytes": comparison.results[name],
            **({"kernels": comparison.kernels[name]} if comparison.kernels else {}),
        }
        for name, samples in comparison.times.items()
    }


def milliseconds(samples: Samples) -> list[float]:
    """To a tenth of a microsecond."""
    return [round(seconds * 1e3, 4) for seconds in samples.seconds]


def median_ms(measured: dict[str, Any]) -> float:
    """Of a candidate or a floor."""
    return statistics.median(measured["samples_ms"])


def spread_ms(measured: dict[str, Any]) -> tuple[float, float]:
    """The 20th and the 80th percentile."""
    samples = Samples(tuple(measured["samples_ms"]))
    return samples.p20, samples.p80


def speedup(entry: dict[str, Any], peer: str) -> float:
    """How many times faster than this peer the fused candidate is."""
    return median_ms(entry["candidates"][peer]) / median_ms(entry["candidates"]["fused"])


def speedup_over_peers(entry: dict[str, Any]) -> float:
    """How many times faster than the best of its peers."""
    return min(speedup(entry, name) for name in entry["candidates"] if name != "fused")


def headline(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each operator's first entry in each mode: its first shape, dtype and layout there."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in result["entries"]:
        if "axis" not in entry:
            first.setdefault((entry["operator"], entry["mode"]), entry)
    return list(first.values())


def three_digits(value: float) -> str:
    """At least, and never an exponent."""
    decimals = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def write(path: Path, machine: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    """In one step: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    text = f'{{"machine": {json.dumps(machine, indent=1)},\n"entries": [\n{lines}\n]}}\n'
    json.loads(text)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def families(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """The families' result files that are there."""
    paths = {name: folder / f"{name}.json" for name in FAMILIES}
    return {name: read(path) for name, path in paths.items() if path.is_file()}


def read(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    return result
