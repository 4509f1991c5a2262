"""The emulator that runs CUDA kernels on a CPU (tests/simt): the same results as CUDA, and an error
for every faulty kernel in tests/simt/kernels/faults.cu.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import toolkit
import torch

pytestmark = pytest.mark.slow  # compiles C++

KERNELS = sorted((toolkit.EMULATOR / "kernels").glob("*.cu"))
ORDERS = ["ascending", "descending", "random:1", "random:2"]
Argument: TypeAlias = torch.Tensor | torch.dtype | str | int
DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}

needs_headers = pytest.mark.skipif(
    not toolkit.include_directories(), reason="needs cuda_fp16.h and nv/target"
)


class Emulator:
    """The test kernels, compiled by g++."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = toolkit.load(path)

    def __call__(self, name: str, *arguments: Argument) -> None:
        """Calls run_<name>; tensors are passed as pointers, integers as 64 bits. Raises its
        errors."""
        function = getattr(self.library, f"run_{name}")
        function.restype = ctypes.c_char_p
        error = function(*map(convert, arguments))
        if error is not None:
            raise RuntimeError(error.decode())

    def order(self, text: str) -> None:
        assert self.library.stripctx_simt_set_order(text.encode()) == 0

    def counts(self) -> dict[str, dict[str, Any]]:
        counts: dict[str, dict[str, Any]] = json.loads(self.library.stripctx_simt_counts())
        return counts

    def reset_counts(self) -> None:
        self.library.stripctx_simt_reset_counts()


def convert(argument: Argument) -> object:
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, torch.dtype):
        return ctypes.c_int32(DTYPES[argument])
    return argument.encode() if isinstance(argument, str) else ctypes.c_int64(argument)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    if not toolkit.include_directories():
        pytest.skip("needs cuda_fp16.h and nv/target")
    return Emulator(toolkit.compile_emulated(KERNELS, tmp_path_factory.mktemp("simt") / "simt.so"))


@pytest.fixture
def emulator(built: Emulator) -> Iterator[Emulator]:
    built.order("ascending")
    built.reset_counts()
    yield built
    built.order("ascending")


def row_sums(emulator: Emulator, x: torch.Tensor, threads: int) -> torch.Tensor:
    sums = torch.full((x.shape[0],), float("nan"))
    emulator("row_sums", x, sums, *x.shape, threads)
    return sums


def fault(emulator: Emulator, name: str) -> torch.Tensor:
    data = torch.zeros(64)
    emulator("fault", name, data)
    return data


@pytest.mark.parametrize("threads", [32, 96, 256, 1024])
def test_sums_give_the_same_bits_in_every_order(emulator: Emulator, threads: int) -> None:
    x = torch.randn(5, 3000)
    results = []
    for order in ORDERS:
        emulator.order(order)
        results.append(row_sums(emulator, x, threads))
        torch.testing.assert_close(results[-1].double(), x.double().sum(1), rtol=0, atol=1e-4)
    assert all(torch.equal(results[0], result) for result in results)


