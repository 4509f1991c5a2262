"""Compiles the kernels for the speed model and caches their machine code by source digest."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cuda_check
import sass
import toolkit

ARCHITECTURE = 90


@dataclass
class Kernel:
    """The machine code of one kernel, its registers, and its static shared memory in bytes."""

    code: list[sass.Instruction]
    registers: int
    static_shared: int = 0


def modelled_dtypes() -> str:
    """csrc/core/dispatch.hpp without the dtypes that are not modelled, to halve compilation."""
    text = (toolkit.SOURCES / "core" / "dispatch.hpp").read_text()
    return re.sub(r"\s*case DType::(kFloat64|kFloat16):\n[^\n]*;", "", text)


def compiled(source: Path, folder: Path, nvcc: str, disassembler: str) -> dict[str, Kernel]:
    """Every kernel of a source, by its short name. `folder` caches the disassembly until the source
    or the compiler's path changes."""
    version = hashlib.sha256(nvcc.encode()).hexdigest()[:8]
    kept = folder / f"{source.parent.name}_{source.stem}_{toolkit.code_of(source)}_{version}.gz"
    if kept.exists():
        report, text = json.loads(gzip.decompress(kept.read_bytes()))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            cubin = Path(temporary, "kernels.cubin")
            Path(temporary, "core").mkdir()
            Path(temporary, "core", "dispatch.hpp").write_text(modelled_dtypes())
            command = [nvcc, "-std=c++20", "-O3", "-Xptxas", "-v", f"-I{temporary}"]
            command += [f"-I{toolkit.SOURCES}"]
            command += [f"-I{toolkit.EMULATOR}", "-cubin", *toolkit.gencode([ARCHITECTURE])]
            report = toolkit.run([*command, str(source), "-o", str(cubin)])
            text = toolkit.run([disassembler, "-sass", str(cubin)])
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob(f"{source.parent.name}_{source.stem}_*"):
            earlier.unlink()
        kept.write_bytes(gzip.compress(json.dumps([report, text]).encode(), 1))
    usages = cuda_check.parse_resources(report)
    found = {}
    for symbol, code in sass.functions(text).items():
        usage = usages.get(symbol, {}).get(ARCHITECTURE, cuda_check.Usage())
        found[cuda_check.demangle(symbol)] = Kernel(code, usage.registers, 0)
    return found


@dataclass
class Compiler:
    """The kernels of csrc, compiled on first use."""

    nvcc: str
    disassembler: str
    folder: Path = toolkit.REPOSITORY / "build" / "speed_model"
    kernels: dict[Path, dict[str, Kernel]] = field(default_factory=dict)

    def compile(self, sources: Sequence[Path]) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            todo = [source for source in sources if source not in self.kernels]
            todo.sort(key=lambda source: -source.stat().st_size)
            jobs = [
                pool.submit(compiled, s, self.folder, self.nvcc, self.disassembler) for s in todo
            ]
            for source, job in zip(todo, jobs, strict=True):
                self.kernels[source] = job.result()

    def find(self, name: str, family: str) -> tuple[Path, Kernel]:
        """A kernel and its source. The operator's family comes first: another may have a kernel of
        this name."""
        for folder in (family, "cuda", "*"):
            sources = sorted(toolkit.SOURCES.glob(f"{folder}/*.cu"))
            self.compile(sources)
            for source in sources:
                if name in self.kernels[source]:
                    return source, self.kernels[source][name]
        raise KeyError(f"no source in csrc has a kernel {name}")
