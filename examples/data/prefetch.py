"""Prefetching in threads with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(read: Callable[[int], T], indices: Iterable[int], readers: int) -> Iterator[T]:
    """Yields the results of `read`, in order, with at most two in flight per reader."""
    with ThreadPoolExecutor(max(1, readers)) as pool:
        waiting: deque[Future[T]] = deque()
        for index in indices:
            waiting.append(pool.submit(read, index))
            if len(waiting) >= 2 * max(1, readers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