@pytest.mark.parametrize("order", ORDERS)
def test_warp_operations_equal_cudas(emulator: Emulator, order: str) -> None:
    emulator.order(order)
    x, out = torch.randn(32), torch.zeros(6, 32)
    emulator("warp_operations", x, out)
    lane = torch.arange(32)
    assert torch.equal(out[0], x[(lane + 5) % 32])
    assert torch.equal(out[1], x[lane // 8 * 8 + 3])
    assert torch.equal(out[2], x[lane ^ 9])
    assert torch.equal(out[3], x[torch.where(lane % 16 + 3 < 16, lane + 3, lane)])
    assert torch.equal(out[4], ((x > 0)[:16] * 2 ** lane[:16]).sum().float().expand(32))
    torch.testing.assert_close(out[5], x.view(4, 8).sum(1).repeat_interleave(8))


def test_a_missing_barrier_shows_between_orders(emulator: Emulator) -> None:
    results = []
    for order in ("ascending", "descending"):
        emulator.order(order)
        results.append(fault(emulator, "lacks_barrier"))
    assert not torch.equal(*results)
    for order in ORDERS:
        emulator.order(order)
        assert torch.equal(fault(emulator, "correct"), (torch.arange(64.0) + 1) % 64)


FAULTS = {
    "reads_out_of_bounds": r"block \(0, 0, 0\), thread \(63, 0, 0\): load of 1 element of 4 bytes"
    r" at 64 in global memory is out of bounds: there are 64",
    "misaligned_pack": r"thread \(0, 0, 0\): load of 4 .* at 1 .* not aligned to 16 bytes",
    "barrier_in_half_the_block": r"divergent barrier: 32 of 64 threads of the block ended while the"
    r" others wait at __syncthreads \(faults.cu:\d+\)",
    "different_barriers": r"divergent barrier: waits at __syncthreads \(faults.cu:\d+\) while"
    r" others of its block wait at __syncthreads",
    "barrier_against_shuffle": r"divergent barrier: waits at __shfl_xor_sync .* while others of its"
    r" warp wait at __syncthreads",
    "reads_ended_lane": r"__shfl_xor_sync reads lane 16, which does not take part",
    "partial_mask": r"__shfl_xor_sync: use the full mask",
    "writes_past_its_piece": r"access of 1 .* at 64 in shared memory is out of bounds",
    "writes_past_shared": r"block \(0, 0, 0\): wrote outside its 256 bytes of dynamic shared",
    "misaligned_copy": r"asynchronous load of 4 .* at 2 in global memory is not aligned to 16",
    "copies_past_shared": r"asynchronous store of 4 .* at 64 in shared memory is out of bounds",
    "takes_too_much": r"takes 272 bytes of shared memory from a launch with 256",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_reported_and_the_emulator_recovers(emulator: Emulator, name: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{name}: .*{FAULTS[name]}"):
        fault(emulator, name)
    assert torch.equal(fault(emulator, "correct"), (torch.arange(64.0) + 1) % 64)


@pytest.mark.parametrize("order", ORDERS[1:])
@pytest.mark.parametrize("name", ["barrier_in_half_the_block", "different_barriers"])
def test_divergence_is_reported_in_every_order(emulator: Emulator, name: str, order: str) -> None:
    emulator.order(order)
    with pytest.raises(RuntimeError, match="divergent barrier"):
        fault(emulator, name)


def ring(emulator: Emulator, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a ring of asynchronous copies gives, and what is correct."""
    data = torch.arange(1.0, 65.0)
    rounds = data.view(4, 4, 4)
    expected = (rounds + rounds[:, [1, 0, 3, 2]]).flatten()
    emulator("ring", name, data)
    return data, expected


@pytest.mark.parametrize("order", ORDERS)
def test_a_ring_of_asynchronous_copies(emulator: Emulator, order: str) -> None:
    emulator.order(order)
    assert torch.equal(*ring(emulator, "ring"))
    counts = emulator.counts()["ring"]
    assert counts["bytes_read"] == counts["bytes_written"] == 256


@pytest.mark.parametrize("fault", ["wait", "barrier_before", "barrier_behind"])
def test_a_ring_that_lacks_a_wait_or_a_barrier_reads_poison(emulator: Emulator, fault: str) -> None:
    """In all orders without the wait, in some without a barrier."""
    found = []
    for order in ORDERS:
        emulator.order(order)
        found.append(ring(emulator, f"ring_without_{fault}")[0].isnan().any().item())
    assert all(found) if fault == "wait" else any(found)


@pytest.mark.parametrize("order", ORDERS)
def test_bulk_copies(emulator: Emulator, order: str) -> None:
    emulator.order(order)
    data = torch.arange(64.0)
    emulator("bulk", "correct", data)
    halves = torch.arange(64.0).view(2, 32)
    assert torch.equal(data, (halves + halves.flip(1)).flatten())
    data = torch.arange(64.0)
    emulator("bulk", "no_wait", data)
    assert data[:32].isnan().all()


BULK_FAULTS = {
    # The first copy was not waited for.
    "wrong_parity": "a second bulk copy to an arrival before a wait",
    "part_of_a_pack": "bulk copy of 30 elements of 4 bytes is not whole packs of 16 bytes",
    "offset": "bulk load of 4 .* not aligned to 16",
    "past_shared": "bulk store of 4 .* in shared memory is out of bounds",
    "unprepared": "a bulk copy to an arrival that is not prepared",
    "twice": "a second bulk copy to an arrival before a wait",
}


@pytest.mark.parametrize("name", BULK_FAULTS)
def test_a_fault_of_a_bulk_copy_is_reported(emulator: Emulator, name: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{name}: .*{BULK_FAULTS[name]}"):
        emulator("bulk", name, torch.arange(64.0))


@pytest.mark.parametrize("capability", ["75", "90"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("width", "pitch", "first"), [(5, 5, 0), (7, 7, 3), (8, 8, 1), (6, 11, 2)])
def test_rows_read_through_a_ring(
    emulator: Emulator,
    width: int,
    pitch: int,
    first: int,
    order: str,
    capability: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows that begin and end within packs, to the map's last element."""
    monkeypatch.setenv("STRIPCTX_SIMT_CAPABILITY", capability)
    emulator.order(order)
    rows = 20
    map = torch.randn(first + (rows - 1) * pitch + width)
    out = torch.full((rows, width), float("nan"))
    emulator("rows", map, out, map.numel(), first, rows, width, pitch, int(width == pitch))
    assert torch.equal(out, map.as_strided((rows, width), (pitch, 1), first))


def test_uninitialised_shared_memory_is_nan(emulator: Emulator) -> None:
    out = fault(emulator, "reads_uninitialised_shared")
    assert torch.equal(out.isnan(), torch.arange(64) == 7)


@pytest.mark.parametrize("count", [1, 256, 1003])
def test_bytes_of_a_copy_are_counted_exactly(emulator: Emulator, count: int) -> None:
    x, out = torch.randn(count + 4), torch.zeros(count + 4)
    emulator("copy", x, out, count)
    emulator("copy", x, out, count)
    assert torch.equal(out[:count], x[:count]) and not out[count:].any()
    blocks = -(-count // 256)
    assert emulator.counts() == {
        "copy": {
            "bytes_read": 8 * count,
            "bytes_written": 8 * count,
            "launches": 2,
            "blocks": 2 * blocks,
            "threads": 128 * blocks,
            "shared_bytes": 0,
            "grid": [blocks, 1, 1],
            "block": [64, 1, 1],
        }
    }
    row_sums(emulator, torch.randn(3, 10), 64)
    assert emulator.counts()["row_sums"]["shared_bytes"] == 128


def bits(x: torch.Tensor) -> torch.Tensor:
    """The bit patterns, with all NaNs equal."""
    integers = x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
    return integers.masked_fill(x.isnan(), 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_widens_as_in_torch(emulator: Emulator, dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    out = torch.zeros(x.shape)
    emulator("convert", 0, dtype, x, dtype, out, torch.float32, x.numel())
    assert torch.equal(bits(out), bits(x.float())) and torch.equal(out.isnan(), x.isnan())


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_every_type_narrows_as_in_torch(emulator: Emulator, dtype: torch.dtype) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    patterns = torch.randint(-(2**31), 2**31, (100_000,), dtype=torch.int64).to(torch.int32)
    ties = (torch.arange(0x3F000000, 0x41000000, 0x800)).to(torch.int32)  # halfway for both halves
    x = torch.cat([patterns.view(torch.float32), ties.view(torch.float32), torch.randn(50_000)])
    x = x.to(wide)
    out = torch.zeros(x.shape, dtype=dtype)
    emulator("convert", 1, dtype, x, wide, out, dtype, x.numel())
    assert torch.equal(bits(out), bits(x.to(dtype))) and torch.equal(out.isnan(), x.isnan())


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_packs_of_16_bytes_copy(emulator: Emulator, dtype: torch.dtype) -> None:
    x = torch.randn(4096).to(dtype)
    out = torch.zeros_like(x)
    emulator("convert", 2, dtype, x, dtype, out, dtype, x.numel())
    assert torch.equal(out, x)
    assert emulator.counts()["copy_packs"]["bytes_read"] == x.nbytes


def test_a_view_of_another_dtype_is_refused(emulator: Emulator) -> None:
    x, out = torch.zeros(8, dtype=torch.float16), torch.zeros(8)
    with pytest.raises(RuntimeError, match=r"widen: .* a view is read as another dtype"):
        emulator("convert", 0, torch.bfloat16, x, torch.float16, out, torch.float32, 8)


def round_tf32(x: torch.Tensor) -> torch.Tensor:
    """Rounds to ten bits of mantissa, ties away from zero; x is finite and not near the maximum."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_tf32_rounds_to_nearest_ties_away(emulator: Emulator) -> None:
    ties = torch.arange(0x3F800000, 0x3F900000, 0x1000).to(torch.int32).view(torch.float32)
    x = torch.cat(
        [torch.randn(1000), ties, -ties, torch.tensor([0.0, float("inf"), -float("inf")])]
    )
    out = torch.zeros_like(x)
    emulator("round_tf32", x, out, x.numel())
    assert torch.equal(out, round_tf32(x))
    patterns = torch.tensor([0x7FC00000, 0x7F800001, -0x7FFFFF, 0x7FFFFFFF], dtype=torch.int32)
    nans = patterns.view(torch.float32)  # with various payloads
    emulator("round_tf32", nans, out, 4)
    assert nans.isnan().all() and out[:4].isnan().all()


@pytest.mark.parametrize("plain", [0, 1], ids=["gathered", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_products_use_rounded_operands(emulator: Emulator, dtype: torch.dtype, plain: int) -> None:
    depth = 8 if dtype == torch.float32 else 16
    a, b = torch.randn(16, depth).to(dtype), torch.randn(depth, 8).to(dtype)
    d = torch.randn(16, 8)
    rounded_a, rounded_b = (round_tf32(a), round_tf32(b)) if depth == 8 else (a, b)
    expected = d.double() + rounded_a.double() @ rounded_b.double()
    magnitude = d.double().abs() + rounded_a.double().abs() @ rounded_b.double().abs()
    for order in ORDERS:
        emulator.order(order)
        out = d.clone()
        emulator("product", dtype, plain, a, b, out)
        assert ((out.double() - expected).abs() <= depth * 2.0**-24 * magnitude).all()


@pytest.mark.parametrize("bfloat16", [0, 1], ids=["tf32", "bfloat16"])
def test_long_sums_of_products_do_not_drift(emulator: Emulator, bfloat16: int) -> None:
    """3600 positions per block. Hardware truncates what is added to an accumulator, so a single one
    drifts by more than float32's rounding; the emulator truncates in the same way."""
    depth = 3600
    a, b = torch.rand(16, depth), torch.randn(depth, 8) + 1
    if bfloat16:
        a, b = a.bfloat16().float(), b.bfloat16().float()
    expected = a.double() @ b.double()
    errors = []
    for one_accumulator in (0, 1):
        out = torch.zeros(16, 8)
        emulator("long_product", one_accumulator, bfloat16, a, b, out, depth)
        errors.append(((out.double() - expected).norm() / expected.norm()).item())
    assert errors[0] < 5e-7
    assert errors[1] > 5e-6


def test_accumulation_truncates_towards_zero(emulator: Emulator) -> None:
    """Sums of one sign never exceed the exact ones, and are mostly smaller."""
    for dtype, depth in ((torch.float32, 8), (torch.bfloat16, 16)):
        a, b = torch.rand(16, depth).to(dtype), torch.rand(depth, 8).to(dtype)
        rounded_a, rounded_b = (round_tf32(a), round_tf32(b)) if depth == 8 else (a, b)
        d = torch.rand(16, 8)
        expected = d.double() + rounded_a.double() @ rounded_b.double()
        out = d.clone()
        emulator("product", dtype, 0, a, b, out)
        assert (out.double() <= expected).all()
        assert (out.double() < expected).float().mean() > 0.5
        assert ((expected - out) <= 2.0**-22 * expected).all()


def warpgroup_product(
    emulator: Emulator, a: torch.Tensor, b: torch.Tensor, turned: tuple[int, int], fault: int = 0
) -> torch.Tensor:
    """a (64, 64) b (64, columns) by one warpgroup. a is stored transposed if turned, b if not, with
    which the depth is the fastest dimension. `fault` is one of kernels/warpgroups.cu."""
    stored = [a.mT.contiguous() if turned[0] else a, b if turned[1] else b.mT.contiguous()]
    out = torch.zeros(64, b.size(1))
    half = int(a.dtype is torch.float16)
    columns = b.size(1)
    emulator(
        "warpgroup_product", stored[0], turned[0], stored[1], turned[1], half, out, columns, fault
    )
    return out


@pytest.mark.parametrize("columns", [32, 64])
@pytest.mark.parametrize("turned_b", [0, 1])
@pytest.mark.parametrize("turned_a", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_warpgroups(
    emulator: Emulator, dtype: torch.dtype, turned_a: int, turned_b: int, columns: int
) -> None:
    a, b = torch.randn(64, 64).to(dtype), torch.randn(64, columns).to(dtype)
    expected = a.double() @ b.double()
    magnitude = a.double().abs() @ b.double().abs()
    for order in ORDERS:
        emulator.order(order)
        out = warpgroup_product(emulator, a, b, (turned_a, turned_b))
        assert ((out.double() - expected).abs() <= 64 * 2.0**-24 * magnitude).all()


def test_mistakes_with_warpgroups_are_found(emulator: Emulator) -> None:
    a, b = torch.randn(64, 64).bfloat16(), torch.randn(64, 32).bfloat16()
    right = warpgroup_product(emulator, a, b, (0, 0))
    without_fence, read_early, written_early = (
        warpgroup_product(emulator, a, b, (0, 0), fault) for fault in (1, 2, 3)
    )
    assert without_fence.isnan().all() and read_early.isnan().all()
    assert not torch.equal(written_early, right)
    with pytest.raises(RuntimeError, match="does not begin in the first of eight rows"):
        warpgroup_product(emulator, a, b, (0, 0), 4)
    with pytest.raises(RuntimeError, match="lanes of a warp pass different operands"):
        warpgroup_product(emulator, a, b, (0, 0), 5)


@pytest.mark.parametrize(
    ("grid", "threads", "message"),
    [
        (
            (2**31, 1, 1),
            32,
            r"at most \(2147483647, 65535, 65535\) blocks, got \(2147483648, 1, 1\)",
        ),
        ((1, 65536, 1), 32, r"got \(1, 65536, 1\)"),
        ((1, 1, 65536), 32, r"got \(1, 1, 65536\)"),
        ((1, -1, 1), 32, r"a grid cannot be negative, got \(1, -1, 1\)"),
        ((1, 1, 1), 1025, r"a block has 1 to 1024 threads, at most 64 along z, got \(1025, 1, 1\)"),
        ((1, 1, 1), 0, r"got \(0, 1, 1\)"),
    ],
)
def test_invalid_launches_are_refused(
    emulator: Emulator, grid: tuple[int, int, int], threads: int, message: str
) -> None:
    with pytest.raises(RuntimeError, match=f"barriers: .*{message}"):
        emulator("grid", torch.zeros(1), *grid, threads)


def test_an_empty_grid_does_nothing(emulator: Emulator) -> None:
    emulator("grid", torch.zeros(1), 5, 0, 3, 32)
    assert emulator.counts() == {}


def test_two_os_threads_launch_at_once(emulator: Emulator) -> None:
    x = torch.randn(40, 5000)
    expected = row_sums(emulator, x, 256)
    results: list[torch.Tensor] = []

    def work() -> None:
        results.append(row_sums(emulator, x, 256))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 2 and all(torch.equal(result, expected) for result in results)


def in_new_process(library: Path, order: str) -> subprocess.CompletedProcess[str]:
    """Runs the kernel without barriers, with STRIPCTX_SIMT_ORDER set."""
    code = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]);"
        "library.run_fault.restype = ctypes.c_char_p;"
        "data = (ctypes.c_float * 64)();"
        "error = library.run_fault(b'lacks_barrier', data);"
        "print(error.decode() if error else list(data))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(library)],
        env={**os.environ, "STRIPCTX_SIMT_ORDER": order},
        capture_output=True,
        text=True,
        check=True,
    )


def test_the_environment_chooses_the_order(built: Emulator) -> None:
    outputs = [in_new_process(built.path, order).stdout for order in ("ascending", "descending")]
    assert outputs[0] != outputs[1]
    assert "expected ascending, descending" in in_new_process(built.path, "sideways").stdout
    assert built.library.stripctx_simt_set_order(b"random:x") == -1


@needs_headers
def test_the_portable_switch_works(tmp_path: Path) -> None:
    flags = ["-DSTRIPCTX_SIMT_UCONTEXT"]
    sources = [source for source in KERNELS if source.stem in ("sums", "faults")]
    portable = Emulator(toolkit.compile_emulated(sources, tmp_path / "portable.so", flags))
    x = torch.randn(2, 700)
    torch.testing.assert_close(row_sums(portable, x, 128), x.sum(1), rtol=0, atol=1e-4)
    with pytest.raises(RuntimeError, match="divergent barrier"):
        fault(portable, "different_barriers")


@pytest.mark.parametrize("source", KERNELS, ids=lambda source: source.stem)
def test_nvcc_compiles_the_same_sources(source: Path, tmp_path: Path) -> None:
    nvcc = toolkit.nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc")
    command = [nvcc, "-std=c++20", "-O3", f"-I{toolkit.SOURCES}"]
    command += toolkit.gencode([75, 90])
    toolkit.run([*command, "-c", str(source), "-o", str(tmp_path / "kernel.o")])
