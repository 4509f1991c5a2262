"""CUDA's compiler, headers and tools as stripctx/extension finds them, for tests of kernels.

The extension is imported as a separate package, as in setup.py: without torch, and without a build.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = REPOSITORY / "csrc"
EMULATOR = REPOSITORY / "tests" / "simt"

sys.path.insert(0, str(REPOSITORY / "stripctx"))
if TYPE_CHECKING:
    from stripctx.extension import architectures, build, toolchain
    from stripctx.extension.report import UnavailableError
else:
    from extension import architectures, build, toolchain
    from extension.report import UnavailableError

sys.path.pop(0)

# The CUDA library's default architectures, 90 for sm_90.
ARCHITECTURES = [int(a.removesuffix("+PTX").replace(".", "")) for a in architectures.DEFAULT]


def gencode(numbers: Iterable[int]) -> list[str]:
    """nvcc's flags for machine code, as in the product's builds."""
    return architectures.gencode(tuple(f"{number // 10}.{number % 10}" for number in numbers))


def nvcc() -> str | None:
    try:
        return toolchain.toolkit(None).nvcc
    except UnavailableError:
        return None


def cuobjdump() -> str | None:
    """The disassembler, from a system toolkit or PyPI's nvidia-cuda-cuobjdump."""
    folders = [os.path.dirname(path) for path in toolchain.nvcc_candidates()]
    folders += [os.path.join(root, "bin") for root in toolchain.pypi_roots()]
    return shutil.which("cuobjdump", path=os.pathsep.join(folders)) or shutil.which("cuobjdump")


def include_directories() -> list[str]:
    """Include paths for g++ with cuda_fp16.h and its <nv/target>; empty if not found."""
    try:
        return toolchain.cuda_includes()
    except UnavailableError:
        return []


def compile_emulated(kernels: Sequence[Path], output: Path, flags: Sequence[str] = ()) -> Path:
    """Builds `kernels` (.cu) and the emulator into one shared library with the C++ compiler."""
    compiler = toolchain.cxx().command
    folders = [str(SOURCES), str(EMULATOR), *include_directories()]
    command = [*compiler, *build.CXX_FLAGS, *build.LIBRARIES["emulated"].flags, "-Werror", *flags]
    command += [f"-I{folder}" for folder in folders]
    objects: list[str] = []
    output.parent.mkdir(parents=True, exist_ok=True)
    for source in [*sorted(EMULATOR.glob("*.cpp")), *kernels]:
        objects.append(str(output.parent / f"{output.stem}.{source.name}.o"))
        run([*command, "-xc++", "-c", str(source), "-o", objects[-1]])
    run([*compiler, "-shared", *flags, *objects, "-o", str(output)])
    return output


def load(library: Path) -> ctypes.CDLL:
    """Loads a library that compile_emulated built, and declares the types of its C functions."""
    opened = ctypes.CDLL(str(library))
    opened.stripctx_simt_counts.restype = ctypes.c_char_p
    opened.stripctx_simt_set_order.argtypes = [ctypes.c_char_p]
    return opened


def code_of(source: Path) -> str:
    """A digest of a source and the headers it includes, without comments and white space."""
    text, todo, seen = "", [source], set[Path]()
    while todo:
        path = todo.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        written = path.read_text()
        headers = re.findall(r'^#include "([^"]+)"', written, re.MULTILINE)
        todo += [folder / name for name in headers for folder in (SOURCES, source.parent)]
        text += "".join(re.sub(r"//.*", "", written).split())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run(command: Sequence[str]) -> str:
    """Runs a tool and returns its output (stdout, then stderr); raises with both on failure."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr
