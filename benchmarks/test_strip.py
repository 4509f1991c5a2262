"""The strip family against eager PyTorch and torch.compile, at SPNet's shapes.

Each case runs the interleaved comparison of benchmarks/compare.py, whose samples go to the result
file and, as medians, into pytest-benchmark's extra_info. pytest-benchmark's own loop cannot take
turns between candidates: it times the fused function alone, a few rounds, for its table and for
`--benchmark-compare` between commits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import measure, results
from benchmarks.compare import MODES, Comparison, bind, compare
from benchmarks.floors import FLOORS, Floor, Shape, gemm_operations
from stripctx import StripPooling, functional

OPERATORS = ("strip_pool", "strip_add_relu", "sigmoid_gate", "strip_gate", "StripPooling")

# SPNet's strip pooling modules on a crop of 480 (ADE20K), stages 1 and 4; stage 4 of one of 768
# (Cityscapes); and a batch of 4, as it is trained. No map exceeds 32 MB, above which a fresh
# tensor's page faults would hide everything else on a CPU.
SHAPES = ((1, 512, 60, 60), (1, 64, 120, 120), (4, 512, 60, 60))
MORE_SHAPES = ((1, 128, 60, 60), (1, 256, 60, 60), (1, 512, 96, 96))
QUICK_SHAPES = ((1, 16, 12, 20),)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
USUAL = (("float32", "contiguous"), ("bfloat16", "channels_last"))


@dataclass(frozen=True)
class Case:
    operator: str
    shape: tuple[int, int, int, int]
    dtype: str
    layout: str
    mode: str

    def __str__(self) -> str:
        shape = "x".join(str(size) for size in self.shape)
        return f"{self.operator}-{shape}-{self.dtype}-{self.layout}-{self.mode}"


def cases(config: pytest.Config) -> Iterator[Case]:
    """Both usual pairs of dtype and layout at every shape, all four at the first shape."""
    every, quick = config.getoption("--every-case"), config.getoption("--quick")
    shapes = QUICK_SHAPES if quick else SHAPES + MORE_SHAPES if every else SHAPES
    for operator, shape in product(OPERATORS, shapes):
        pairs = product(DTYPES, LAYOUTS) if every or (shape == shapes[0] and not quick) else USUAL
        for (dtype, layout), mode in product(pairs, MODES):
            yield Case(operator, shape, dtype, layout, mode)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", list(cases(metafunc.config)), ids=str)


def test_strip(
    case: Case,
    device: str,
    quick: bool,
    with_compile: bool,
    record: Callable[[dict[str, Any]], None],
    benchmark: Any,
) -> None:
    function, arguments = prepare(case, device)
    least = needed(case)
    by, floor = floor_run(case, least, device) if least else ("", None)
    rounds, budget = (5, 0.1) if quick else (50, 0.5)
    comparison = compare(
        function,
        arguments,
        mode=case.mode,
        floor=floor,
        with_compile=with_compile,
        device=device,
        rounds=rounds,
        budget=budget,
    )
    entry = as_entry(case, comparison, least, by)
    record(entry)
    benchmark.group = f"{case.operator} {case.mode}"
    benchmark.extra_info.update(summary(entry))
    parameters = list(function.parameters()) if isinstance(function, StripPooling) else []
    fused = bind(function, arguments, case.mode, parameters)
    benchmark.pedantic(fused, rounds=5, iterations=1, warmup_rounds=1)


def prepare(case: Case, device: str) -> tuple[Callable[..., Any], list[Tensor]]:
    """The function and its arguments, requiring gradients in mode "fwd+bwd"."""
    batch, channels, height, width = case.shape
    dtype, layout = DTYPES[case.dtype], LAYOUTS[case.layout]
    generator = torch.Generator().manual_seed(0)

    def tensor(*sizes: int) -> Tensor:
        value = torch.randn(sizes, generator=generator).to(device, dtype)
        if value.dim() == 4:
            value = value.contiguous(memory_format=layout)
        return value.requires_grad_(case.mode != "fwd")

    x, bias = tensor(*case.shape), tensor(channels)
    rows, cols = tensor(batch, channels, height, 1), tensor(batch, channels, 1, width)
    if case.operator == "StripPooling":
        torch.manual_seed(0)
        layer = StripPooling(channels).to(device, dtype).to(memory_format=layout)
        return layer, [x]
    if case.operator == "strip_gate":
        weight = (tensor(channels, channels, 1, 1).detach() / channels**0.5).requires_grad_(
            case.mode != "fwd"
        )
        return functional.strip_gate, [x, rows, cols, weight, bias]
    arguments = {
        "strip_pool": [x],
        "strip_add_relu": [rows, cols],
        "sigmoid_gate": [x, tensor(*case.shape), bias],
    }
    return getattr(functional, case.operator), arguments[case.operator]


def needed(case: Case) -> Floor | None:
    """What the case at least reads, writes and computes; None for a whole layer."""
    if case.operator not in FLOORS:
        return None
    shape = Shape(*case.shape, element_size=DTYPES[case.dtype].itemsize)
    forward = FLOORS[case.operator](shape)
    backward = FLOORS[f"{case.operator}_backward"](shape)
    return forward if case.mode == "fwd" else forward + backward


def floor_run(case: Case, least: Floor, device: str) -> tuple[str, measure.Run]:
    """Copies the floor's bytes; strip_gate's floor is its matrix products."""
    if case.operator != "strip_gate":
        return "copy", measure.copy_of(least.bytes, device)
    batch, channels, height, width = case.shape
    multiply = measure.product_of(
        batch * height * width, channels, channels, DTYPES[case.dtype], device
    )
    one = gemm_operations(Shape(*case.shape))
    times = round(least.operations / one)

    def products() -> None:
        for _ in range(times):
            multiply()

    return "product", products


def as_entry(case: Case, comparison: Comparison, least: Floor | None, by: str) -> dict[str, Any]:
    """One line of the result file."""
    entry: dict[str, Any] = {
        "operator": case.operator,
        "shape": case.shape,
        "dtype": case.dtype,
        "layout": case.layout,
        "mode": case.mode,
        "candidates": results.candidates(comparison),
    }
    if least is not None and comparison.floor is not None:
        entry["floor"] = {
            "by": by,
            "bytes": least.bytes,
            "operations": least.operations,
            "samples_ms": results.milliseconds(comparison.floor),
        }
    if comparison.failures:
        entry["failures"] = comparison.failures
    return entry


def summary(entry: dict[str, Any]) -> dict[str, Any]:
    """Medians in milliseconds and peaks in MiB, for pytest-benchmark's files."""
    facts: dict[str, Any] = {}
    measured = entry["candidates"] | ({"floor": entry["floor"]} if "floor" in entry else {})
    for name, values in measured.items():
        facts[f"{name}_ms"] = results.median_ms(values)
        if values.get("peak_bytes") is not None:
            facts[f"{name}_peak_mib"] = round(values["peak_bytes"] / 2**20, 2)
    return facts
