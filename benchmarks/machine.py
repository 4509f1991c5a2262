"""Describes the machine of a measurement: hardware, versions, commit, date; without host names or
paths."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parent.parent


def describe(device: str = "cpu") -> dict[str, Any]:
    """The description of the machine, for measurements on `device`."""
    facts: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiler": compiler(),
        "kernels": kernels(device),
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
    return facts


def gpu() -> dict[str, Any]:
    """Describes the GPU, without stripctx. If "gpu" is None, "why" gives the reason."""
    smi = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.mem"
    facts: dict[str, Any] = {
        "gpu": None,
        "nvidia_smi": _output("nvidia-smi", f"--query-gpu={smi}", "--format=csv,noheader"),
        "nvcc": _output("nvcc", "--version").splitlines()[-1:],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "processor": processor(),
        "compiler": compiler(),
        "commit": commit(),
    }
    if torch.version.cuda is None:
        return {**facts, "why": f"torch {torch.__version__} is built without CUDA"}
    if not torch.cuda.is_available():
        return {**facts, "why": "torch.cuda.is_available() is False"}
    properties = torch.cuda.get_device_properties(0)
    facts["capability"] = f"{properties.major}.{properties.minor}"
    facts["multiprocessors"] = properties.multi_processor_count
    facts["memory_bytes"] = properties.total_memory
    return facts | {"gpu": properties.name}


def kernels(device: str) -> str:
    """Whether the operators run natively on `device` or fall back on the reference."""
    from stripctx import _compat  # here, because gpu() must work without the package

    native = _compat.has_kernel("stripctx::strip_pool", {"cpu": "CPU", "cuda": "CUDA"}[device])
    return "native" if native else "reference"


def processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1) if match else platform.machine()


def compiler() -> str | None:
    """The compiler used by extensions and torch.compile, as it identifies itself."""
    name = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    first_line = _output(name, "--version").partition("\n")[0] if name else ""
    return first_line or None


def commit() -> str | None:
    """The commit, with a + if the working tree is modified other than by results and documents."""
    revision = _output("git", "-C", str(REPOSITORY), "rev-parse", "--short=12", "HEAD")
    if not revision:
        return None
    code = (":!benchmarks/results", ":!docs", ":!README.md")
    status = ("status", "--porcelain", "-uno", "--", ".", *code)
    changes = _output("git", "-C", str(REPOSITORY), *status)
    return revision + ("+" if changes else "")


def _output(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()
