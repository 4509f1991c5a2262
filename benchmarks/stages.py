"""Runs commands in time-boxed stages and writes what came of them after each: for a machine that is
lent for minutes, where whatever is not on disk when time is up is lost. Needs no torch.

A stage's commands run side by side, each in a process group of its own that is killed when the
stage's limit, or what is left of the whole budget, is over. A stage that fails or is cut off does
not stop those after it.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PASSED, FAILED, TIMED_OUT, SKIPPED = "passed", "failed", "timed out", "skipped"
TAIL = 6000  # characters of a command's output that are kept
LEAST_SECONDS = 5.0  # with less time left, a stage does not start


@dataclass(frozen=True)
class Command:
    """One process. `report` is a file that it writes: .json, .xml (JUnit's) or text."""

    arguments: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    report: Path | None = None
    missing: str = ""  # why it cannot run here; empty where it can

    def __str__(self) -> str:
        """As one would type it."""
        words = [f"{name}={value}" for name, value in self.environment.items()]
        words += ["python3" if word == sys.executable else word for word in self.arguments]
        return shlex.join(words)


@dataclass(frozen=True)
class Stage:
    name: str
    limit: float  # seconds
    commands: dict[str, Command]


class Runner:
    """Runs stages one after another and keeps `path` up to date."""

    def __init__(self, path: Path, folder: Path, budget: float) -> None:
        self.path = path
        self.folder = folder  # where commands run
        self.end = time.monotonic() + budget
        self.stages: list[dict[str, Any]] = []

    def run(self, stage: Stage) -> dict[str, Any]:
        """The stage's part of the file: status, seconds and what each command said."""
        limit = min(stage.limit, self.end - time.monotonic())
        started = time.monotonic()
        if limit < min(LEAST_SECONDS, stage.limit):
            skipped = {"status": SKIPPED, "reason": "no time left"}
            outcomes = {name: dict(skipped) for name in stage.commands}
        else:
            outcomes = self._side_by_side(stage.commands, started + limit)
        result = {
            "name": stage.name,
            "status": worst([outcome["status"] for outcome in outcomes.values()]),
            "seconds": round(time.monotonic() - started, 2),
            "commands": outcomes,
        }
        self.stages.append(result)
        self.write()
        print(f"{stage.name}: {result['status']} after {result['seconds']:.0f} s", flush=True)
        return result

    def write(self, **facts: Any) -> None:
        """In one step: whoever reads sees the old file or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"stages": self.stages, **facts}, indent=1) + "\n")
        os.replace(temporary, self.path)

    def _side_by_side(self, commands: dict[str, Command], end: float) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="stripctx-") as folder:
            logs = {name: Path(folder, f"{i}.log") for i, name in enumerate(commands)}
            started = time.monotonic()
            running = {name: self._start(commands[name], logs[name]) for name in commands}
            return {
                name: finish(commands[name], running[name], logs[name], started, end)
                for name in commands
            }

    def _start(self, command: Command, log: Path) -> subprocess.Popen[bytes] | None:
        if command.missing:
            return None
        with open(log, "wb") as output:
            return subprocess.Popen(
                list(command.arguments),
                cwd=self.folder,
                env={**os.environ, **command.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def finish(
    command: Command,
    process: subprocess.Popen[bytes] | None,
    log: Path,
    started: float,
    end: float,
) -> dict[str, Any]:
    """Waits for the process, until `end` at most, and gathers what it left."""
    if process is None:
        return {"command": str(command), "status": SKIPPED, "reason": command.missing}
    status = PASSED
    try:
        if process.wait(max(0.0, end - time.monotonic())) != 0:
            status = FAILED
    except subprocess.TimeoutExpired:
        status = TIMED_OUT
    kill_group(process)  # what it started goes too
    outcome: dict[str, Any] = {
        "command": str(command),
        "status": status,
        "exit_status": process.wait(),
        "seconds": round(time.monotonic() - started, 2),
        "tail": log.read_bytes().decode(errors="replace")[-TAIL:],
    }
    if command.report is not None:
        outcome["report"] = read_report(command.report)
    return outcome


def kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def worst(statuses: Sequence[str]) -> str:
    """Of a stage: skipped only where nothing ran."""
    for status in (TIMED_OUT, FAILED, PASSED):
        if status in statuses:
            return status
    return SKIPPED


def read_report(path: Path) -> Any:
    """None where the command did not get as far as writing it."""
    readers: dict[str, Callable[[str], Any]] = {".json": json.loads, ".xml": junit}
    try:
        return readers.get(path.suffix, str)(path.read_text())
    except (OSError, ValueError, ElementTree.ParseError):
        return None


def junit(text: str) -> dict[str, Any]:
    """Counts, and the first lines of each failure, from pytest's --junitxml."""
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    failed: dict[str, str] = {}
    for case in ElementTree.fromstring(text).iter("testcase"):
        counts["tests"] += 1
        for kind in ("failure", "error", "skipped"):
            found = case.find(kind)
            if found is None:
                continue
            counts[{"failure": "failures", "error": "errors"}.get(kind, kind)] += 1
            if kind != "skipped":
                failed[case.get("name", "")] = found.get("message", "")[:300]
    return {**counts, "failed": failed}
