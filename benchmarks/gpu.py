"""Tests and measures on a machine with a GPU, in seven minutes, the most important first, with the
current python3: `make gpu`, or

    python3 -m benchmarks.gpu tests/test_strip.py ... [--only check times] [--dry-run]

It needs torch, pytest, ninja, a C++ compiler and nvcc, and installs nothing. The first stage builds
the kernels; the others do not compile and are skipped if the build failed. Each stage is a separate
process that is interrupted, then killed, when its time is up, without affecting later stages. Every
result is a line of JSON in gpu.jsonl, in $OUT or else benchmarks/results/gpu, written immediately,
so that the script can be stopped at any time. Exit status: 0 if nothing failed in `build`, `check`
and `tests`, 1 if something failed or did not run, 2 if no GPU is visible.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
BUDGET = 420.0  # seconds for all stages
REHEARSAL = 3600.0  # the same, and for each stage, on a CPU that other work may share
GRACE = 5.0  # seconds from the interrupt to the kill
TAIL = 1500  # characters of a stage's output that are kept
DECISIVE = ("build", "check", "tests")
LOST = 75  # exit status of a worker whose GPU is unusable; a new process runs the next case
# The families' tests of kernels, at sizes and layouts that the other stages lack.
KERNEL_TESTS = "against_float64 or any_strides or same_bits or nan_and_infinity or cuda_graph"
COUNTERS = "gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum"


@dataclass(frozen=True)
class Stage:
    """One process of the run. `missing` is the reason why it cannot run, or ""; `table` is a CSV
    file that it writes."""

    name: str
    limit: float  # seconds
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""
    table: Path | None = None


def stages(families: list[str], scratch: Path, tiny: bool) -> Iterator[Stage]:
    """The stages in their order. `tiny` is a rehearsal on a CPU, with the kernels that
    STRIPCTX_BACKEND selects."""
    backend = {} if tiny else {"STRIPCTX_BACKEND": "native"}
    cases = [sys.executable, "-m", "benchmarks.gpu_cases", *(["--tiny"] if tiny else [])]
    yield Stage("build", 120, [*cases, "build"], backend)
    yield Stage("check", 40, [*cases, "check"], backend)
    yield Stage("times", 70, [*cases, "times"], backend)
    yield Stage("heads", 45, [*cases, "heads"], backend)
    pytest = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    pytest += ["-p", "benchmarks.gpu_cases", "-k", KERNEL_TESTS]
    pytest += ["-n", "8"] if importlib.util.find_spec("xdist") and not tiny else []
    device = {} if tiny else {"STRIPCTX_TEST_DEVICE": "cuda"}
    yield Stage("tests", 80, [*pytest, *families], backend | device)
    program = find("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        sanitizer = [program or "compute-sanitizer", "--tool", tool, "--error-exitcode", "86"]
        sanitizer += ["--kernel-name", "kernel_substring=stripctx", "--report-api-errors", "no"]
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # one allocation per tensor: exact bounds
        yield Stage(tool, 20, [*sanitizer, *cases, "operators"], backend | alone, absent(program))
    program, table = find("ncu"), scratch / "ncu.csv"
    ncu = [program or "ncu", "--clock-control", "none", "--csv", "--log-file", str(table)]
    ncu += ["--metrics", COUNTERS, "--kernel-name-base", "demangled"]
    ncu += ["--kernel-name", "regex:stripctx", *cases, "operators", "--large"]
    yield Stage("ncu", 25, ncu, backend, absent(program), table)


def find(program: str) -> str | None:
    toolkits = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", ""), "/usr/local/cuda"]
    folders = [os.path.join(root, "bin") for root in toolkits if root]
    return shutil.which(program) or shutil.which(program, path=os.pathsep.join(folders))


def absent(program: str | None) -> str:
    return "" if program else "it is not installed"


class Runner:
    """Runs stages within a budget and writes gpu.jsonl."""

    def __init__(self, log: Path, budget: float) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")
        self.log = log
        self.end = time.monotonic() + budget

    def record(self, **line: Any) -> None:
        with open(self.log, "a") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self, stage: str = "") -> list[dict[str, Any]]:
        """The lines of gpu.jsonl so far, without a truncated last line."""
        found = []
        for text in self.log.read_text().splitlines():
            with suppress(ValueError):
                found.append(json.loads(text))
        return [line for line in found if not stage or line["stage"] == stage]

    def run(self, stage: Stage) -> str:
        """Runs a stage. Returns its status: passed, failed, timed out or skipped."""
        started = time.monotonic()
        end = min(started + stage.limit, self.end)
        facts: dict[str, Any] = {}
        if stage.missing or end - started < 1:
            status, facts["reason"] = "skipped", stage.missing or "no time left"
        else:
            status, facts = self._processes(stage, end)
        if stage.table is not None:
            self._counters(stage)
        facts["seconds"] = round(time.monotonic() - started, 1)
        self.record(stage=stage.name, status=status, **facts)
        print(f"{stage.name}: {status} after {facts['seconds']} s", flush=True)
        return status

    def _processes(self, stage: Stage, end: float) -> tuple[str, dict[str, Any]]:
        """Runs a stage in one process, or, while its cases crash the process or the GPU, in a new
        process from the next case on."""
        while True:
            done = sum("case" in line for line in self.lines(stage.name))
            code, tail = self._process(stage, done, end)
            if code is None:
                return "timed out", {"tail": tail}
            if code < 0:
                self.record(stage=stage.name, case=f"number {done}", status="failed", signal=-code)
            elif code != LOST:
                return "passed" if code == 0 else "failed", {"exit_status": code, "tail": tail}
            if time.monotonic() > end - 1:
                return "timed out", {"tail": tail}

    def _process(self, stage: Stage, first: int, end: float) -> tuple[int | None, str]:
        """Returns the exit status, None if the process was stopped, and the end of its output."""
        environment = {"GPU_LOG": str(self.log), "GPU_STAGE": stage.name, "GPU_FIRST": str(first)}
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                stage.command,
                cwd=REPOSITORY,
                env={**os.environ, **stage.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code = None
            try:
                code = process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                kill_group(process, signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
            finally:  # also if this script is interrupted
                kill_group(process, signal.SIGKILL)
                process.wait()
            output.seek(0)
            return code, output.read().decode(errors="replace")[-TAIL:]

    def _counters(self, stage: Stage) -> None:
        """Records a line for every kernel and counter of Nsight Compute's table."""
        with suppress(OSError):
            text = stage.table.read_text() if stage.table else ""
            rows = [line for line in text.splitlines() if line.startswith('"')]
            for row in csv.DictReader(rows):
                with suppress(KeyError):
                    kernel, value = (
                        row["Kernel Name"],
                        f"{row['Metric Value']} {row['Metric Unit']}",
                    )
                    self.record(stage=stage.name, case=kernel, **{row["Metric Name"]: value})


