"""Measuring on a GPU: calls recorded in a CUDA graph, so that no time is spent on launching; inputs
that rotate, so that none is still in the cache; and how many kernels a call launches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from benchmarks.inputs import tensors
from benchmarks.measure import Run

CACHES = 3  # the copies of a call's arguments together, in sizes of the second-level cache
MOST_COPIES = 64
PROFILED = 20  # calls under the profiler


def cache_bytes() -> int:
    """Of the second-level cache."""
    return int(torch.cuda.get_device_properties(0).L2_cache_size)


def rotated(arguments: Sequence[Any]) -> list[list[Any]]:
    """Copies of the arguments beside which these have left the cache when their turn comes."""
    size = sum(value.nbytes for value in tensors(arguments))
    count = min(MOST_COPIES, math.ceil(CACHES * cache_bytes() / max(1, size)))
    return [[_copy(value) for value in arguments] for _ in range(count)]


def _copy(value: Any) -> Any:
    """The same strides, the same requirement of a gradient; what holds no tensor as it is."""
    if isinstance(value, list):
        return [_copy(item) for item in value]
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def graph(runs: Sequence[Run]) -> Run:
    """Replays all of them, one after the other, as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for run in runs:
            run()
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        for run in runs:
            run()
    return recorded.replay


def kernels_of(run: Callable[[], object], device: str = "cuda") -> dict[str, dict[str, float]]:
    """The device's kernels by name: microseconds and launches of one call. Empty on a CPU."""
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device == "cuda")]
    for _ in range(3):
        run()
    synchronize(device)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(PROFILED):
            run()
        synchronize(device)
    return {
        event.key: {
            "microseconds_a_call": event.self_device_time_total / PROFILED,
            "launches_a_call": event.count / PROFILED,
        }
        for event in profiler.key_averages()
        if event.device_type.name == "CUDA" and event.self_device_time_total > 0
    }


def launches(run: Callable[[], object]) -> int:
    """Kernels, copies and fills that one call starts."""
    return round(sum(kernel["launches_a_call"] for kernel in kernels_of(run).values()))


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
