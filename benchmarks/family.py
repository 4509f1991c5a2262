"""What every family's benchmark file shares: which cases there are, and how one is measured.

A family's file declares its operators and layers with their shapes:

    FAMILY = Family({"strip_pool": ((1, 512, 60, 60), (1, 64, 120, 120))})

    def test_strip(case: Case, run: Callable[[Case], None]) -> None:
        run(case)

Measured are: every shape in float32 and contiguous, forward and forward with backward; the other
dtypes and layouts at one shape; and for functions how time grows with N, C and H = W. torch.compile
takes part at the first shape. `--every-case` measures everything at every shape with torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Protocol

import torch
from torch import nn

from benchmarks import results, yardstick
from benchmarks.compare import MODES, bind, compare
from benchmarks.inputs import LAYERS, Size, inputs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PAIRS = tuple(product(DTYPES, LAYOUTS))
FIRST, *OTHERS = PAIRS

# One size grows, the others stay: maps larger than a core's cache, none above 32 MB.
GROWTH: dict[str, tuple[Size, ...]] = {
    "N": tuple((n, 256, 48, 48) for n in (1, 2, 4, 6)),
    "C": tuple((1, c, 48, 48) for c in (128, 256, 512, 768)),
    "H=W": tuple((1, 256, side, side) for side in (32, 48, 64, 96)),
}
QUICK_SHAPE = (1, 16, 12, 20)
QUICK_GROWTH: dict[str, tuple[Size, ...]] = {"N": ((1, 8, 12, 12), (2, 8, 12, 12))}


class Measurable(Protocol):
    def measured(
        self, device: str, *, with_compile: bool, quick: bool
    ) -> tuple[dict[str, Any], Callable[[], Any]]:
        """The entry for the result file, and the fused call."""


@dataclass(frozen=True)
class Case:
    operator: str
    shape: Size
    dtype: str = "float32"
    layout: str = "contiguous"
    mode: str = "fwd+bwd"
    axis: str = ""  # which size grows from case to case; "" where that is not the question
    with_compile: bool = False

    def __str__(self) -> str:
        shape = "x".join(str(size) for size in self.shape)
        parts = (self.operator, shape, self.dtype, self.layout, self.mode, self.axis)
        return "-".join(part for part in parts if part)

    def measured(
        self, device: str, *, with_compile: bool, quick: bool
    ) -> tuple[dict[str, Any], Callable[[], Any]]:
        dtype = DTYPES[self.dtype]
        function, arguments = inputs(
            self.operator,
            self.shape,
            dtype,
            LAYOUTS[self.layout],
            device=device,
            requires_grad=self.mode != "fwd",
        )
        fused = bind(function, arguments, self.mode)
        if isinstance(function, nn.Module):
            stick = yardstick.of_layer(function, arguments, self.shape, fused, device)
        else:
            stick = yardstick.of_function(self.operator, self.shape, dtype, self.mode, device)
        rounds, budget = (5, 0.05) if quick else (20, 0.1) if self.axis else (50, 0.5)
        comparison = compare(
            function,
            arguments,
            mode=self.mode,
            floor=stick.make,
            with_compile=with_compile and self.with_compile,
            with_memory=not self.axis,
            device=device,
            rounds=rounds,
            budget=budget,
        )
        facts = {"dtype": self.dtype, "layout": self.layout, "mode": self.mode}
        facts |= {"axis": self.axis} if self.axis else {}
        return results.entry(self.operator, self.shape, comparison, stick, **facts), fused


@dataclass(frozen=True)
class Family:
    """Args:
    shapes: of each function and layer. The first stands in the scorecard. Maps above 32 MB cost a
        CPU more in page faults than anything else: not among the first.
    variants: where dtypes and layouts are compared, if not at the first shape.
    """

    shapes: dict[str, tuple[Size, ...]]
    variants: dict[str, Size] = field(default_factory=dict)

    def cases(self, *, quick: bool = False, every: bool = False, batch: int = 1) -> Iterator[Case]:
        """`batch` multiplies N."""
        for case in self._cases(quick, every):
            images, *others = case.shape
            yield replace(case, shape=(images * batch, *others))

    def _cases(self, quick: bool, every: bool) -> Iterator[Case]:
        for operator, shapes in self.shapes.items():
            if quick:
                yield from self._quick(operator)
                continue
            for shape, (dtype, layout), mode in product(shapes, PAIRS, MODES):
                first = shape == shapes[0]
                chosen = (dtype, layout) == FIRST or shape == self.variants.get(operator, shapes[0])
                if every or chosen:
                    usual = first and (dtype, layout) == FIRST
                    yield Case(operator, shape, dtype, layout, mode, with_compile=every or usual)
            if operator not in LAYERS:
                yield from growth(operator, GROWTH)

    def _quick(self, operator: str) -> Iterator[Case]:
        for (dtype, layout), mode in product((PAIRS[0], PAIRS[-1]), MODES):
            yield Case(operator, QUICK_SHAPE, dtype, layout, mode)
        if operator not in LAYERS:
            yield from growth(operator, QUICK_GROWTH)


def growth(operator: str, axes: dict[str, tuple[Size, ...]]) -> Iterator[Case]:
    for axis, shapes in axes.items():
        for shape in shapes:
            yield Case(operator, shape, axis=axis)


def summary(entry: dict[str, Any]) -> dict[str, Any]:
    """Medians in milliseconds and peaks in MiB, for pytest-benchmark's files."""
    facts: dict[str, Any] = {}
    floor = {"floor": entry["floor"]} if "floor" in entry else {}
    for name, values in (entry["candidates"] | floor).items():
        facts[f"{name}_ms"] = results.median_ms(values)
        if values.get("peak_bytes") is not None:
            facts[f"{name}_peak_mib"] = round(values["peak_bytes"] / 2**20, 2)
    return facts