def kill_group(process: subprocess.Popen[bytes], what: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, what)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("families", nargs="+", help="test files: tests/test_strip.py ...")
    parser.add_argument("--only", nargs="+", default=[], help="stages, beside the build")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, no more")
    parser.add_argument("--tiny", action="store_true", help="rehearse on the CPU, on tiny maps")
    options = parser.parse_args(arguments)
    default = REPOSITORY / "benchmarks" / "results" / "gpu"
    folder = Path(os.environ.get("OUT") or default).resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # also stops the running stage
    with tempfile.TemporaryDirectory(prefix="stripctx-") as scratch:
        plan = list(stages(options.families, Path(scratch), options.tiny))
        if options.tiny:
            plan = [replace(stage, limit=REHEARSAL) for stage in plan]
        budget = REHEARSAL if options.tiny else BUDGET
        if options.dry_run:
            for stage in plan:
                print(f"{stage.name}, at most {stage.limit:.0f} s: {' '.join(stage.command)}")
            return 0
        return run(plan, options.only, Runner(folder / "gpu.jsonl", budget))


def run(plan: list[Stage], only: list[str], runner: Runner) -> int:
    build, *others = plan
    statuses = {build.name: runner.run(build)}
    facts = {key: value for line in runner.lines(build.name) for key, value in line.items()}
    print(
        *(f"{key}: {facts[key]}" for key in ("gpu", "torch", "kernels") if key in facts), sep="\n"
    )
    if facts.get("gpu", "") is None:
        print(f"no GPU is visible: {facts.get('why')}", file=sys.stderr)
        return 2
    for stage in others:
        if statuses[build.name] != "passed":
            runner.record(stage=stage.name, status="skipped", reason="the kernels were not built")
        elif not only or stage.name in only:
            statuses[stage.name] = runner.run(stage)
    failed = [line for line in runner.lines() if "case" in line and line.get("status") == "failed"]
    for line in failed[:30]:
        print(f"  {line['stage']}: {line['case']}: {line.get('error', '')}")
    print(f"{len(failed)} cases failed; see {runner.log}")
    wrong = any(line["stage"] in DECISIVE for line in failed)
    complete = all(statuses.get(name) == "passed" for name in DECISIVE if not only or name in only)
    return 0 if complete and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
