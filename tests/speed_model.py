"""Estimates what share of a copy's bandwidth each CUDA kernel reaches on an H100, and its limit.

    python tests/speed_model.py [strip_pool ...] [--batch 16 1] [--dtype bfloat16] [--json file]

Needs no GPU. The emulator runs a few blocks of every launch at the real sizes and counts requests,
sectors, wavefronts of shared memory, barriers and shuffles. The machine code gives a lower bound of
the instructions for these requests (tests/sass.py), the number of loads in flight, and through its
registers the number of warps per multiprocessor. From these follows a time for each resource, and
the longest one limits the kernel. Results depend on the constants, to about 30 %, and ignore the
cost of waiting at barriers: use them to find kernels that cannot be fast and to order the work.

Without --json, fails if the share of a kernel is lower than in benchmarks/results/model.json.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cuda_check
import sass
import speed_record
import toolkit
from speed_code import Compiler, Kernel

SAMPLED = 3  # blocks of a launch that the emulator runs
FILLED = ("encode", "encode_backward", "pyramid_taps_add", "pyramid_taps_add_backward")


@dataclass(frozen=True)
class Chip:
    """The properties of an H100 that the model uses; rates per ns."""

    processors: int = 132
    clock: float = 1.755  # GHz
    copied: float = 3000.0  # bytes, reads plus writes of a plain copy
    cached: float = 5500.0  # bytes from the L2 cache
    issued: float = 2.6  # instructions per clock and multiprocessor that real kernels reach
    latency: float = 700.0  # ns from a load to its data, on a busy GPU
    launch: float = 1000.0  # ns between two kernels of a graph
    warps: int = 64  # per multiprocessor, as the next ones
    blocks: int = 32
    registers: int = 65536
    shared: int = 228 * 1024
    reserved: int = 1024  # bytes of shared memory per block


H100 = Chip()

# Clocks of a multiprocessor's tensor cores for one warp's instruction: 2048 multiply-adds per clock
# in half types and 1024 in tf32, of which mma reaches five eighths.
PRODUCTS = {
    "mma_m16n8k8": 1.6,
    "mma_m16n8k16": 1.6,
    "wgmma_m64n32k16": 4.0,
    "wgmma_m64n64k16": 8.0,
}


@dataclass
class Line:
    """One launch: counts over all its blocks, and the time of each resource in ns."""

    kernel: str
    blocks: int
    resident: float  # blocks per multiprocessor at a time
    occupancy: float  # resident warps over the largest number of them
    in_flight: float  # bytes in flight to a multiprocessor
    instructions: float
    moved: float  # bytes requested
    sectors: float  # 32-byte sectors per 128 bytes requested
    conflicts: float  # wavefronts over those without bank conflicts
    times: dict[str, float]

    @property
    def time(self) -> float:
        return max(self.times.values())

    @property
    def binds(self) -> str:
        return max(self.times, key=lambda name: self.times[name])


def resident_blocks(kernel: Kernel, threads: int, shared: int, chip: Chip) -> int:
    """Per multiprocessor. Registers are allocated to warps by 256, shared memory by 128 bytes."""
    warps = -(-threads // 32)
    registers = -(-kernel.registers * 32 // 256) * 256 * warps
    memory = -(-(shared + kernel.static_shared + chip.reserved) // 128) * 128
    limits = (chip.blocks, chip.warps // warps, chip.registers // registers, chip.shared // memory)
    return max(1, min(limits))


def line(traced: dict[str, Any], kernel: Kernel, chip: Chip = H100) -> Line:
    """One launch, from the counts of the emulator's tracer."""
    blocks = traced["grid"][0] * traced["grid"][1] * traced["grid"][2]
    threads = traced["block"][0] * traced["block"][1] * traced["block"][2]
    warps, scale = -(-threads // 32), blocks / max(1, traced["sampled"])
    counted: dict[str, float] = {}
    moved = sectors = requests = turns = least = wavefronts = 0.0
    loaded = {"load": 0.0, "copy load": 0.0}  # bytes
    loads = dict.fromkeys(loaded, 0.0)  # requests
    for space, bytes_each, count, total, passes, fewest in traced["requests"]:
        if space in ("shared", "copy store", "operand"):
            if space == "shared":  # the others are counted as a load and a product
                counted["shared"] = counted.get("shared", 0) + count * max(1, bytes_each // 4)
            turns, least = turns + passes * scale, least + fewest * scale
            continue
        counted[f"{space} {bytes_each}"] = count
        moved += total * scale
        if space in loaded:
            loaded[space] += total * scale
            loads[space] += count * scale
        sectors += passes * scale
        requests += total * scale / 128
        if bytes_each:  # the store of a bulk copy is all there is to it
            wavefronts += max(count, passes / 4) * scale
    multiplied = 0.0
    for name, count in traced["operations"].items():
        kind = "shuffle" if "shfl" in name else "barrier" if name == "__syncthreads" else ""
        if name in PRODUCTS:
            kind = "warpgroup product" if name.startswith("wgmma") else "product"
            multiplied += PRODUCTS[name] * count * scale
        if kind:
            counted[kind] = counted.get(kind, 0) + count
    issued, at_once = sass.instructions(kernel.code, warps * traced["sampled"], counted)
    issued *= scale

    resident = resident_blocks(kernel, threads, traced["shared_bytes"], chip)
    busy = min(chip.processors, blocks)  # multiprocessors with a block
    together = min(resident, blocks / busy)
    waves = -(-blocks // (busy * resident))
    full = blocks / (waves * busy * min(resident, -(-blocks // busy)))  # gaps of the last wave
    clocks = busy * chip.clock * full
    # Loads into registers, and copies: the unfinished ones at a wait, averaged over the copies.
    ring = traced["squares"] / max(1, traced["waiting"])
    in_flight = latency = 0.0
    for space, depth in (("load", at_once), ("copy load", ring)):
        if not loads[space] or not depth:
            continue
        bytes_each = together * warps * depth * loaded[space] / loads[space]
        in_flight += bytes_each * loaded[space] / sum(loaded.values())
        rounds = loads[space] / (blocks * warps) / depth
        latency += chip.latency * max(loaded[space] / (busy * full * bytes_each), waves * rounds)
    times = {
        "bytes": 32 * sectors / chip.cached,
        "instructions": issued / (chip.issued * clocks),
        "shared memory": (turns + wavefronts) / clocks,
        "tensor cores": multiplied / clocks,
        "latency": latency,
    }
    return Line(
        kernel=traced["kernel"],
        blocks=blocks,
        resident=together,
        occupancy=together * warps / chip.warps,
        in_flight=in_flight,
        instructions=issued,
        moved=moved,
        sectors=sectors / requests if requests else 0.0,
        conflicts=turns / least if least else 1.0,
        times=times,
    )


@dataclass
class Result:
    """A call of an operator: its launches, and its speed relative to copying its floor."""

    operator: str
    shape: tuple[int, int, int, int]
    dtype: str
    layout: str
    floor: int  # bytes
    lines: list[Line]
    copied: int = 0  # bytes of the floor that torch's copy moves, in a separate launch
    sources: frozenset[Path] = frozenset()  # files with its kernels

    def time(self, chip: Chip = H100) -> float:
        """In ns; at least that of a copy of the bytes that must move."""
        kernels = max(sum(one.time for one in self.lines), (self.floor - self.copied) / chip.copied)
        return kernels + self.copied / chip.copied + chip.launch * (self.launches - 1)

    def share(self, chip: Chip = H100) -> float:
        return self.floor / chip.copied / self.time(chip)

    @property
    def launches(self) -> int:
        return len(self.lines) + (self.copied > 0)

    @property
    def instructions_a_byte(self) -> float:
        return sum(one.instructions for one in self.lines) / (self.floor - self.copied)

    @property
    def longest(self) -> Line:
        return max(self.lines, key=lambda one: one.time)

    def binds(self, chip: Chip = H100) -> str:
        if self.share(chip) > 0.95:
            return "bytes"
        kernels = sum(one.time for one in self.lines)
        if chip.launch * (self.launches - 1) > kernels:
            return "launches"
        return self.longest.binds


# The emulator.


@functools.cache
def symbols(library: str) -> dict[int, str]:
    """Symbols of a library's functions, by their offsets in it."""
    text = toolkit.run(["nm", library])
    rows = (row.split() for row in text.splitlines())
    return {int(row[0], 16): row[2] for row in rows if len(row) == 3 and row[1] in "tTwW"}


def trace(
    library: ctypes.CDLL, path: str, run: Any, sampled: int = SAMPLED
) -> list[dict[str, Any]]:
    """The counts of every launch of `run`, from `sampled` of its blocks; "name" is short."""
    library.stripctx_simt_trace.restype = ctypes.c_char_p
    library.stripctx_simt_sample.argtypes = [ctypes.c_int64]
    library.stripctx_simt_sample(sampled)
    try:
        run()
    finally:
        library.stripctx_simt_sample(0)
    launches: list[dict[str, Any]] = json.loads(library.stripctx_simt_trace())
    for launch in launches:
        launch["name"] = cuda_check.demangle(symbols(path)[launch["function"]])
    return launches


def model(
    operator: str,
    shape: tuple[int, int, int, int],
    dtype: str,
    layout: str,
    compiler: Compiler,
) -> Result:
    import emulation
    import torch

    from benchmarks import floors
    from benchmarks.operators import DTYPES, LAYOUTS, OPERATORS, VARIANTS, Sample, call

    class Unfilled(Sample):
        """Uninitialised tensors: pages that the sampled blocks do not read take no memory."""

        def tensor(self, *size: int) -> torch.Tensor:
            format = LAYOUTS[self.layout] if len(size) == 4 else torch.contiguous_format
            return torch.empty(size, dtype=self.dtype, memory_format=format)

    # Infinities and NaN would send FILLED to their slow paths, so their operands have values.
    kind = Sample if operator in FILLED else Unfilled
    sample = kind(shape, DTYPES[dtype], layout)
    library = emulation.library()
    arguments = (OPERATORS | VARIANTS)[operator](sample)
    trace(library, library._name, lambda: None)  # drops the launches that made the arguments
    launches = trace(library, library._name, lambda: call(operator, arguments))
    families = ("strip", "pyramid", "upsample", "height", "encoding", "labels")
    name = operator.partition(",")[0]
    family = next(f for f in families if name in getattr(floors, f).FLOORS)
    found = [compiler.find(launch["name"], family) for launch in launches]
    lines = [line(launch, kernel) for launch, (_, kernel) in zip(launches, found, strict=True)]
    copied = 2 * sample.shape.map * sample.shape.element_size
    return Result(
        operator,
        shape,
        dtype,
        layout,
        (floors.FLOORS | floors.VARIANTS)[operator](sample.shape).bytes,
        lines,
        copied if operator == "pyramid_concat" else 0,
        frozenset(source for source, _ in found),
    )


# The table.

HEAD = ["operator", "shape", "dtype", "layout", "kernel", "instr/byte", "blocks/SM", "occupancy"]
HEAD += ["KiB in flight", "sectors", "bank turns", "launches", "of copy", "bound by"]


def row(result: Result) -> list[str]:
    """One row of the table. The columns from the kernel on are those of the longest launch, except
    instructions per byte, launches, and the last two."""
    one = result.longest
    return [
        result.operator,
        "x".join(map(str, result.shape)),
        result.dtype,
        result.layout,
        one.kernel,
        f"{result.instructions_a_byte:.2f}",
        f"{one.blocks / H100.processors:.1f}",
        f"{one.occupancy:.0%}",
        f"{one.in_flight / 1024:.0f}",
        f"{one.sectors:.1f}",
        f"{one.conflicts:.1f}",
        str(result.launches),
        f"{result.share():.0%}",
        result.binds(),
    ]


def table(results: Sequence[Result]) -> str:
    cells = [HEAD, *map(row, results)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


WIDE = {"pyramid_pool": (2048, 60), "pyramid_max_pool": (2048, 60), "row_gate": (2048, 48)}


def shape_of(operator: str, batch: int) -> tuple[int, int, int, int]:
    if "half the size" in operator:
        return (
            (batch, 64, 256, 256)
            if "taps" in operator.partition(",")[2]
            else (batch, 256, 128, 128)
        )
    if operator.startswith("upsample_"):  # the classes of Cityscapes
        return batch, 19, 256, 256
    channels, side = WIDE.get(operator.removesuffix("_backward"), (512, 60))
    return batch, channels, side, side


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="*", help="default: all")
    parser.add_argument("--batch", nargs="+", type=int, default=[16, 1])
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--layout", nargs="+", default=["contiguous", "channels_last"])
    parser.add_argument("--json", type=Path, help="records these operators' rows there")
    options = parser.parse_args(arguments)
    nvcc, disassembler = toolkit.nvcc(), toolkit.cuobjdump()
    if nvcc is None or disassembler is None:
        print("speed_model: needs nvcc and cuobjdump", file=sys.stderr)
        return cuda_check.NO_COMPILER
    if os.environ.get("STRIPCTX_BACKEND") != "emulated":  # one process, one backend
        environment = {**os.environ, "STRIPCTX_BACKEND": "emulated"}
        path = [str(toolkit.REPOSITORY), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        command = [sys.executable, __file__, *(sys.argv[1:] if arguments is None else arguments)]
        return subprocess.run(command, env=environment, check=False).returncode
    from benchmarks.operators import OPERATORS, VARIANTS

    names = [*OPERATORS, *VARIANTS]
    compiler = Compiler(nvcc, disassembler)
    results = []
    for operator in options.operators or names:
        for batch in options.batch:
            for dtype in options.dtype:
                for layout in options.layout:
                    shape = shape_of(operator, batch)
                    results.append(model(operator, shape, dtype, layout, compiler))
    print(table(results))
    rows = [row(result) for result in results]
    if options.json:
        sources: dict[str, set[Path]] = {}
        for result in results:
            sources.setdefault(result.operator, set()).update(result.sources)
        speed_record.write(options.json, HEAD, rows, sources, names)
        return 0
    fallen = speed_record.fallen(speed_record.read()["rows"], rows, HEAD.index("of copy"))
    print("\n".join(fallen), end="\n" if fallen else "", file=sys.stderr)
    return 1 if fallen else 0


if __name__ == "__main__":
    sys.exit(main())
