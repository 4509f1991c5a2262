"""Peak memory of a call in excess of what was allocated before: its results, gradients and
temporaries.

On CUDA it is read from the allocator. On a CPU (Linux) it is the resident memory, whose high-water
mark can be reset; but malloc reuses pages that it kept, which are not counted, and leaves holes,
which are counted twice. During a measurement, every large block therefore gets its own mapping.

Times are measured with the opposite setting, `warm_blocks`: by default malloc returns free memory
at the end of its heap to the system, depending on previous calls, and mapping these pages again
costs more than most operators.
"""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from benchmarks.measuring import Run

_LIBC = ctypes.CDLL(None)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt


def peak_extra_bytes(
    run: Run, *, device: str = "cpu", repeats: int = 3, budget: float = 1.0
) -> int | None:
    """The peak memory of a warm `run` in excess of what was allocated before: the median of
    `repeats` calls, or of those that started within `budget` seconds.

    None if the system does not report it. On a CPU the resolution is about 100 KiB, and memory that
    libraries keep between calls does not count: measure large tensors.
    """
    if device == "cuda":
        return _median_peak(_cuda_peak, run, repeats, budget)
    if not reset_high_water_mark():
        return None
    with _large_blocks_mapped():
        run()
        return _median_peak(_cpu_peak, run, repeats, budget)


def _median_peak(peak: Callable[[Run], int], run: Run, repeats: int, budget: float) -> int:
    gc.collect()
    end = time.perf_counter() + budget
    peaks = [peak(run)]
    while len(peaks) < repeats and time.perf_counter() < end:
        peaks.append(peak(run))
    return int(statistics.median(peaks))


def _cuda_peak(run: Run) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(run: Run) -> int:
    _glibc("malloc_trim", ctypes.c_size_t(0))  # kept pages would not count when reused
    reset_high_water_mark()
    before = _status_bytes("VmRSS")
    run()
    return max(0, _status_bytes("VmHWM") - before)


@contextmanager
def _large_blocks_mapped() -> Iterator[None]:
    """Blocks from 64 KiB get their own mapping, which is unmapped when they are freed."""
    smallest = 2**16
    _glibc("mallopt", _MMAP_THRESHOLD, smallest)
    plugs = _plug_heap(smallest)
    try:
        yield
    finally:
        for block in plugs:
            _glibc("free", ctypes.c_void_p(block))
        warm_blocks()


def warm_blocks() -> None:
    """From now on malloc keeps blocks of up to 32 MiB, the limit of its own adaptation, so that
    memory is reused with its pages."""
    _glibc("mallopt", _MMAP_THRESHOLD, 2**25)
    _glibc("mallopt", _TRIM_THRESHOLD, 2**31 - 1)


def _plug_heap(smallest: int) -> list[int]:
    """Allocates the free parts of the heap, without touching them, so that large blocks avoid
    it."""
    if not all(hasattr(_LIBC, name) for name in ("mallopt", "mallinfo2")):
        return []
    _LIBC.malloc.restype = ctypes.c_void_p
    _LIBC.mallinfo2.restype = _MallocInfo
    plugs = []
    size = 2**30
    while size >= smallest:
        mapped = _LIBC.mallinfo2().hblks
        block = _LIBC.malloc(ctypes.c_size_t(size))
        if _LIBC.mallinfo2().hblks == mapped and block:
            plugs.append(block)  # from the heap: there may be more
            continue
        _LIBC.free(ctypes.c_void_p(block))
        size //= 2
    return plugs


class _MallocInfo(ctypes.Structure):
    """struct mallinfo2; `hblks` is the number of blocks with their own mapping."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names.split())


def _glibc(function: str, *arguments: object) -> None:
    """Calls a function of the C library if it exists."""
    if hasattr(_LIBC, function):
        getattr(_LIBC, function)(*arguments)


def reset_high_water_mark() -> bool:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int:
    with open("/proc/self/status") as file:
        match = re.search(rf"^{field}:\s*(\d+) kB$", file.read(), re.MULTILINE)
    if match is None:
        raise OSError(f"/proc/self/status: no {field}")
    return int(match.group(1)) * 1024
