"""A copy of the package in a temporary folder, imported in new processes with a separate cache.
Most of them are forked from one that has imported torch, which takes longer than all the rest.

`stand_in=True` replaces the operators and csrc/ by a library with a single function that compiles
quickly, to test how a library is found, built and loaded.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent

STAND_IN = {
    "stripctx/__init__.py": """
import os
import torch
from stripctx import extension
if os.environ.get("PRETEND_CUDA"):
    torch.version.cuda = os.environ["PRETEND_CUDA"]
    torch.cuda.device_count = lambda: 1
extension.load()
__version__ = "0.2.0"
""",
    "csrc/core/answer.hpp": "constexpr int kAnswer = 42;\n",
    "csrc/answer/cpu.cpp": '#include "core/answer.hpp"\nint device_answer() { return kAnswer; }\n',
    "csrc/answer/bind.cpp": """
#include "device.hpp"
int device_answer();
extern "C" __attribute__((visibility("default"))) int stripctx_answer() {
  return device_answer() + kOffset;
}
""",
    "csrc/bind/cpu/device.hpp": "constexpr int kOffset = 0;\n",
    "csrc/bind/cuda/device.hpp": "#include <cuda_runtime.h>\nconstexpr int kOffset = 1;\n",
    "csrc/answer/cuda.cu": """
#include <cuda_fp16.h>
#include "core/answer.hpp"
#if defined(__CUDACC__)
__global__ void store(float* out) { out[threadIdx.x] = __half2float(__float2half(1.0f)); }
int device_answer() { return cudaGetDeviceCount(nullptr) == cudaSuccess ? 0 : kAnswer; }
#else
int device_answer() { return kAnswer; }
#endif
""",
    "tests/simt/device.hpp": "constexpr int kOffset = 2;\n",
}

# Imports the package and prints the outcome.
IMPORT = """
import ctypes, json, os, sys, warnings
import torch
before = set(sys.modules)
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    import stripctx
status = stripctx.extension.status()
libraries = {
    name: {
        "loaded": library.loaded, "origin": library.origin, "path": library.path,
        "reason": library.reason, "cure": library.cure, "log": library.log,
        "answer": ctypes.CDLL(library.path).stripctx_answer() if library.loaded else None,
    }
    for name, library in status.libraries.items()
}
print(json.dumps({
    "backend": stripctx.extension.backend(), "libraries": libraries,
    "warnings": [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)],
    "modules": sorted(set(sys.modules) - before),
}))
"""


SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch"])


def execute(code: str, tree: Path, folder: Path, environment: dict[str, str]) -> None:
    """What `python -c` does with `code`, in `folder`, with `tree` as PYTHONPATH; the output is
    written to files there."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    foreign = (str(REPOSITORY / "tests"), str(REPOSITORY), "")
    sys.path[:] = [str(tree), *(path for path in sys.path if path not in foreign)]
    sys.argv[:] = ["-c"]
    exec(code, {"__name__": "__main__"})


@dataclass
class Outcome:
    code: int
    stdout: str
    stderr: str
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def cpu(self) -> dict[str, Any]:
        found: dict[str, Any] = self.report["libraries"]["cpu"]
        return found


class Sandbox:
    def __init__(self, folder: Path, *, stand_in: bool = True) -> None:
        self.folder, self.tree, self.cache = folder, folder / "tree", folder / "cache"
        self.tree.mkdir()
        requirements = (path.name for path in REPOSITORY.glob("requirements-*.txt"))
        for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", *requirements):
            shutil.copy(REPOSITORY / name, self.tree)
        ignored = shutil.ignore_patterns("__pycache__", "lib")
        if not stand_in:
            for name in ("stripctx", "csrc"):
                shutil.copytree(REPOSITORY / name, self.tree / name, ignore=ignored)
            return
        source = REPOSITORY / "stripctx"
        shutil.copytree(source / "extension", self.tree / "stripctx/extension", ignore=ignored)
        for name in ("__main__.py", "_compat.py", "py.typed"):
            shutil.copy(source / name, self.tree / "stripctx")
        for path, text in STAND_IN.items():
            self.write(path, text)

    def write(self, path: str, text: str) -> None:
        (self.tree / path).parent.mkdir(parents=True, exist_ok=True)
        (self.tree / path).write_text(text)

    def environment(self, **changes: str) -> dict[str, str]:
        """This process's environment without variables that affect the package."""
        foreign = ("STRIPCTX_", "TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME", "CXX", "MAX_JOBS")
        foreign = (*foreign, "TORCH_CUDA_ARCH_LIST", "RANK", "LOCAL_RANK", "SLURM_PROCID")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        kept.pop("PYTHONDONTWRITEBYTECODE", None)
        kept["PYTHONPATH"] = str(self.tree)
        kept["STRIPCTX_CACHE_DIR"] = str(self.cache)
        return {**kept, **changes}

    def start(self, code: str, **changes: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code], env=self.environment(**changes), cwd=self.folder,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str, timeout: float = 300, **changes: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, *arguments], env=self.environment(**changes), cwd=self.folder,
            capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout, done.stderr)

    def fork(self, code: str, **changes: str) -> Outcome:
        """Runs statements in a process forked from one that has imported torch."""
        arguments = (code, self.tree, self.folder, self.environment(**changes))
        process = SERVER.Process(target=execute, args=arguments)
        process.start()
        process.join(timeout=300)
        assert process.exitcode is not None, "timed out"
        said = ((self.folder / name).read_text() for name in ("stdout", "stderr"))
        return Outcome(process.exitcode, *said)

    def load(self, prefix: str = "", **changes: str) -> Outcome:
        """Imports the package in a new process, after the statements of `prefix`."""
        code = prefix + IMPORT
        if "LD_LIBRARY_PATH" in changes:  # read when a program starts
            outcome = self.run("-c", code, **changes)
        else:
            outcome = self.fork(code, **changes)
        if outcome.code == 0:
            outcome.report = json.loads(outcome.stdout)
        return outcome

    def compiler(self, script: str) -> str:
        """Creates a C++ compiler that runs `script`, a line of shell, before the real compiler."""
        path = self.folder / "c++-wrapper"
        path.write_text(f'#!/bin/sh\n{script}\nexec c++ "$@"\n')
        path.chmod(0o755)
        return str(path)

    def leftovers(self) -> list[str]:
        """Build folders left behind by processes that have ended."""
        return [path.name for path in self.cache.glob(".stripctx_*")]
