"""The sources of the three libraries, and their compilation. Also used by setup.py, so this file
does not import torch or the stripctx package at the top.

    cpu        csrc/<family>/*cpu.cpp by the C++ compiler
    cuda       csrc/<family>/*cuda.cu by nvcc
    emulated   the same *.cu by the C++ compiler, run by tests/simt on a CPU: for tests

Each also contains csrc/<family>/bind.cpp, compiled against the `device.hpp` in its include folders,
and the shared code in csrc/cpu or csrc/cuda.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from glob import glob

from . import architectures as gpus
from . import locate, toolchain
from .report import RETRY, UnavailableError

ABI_TARGET = "0x020a000000000000"  # torch 2.10's stable ABI, which later versions support

CXX_FLAGS = (
    "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra",
    "-Wno-maybe-uninitialized",  # g++ emits it for its own AVX-512 intrinsics
    "-Wno-unknown-warning-option",  # clang does not know the option above
    "-ffp-contract=fast",  # g++'s default; clang's would change the last bits
    f"-DTORCH_TARGET_VERSION={ABI_TARGET}",
)  # fmt: skip
NVCC_FLAGS = (
    "-std=c++20", "-O3", "-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
    "-Xfatbin=-compress-all", "-Xptxas=-v",
)  # fmt: skip

NATIVE = "native"  # the CPU of this machine; the other sets are for prebuilt libraries
INSTRUCTION_SETS = {
    NATIVE: ("-mcpu=native",) if platform.machine() in ("aarch64", "arm64") else ("-march=native",),
    "AVX512": (
        "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mf16c",
    ),
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    "DEFAULT": (),
}  # fmt: skip


@dataclass(frozen=True)
class Library:
    """One row of the table. Paths are relative to the folder that contains csrc/."""

    sources: tuple[str, ...]  # patterns; *.cu is compiled by nvcc if `nvcc` is set
    includes: tuple[str, ...]
    torch_libraries: tuple[str, ...]
    nvcc: bool = False
    instruction_set: str = "DEFAULT"
    flags: tuple[str, ...] = ()
    cuda_headers: bool = False
    hashed: tuple[str, ...] = ("csrc",)
    gibibytes_each: float = 1.0  # memory that one compiler process needs


LIBRARIES = {
    "cpu": Library(
        sources=("csrc/*/*cpu.cpp", "csrc/cpu/*.cpp", "csrc/*/bind.cpp"),
        includes=("csrc", "csrc/bind/cpu"),
        torch_libraries=("torch_cpu",),
        instruction_set=NATIVE,
    ),
    "cuda": Library(
        sources=("csrc/*/*cuda.cu", "csrc/cuda/*.cu", "csrc/*/bind.cpp"),
        includes=("csrc", "csrc/bind/cuda"),
        torch_libraries=("torch_cpu", "torch_cuda"),
        nvcc=True,
        flags=("-DUSE_CUDA",),  # required for the CUDA functions in torch's stable headers
        cuda_headers=True,
        gibibytes_each=2.0,
    ),
    "emulated": Library(
        sources=("csrc/*/*cuda.cu", "csrc/cuda/*.cu", "csrc/*/bind.cpp", "tests/simt/*.cpp"),
        includes=("csrc", "tests/simt"),
        torch_libraries=("torch_cpu",),
        instruction_set=NATIVE,
        flags=("-O2", "-Wno-unknown-pragmas"),
        cuda_headers=True,
        hashed=("csrc", "tests/simt"),
    ),
}


@dataclass(frozen=True)
class Target:
    """One library for one kind of machine: everything that the binary depends on."""

    name: str
    root: str  # contains csrc/
    cxx: toolchain.Compiler
    instruction_set: str
    architectures: tuple[str, ...] = ()
    cuda: str | None = None  # torch's CUDA version; None for that of any nvcc

    @property
    def library(self) -> Library:
        return LIBRARIES[self.name]

    @property
    def filename(self) -> str:
        return f"stripctx_{self.name}.so"

    @property
    def flags(self) -> tuple[str, ...]:
        return (*CXX_FLAGS, *self.library.flags, *INSTRUCTION_SETS[self.instruction_set])

    def sources(self) -> list[str]:
        patterns = [os.path.join(self.root, pattern) for pattern in self.library.sources]
        return [path for pattern in patterns for path in sorted(glob(pattern))]

    def key(self) -> str:
        """The name of its cache folder: equal keys mean equal libraries."""
        parts = [repr(self.library), *self.flags, *self.cxx.command, *self.cxx.identity]
        parts += [platform.system(), platform.machine(), str(self.cuda), *self.architectures]
        if self.instruction_set == NATIVE:
            parts.append(this_cpu())
        if self.library.nvcc:
            parts += [*NVCC_FLAGS, *map(toolchain.identity, toolchain.nvcc_candidates())]
        digest = hashlib.sha256("\n".join(parts).encode())
        for folder in self.library.hashed:
            for path in locate.source_files(os.path.join(self.root, folder)):
                with open(path, "rb") as source:
                    content = source.read()
                header = f"\n{os.path.relpath(path, self.root)} {len(content)}\n"
                digest.update(header.encode() + content)
        return f"stripctx_{self.name}-{digest.hexdigest()[:20]}"


def target(
    name: str, instruction_set: str | None = None, architectures: tuple[str, ...] = ()
) -> Target:
    """The target of a build of `name` in this environment."""
    root = locate.source_root()
    if name == "emulated" and root != locate.checkout():
        raise UnavailableError(
            "the emulated library is made from a source checkout only", "git clone"
        )
    chosen = instruction_set or LIBRARIES[name].instruction_set
    cuda = torch_cuda() if name == "cuda" else None
    return Target(name, root, toolchain.cxx(), chosen, architectures, cuda)


def torch_cuda() -> str | None:
    import torch

    return torch.version.cuda


def this_cpu() -> str:
    """The meaning of `native` here: CPUs with equal values can run the same code."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith(("flags", "Features")):
                    return line
    except OSError:
        pass
    return f"{platform.machine()} {platform.processor()}"


