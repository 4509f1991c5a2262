"""Common code of the families' scripts: cases, measurement, result files.

    python -m benchmarks.strip [--device cuda] [--quick] [--without-compile] [--results FOLDER]

A script declares its operators and layers with their shapes:

    FAMILY = Family("strip", {"strip_pool": ((1, 512, 60, 60), (1, 64, 120, 120))})

Every shape is measured in float32 and contiguous, forward and forward with backward; the other
dtypes and layouts at one shape; torch.compile at the first shape. results/strip.json has one entry
per line, with all samples. A failed case is an entry with its error, and results obtained before an
interruption are written.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks import machine, measuring, traffic
from benchmarks.compare import MODES, Comparison, bind, compare, reason
from benchmarks.floors import FLOORS, PRODUCTS, Floor, Product, Shape, multiply_adds
from benchmarks.inputs import Size, inputs
from benchmarks.operators import DTYPES, LAYOUTS
from benchmarks.peers import LABEL_MAPS

RESULTS = Path(__file__).resolve().parent / "results"
PAIRS = tuple(product(DTYPES, LAYOUTS))
QUICK_SHAPE = (1, 16, 12, 20)
CUDA_BATCH = 8  # for each CPU image: fills a large GPU
# Above this arithmetic intensity, a layer's limit is its products, not its traffic; about the
# balance of one core of current processors.
OPERATIONS_A_BYTE = 16

Entry = dict[str, Any]


class Measurable(Protocol):
    def measured(self, device: str, *, with_compile: bool, quick: bool) -> Entry:
        """Measures the case and returns its entry for the result file."""


@dataclass(frozen=True)
class Limit:
    """The lower bound of a case, and an operation that takes as long: a "copy" of as many bytes, or
    a "product" of as many operations. `make` allocates its buffers."""

    least: Floor
    by: str
    make: Callable[[], measuring.Run]


def limit_of_function(
    operator: str, size: Size, dtype: torch.dtype, mode: str, device: str
) -> Limit:
    shape = Shape(*size, element_size=dtype.itemsize)
    least = FLOORS[operator](shape)
    if mode != "fwd":
        least += FLOORS[f"{operator}_backward"](shape)
    if operator in PRODUCTS:
        return _by_product(least, PRODUCTS[operator](shape), dtype, device)
    return _by_copy(least, device)


def limit_of_layer(
    layer: nn.Module,
    arguments: Sequence[Any],
    size: Size,
    run: Callable[[], list[Tensor]],
    device: str,
) -> Limit:
    """Counts arguments, parameters and results once each, and the product operations that `run`, a
    call with these arguments, executes."""
    with traffic.Counting() as counting:
        results = run()
    least = Floor(
        read=sum(value.nbytes for value in [*measuring.tensors(arguments), *layer.parameters()]),
        written=sum(value.nbytes for value in results),
        operations=2 * counting.traffic.products,
    )
    if least.operations < OPERATIONS_A_BYTE * least.bytes:
        return _by_copy(least, device)
    shape = Shape(*size)
    columns = round(least.operations / multiply_adds((shape.pixels, shape.channels, 1)))
    sizes = (shape.pixels, shape.channels, min(columns, shape.channels))
    return _by_product(least, sizes, results[0].dtype, device)


def _by_copy(least: Floor, device: str) -> Limit:
    return Limit(least, "copy", partial(measuring.copy_of, least.bytes, device))


def _by_product(least: Floor, sizes: Product, dtype: torch.dtype, device: str) -> Limit:
    """Matrix products of this size, repeated to reach the number of operations."""
    times = max(1, round(least.operations / multiply_adds(sizes)))

    def make() -> measuring.Run:
        multiply = measuring.product_of(*sizes, dtype, device)
        return lambda: [multiply() for _ in range(times)]

    return Limit(least, "product", make)


@dataclass(frozen=True)
class Case:
    operator: str
    shape: Size
    dtype: str = "float32"
    layout: str = "contiguous"
    mode: str = "fwd+bwd"
    with_compile: bool = False

    def measured(self, device: str, *, with_compile: bool, quick: bool) -> Entry:
        dtype = DTYPES[self.dtype]
        function, arguments = inputs(
            self.operator,
            self.shape,
            dtype,
            LAYOUTS[self.layout],
            device=device,
            requires_grad=self.mode != "fwd",
        )
        if isinstance(function, nn.Module):
            run = bind(function, arguments, self.mode)
            limit = limit_of_layer(function, arguments, self.shape, run, device)
        else:
            limit = limit_of_function(self.operator, self.shape, dtype, self.mode, device)
        found = compare(
            function,
            arguments,
            mode=self.mode,
            floor=limit.make,
            with_compile=with_compile and self.with_compile,
            device=device,
            rounds=5 if quick else 50,
            budget=0.05 if quick else 0.5,
        )
        return entry(self, found, limit)


def entry(case: Any, found: Comparison, limit: Limit | None = None) -> Entry:
    """One entry of a result file."""
    line = facts_of(case)
    if limit is not None and found.floor is not None:
        line["floor"] = {
            "by": limit.by,
            "bytes": limit.least.bytes,
            "operations": limit.least.operations,
            "samples_ms": milliseconds(found.floor),
        }
    line["candidates"] = {
        name: {
            "samples_ms": milliseconds(seconds),
            "peak_bytes": found.peaks[name],
            "result_bytes": found.results[name],
        }
        for name, seconds in found.times.items()
    }
    if found.failures:
        line["failures"] = found.failures
    return line


def facts_of(case: Any) -> Entry:
    """The attributes that identify a case."""
    names = ("operator", "shape", "dtype", "layout", "mode")
    return {name: getattr(case, name) for name in names}


def milliseconds(seconds: Sequence[float]) -> list[float]:
    """Converts to milliseconds, rounded to a tenth of a microsecond."""
    return [round(each * 1e3, 4) for each in seconds]


@dataclass(frozen=True)
class Family:
    """Args:
    name: of the result file.
    shapes: of each function and layer. The first shape is shown in the tables; it should be below
        32 MB, because page faults dominate above that on a CPU.
    variants: the shapes at which dtypes and layouts are compared, if not the first.
    compile_all: measures torch.compile at every shape and shows all shapes in the tables.
    """

    name: str
    shapes: dict[str, tuple[Size, ...]]
    variants: dict[str, Size] = field(default_factory=dict)
    compile_all: bool = False

    def cases(self, *, quick: bool = False, batch: int = 1) -> Iterator[Measurable]:
        """`batch` multiplies N. Quick cases have tiny maps, in the first and the last format
        only."""
        for operator, shapes in self.shapes.items():
            modes = MODES[:1] if operator in LABEL_MAPS else MODES
            if quick:
                for (dtype, layout), mode in product((PAIRS[0], PAIRS[-1]), modes):
                    yield Case(operator, QUICK_SHAPE, dtype, layout, mode)
                continue
            variant = self.variants.get(operator, shapes[0])
            for shape, (dtype, layout), mode in product(shapes, PAIRS, modes):
                usual = (dtype, layout) == PAIRS[0]
                if usual or shape == variant:
                    whole = (shape[0] * batch, *shape[1:])
                    yield Case(
                        operator,
                        whole,
                        dtype,
                        layout,
                        mode,
                        usual and (self.compile_all or shape == shapes[0]),
                    )

    def main(self, arguments: list[str] | None = None) -> int:
        parser = argparse.ArgumentParser(prog=f"benchmarks.{self.name}")
        parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
        parser.add_argument("--quick", action="store_true", help="tiny maps, no torch.compile")
        parser.add_argument("--without-compile", action="store_true")
        parser.add_argument("--results", type=Path, help="folder; else benchmarks/results")
        options = parser.parse_args(arguments)
        batch = CUDA_BATCH if options.device == "cuda" else 1
        cases = self.cases(quick=options.quick, batch=batch)
        with_compile = not (options.quick or options.without_compile)
        entries: list[Entry] = []
        gc.freeze()  # so that collections before each memory measurement take no time
        try:
            for case in cases:
                entries.append(attempt(case, options.device, with_compile, options.quick))
                print(summary(entries[-1]), flush=True)
        finally:
            gc.unfreeze()
            folder = options.results or (None if options.quick else RESULTS)
            if folder is not None and entries:
                suffix = "-cuda" if options.device == "cuda" else ""
                path = folder / f"{self.name}{suffix}.json"
                write(path, machine.describe(options.device), entries)
        return 1 if any("error" in each for each in entries) else 0


def attempt(case: Any, device: str, with_compile: bool, quick: bool) -> Entry:
    try:
        entry: Entry = case.measured(device, with_compile=with_compile, quick=quick)
    except Exception as error:
        entry = {**facts_of(case), "error": reason(error)}
    return entry


def summary(entry: Entry) -> str:
    """One line of progress."""
    what = f"{entry['operator']} {entry['dtype']} {entry['layout']} {entry['mode']}"
    what += " " + "x".join(map(str, entry["shape"]))
    if "error" in entry:
        return f"{what}: {entry['error']}"
    times = (
        f"{name} {statistics.median(each['samples_ms']):.3g} ms"
        for name, each in entry["candidates"].items()
    )
    return f"{what}: {', '.join(times)}"


def write(path: Path, facts: dict[str, Any], entries: Sequence[Entry]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    path.write_text(f'{{"machine": {json.dumps(facts, indent=1)},\n"entries": [\n{lines}\n]}}\n')
