"""Finds or builds the native kernels and loads them.

`load()` runs once, at import; `status()` reports the result; `backend()` is the value of
STRIPCTX_BACKEND: auto, native, reference or emulated.
"""

from __future__ import annotations

from .loader import backend, load, status
from .report import LibraryStatus, Status, UnavailableError

__all__ = ["LibraryStatus", "Status", "UnavailableError", "backend", "load", "status"]