def compile_library(
    target: Target, folder: str, filename: str, on_line: Callable[[str], None] | None = None
) -> str:
    """Builds `folder`/`filename` and returns the log's path, `folder`/build.log."""
    from . import ninja

    library = target.library
    includes = [os.path.join(target.root, path) for path in library.includes]
    torch = torch_folder()
    kit = toolchain.toolkit(target.cuda) if library.nvcc else None
    if library.cuda_headers:
        includes += kit.includes if kit else toolchain.cuda_includes()
    cxx = [*target.cxx.command, *target.flags, *(f"-I{path}" for path in includes)]
    cxx.append(f"-isystem{torch}/include")
    commands = {".cpp": cxx, ".cu": [*cxx, "-xc++"]}
    link = [*target.cxx.command, "-shared", "-o", filename]
    libraries = [f"-L{torch}/lib", *(f"-l{name}" for name in present(torch, library))]
    if kit:
        codes = gpus.gencode(gpus.known_to(kit.nvcc, target.architectures))
        host = toolchain.host_compiler(target.cxx)
        commands[".cu"] = [
            kit.nvcc, f"-ccbin={host}", *NVCC_FLAGS, *codes, *(f"-I{path}" for path in includes)
        ]  # fmt: skip
        # The CUDA runtime is linked statically: it then has exactly nvcc's version, whichever minor
        # version torch brings. Its symbols are hidden. Streams and contexts belong to the driver
        # and are shared with torch's runtime, as with the static copies in NCCL and cuBLAS.
        libraries += [kit.static_runtime(), "-ldl", "-lrt", "-lpthread"]

    steps = []
    for source in target.sources():
        name = os.path.relpath(source, target.root)
        output = f"{name.replace(os.sep, '_')}.o"
        command = commands[os.path.splitext(source)[1]]
        steps.append(ninja.Step([source], output, [*command, "-c", source, "-o", output], name))
    if not steps:
        raise UnavailableError(f"{target.root} holds none of {', '.join(library.sources)}", RETRY)
    objects = [step.output for step in steps]
    steps.append(ninja.Step(objects, filename, [*link, *objects, *libraries], filename))
    jobs = toolchain.jobs(len(objects), library.gibibytes_each)
    version = toolchain.output_of(*target.cxx.command, "--version").splitlines()[:1]
    notes = [shlex.join(target.cxx.command), *version, f"torch in {torch}", f"{jobs} jobs"]
    notes += [f"nvcc {kit.version}: {kit.nvcc}"] if kit else []
    return ninja.run(folder, steps, jobs, notes, on_line)


def torch_folder() -> str:
    """The folder of the installed torch, found without importing it."""
    from importlib.util import find_spec

    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError(
            "torch is not installed where stripctx is built",
            "install torch first, then: STRIPCTX_BUILD=1 pip install . --no-build-isolation",
        )
    return spec.submodule_search_locations[0]


def present(torch: str, library: Library) -> list[str]:
    """The torch libraries to link with; a CPU-only torch has no libtorch_cuda."""
    return [name for name in library.torch_libraries if glob(f"{torch}/lib/lib{name}.*")]


def cuda(architectures: list[str], output: str) -> str:
    """Compiles and links the CUDA library with any torch and without a GPU, for `make cuda-check`.
    Returns the log, which contains the resource usage of every kernel."""
    folder, filename = os.path.split(os.path.abspath(output))
    os.makedirs(folder, exist_ok=True)
    chosen = gpus.parse(";".join(architectures)) if architectures else gpus.DEFAULT
    return compile_library(target("cuda", architectures=chosen), folder, filename)
