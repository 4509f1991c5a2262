"""Selects the kernels at import: a prebuilt library, a cached one, a new build, or the reference
kernels. `load()` runs before stripctx.ops is imported, which defines the operators that no loaded
library defines."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

from . import architectures, build, cache, locate, ninja
from .report import RETRY, SILENCE, LibraryStatus, Status, UnavailableError, say, warning_text

BACKENDS = ("auto", "native", "reference", "emulated")

_status: Status | None = None


def backend() -> str:
    """The value of STRIPCTX_BACKEND."""
    if _status is not None:
        return _status.backend
    value = os.environ.get("STRIPCTX_BACKEND") or "auto"
    if value not in BACKENDS:
        raise ValueError(f"STRIPCTX_BACKEND: expected one of {', '.join(BACKENDS)}, got {value!r}")
    return value


def status() -> Status:
    """The result of `load()`; empty before it has run."""
    return _status if _status is not None else Status(backend())


def load() -> None:
    """Loads the libraries that STRIPCTX_BACKEND and this machine require, once per process."""
    global _status
    if _status is not None:
        return
    found = Status(backend())
    if found.backend != "reference" and not builds_ahead():
        for name, reason in wanted(found.backend).items():
            found.libraries[name] = (
                LibraryStatus(name, reason=reason)
                if reason
                else load_library(name, retry=found.backend != "auto")
            )
    failed = [library for library in found.libraries.values() if library.cure]
    if failed and found.backend != "auto":
        raise ImportError("\n".join(explain(found.backend, library) for library in failed))
    _status = found
    if failed:
        warnings.warn(warning_text(failed), RuntimeWarning, stacklevel=3)


def builds_ahead() -> bool:
    """Whether this is `python -m stripctx build`, which builds the libraries itself after the
    import."""
    if sys.argv[:1] != ["-m"] or sys.argv[1:2] != ["build"]:
        return False
    command = sys.orig_argv
    return "-m" in command and command[command.index("-m") + 1] == "stripctx"


def wanted(backend: str) -> dict[str, str]:
    """The libraries to consider, by name. The value is the reason why a library is of no use on
    this machine, or ""."""
    if backend == "emulated":
        return {"emulated": ""}
    return {"cpu": "", "cuda": why_no_cuda()}


def why_no_cuda() -> str:
    import torch

    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return "" if torch.cuda.device_count() > 0 else "no GPU is visible"


def load_library(name: str, *, retry: bool) -> LibraryStatus:
    """Loads a prebuilt or cached library, or builds one. `retry` repeats a build that failed
    before."""
    result = LibraryStatus(name)
    try:
        if sys.platform == "win32":
            raise UnavailableError("native kernels need Linux or macOS", f"set {SILENCE}")
        if is_there(name):
            result.loaded, result.origin = True, "loaded before stripctx was imported"
        elif not load_prebuilt(result):
            load_built(result, retry=retry)
            if result.note and result.seconds:
                say(f"{result.note}; built here instead")
    except UnavailableError as error:
        result.fail(error)
    except OSError as error:
        result.fail(UnavailableError(str(error), f"mend that, then: {RETRY}"))
    return result


def is_there(name: str) -> bool:
    """Whether the process has already loaded such a library with torch.ops.load_library."""
    from stripctx import _compat

    key = "CUDA" if name == "cuda" else "CPU"
    return _compat.has_kernel("stripctx::strip_pool", key)


def load_prebuilt(result: LibraryStatus) -> bool:
    for filename in prebuilt_names(result.name):
        path = os.path.join(locate.prebuilt_folder(), filename)
        if not os.path.isfile(path):
            continue
        if not cache.intact(path):
            result.note = result.note or f"the prebuilt {path} is damaged"
            continue
        try:
            load_shared(path)
        except OSError as error:
            result.note = result.note or f"the prebuilt library does not load: {error}"
            continue
        result.loaded, result.origin, result.path = True, "prebuilt", path
        return True
    return False


def prebuilt_names(name: str) -> list[str]:
    """The possible names of a prebuilt library, in order of preference."""
    if name != "cpu":
        return [f"stripctx_{name}.so"]
    import torch

    best = torch.backends.cpu.get_cpu_capability()
    usable = [s for s in build.INSTRUCTION_SETS if s != build.NATIVE]
    usable = usable[usable.index(best) if best in usable else -1 :]
    return [f"stripctx_cpu_{instruction_set}.so" for instruction_set in usable]


def load_built(result: LibraryStatus, *, retry: bool) -> None:
    """Loads from the cache, or builds. A cached library that cannot be loaded is built again,
    once."""
    targets = [(target, target.key()) for target in targets_of(result.name)]
    target, key = targets[0]
    for is_last in (False, True):
        cached = next(filter(None, (cache.find(*pair) for pair in targets)), None)
        result.origin = "cache" if cached else "new build"
        if cached is None:
            remembered = None if retry or is_last else cache.remembered_failure(key)
            if remembered:
                raise remembered
            cached = cache.make(target, key)
            result.origin = "new build" if cached.seconds else "cache"
        result.path, result.log = cached.path, cached.log
        result.seconds += cached.seconds
        try:
            load_shared(cached.path)
        except OSError as error:
            if is_last:
                raise cache.give_up(cached.path, error) from error
            cache.set_aside(cached.path)
        else:
            result.loaded = True
            return


def targets_of(name: str) -> list[build.Target]:
    if name == "cuda":
        return [build.target(name, architectures=chosen) for chosen in architectures.wanted()]
    return [build.target(name)]


def load_shared(path: str) -> None:
    import torch

    load: Callable[[str], None] = torch.ops.load_library
    try:
        load(path)
    except OSError as error:
        reason = error.__cause__ or error.__context__  # the message of the system's loader
        if reason is None:
            raise
        raise OSError(f"{error}: {reason}") from error


def explain(backend: str, library: LibraryStatus) -> str:
    """The message of an ImportError."""
    text = f"STRIPCTX_BACKEND={backend}, but the {library.name} kernels are missing: "
    text += str(UnavailableError(library.reason, library.cure, library.log))
    last_lines = ninja.tail(library.log) if library.log else ""
    return f"{text}\n{last_lines}" if last_lines else text
