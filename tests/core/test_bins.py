"""csrc/core/bins.hpp, bound with pybind11, against the definition of adaptive bins."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sysconfig
from math import ceil, floor
from pathlib import Path
from types import ModuleType

import numpy as np
import pybind11
import pytest

pytestmark = pytest.mark.slow  # compiles C++

REPOSITORY = Path(__file__).resolve().parents[2]
FOREVER = 2**63 - 1


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    library = tmp_path_factory.mktemp("core") / f"bins{suffix}"
    includes = [REPOSITORY / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    subprocess.run(
        ["g++", "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
         "-fvisibility=hidden", *(f"-I{path}" for path in includes),
         str(Path(__file__).with_name("bins.cpp")), "-o", str(library)],
        check=True,
    )  # fmt: skip
    spec = importlib.util.spec_from_file_location("bins", library)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def membership(count: int, length: int) -> np.ndarray:
    """(bins, positions): whether each bin contains each position, by the definition."""
    held = np.zeros((count, length), dtype=bool)
    for i in range(count):
        held[i, floor(i * length / count) : ceil((i + 1) * length / count)] = True
    return held


def test_windows_and_the_bins_over_a_position(bins: ModuleType) -> None:
    for length in range(1, 41):
        for count in range(1, 41):
            held = membership(count, length)
            for i in range(count):
                begin, end = bins.window(i, count, length)
                assert np.flatnonzero(held[i]).tolist() == list(range(begin, end))
            for p in range(length):
                begin, end = bins.bins_at(p, count, length)
                assert np.flatnonzero(held[:, p]).tolist() == list(range(begin, end))


def check_cells(bins: ModuleType, length: int, levels: list[int], longest: int) -> None:
    cuts = np.array(bins.cuts(length, levels, longest))
    assert cuts[0] == 0 and cuts[-1] == length
    assert (np.diff(cuts) > 0).all() and (np.diff(cuts) <= longest).all()
    columns = [membership(count, length) for count in levels]
    changes = np.flatnonzero(np.any(np.diff(np.vstack(columns), axis=1), axis=0)) + 1
    assert np.isin(changes, cuts).all()  # no bin starts or ends within a cell
    if longest == FOREVER:
        assert len(cuts) <= min(length, 2 * sum(levels)) + 1
        ends = {e for b in levels for i in range(b) for e in bins.window(i, b, length)}
        assert set(cuts.tolist()) == ends | {0, length}
    for level, held in enumerate(columns):
        for i, (first, last) in enumerate(bins.runs(length, levels, level, longest)):
            assert np.flatnonzero(held[i]).tolist() == list(range(cuts[first], cuts[last]))


def test_cells_of_every_pair_of_levels(bins: ModuleType) -> None:
    for length in range(1, 41):
        for count in range(1, 41):
            check_cells(bins, length, [count], FOREVER)


def test_cells_of_random_levels(bins: ModuleType) -> None:
    choose = random.Random(0)
    for _ in range(500):
        length = choose.randint(1, 200)
        levels = [choose.randint(1, 45) for _ in range(choose.randint(1, 8))]
        check_cells(bins, length, levels, choose.choice([FOREVER, 1, 2, 5, 17]))


def test_the_cell_of_a_position(bins: ModuleType) -> None:
    for length in (1, 7, 60, 97):
        cuts = bins.cuts(length, [1, 2, 3, 6], FOREVER)
        for p in range(length):
            cell = bins.holding(length, [1, 2, 3, 6], p)
            assert cuts[cell] <= p < cuts[cell + 1]


def test_large_sizes_do_not_overflow(bins: ModuleType) -> None:
    most = bins.most_bins
    for length in (2**31 - 1, 2**38 + 3):
        for i in (0, 1, most // 3, most - 1):
            want = (i * length // most, -(-(i + 1) * length // most))
            assert bins.window(i, most, length) == want
        for p in (0, length // 7, length - 1):
            want = (p * most // length, -(-(p + 1) * most // length))
            assert bins.bins_at(p, most, length) == want
