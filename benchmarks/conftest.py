"""The pytest side of the benchmarks: options, the device, and benchmarks/results/<name>.json.

    python -m pytest benchmarks                 every family, some minutes, writes the results
    python -m pytest benchmarks --quick         tiny shapes, one thread, no compiling, no file
    python -m pytest benchmarks --quick --results DIRECTORY     writes there

A result file is written when a family's whole run has passed: `-k` writes nothing, a failure
neither. `python -m benchmarks.report` turns result files into tables and plots.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import machine, results
from benchmarks.family import Measurable, summary

STARTED = time.monotonic()
CUDA_BATCH = 8  # for one image on a CPU: enough to fill a large GPU
ENTRIES: pytest.StashKey[dict[str, list[dict[str, Any]]]] = pytest.StashKey()
DESELECTED: pytest.StashKey[list[str]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stripctx")
    group.addoption("--quick", action="store_true", help="tiny shapes, no torch.compile: seconds")
    group.addoption("--without-compile", action="store_true", help="leave out torch.compile")
    group.addoption("--seconds", type=float, help="skip cases that would start later than this")
    group.addoption("--every-case", action="store_true", help="all shapes x dtypes x layouts")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure")
    group.addoption("--results", type=Path, help="folder for result files")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ENTRIES] = {}
    config.stash[DESELECTED] = []
    if config.getoption("--quick"):
        torch.set_num_threads(1)


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        items[0].config.stash[DESELECTED].extend(item.nodeid for item in items)


def pytest_collection_finish() -> None:
    """The meter of memory collects garbage before each case: what is there now need not be searched
    each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return name


@pytest.fixture(autouse=True)
def in_time(request: pytest.FixtureRequest) -> None:
    limit = request.config.getoption("--seconds")
    if limit is not None and time.monotonic() - STARTED > limit:
        pytest.skip(f"{limit:.0f} seconds are over")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a case of the file's FAMILY."""
    if "case" in metafunc.fixturenames:
        option = metafunc.config.getoption
        cases = metafunc.module.FAMILY.cases(
            quick=option("--quick"),
            every=option("--every-case"),
            batch=CUDA_BATCH if option("--device") == "cuda" else 1,
        )
        metafunc.parametrize("case", list(cases), ids=str)


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


@pytest.fixture
def record(request: pytest.FixtureRequest, device: str) -> Callable[[dict[str, Any]], None]:
    """Keeps an entry for the result file of the test's family: test_strip.py writes strip.json."""
    name = request.path.stem.removeprefix("test_") + ("-cuda" if device == "cuda" else "")
    entries = request.config.stash[ENTRIES].setdefault(name, [])
    return entries.append


@pytest.fixture
def run(
    request: pytest.FixtureRequest,
    device: str,
    quick: bool,
    record: Callable[[dict[str, Any]], None],
    benchmark: Any,
) -> Callable[[Measurable], None]:
    """Measures a case. Its samples go to the result file and, as medians, into pytest-benchmark's
    extra_info. pytest-benchmark's own loop cannot take turns between candidates: it times the fused
    call alone, a few rounds, for its table and for `--benchmark-compare` between commits."""
    with_compile = not (quick or request.config.getoption("--without-compile"))

    def measure(case: Measurable) -> None:
        entry, fused = case.measured(device, with_compile=with_compile, quick=quick)
        record(entry)
        facts = summary(entry)
        benchmark.group = f"{entry['operator']} {entry['mode']}"
        benchmark.extra_info.update(facts)
        benchmark.pedantic(fused, rounds=5 if facts["fused_ms"] < 50 else 1, iterations=1)

    return measure


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    folder = config.getoption("--results")
    if folder is None and not config.getoption("--quick"):
        folder = results.FOLDER
    if folder is None or exitstatus != 0 or config.stash[DESELECTED]:
        return
    for name, entries in config.stash[ENTRIES].items():
        facts = machine.describe(config.getoption("--device"))
        results.write(folder / f"{name}.json", facts, entries)


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """In pytest-benchmark's own files too: what matters, and no host name."""
    machine_info.clear()
    machine_info.update(machine.describe())
