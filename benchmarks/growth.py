"""How time grows with one size while the others stay, from the entries of a result file that have
an `axis`: N, C or H=W."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import results

SIZES = {"N": 0, "C": 1, "H=W": 2}  # where an axis stands in a shape


@dataclass(frozen=True)
class Series:
    """One function along one axis, sizes ascending."""

    operator: str
    axis: str
    sizes: tuple[int, ...]
    work: tuple[int, ...]  # of the floor: bytes, or operations where it is a product
    times: dict[str, tuple[float, ...]]  # milliseconds, by candidate

    def slope(self, candidate: str = "fused") -> float:
        """The exponent of time as a power of the work: 1 is linear."""
        return fitted_slope(self.work, self.times[candidate])


def series(result: dict[str, Any]) -> list[Series]:
    """In the order of the entries; only where there are two sizes or more."""
    grown: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in result["entries"]:
        if "axis" in entry:
            grown.setdefault((entry["operator"], entry["axis"]), []).append(entry)
    return [_one(*key, entries) for key, entries in grown.items() if len(entries) > 1]


def _one(operator: str, axis: str, entries: list[dict[str, Any]]) -> Series:
    entries = sorted(entries, key=lambda entry: entry["shape"][SIZES[axis]])
    names = set.intersection(*(set(entry["candidates"]) for entry in entries))
    return Series(
        operator,
        axis,
        tuple(entry["shape"][SIZES[axis]] for entry in entries),
        tuple(_work(entry["floor"]) for entry in entries),
        {
            name: tuple(results.median_ms(entry["candidates"][name]) for entry in entries)
            for name in sorted(names)
        },
    )


def _work(floor: dict[str, Any]) -> int:
    work: int = floor["operations" if floor["by"] == "product" else "bytes"]
    return work


def fitted_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the line through log y against log x, by least squares."""
    slope, _ = statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y])
    return slope
