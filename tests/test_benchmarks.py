"""The benchmarks: floors against manual counts, peers against stripctx's functions, timers and the
memory meter against known amounts."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import re
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import compare, family, floors, machine, measuring, memory, peers, report
from benchmarks.family import Family
from benchmarks.floors import Floor, Shape
from benchmarks.inputs import LAYERS, Size, inputs
from stripctx import StripPooling, functional

REPOSITORY = Path(__file__).resolve().parent.parent
FAMILY_FILES = [REPOSITORY / "benchmarks" / f"{name}.py" for name in report.FAMILIES]
MIB = 2**20
needs_high_water_mark = pytest.mark.skipif(
    not memory.reset_high_water_mark(), reason="the system has no resettable high-water mark"
)


# Floors, by hand for N=2, C=3, H=4, W=5 in a 2-byte type: 120 elements per map, 54 in the strips.
BY_HAND = {
    "strip_pool": (240, 108, 240),
    "strip_pool_backward": (108, 240, 54 + 120),
    "strip_add_relu": (108, 240, 240),
    "strip_add_relu_backward": (240 + 108, 108, 120 + 120 + 6 * (4 * 4 + 5 * 3)),
    "sigmoid_gate": (480 + 6, 240, 720),
    "sigmoid_gate_backward": (720 + 6, 480 + 6, 9 * 120 + (120 - 3)),
    "row_pool": (240, 2 * 6 * 16, 120 + 96),
    "row_pool_backward": (2 * 6 * 16, 240, 2 * 96),
}


@pytest.mark.parametrize("operator", BY_HAND)
def test_floor_by_hand(operator: str) -> None:
    assert floors.floor(operator, Shape(2, 3, 4, 5, element_size=2)) == Floor(*BY_HAND[operator])


def test_floor_of_strip_gate_by_hand() -> None:
    """M = 7: 280 elements between the strips and the product, 126 in the strips, 21 weights."""
    least = floors.floor("strip_gate", Shape(2, 3, 4, 5, element_size=4, hidden=7))
    assert least.read == 4 * (120 + 126 + 21 + 3)
    assert least.written == 4 * 120
    assert least.operations == 2 * 40 * 3 * 7 + 2 * 280 + 6 * 120
    assert floors.PRODUCTS["strip_gate"](Shape(2, 3, 4, 5, hidden=7)) == (40, 7, 3)


def test_floor_of_pyramid_conv_by_hand() -> None:
    """2 output channels from 8 channels and 4 levels of 2 channels; 50 cells per image."""
    shape = Shape(2, 8, 4, 5, element_size=4)
    least, back = (floors.floor(f"pyramid_conv{end}", shape) for end in ("", "_backward"))
    x, cells, weight, bias, out = 2 * 8 * 20, 2 * 2 * 50, 9 * 2 * 16, 2, 2 * 2 * 20
    assert (least.read, least.written) == (4 * (x + cells + weight + bias), 4 * out)
    assert back == Floor(4 * (out + x + cells + weight), least.read, back.operations)
    taps = floors.floor("pyramid_taps_add", Shape(2, 2, 4, 5)).operations
    assert least.operations - taps == 9 * 2 * (40 * 8 * 2 + cells * 2)


@pytest.mark.parametrize("path", FAMILY_FILES, ids=lambda path: path.stem)
def test_every_operator_of_a_measured_family_has_a_floor(path: Path) -> None:
    registrations = (REPOSITORY / "stripctx" / "ops" / path.name).read_text()
    operators = re.findall(r'^define\(\s*"(\w+)"', registrations, re.MULTILINE)
    assert operators
    assert set(operators) <= set(floors.FLOORS)


def test_every_function_has_a_peer() -> None:
    assert set(peers.PEERS) == set(functional.__all__)


def test_cuda_traffic_adds_what_a_kernel_lists() -> None:
    """By hand: 24 rows and 30 cols; 2 tiles of W, 3 chunks of H, 8 lanes and 4 slots per block."""
    shape = Shape(2, 3, 4, 5, element_size=2)
    launch = floors.Launch(grid=(6, 2, 3), block=(8, 4, 1))
    sums = Floor(4 * (24 * 2 + 30 * 3), 4 * (24 * 2 + 30 * 3), 24 + 30 * 2)
    assert floors.cuda_traffic("strip_gate", shape, {}) == floors.floor("strip_gate", shape)
    for operator, kernel, extra in (
        ("strip_pool", "strip_reduce_planes", sums),
        ("strip_add_relu_backward", "strip_reduce_planes", sums + Floor(2 * (24 + 30 * 11))),
        ("strip_add_relu_backward", "strip_reduce_pixels", sums + Floor(2 * 30 * 2)),
        # Eight steps for the 5 columns of 4 rows, four for the 4 rows of 5 columns, in pairs.
        ("strip_pool", "strip_reduce_small_pixels", Floor(2 * 6 * (4 * 8 + 6 * 4 - 20))),
        (
            "strip_add_relu_backward",
            "strip_reduce_small_pixels",
            Floor(2 * 6 * (4 * 8 + 6 * 4 - 20 + (4 + 2 * 8) + (6 + 3 * 4) - 9)),
        ),
        ("strip_add_relu", "strip_expand_planes", Floor(2 * (24 + 30 * 11))),
        ("strip_pool_backward", "strip_expand_pixels", Floor(2 * (24 + 30 * 2))),
        ("sigmoid_gate", "sigmoid_gate_planes", Floor(2 * 3 * 31)),
        ("sigmoid_gate", "sigmoid_gate_pixels", Floor(2 * 3 * 23)),
    ):
        traffic = floors.cuda_traffic(operator, shape, {"sum_partials": launch, kernel: launch})
        assert traffic == floors.floor(operator, shape) + extra


def test_floors_need_no_torch() -> None:
    code = "import sys, benchmarks.floors; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


# Peers.


SIZE = (2, 6, 9, 7)
EVEN = (2, 6, 12, 18)  # divisible by PSPNet's bins, so that the peer of the means pools twice
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("size", [SIZE, EVEN], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", peers.PEERS)
def test_peer_computes_the_same(
    name: str, layout: torch.memory_format, dtype: torch.dtype, size: Size
) -> None:
    function, arguments = inputs(name, size, dtype, layout)
    mode = "fwd" if name in peers.LABEL_MAPS else "fwd+bwd"
    ours, theirs = (
        compare.bind(candidate, arguments, mode)() for candidate in (function, peers.of(function))
    )
    compare.check_agreement(name, theirs, ours)


@pytest.mark.parametrize("name", peers.PEERS)
def test_peer_keeps_channels_last(name: str) -> None:
    function, arguments = inputs(name, SIZE, torch.float32, torch.channels_last)
    for output in compare.bind(peers.of(function), arguments, "fwd")():
        assert output.dim() != 4 or output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_peers_with_other_options(layout: torch.memory_format) -> None:
    """Maxima, unaligned corners, x last, levels of one cell along an axis."""
    x, weight = torch.randn(SIZE).contiguous(memory_format=layout), torch.randn(4, 18, 3, 3)
    levels = [torch.randn(2, 6, *size) for size in ((1, 7), (4, 1))]
    for function, arguments in (
        (partial(functional.pyramid_pool, mode="max"), [x, [2, (4, 1)]]),
        (partial(functional.row_pool, mode="max"), [x, 4]),
        (partial(functional.pyramid_add_relu, align_corners=False), [x, levels]),
        (partial(functional.pyramid_concat, align_corners=False, x_index=-1), [x, levels]),
        (
            partial(functional.pyramid_conv, dilation=2, align_corners=False, x_index=-1),
            [x, levels, weight],
        ),
    ):
        expected = function(*arguments)
        torch.testing.assert_close(peers.of(function)(*arguments), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_peer_without_bias(bias: bool) -> None:
    x, logits, vector = torch.randn(1, 3, 4, 5), torch.randn(1, 3, 4, 5), torch.randn(3)
    chosen = vector if bias else None
    expected = functional.sigmoid_gate(x, logits, chosen)
    torch.testing.assert_close(peers.sigmoid_gate(x, logits, chosen), expected)


def test_installed_replaces_and_restores() -> None:
    before = {name: getattr(functional, name) for name in peers.PEERS}
    with pytest.raises(KeyError), peers.installed():
        assert all(getattr(functional, name) is peer for name, peer in peers.PEERS.items())
        raise KeyError
    assert {name: getattr(functional, name) for name in peers.PEERS} == before


def test_installed_reaches_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = StripPooling(4).eval(), torch.randn(1, 4, 5, 6)
    called = []
    monkeypatch.setitem(
        peers.PEERS, "strip_pool", lambda x: called.append(x) or peers.strip_pool(x)
    )
    torch.testing.assert_close(peers.of(layer)(x), layer(x))
    assert len(called) == 1


def test_comparison_refuses_a_wrong_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEERS, "strip_add_relu", lambda rows, cols: rows + cols)
    inputs = [torch.randn(1, 2, 3, 1), torch.randn(1, 2, 1, 3)]
    with pytest.raises(AssertionError, match="eager: result 0 differs"):
        compare.compare(functional.strip_add_relu, inputs, mode="fwd", with_compile=False)


def test_comparison_allows_few_turned_rectifiers() -> None:
    expected = torch.randn(20_000)
    few, many, nothing = expected.clone(), expected.clone(), expected.clone()
    few[[7, 70]] += 1
    many[[7, 70, 700]] += 1
    nothing[0] = float("nan")
    compare.check_agreement("few", [few], [expected])
    for wrong in (many, nothing, few[:100]):
        with pytest.raises(AssertionError, match="result 0 differs"):
            compare.check_agreement("wrong", [wrong], [expected[: len(wrong)]])


def test_comparison_goes_on_without_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: Any) -> Any:
        raise RuntimeError("\nno C++ compiler\nmore")

    monkeypatch.setattr(peers, "compiled", refuse)
    inputs = [torch.randn(1, 2, 3, 1), torch.randn(1, 2, 1, 3)]
    found = compare.compare(functional.strip_add_relu, inputs, mode="fwd", rounds=2)
    assert list(found.times) == ["fused", "eager"]
    assert found.failures == {"compile": "no C++ compiler"}


# Layers.


@pytest.mark.parametrize("name", LAYERS)
def test_peer_of_a_layer_computes_the_same(name: str) -> None:
    function, arguments = inputs(name, SIZE, torch.float64, torch.contiguous_format)
    found = compare.compare(function, arguments, mode="fwd+bwd", with_compile=False, rounds=1)
    assert list(found.times) == ["fused", "eager"]


def test_comparison_refuses_a_wrong_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    function, arguments = inputs("StripPooling", SIZE, torch.float32, torch.contiguous_format)
    monkeypatch.setitem(peers.PEERS, "strip_gate", lambda x, *others: x)
    with pytest.raises(AssertionError, match="eager: results differ"):
        compare.compare(function, arguments, mode="fwd", with_compile=False)


def test_floor_of_a_layer_is_counted() -> None:
    """A linear layer: 2 x 6 x 4 multiply-adds forward, twice that backward, but none for x."""
    layer, x = nn.Linear(6, 4), torch.randn(2, 6)
    run = compare.bind(layer, [x], "fwd+bwd")
    limit = family.limit_of_layer(layer, [x], (2, 6, 1, 1), run, "cpu")
    assert limit.least.operations == 2 * 2 * (2 * 6 * 4)
    assert limit.least.read == 4 * (12 + 24 + 4)
    assert limit.least.written == 4 * (8 + 24 + 4)
    assert limit.by == "copy"


def test_floor_of_a_large_layer_is_a_product() -> None:
    layer, x = nn.Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 16, 16)
    limit = family.limit_of_layer(
        layer, [x], (1, 64, 16, 16), compare.bind(layer, [x], "fwd"), "cpu"
    )
    assert limit.least.operations == 2 * 256 * 64 * 64 * 9
    assert limit.by == "product"
    limit.make()()


def test_results_are_new_storages_only() -> None:
    """The gradient of x is a view of the upstream gradient, that of y is a copy of it."""
    x, y = torch.randn(3, 4, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    run = compare.bind(lambda a, b: torch.cat([a, b * 2], 1), [x, y], "fwd+bwd")
    results = run()
    assert [value.numel() for value in results] == [27, 12, 15]
    assert run.result_bytes(results) == 4 * (27 + 15)


# Cases.


@pytest.mark.parametrize("path", FAMILY_FILES, ids=lambda path: path.stem)
def test_cases_of_a_family(path: Path) -> None:
    """The case shown in the tables is the first of its operator, and causes no page faults."""
    family = importlib.import_module(f"benchmarks.{path.stem}").FAMILY
    assert family.name == path.stem
    cases = list(family.cases())
    assert len(set(cases)) == len(cases)
    for operator, shapes in family.shapes.items():
        mine = [case for case in cases if case.operator == operator]
        assert mine[0].shape == shapes[0] and mine[0].with_compile
        assert {case.shape for case in mine} == set(shapes)
        assert len({(case.dtype, case.layout) for case in mine}) == 4
        if family.name == "labels":
            continue  # does not allocate any of these maps
        results = math.prod(shapes[0]) * 4 * (2 if operator.endswith(("concat", "Pooling")) else 1)
        assert results < 32 * 10**6, "page faults"


def test_a_case_that_fails_is_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other entries are written, even if an interrupt ends the run."""
    row_pool = peers.row_pool

    def wrong(x: torch.Tensor, rows: int, mode: str = "mean") -> torch.Tensor:
        if x.dtype is torch.bfloat16:
            raise KeyboardInterrupt
        return row_pool(x, rows, mode) if x.requires_grad else row_pool(x, rows, mode) + 1

    monkeypatch.setitem(peers.PEERS, "row_pool", wrong)
    with pytest.raises(KeyboardInterrupt):
        Family("few", {"row_pool": ()}).main(["--quick", "--results", str(tmp_path)])
    entries = json.loads((tmp_path / "few.json").read_text())["entries"]
    assert entries[0]["error"].startswith("eager: result 0 differs")
    assert set(entries[1]["candidates"]) == {"fused", "eager"} and len(entries) == 2
    assert len(report.read(tmp_path / "few.json")["entries"]) == 1


# GPU code paths, without a GPU.


def test_comparison_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies that exceed the cache, all in one graph; a floor for each copy."""
    recorded, floors_made = [], []

    def graph(runs: list[Any]) -> Any:
        recorded.append(runs)
        return lambda: [run() for run in runs]

    def floor() -> Any:
        floors_made.append(torch.ones(8))
        return lambda: floors_made[-1].add_(1)

    monkeypatch.setattr(measuring, "cache_bytes", lambda: 1000)
    monkeypatch.setattr(measuring, "graph", graph)
    monkeypatch.setattr(measuring, "_cuda_seconds", measuring._cpu_seconds)
    monkeypatch.setattr(memory, "peak_extra_bytes", lambda run, device: 7)
    function, arguments = inputs("strip_gate", SIZE, torch.float32, torch.channels_last)
    compare.compare(
        function, arguments, mode="fwd+bwd", floor=floor, device="cuda", with_compile=False
    )
    size = sum(value.nbytes for value in arguments)
    copies = -(-3000 // size)
    assert [len(runs) for runs in recorded] == [copies + 1] * 3
    assert len(floors_made) == copies + 1
    first, other = recorded[0][:2]
    for value, copy in zip(first.arguments, other.arguments, strict=True):
        assert copy.data_ptr() != value.data_ptr() and copy.stride() == value.stride()
    for value, copy in zip(first(), other(), strict=True):
        assert torch.equal(value, copy)


def test_rotated_keeps_what_is_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "cache_bytes", lambda: 1000)
    copies = measuring.rotated([torch.ones(100), (1, 2), [torch.zeros(25, requires_grad=True)]])
    assert len(copies) == 6
    x, bins, (level,) = copies[0]
    assert torch.equal(x, torch.ones(100)) and bins == (1, 2) and level.requires_grad
    assert len(measuring.rotated([torch.ones(1)])) == measuring.MOST_COPIES


def test_runs_of_several_calls_are_divided() -> None:
    times = measuring.interleave({"a": lambda: time.sleep(0.01)}, rounds=5, calls_a_run=10)
    assert 0.001 <= statistics.median(times["a"]) < 0.005


def test_a_gpu_gets_larger_batches() -> None:
    family = Family("strip", {"strip_pool": ((1, 512, 60, 60), (2, 64, 9, 9))})
    one: list[Any] = list(family.cases())
    eight = list(family.cases(batch=8))
    assert [replace(case, shape=(case.shape[0] * 8, *case.shape[1:])) for case in one] == eight


# Clocks and meters.


def test_interleave_times_what_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    now = 0.0

    def call(name: str, seconds: float) -> None:
        nonlocal now
        order.append(name)
        now += seconds

    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: now))
    candidates = {
        "slow": lambda: call("slow", 0.012),
        "fast": lambda: call("fast", 0.002),
    }
    times = measuring.interleave(candidates, rounds=6)
    samples = order[6:]  # without the calls that determine the sample size
    turns = [(name, len(list(calls))) for name, calls in itertools.groupby(samples)]
    assert sum(count for name, count in turns if name == "slow") == 6 * 2  # 1 of 2 is warm-up
    assert sum(count for name, count in turns if name == "fast") == 6 * 4  # 3 of 4 are warm-up
    assert {name for name, _ in turns[:2]} == {"slow", "fast"}
    assert turns[:2] != turns[2:4] or turns[:2] != turns[4:6]  # in a new order every round
    assert len(times["slow"]) == 6
    assert times == {"slow": pytest.approx([0.012] * 6), "fast": pytest.approx([0.002] * 6)}


def test_interleave_repeats_short_calls_and_keeps_to_its_budget() -> None:
    calls = 0

    def short() -> None:
        nonlocal calls
        calls += 1

    times = measuring.interleave({"short": short}, rounds=10_000, budget=0.0)
    assert len(times["short"]) == measuring.LEAST_ROUNDS
    assert calls > 100 * measuring.LEAST_ROUNDS


def test_interleave_takes_fewer_long_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "LONG", 0.02)
    times = measuring.interleave({"long": lambda: time.sleep(0.01)}, budget=0.0)
    assert len(times["long"]) == measuring.LEAST_LONG_ROUNDS


@needs_high_water_mark
@pytest.mark.parametrize("mebibytes", [4, 48])
def test_memory_meter_sees_known_amounts(mebibytes: int) -> None:
    def allocate() -> None:
        for _ in range(3):  # one after another: at most two are alive
            first = torch.ones(mebibytes * MIB, dtype=torch.uint8)
            second = first + 1
            del first, second

    measuring.warm(allocate)  # now malloc holds pages that it could reuse unnoticed
    peak = memory.peak_extra_bytes(allocate)
    assert peak is not None
    assert abs(peak - 2 * mebibytes * MIB) < 0.5 * MIB


def test_warm_blocks_keep_their_pages() -> None:
    """Blocks that malloc would return to the system, larger than twice the largest mapped block."""

    def allocate() -> None:
        blocks = [torch.ones(24 * MIB, dtype=torch.uint8) for _ in range(6)]
        del blocks

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        allocate()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    memory.warm_blocks()
    taken = [faults() for _ in range(11)]  # at first malloc uses other locations
    assert statistics.median(taken) < 100  # of some 36,000 pages


@needs_high_water_mark
def test_memory_meter_sees_through_holes() -> None:
    """The freed block in the middle fits no later block, and is not counted twice."""

    def allocate() -> None:
        kept = [torch.ones(3 * MIB, dtype=torch.uint8) for _ in range(3)]
        del kept[1]
        kept.append(torch.ones(4 * MIB, dtype=torch.uint8))

    measuring.warm(allocate, calls=10)
    peak = memory.peak_extra_bytes(allocate)
    assert peak is not None
    assert abs(peak - 10 * MIB) < 0.5 * MIB


@needs_high_water_mark
def test_memory_meter_sees_nothing_where_nothing_is() -> None:
    target, source = torch.zeros(8 * MIB), torch.ones(8 * MIB)
    peak = memory.peak_extra_bytes(lambda: target.copy_(source))
    assert peak is not None
    assert peak < 0.5 * MIB


# All scripts.


@pytest.mark.slow
@pytest.mark.parametrize("name", [*report.FAMILIES, "models"])
def test_quick_run_writes_every_case(name: str, tmp_path: Path) -> None:
    script = importlib.import_module(f"benchmarks.{name}")
    assert script.FAMILY.main(["--quick", "--results", str(tmp_path)]) == 0
    text = (tmp_path / f"{name}.json").read_text()
    assert all(word not in text for word in ("/home", "/root", "/work", "node"))
    entries = report.read(tmp_path / f"{name}.json")["entries"]
    assert all(set(entry["candidates"]) == {"fused", "eager"} for entry in entries)
    if name == "models":
        expected = {f"{each} resnet18" for each in script.NETWORKS}
    else:
        expected = set(script.FAMILY.shapes)
        assert all(entry["floor"]["samples_ms"] for entry in entries)
    assert {entry["operator"] for entry in entries} == expected


def test_every_function_and_layer_is_measured() -> None:
    scripts = [importlib.import_module(f"benchmarks.{path.stem}") for path in FAMILY_FILES]
    measured = {operator for script in scripts for operator in script.FAMILY.shapes}
    assert measured == {*functional.__all__, *LAYERS}


def test_facts_name_no_host_and_no_folder() -> None:
    assert all(word not in json.dumps(machine.describe()) for word in ("/home", "/root", "/work"))


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_benchmarks_and_examples_stand_apart(folder: str) -> None:
    other = "examples" if folder == "benchmarks" else "benchmarks"
    imports = re.compile(rf"^\s*(from|import) {other}\b", re.MULTILINE)
    paths = list((REPOSITORY / folder).rglob("*.py"))
    assert len(paths) > 10
    paths = [path for path in paths if path.name != "camvid.py"]  # trains networks by recipes
    assert not [path for path in paths if imports.search(path.read_text())]
