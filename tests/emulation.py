"""Access to the emulated library of this process (STRIPCTX_BACKEND=emulated): the counters of its
kernels, and the order of its threads."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import toolkit
from operator_checks import EMULATED

from stripctx import extension

ORDERS = ("ascending", "descending", "random:1", "random:2")
HEAVY = ("encode", "encode_backward")  # tensor core products, which the emulator computes slowly


def skip_heavy(name: str, size: tuple[int, int, int, int]) -> None:
    """Skips large maps for operators that take minutes in the emulator."""
    if name in HEAVY and size[2] * size[3] > 5_000:
        pytest.skip("slow")


def require() -> None:
    """Skips the whole file at collection unless the emulated kernels are tested."""
    if not EMULATED:
        pytest.skip("needs STRIPCTX_BACKEND=emulated", allow_module_level=True)


@cache
def library() -> ctypes.CDLL:
    return toolkit.load(Path(extension.status().libraries["emulated"].path))


def counts(run: Callable[[], object]) -> dict[str, dict[str, Any]]:
    """The counters of each kernel that `run` launched, by name."""
    library().stripctx_simt_reset_counts()
    run()
    result: dict[str, dict[str, Any]] = json.loads(library().stripctx_simt_counts())
    return result


@contextmanager
def order(text: str) -> Iterator[None]:
    """Within this context, threads run in this order wherever CUDA guarantees none."""
    assert library().stripctx_simt_set_order(text.encode()) == 0
    try:
        yield
    finally:
        library().stripctx_simt_set_order(b"ascending")
