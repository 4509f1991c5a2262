"""What benchmarks/gpu.py asks of torch, each in a process of its own.

machine     the GPU, the versions, and how fast memory is copied; imports no stripctx
build       builds and loads the native libraries, and says how long that took
operators   every operator once: for compute-sanitizer (small) and Nsight Compute (--large)
profile     torch.profiler's kernels of every operator, and their rate against the floors
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks import floors, machine
from benchmarks.cuda import kernels_of, synchronize
from benchmarks.measure import Run, interleave
from benchmarks.operators import DTYPES, LAYOUTS, OPERATORS, Sample, call

# Two of everything a kernel is cut into, packs that fit and packs that do not.
SMALL = ((2, 40, 33, 44), (1, 24, 264, 135))
LARGE = (32, 512, 60, 60)  # SPNet's stage 4: larger than any cache, so that bytes are memory's
USUAL = (("float32", "contiguous"), ("bfloat16", "channels_last"))
COPIED = 2**30  # bytes read and written by the copy that shows the memory's rate
SMI_FIELDS = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.mem"


def describe(device: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "gpu": None,
        "nvidia_smi": output("nvidia-smi", f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader"),
        "nvcc": output("nvcc", "--version").splitlines()[-1:],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "processor": machine.processor(),
        "compiler": machine.compiler(),
        "commit": machine.commit(),
    }  # fmt: skip
    if torch.version.cuda is None:
        return {**facts, "why": f"torch {torch.__version__} is built without CUDA"}
    if not torch.cuda.is_available():
        return {**facts, "why": "torch.cuda.is_available() is False"}
    properties = torch.cuda.get_device_properties(0)
    facts["gpu"] = properties.name
    facts["capability"] = f"{properties.major}.{properties.minor}"
    facts["multiprocessors"] = properties.multi_processor_count
    facts["memory_bytes"] = properties.total_memory
    facts["copy_bytes_per_second"] = copy_rate(device, COPIED)
    return facts


def output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def copy_rate(device: str, size: int) -> float:
    """Bytes read and written a second."""
    source = torch.ones(size // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    runs: dict[str, Run] = {"copy": lambda: target.copy_(source)}
    runs["copy"]()
    return size / interleave(runs, device=device, rounds=20)["copy"].median


def build(device: str) -> dict[str, Any]:
    started = time.perf_counter()
    import stripctx  # noqa: F401
    from stripctx import extension

    seconds = round(time.perf_counter() - started, 2)
    libraries = {
        name: {"loaded": library.loaded, "origin": library.origin, "seconds": library.seconds}
        for name, library in extension.status().libraries.items()
    }
    return {"seconds": seconds, "libraries": libraries}


def run_operators(device: str, large: bool) -> dict[str, Any]:
    """Names of what ran. Each operator with both dtypes and layouts, or as it is mostly used."""
    import stripctx  # noqa: F401

    done = []
    sizes, pairs = ([LARGE], USUAL) if large else (SMALL, tuple(product(DTYPES, LAYOUTS)))
    for size, (dtype, layout), name in product(sizes, pairs, OPERATORS):
        call(name, OPERATORS[name](Sample(size, DTYPES[dtype], layout, device)))
        synchronize(device)
        done.append(f"{name} {dtype} {layout}")
    print(f"ran {len(done)} operators")
    return {"operators": done}


def profile(device: str, size: tuple[int, int, int, int] = LARGE) -> dict[str, Any]:
    """One entry an operator, dtype and layout."""
    import stripctx  # noqa: F401

    entries = []
    rate = copy_rate(device, COPIED if device == "cuda" else 2**20)
    for (dtype, layout), name in product(USUAL, OPERATORS):
        sample = Sample(size, DTYPES[dtype], layout, device)
        arguments = OPERATORS[name](sample)
        kernels = kernels_of(partial(call, name, arguments), device)
        seconds = sum(kernel["microseconds_a_call"] for kernel in kernels.values()) / 1e6
        entry: dict[str, Any] = {"operator": name, "dtype": dtype, "layout": layout, "size": size}
        entry["floor_bytes"] = floors.floor(name, sample.shape).bytes
        entry["kernels"] = kernels
        entry["launches"] = sum(kernel["launches_a_call"] for kernel in kernels.values())
        if seconds > 0:
            entry["bytes_per_second"] = entry["floor_bytes"] / seconds
            entry["share_of_copy"] = entry["bytes_per_second"] / rate
            print(f"{name} {dtype} {layout}: {seconds * 1e6:.1f} us, "
                  f"{entry['bytes_per_second'] / 1e9:.0f} GB/s, "
                  f"{entry['share_of_copy']:.0%} of a copy", flush=True)  # fmt: skip
        entries.append(entry)
    return {"copy_bytes_per_second": rate, "entries": entries}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_probe", description=__doc__)
    parser.add_argument("what", choices=("machine", "build", "operators", "profile"))
    parser.add_argument("--report", type=Path, help="writes what it found there, as JSON")
    parser.add_argument("--large", action="store_true", help="operators: at the paper's size")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {
        "machine": lambda: describe(options.device),
        "build": lambda: build(options.device),
        "operators": lambda: run_operators(options.device, options.large),
        "profile": lambda: profile(options.device),
    }[options.what]()
    if options.report:
        options.report.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
