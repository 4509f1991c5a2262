"""Compiles every CUDA kernel for every architecture and reports what the machine code uses.

    python tests/cuda_check.py [source.cu ...] [--arch 75 90] [--json table.json] [--record]

Register spills and stack use are failures: they mean that an array which should be in registers is
in local memory. The table shows registers, static shared memory, and the widths in bits of the
global accesses on one architecture (128 for accesses of 16 bytes). Needs no GPU.

--record notes the code of each checked source in tests/cuda_check.json, so that tests compile only
what has changed since.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import toolkit

NO_COMPILER = 77  # exit status without nvcc
RECORD = toolkit.REPOSITORY / "tests" / "cuda_check.json"


@dataclasses.dataclass
class Usage:
    """The resources of one kernel on one architecture, in registers and bytes."""

    registers: int = 0
    shared: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0

    def fault(self) -> str | None:
        if not (self.stack or self.spill_stores or self.spill_loads):
            return None
        return f"{self.stack} bytes of stack, spills {self.spill_stores} + {self.spill_loads} bytes"


@dataclasses.dataclass
class Kernel:
    """One kernel: usage by architecture, and numbers of access instructions by width in bits."""

    source: str
    name: str
    usage: dict[int, Usage] = dataclasses.field(default_factory=dict)
    loads: dict[str, int] = dataclasses.field(default_factory=dict)
    stores: dict[str, int] = dataclasses.field(default_factory=dict)


def demangle(symbol: str) -> str:
    """`_ZN8stripctx4cuda5widenI6__halfEEvNS0_7ConvertE` is `widen<__half>`."""
    runtime = ctypes.CDLL("libstdc++.so.6")
    runtime.__cxa_demangle.restype = ctypes.c_void_p
    status = ctypes.c_int()
    result = runtime.__cxa_demangle(symbol.encode(), None, None, ctypes.byref(status))
    if status.value != 0 or not result:
        return symbol
    text = ctypes.string_at(result).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(result))
    return shorten(text)


def shorten(signature: str) -> str:
    """A kernel's name and template arguments, without namespaces, return type and parameters."""
    depth, end = 0, len(signature)
    for i, character in enumerate(signature):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0 and not signature.startswith("(anonymous", i):
            end = i
            break
    name = signature[:end].removeprefix("void ")
    return re.sub(r"\(anonymous namespace\)::|\bstripctx::(cuda::)?", "", name)


def parse_resources(report: str) -> dict[str, dict[int, Usage]]:
    """Parses the report of ptxas -v into {symbol: {architecture: usage}}."""
    usages: dict[str, dict[int, Usage]] = {}
    usage = Usage()
    for line in report.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)' for 'sm_(\d+)", line):
            usage = usages.setdefault(entry[1], {}).setdefault(int(entry[2]), Usage())
        elif frame := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            stack, stores, loads = map(int, frame.groups())
            usage.stack = max(usage.stack, stack)
            usage.spill_stores += stores
            usage.spill_loads += loads
        elif used := re.search(r"Used (\d+) registers", line):
            usage.registers = int(used[1])
            shared = re.search(r"(\d+) bytes smem", line)
            usage.shared = int(shared[1]) if shared else 0
    return usages


def parse_accesses(sass: str) -> dict[str, tuple[dict[str, int], dict[str, int]]]:
    """Counts global loads and stores in the output of cuobjdump -sass: {symbol: (loads, stores)},
    each by width.

    "generic" counts accesses whose address space the compiler could not determine.
    """
    accesses: dict[str, tuple[dict[str, int], dict[str, int]]] = {}
    counts: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for line in sass.splitlines():
        if function := re.search(r"^\s*Function : (\S+)", line):
            counts = accesses.setdefault(function[1], ({}, {}))
        elif access := re.search(r"\b(LDG|STG|LD|ST)((?:\.\w+)*)\s", line):
            kind, parts = access[1], access[2].split(".")
            width = next((bits for bits in ("256", "128", "64") if bits in parts), "32")
            width = next((part[1:] for part in parts if part in ("U8", "S8", "U16", "S16")), width)
            side = counts[0] if kind.startswith("LD") else counts[1]
            key = width if kind.endswith("G") else "generic"
            side[key] = side.get(key, 0) + 1
    return accesses


