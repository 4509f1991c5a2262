"""Compiles the libraries of a wheel, for setup.py with STRIPCTX_BUILD=1."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile

from . import architectures, build, cache
from .report import UnavailableError


def build_all(folder: str) -> None:
    """Compiles the CPU library once for every instruction set that torch distinguishes, and the
    CUDA library if torch has CUDA and a matching nvcc is found."""
    os.makedirs(folder, exist_ok=True)
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    for instruction_set in ("AVX512", "AVX2", "DEFAULT") if on_x86 else ("DEFAULT",):
        put(build.target("cpu", instruction_set), folder, f"stripctx_cpu_{instruction_set}.so")
    if build.torch_cuda() is None:
        return
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    chosen = architectures.parse(asked) if asked else architectures.DEFAULT
    try:
        put(build.target("cuda", architectures=chosen), folder, "stripctx_cuda.so")
    except UnavailableError as error:
        if error.log:
            raise
        print(f"stripctx: the wheel holds no CUDA library: {error}", file=sys.stderr)


def put(target: build.Target, folder: str, filename: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        print(f"stripctx: compiling {filename}", file=sys.stderr, flush=True)
        try:
            build.compile_library(target, scratch, filename, print)
        except UnavailableError as error:
            if error.log:
                with open(error.log, errors="replace") as log:
                    sys.stderr.write(log.read())
            raise
        shutil.copy2(os.path.join(scratch, filename), folder)
    cache.seal(os.path.join(folder, filename))
