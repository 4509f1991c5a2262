"""The measurements of benchmarks/gpu.py: each stage is a process, each case a line of JSON in
$GPU_LOG.

   build       records the machine, then builds and loads the kernels
   check       every operator, dtype and layout against the reference in float64
   times       CUDA graphs of functions, and their share of a copy, against plain PyTorch
   heads       whole decoder heads and label heads: times and peak memory
   operators   every operator once, for compute-sanitizer (small) and Nsight Compute (--large)

As a plugin of pytest (-p benchmarks.gpu_cases) it writes the outcome of every test when it ends.
Imports are local to the stages: `build` records the machine before anything is compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

ODD = (2, 40, 33, 45)  # 16-byte packs fit some rows and not others; rows and columns are split
LARGE = (16, 512, 60, 60)  # larger than any cache
TINY = (2, 8, 7, 9)
COPIED = 2**30  # bytes of the copy that measures the memory's rate
BOUND = {"float64": 1e-11, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
LOST = 75  # as in gpu.py

Facts = dict[str, Any]
Cases = Iterator[tuple[str, Callable[[], Facts]]]


def record(**line: Any) -> None:
    with open(os.environ["GPU_LOG"], "a") as file:
        file.write(json.dumps({"stage": os.environ["GPU_STAGE"], **line}) + "\n")


def run_cases(cases: Cases, device: str) -> None:
    """Runs the cases from number $GPU_FIRST on. An exception is recorded; if the GPU is unusable
    after it, the process exits with LOST, and a new process continues."""
    for index, (name, measure) in enumerate(cases):
        if index < int(os.environ.get("GPU_FIRST", 0)):
            continue
        try:
            facts = {"status": "passed", **measure()}
        except Exception as error:
            facts = {"status": "failed", "error": f"{type(error).__name__}: {error}"[:500]}
        record(case=name, **facts)
        if facts["status"] == "failed" and not usable(device):
            sys.exit(LOST)


def usable(device: str) -> bool:
    import torch

    try:
        synchronize(device)
        torch.ones(1, device=device).sum().item()
    except RuntimeError:
        return False
    return True


def synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


# build.


def build(device: str) -> int:
    from benchmarks import machine

    facts = machine.gpu() if device == "cuda" else {"gpu": "none: a rehearsal"}
    record(**facts)
    if facts["gpu"] is None:
        return 1
    started = time.perf_counter()
    from stripctx import extension

    libraries = extension.status().libraries
    loaded = {name: f"{each.origin}, {each.seconds:.0f} s" for name, each in libraries.items()}
    record(kernels=loaded, seconds=round(time.perf_counter() - started, 1))
    return 0


# check.


def check_cases(device: str, tiny: bool) -> Cases:
    from benchmarks.operators import LAYOUTS, OPERATORS

    dtypes = ("float32",) if tiny else BOUND
    for dtype, layout, name in product(dtypes, LAYOUTS, OPERATORS):
        yield f"{name} {dtype} {layout}", partial(check, name, dtype, layout, device, tiny)


def check(name: str, dtype: str, layout: str, device: str, tiny: bool) -> Facts:
    import torch

    from benchmarks.compare import relative_error
    from benchmarks.operators import OPERATORS, Sample, call, listed, reference

    make = Sample(TINY if tiny else ODD, getattr(torch, dtype), layout, device)
    arguments = OPERATORS[name](make)
    found = call(name, arguments)
    expected = listed(reference(name)(*(to_float64(value) for value in arguments)))
    errors = []
    for value, exact in zip(found, expected, strict=True):
        beyond = exact.to(value.dtype).isinf()  # exceeds float16's range: infinite in both
        same = torch.equal(value.isinf(), beyond)
        errors.append(relative_error(value[~beyond], exact[~beyond]) if same else float("inf"))
    status = "passed" if max(errors) <= BOUND[dtype] else "failed"
    return {"status": status, "error": f"{max(errors):.1e}", "bound": BOUND[dtype]}


def to_float64(value: Any) -> Any:
    if isinstance(value, list):
        return [to_float64(item) for item in value]
    floating = hasattr(value, "is_floating_point") and value.is_floating_point()
    return value.double() if floating else value


# times.


def times_cases(device: str, tiny: bool) -> Cases:
    """bfloat16 without torch.compile, which takes seconds per case, then with it, then float32.
    With tiny maps, float32, in which the peers agree closely enough."""
    from benchmarks import measuring
    from benchmarks.compare import MODES
    from benchmarks.operators import LAYOUTS
    from benchmarks.peers import LABEL_MAPS, PEERS

    size = 2**16 if tiny else COPIED
    copy = {"copy": measuring.warm(measuring.copy_of(size, device))}
    rate = size / min(measuring.interleave(copy, device=device, rounds=10)["copy"])
    yield "copy", lambda: {"bytes_per_second": rate}
    shapes = [TINY] if tiny else [(n, c, 60, 60) for n, c in product((16, 1), (512, 2048))]
    usual = "float32" if tiny else "bfloat16"
    plan = [
        ((name, shape, usual, layout, mode), False)
        for shape, layout, name, mode in product(shapes, LAYOUTS, PEERS, MODES)
        if mode == "fwd" or name not in LABEL_MAPS
    ]
    if not tiny:
        plan += [((name, shapes[0], usual, "contiguous", "fwd"), True) for name in PEERS]
        plan += [
            ((name, shape, "float32", layout, "fwd+bwd"), False)
            for shape, layout, name in product(shapes[::2], LAYOUTS, PEERS)
            if name not in LABEL_MAPS
        ]
    for case, with_compile in plan:
        name, shape, *others = case
        title = f"{name} {'x'.join(map(str, shape))} {' '.join(others)}"
        measure = partial(times, *case, rate, device, tiny, with_compile)
        yield f"{title} compile" if with_compile else title, measure


def times(
    name: str,
    shape: tuple[int, int, int, int],
    dtype: str,
    layout: str,
    mode: str,
    rate: float,
    device: str,
    tiny: bool,
    with_compile: bool,
) -> Facts:
    """The time of each candidate in microseconds, and the share: the time of copying the floor's
    bytes over the time of ours."""
    import torch

    from benchmarks.compare import compare
    from benchmarks.floors import FLOORS, Shape
    from benchmarks.inputs import inputs
    from benchmarks.operators import LAYOUTS

    kind = getattr(torch, dtype)
    function, arguments = inputs(
        name, shape, kind, LAYOUTS[layout], device=device, requires_grad=mode != "fwd"
    )
    found = compare(
        function,
        arguments,
        mode=mode,
        with_compile=with_compile,
        with_memory=False,
        device=device,
        rounds=2 if tiny else 10,
        budget=0.0 if tiny else 0.05,
    )
    passes = (name, f"{name}_backward") if mode != "fwd" else (name,)
    moved = sum(FLOORS[each](Shape(*shape, kind.itemsize)).bytes for each in passes)
    facts: Facts = {f"{each}_us": round(found.median(each) * 1e6, 1) for each in found.times}
    facts["share_of_copy"] = round(moved / rate / found.median("fused"), 3)
    return facts | ({"failures": found.failures} if found.failures else {})


# heads.


def heads_cases(device: str, tiny: bool) -> Cases:
    from benchmarks.compare import MODES
    from benchmarks.models import HEADS

    for name, mode in product(HEADS, MODES):
        yield f"{name} {mode}", partial(measure_head, name, mode, device, tiny)


def measure_head(name: str, mode: str, device: str, tiny: bool) -> Facts:
    from benchmarks.compare import compare
    from benchmarks.models import make_head

    module, arguments = make_head(name, device, tiny)
    found = compare(
        module,
        arguments,
        mode=mode,
        with_compile=False,
        device=device,
        rounds=2 if tiny else 5,
        budget=0.0,
    )
    facts: Facts = {f"{each}_ms": round(found.median(each) * 1e3, 3) for each in found.times}
    peaks = {each: peak for each, peak in found.peaks.items() if peak is not None}
    return facts | {f"{each}_peak_mib": round(peak / 2**20, 1) for each, peak in peaks.items()}


# operators.


def run_operators(device: str, size: tuple[int, int, int, int], large: bool) -> int:
    """Runs every operator in both layouts, float32 and bfloat16; with --large only its most common
    form."""
    import torch

    from benchmarks.operators import LAYOUTS, OPERATORS, Sample, call

    pairs = [("bfloat16", "contiguous")] if large else product(("float32", "bfloat16"), LAYOUTS)
    for (dtype, layout), name in product(pairs, OPERATORS):
        call(name, OPERATORS[name](Sample(size, getattr(torch, dtype), layout, device)))
        synchronize(device)
    return 0


# The plugin.


def pytest_configure(config: Any) -> None:
    """Installs the plugin in the process that collects the outcomes, not in xdist's workers."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes())


class Outcomes:
    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.failed or report.skipped:
            facts = {"error": str(report.longrepr)[-300:]} if report.failed else {}
            record(case=report.nodeid, status=report.outcome, **facts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_cases", description=__doc__)
    parser.add_argument("what", choices=("build", "check", "times", "heads", "operators"))
    parser.add_argument("--tiny", action="store_true", help="on the CPU, tiny maps")
    parser.add_argument("--large", action="store_true", help="operators: at the paper's size")
    options = parser.parse_args()
    device = "cpu" if options.tiny else "cuda"
    if options.what == "build":
        return build(device)
    import torch

    import stripctx  # noqa: F401  the operators

    torch.backends.cudnn.allow_tf32 = False  # no tf32
    if options.what == "operators":
        size = TINY if options.tiny else LARGE if options.large else ODD
        return run_operators(device, size, options.large)
    cases = {"check": check_cases, "times": times_cases, "heads": heads_cases}[options.what]
    run_cases(cases(device, options.tiny), device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