def check(source: Path, architectures: Sequence[int], sass_of: int, nvcc: str) -> list[Kernel]:
    """Compiles one file for all architectures and returns its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder, "kernels.o")
        command = [nvcc, "-std=c++20", "-O3", "-Xptxas", "-v", f"-I{toolkit.SOURCES}"]
        command += toolkit.gencode(architectures)
        report = toolkit.run([*command, "-c", str(source), "-o", str(compiled)])
        cuobjdump = toolkit.cuobjdump()
        sass = ""
        if cuobjdump and sass_of in architectures:
            number = toolkit.architectures.SPECIFIC.get(str(sass_of), str(sass_of))
            disassemble = [cuobjdump, "-sass", "-arch", f"sm_{number}", str(compiled)]
            sass = toolkit.run(disassemble)
    accesses = parse_accesses(sass)
    kernels = []
    for symbol, usage in parse_resources(report).items():
        loads, stores = accesses.get(symbol, ({}, {}))
        kernels.append(Kernel(source.name, demangle(symbol), usage, loads, stores))
    return sorted(kernels, key=lambda kernel: kernel.name)


def recorded() -> dict[str, dict[str, str]]:
    """The code (`toolkit.code_of`) without spills: {source: {architecture: digest}}."""
    found: dict[str, dict[str, str]] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return found


def unchecked(architecture: int) -> list[Path]:
    """The sources in csrc that have changed since they were recorded."""
    known = recorded()
    return [
        source
        for source in sorted(toolkit.SOURCES.glob("*/*.cu"))
        if known.get(str(source.relative_to(toolkit.REPOSITORY)), {}).get(str(architecture))
        != toolkit.code_of(source)
    ]


def record(sources: Iterable[Path], architectures: Sequence[int]) -> None:
    known = recorded()
    for source in sources:
        name = str(source.resolve().relative_to(toolkit.REPOSITORY))
        known.setdefault(name, {}).update(
            dict.fromkeys(map(str, architectures), toolkit.code_of(source))
        )
    known = {name: known[name] for name in sorted(known) if (toolkit.REPOSITORY / name).exists()}
    lines = [f"{json.dumps(name)}: {json.dumps(codes)}" for name, codes in known.items()]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def by_width(counts: dict[str, int]) -> str:
    """{"128": 4, "32": 1} as 128x4 32x1, the widest first."""
    widths = sorted(counts, key=lambda width: -int(width) if width.isdigit() else 0)
    return " ".join(f"{width}x{counts[width]}" for width in widths) or "-"


def table(kernels: Iterable[Kernel], architectures: Sequence[int], sass_of: int) -> str:
    """One row per kernel, with a column of registers for each architecture."""
    head = ["source", "kernel", *(f"sm_{arch}" for arch in architectures)]
    head += ["shared", "spills", f"loads (sm_{sass_of})", f"stores (sm_{sass_of})"]
    rows = [head]
    for kernel in kernels:
        row = [kernel.source, kernel.name]
        row += [str(kernel.usage[a].registers) if a in kernel.usage else "" for a in architectures]
        row.append(str(max(usage.shared for usage in kernel.usage.values())))
        row.append("SPILLS" if any(usage.fault() for usage in kernel.usage.values()) else "none")
        rows.append([*row, by_width(kernel.loads), by_width(kernel.stores)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path, help="default: every *.cu of csrc")
    parser.add_argument("--arch", nargs="+", type=int, default=toolkit.ARCHITECTURES)
    parser.add_argument("--sass", type=int, default=90, help="whose global accesses to count")
    parser.add_argument("--json", type=Path, help="writes the table there")
    parser.add_argument("--record", action="store_true", help="notes the sources as checked")
    options = parser.parse_args(arguments)
    nvcc = toolkit.nvcc()
    if nvcc is None:
        print("cuda_check: no nvcc in CUDA_HOME, on PATH or in site-packages", file=sys.stderr)
        print("cuda_check: pip install -r requirements-dev.txt brings one", file=sys.stderr)
        return NO_COMPILER
    sources = options.sources or list(toolkit.SOURCES.glob("*/*.cu"))
    sources = sorted(sources, key=lambda source: -source.stat().st_size)  # the longest first
    kernels: list[Kernel] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(check, s, options.arch, options.sass, nvcc) for s in sources]
        for source, job in sorted(zip(sources, jobs, strict=True), key=lambda pair: pair[0]):
            try:
                kernels += job.result()
            except RuntimeError as error:
                print(f"cuda_check: {source} does not compile\n{error}", file=sys.stderr)
                return 1
    print(table(kernels, options.arch, options.sass))
    if options.json:
        text = json.dumps([dataclasses.asdict(kernel) for kernel in kernels], indent=1)
        options.json.write_text(text + "\n")
    faults = [
        f"{kernel.source}: {kernel.name} on sm_{arch}: {usage.fault()}"
        for kernel in kernels
        for arch, usage in kernel.usage.items()
        if usage.fault()
    ]
    print("\n".join(faults), end="\n" if faults else "", file=sys.stderr)
    if options.record and not faults:
        record(sources, options.arch)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
