"""Times candidates that compute the same result, in one process.

Samples are interleaved: each round takes one sample of every candidate in random order, so that
disturbances of the machine and the state of the caches affect all of them equally. A sample is one
call, or as many as take a millisecond, after a few milliseconds of untimed calls that warm up
malloc and the caches.

On a GPU the calls are recorded in a CUDA graph, to exclude launch overhead, with copies of the
arguments that together exceed the L2 cache, so that arguments are not cached.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], object]

SHORTEST_SAMPLE = 1e-3  # seconds; shorter calls are repeated
WARM_UP = 5e-3  # seconds of calls before each sample; at least one call
LONGEST_WARMED = 0.1  # seconds; longer calls are not warmed up, caches do not affect them
LEAST_ROUNDS = 5  # independent of the budget
LEAST_LONG_ROUNDS, LONG = 3, 10.0  # rounds, once rounds have taken this many seconds
CACHES, MOST_COPIES = 3, 64  # total size of the copies in a graph, in multiples of the cache; limit


def interleave(
    candidates: Mapping[str, Run],
    *,
    device: str = "cpu",
    rounds: int = 50,
    budget: float = 2.0,
    calls_a_run: int = 1,
) -> dict[str, list[float]]:
    """All samples of each candidate, in seconds per call.

    Args:
        candidates: names to callables without arguments, warm.
        device: "cpu" (perf_counter) or "cuda" (events).
        rounds: samples per candidate.
        budget: seconds after which no further round starts, except for LEAST_ROUNDS.
        calls_a_run: the number of calls that one run of a candidate makes.
    """
    clock = {"cpu": _cpu_seconds, "cuda": _cuda_seconds}[device]
    names = list(candidates)
    once = {name: _warm_seconds(clock, candidates[name]) for name in names}
    calls = {name: _calls_in(SHORTEST_SAMPLE, seconds) for name, seconds in once.items()}
    order = random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in names}
    started = time.perf_counter()
    for number in range(rounds):
        elapsed = time.perf_counter() - started
        least = LEAST_LONG_ROUNDS if elapsed > LONG else LEAST_ROUNDS
        if number >= least and elapsed > budget:
            break
        order.shuffle(names)
        for name in names:
            if once[name] < LONGEST_WARMED:
                clock(candidates[name], _calls_in(WARM_UP, once[name]))
            seconds = clock(candidates[name], calls[name])
            taken[name].append(seconds / (calls[name] * calls_a_run))
    return {name: taken[name] for name in candidates}


def _warm_seconds(clock: Callable[[Run, int], float], run: Run) -> float:
    seconds = clock(run, 1)
    return seconds if seconds > LONGEST_WARMED else min(clock(run, 1) for _ in range(2))


def _calls_in(length: float, seconds: float) -> int:
    return max(1, math.ceil(length / max(seconds, 1e-7)))


def _cpu_seconds(run: Run, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - start


def _cuda_seconds(run: Run, calls: int) -> float:
    """Device time, from before the first kernel to after the last one."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def warm(run: Run, calls: int = 3, budget: float = 1.0) -> Run:
    """Calls a candidate until compilation and first allocations are done: at least one more time,
    and no further once `budget` seconds are over."""
    started = time.perf_counter()
    for _ in range(calls):
        run()
        if time.perf_counter() - started > budget:
            break
    return run


def copy_of(size: int, device: str = "cpu") -> Run:
    """A copy that reads and writes `size` bytes in total."""
    source = torch.ones(max(1, size // 2), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def product_of(rows: int, inner: int, columns: int, dtype: torch.dtype, device: str = "cpu") -> Run:
    """A matrix product (rows, inner) by (inner, columns)."""
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(inner, columns, device=device).to(dtype)
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    return lambda: torch.mm(left, right, out=out)


# For GPUs.


def cache_bytes() -> int:
    """The size of the L2 cache."""
    return int(torch.cuda.get_device_properties(0).L2_cache_size)


def rotated(arguments: Sequence[Any]) -> list[list[Any]]:
    """Enough copies of the arguments that each has left the cache when it is used again."""
    size = sum(value.nbytes for value in tensors(arguments))
    count = min(MOST_COPIES, math.ceil(CACHES * cache_bytes() / max(1, size)))
    return [[_copy(value) for value in arguments] for _ in range(count)]


def _copy(value: Any) -> Any:
    """Copies a value with its strides and requires_grad; values without tensors are shared."""
    if isinstance(value, list):
        return [_copy(item) for item in value]
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def graph(runs: Sequence[Run]) -> Run:
    """A CUDA graph that replays all calls in sequence."""
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


def tensors(arguments: Sequence[Any]) -> list[Tensor]:
    """The tensors among arguments, including those in lists."""
    flat = []
    for value in arguments:
        flat += value if isinstance(value, list) else [value]
    return [value for value in flat if isinstance(value, Tensor)]
