"""Writes a build.ninja and runs it, with a log next to it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from . import toolchain
from .report import RETRY, UnavailableError

LOG = "build.log"
OLDEST = {"g++": 11, "clang": 14}  # oldest versions that compile csrc


@dataclass(frozen=True)
class Step:
    inputs: list[str]
    output: str
    command: list[str]
    shown: str  # in the progress line


def text(steps: list[Step]) -> str:
    lines = ["rule run", "  command = $line", "  description = $shown"]
    for step in steps:
        inputs = " ".join(escape(path) for path in step.inputs)
        lines.append(f"build {escape(step.output)}: run {inputs}")
        lines.append(f"  line = {shlex.join(step.command).replace('$', '$$')}")
        lines.append(f"  shown = {step.shown.replace('$', '$$')}")
    return "\n".join(lines) + "\n"


def escape(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def run(
    folder: str,
    steps: list[Step],
    jobs: int,
    notes: list[str],
    on_line: Callable[[str], None] | None = None,
) -> str:
    """Runs the steps in `folder` and returns the log's path. Removes the object files
    afterwards."""
    import subprocess

    with open(os.path.join(folder, "build.ninja"), "w") as file:
        file.write(text(steps))
    path = os.path.join(folder, LOG)
    environment = {**os.environ, "NINJA_STATUS": "[%f/%t] "}
    with open(path, "w", errors="replace") as log:
        log.writelines(f"# {note}\n" for note in notes)
        process = subprocess.Popen(
            [toolchain.ninja(), "-j", str(jobs)],
            cwd=folder, env=environment, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                if on_line and line.startswith("["):
                    on_line(line.strip())
            failed = process.wait() != 0
        except BaseException:
            process.terminate()  # ninja terminates its compilers
            process.wait()
            raise
    for step in steps[:-1]:
        with suppress(FileNotFoundError):
            os.remove(os.path.join(folder, step.output))
    if failed:
        raise UnavailableError("the build failed", cure(path), path)
    return path


def cure(log: str) -> str:
    """The remedy for a failed build, from the compiler's output."""
    try:
        with open(log, errors="replace") as file:
            text = file.read()
    except OSError:
        text = ""
    if "No space left on device" in text:
        return f"free some space, or set STRIPCTX_CACHE_DIR to another disk, then: {RETRY}"
    if re.search(r"Killed|out of memory|virtual memory exhausted", text):
        return f"compile one file at a time: MAX_JOBS=1 {RETRY}"
    version = re.search(r"^# .*?\b(clang version|g\+\+|c\+\+).*?\b(\d+)\.\d+\.\d+", text, re.M)
    if version:
        name = "clang" if "clang" in version.group(1) else "g++"
        if int(version.group(2)) < OLDEST[name]:
            return (
                f"this is {name} {version.group(2)}: install g++ {OLDEST['g++']} or clang "
                f"{OLDEST['clang']} or a newer one, then: CXX=(its command) {RETRY}"
            )
    return f"read the log, or try another compiler: CXX=(its command) {RETRY}"


def tail(log: str, lines: int = 20) -> str:
    """The last lines of a log, for an error message."""
    try:
        with open(log, errors="replace") as file:
            return "".join(file.readlines()[-lines:]).rstrip()
    except OSError:
        return ""
