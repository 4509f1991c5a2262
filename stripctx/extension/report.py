"""Messages of the extension: missing libraries, loaded libraries, progress of a build."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field

SILENCE = "STRIPCTX_BACKEND=reference"
RETRY = "python -m stripctx build"


class UnavailableError(Exception):
    """A library is not available: the reason, the command that fixes it, and the build log, if
    any."""

    def __init__(self, reason: str, cure: str, log: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.cure = cure
        self.log = log

    def __str__(self) -> str:
        where = f" (log: {self.log})" if self.log else ""
        return f"{self.reason}{where}. To mend it: {self.cure}"


@dataclass
class LibraryStatus:
    """The state of one library: cpu, cuda or emulated."""

    name: str
    loaded: bool = False
    origin: str = ""  # "prebuilt", "cache", "new build" or "loaded before stripctx was imported"
    path: str = ""
    reason: str = ""  # why it is not loaded
    cure: str = ""  # the command that fixes it; empty if nothing is wrong
    seconds: float = 0.0  # duration of the build in this process
    log: str = ""  # the build's log, also if another process built it
    note: str = ""  # why a prebuilt library is not used

    def fail(self, error: UnavailableError) -> None:
        self.loaded = False
        self.reason, self.cure, self.log = error.reason, error.cure, error.log
        if self.note:
            self.reason = f"{self.note}; and {self.reason}"

    def __str__(self) -> str:
        if not self.loaded:
            text = f"not loaded: {self.reason}"
            return f"{text}\n    to mend it: {self.cure}" if self.cure else text
        built = f", built in {self.seconds:.1f} s" if self.seconds else ""
        where = f": {self.path}" if self.path else ""
        note = f"\n    {self.note}" if self.note else ""
        return f"native kernels, {self.origin}{built}{where}{note}"


@dataclass
class Status:
    """The result of `load()`. `libraries` maps the names of the libraries it considered to their
    state."""

    backend: str
    libraries: dict[str, LibraryStatus] = field(default_factory=dict)

    def loaded(self, name: str) -> bool:
        return name in self.libraries and self.libraries[name].loaded


def warning_text(failed: list[LibraryStatus]) -> str:
    """One warning for all missing libraries."""
    lines = ["stripctx runs its PyTorch reference kernels, which are right but slower:"]
    for library in failed:
        log = f" (log: {library.log})" if library.log else ""
        lines.append(f"  {library.name}: {library.reason}{log}")
        lines.append(f"  {' ' * len(library.name)}  to mend it: {library.cure}")
    lines.append(f"  To choose them without this warning: {SILENCE}")
    return "\n".join(lines)


def is_first_process() -> bool:
    """Whether this is rank 0 of a distributed job, the only rank that prints messages."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return all(rank in ("", "0") for rank in ranks)


def say(text: str) -> None:
    if is_first_process():
        print(f"stripctx: {text}", file=sys.stderr, flush=True)


class Progress:
    """Build progress on stderr: one line, rewritten after every file, on a terminal; elsewhere a
    new line every 10 s."""

    INTERVAL = 10.0

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = self._last = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._width = 0
        self._show(f"compiling {what}, this once", end="" if self._terminal else "\n")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def step(self, line: str) -> None:
        """Reports a line of ninja's output, "[3/7] csrc/strip/reduce_cpu.cpp"."""
        now = time.monotonic()
        if self._terminal:
            self._show(f"compiling {self._what} {line}", end="")
        elif now - self._last > self.INTERVAL:
            self._last = now
            self._show(f"{line} after {self.seconds:.0f} s")

    def done(self, *, ok: bool) -> None:
        outcome = "compiled" if ok else "could not compile"
        self._show(f"{outcome} {self._what} in {self.seconds:.1f} s")

    def _show(self, text: str, end: str = "\n") -> None:
        if not is_first_process():
            return
        text = f"stripctx: {text}"
        if self._terminal:
            text, self._width = f"\r{text:<{self._width}}", len(text)
        print(text, end=end, file=sys.stderr, flush=True)
