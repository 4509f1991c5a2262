"""Finds CUDA's headers and tools, and compiles kernels with g++ against the emulator of tests/simt.

A system toolkit (CUDA_HOME, nvcc on PATH, /usr/local/cuda) and PyPI's packages (nvidia-cuda-nvcc
and its companions, under site-packages/nvidia/cu*) both do.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import site
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = REPOSITORY / "csrc"
EMULATOR = REPOSITORY / "tests" / "simt"


def roots() -> list[Path]:
    """Folders laid out like a CUDA toolkit (bin, include), best first."""
    candidates: list[Path] = []
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            candidates.append(Path(os.environ[variable]))
    on_path = shutil.which("nvcc")
    if on_path:
        candidates.append(Path(on_path).resolve().parent.parent)
    candidates.append(Path("/usr/local/cuda"))
    packages = {sysconfig.get_path("purelib"), *site.getsitepackages()}
    for folder in sorted(packages):
        candidates.extend(sorted(Path(folder, "nvidia").glob("cu[0-9]*"), reverse=True))
    return [root for root in dict.fromkeys(candidates) if root.is_dir()]


def tool(name: str) -> Path | None:
    """The path of nvcc, cuobjdump, ...; None where there is none."""
    for root in roots():
        if (root / "bin" / name).is_file():
            return root / "bin" / name
    on_path = shutil.which(name)
    return Path(on_path) if on_path else None


def include_directories() -> list[Path]:
    """Where g++ finds cuda_fp16.h and the <nv/target> that it includes; empty where they are not.

    On PyPI the second comes with nvidia-cuda-cccl.
    """
    folders = [root / "include" for root in roots()]
    folders += [folder / "cccl" for folder in folders]
    half = [folder for folder in folders if (folder / "cuda_fp16.h").is_file()]
    target = [folder for folder in folders if (folder / "nv" / "target").is_file()]
    return list(dict.fromkeys([half[0], target[0]])) if half and target else []


def compile_emulated(kernels: Sequence[Path], output: Path, flags: Sequence[str] = ()) -> Path:
    """Builds `kernels` (.cu) and the emulator into one shared library with g++."""
    compiler = os.environ.get("CXX", "g++")
    includes = [f"-I{SOURCES}", f"-I{EMULATOR}"]
    for folder in include_directories():
        includes += ["-isystem", str(folder)]
    command = [compiler, "-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    command += ["-Werror", "-Wno-unknown-pragmas", *flags, *includes]
    objects: list[Path] = []
    output.parent.mkdir(parents=True, exist_ok=True)
    for source in [*sorted(EMULATOR.glob("*.cpp")), *kernels]:
        objects.append(output.parent / f"{output.stem}.{source.name}.o")
        run([*command, "-x", "c++", "-c", str(source), "-o", str(objects[-1])])
    run([compiler, "-shared", *flags, *map(str, objects), "-o", str(output)])
    return output


def load(library: Path) -> ctypes.CDLL:
    """Opens what compile_emulated built, with the types of its C functions declared."""
    opened = ctypes.CDLL(str(library))
    opened.stripctx_simt_counts.restype = ctypes.c_char_p
    opened.stripctx_simt_set_order.argtypes = [ctypes.c_char_p]
    return opened


def run(command: Sequence[str]) -> str:
    """Runs a tool and returns its output (stdout, then stderr); raises with both on failure."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr
