"""`make gpu` without a GPU: an end-to-end rehearsal on the emulated kernels, and the runner with
artificial stages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_cases, models
from benchmarks.gpu import Runner, Stage
from benchmarks.operators import OPERATORS, reference
from benchmarks.peers import PEERS

REPOSITORY = Path(__file__).resolve().parent.parent
KERNEL_TESTS = """
import pytest

@pytest.mark.parametrize("number", range(2))
def test_against_float64(number): assert number == 0, "sums differ"
def test_same_bits(): pass
def test_export(): raise AssertionError("it is not one of the kernels'")
"""
# Replaces NVIDIA's programs: runs the command that follows their options.
SANITIZER = """#!/bin/sh
while [ "$1" != "{python}" ]; do [ "$1" = --log-file ] && table="$2"; shift; done
exec "$@"
"""
TABLE = r'"Kernel Name","Metric Name","Metric Unit","Metric Value"\n"strip","time","ns","12"\n'
PROFILER = SANITIZER.replace("exec", f"printf '==PROF== noise\\n{TABLE}' > \"$table\"\nexec")


def lines(log: Path, stage: str = "") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in found if not stage or line["stage"] == stage]


def test_the_whole_script_on_a_cpu(tmp_path: Path) -> None:
    """Every stage runs; a failing test and the script's failure are entries."""
    (tmp_path / "test_family.py").write_text(KERNEL_TESTS)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("compute-sanitizer", SANITIZER), ("ncu", PROFILER)):
        (programs / name).write_text(text.format(python=sys.executable))
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "STRIPCTX_BACKEND": "emulated",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "OUT": str(tmp_path / "out"),
    }
    build = [sys.executable, "-c", "import stripctx"]  # takes longer than the script's limit
    subprocess.run(build, cwd=REPOSITORY, env=environment, check=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", str(tmp_path / "test_family.py")]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    log = tmp_path / "out" / "gpu.jsonl"
    statuses = {line["stage"]: line["status"] for line in lines(log) if "seconds" in line and
                "case" not in line and "status" in line}  # fmt: skip
    assert statuses.pop("tests") == "failed", done.stdout
    assert set(statuses.values()) == {"passed"}, done.stdout + log.read_text()
    assert list(statuses) == ["build", "check", "times", "heads", "memcheck", "racecheck", "ncu"]
    assert done.returncode == 1 and "1 cases failed" in done.stdout, done.stdout
    cases = {stage: [e for e in lines(log, stage) if "case" in e] for stage in gpu.DECISIVE}
    assert {entry["case"].split()[0] for entry in cases["check"]} == set(OPERATORS)
    assert [entry["status"] for entry in cases["tests"]] == ["passed", "failed", "passed"]
    assert "sums differ" in cases["tests"][1]["error"]
    measured = {entry["case"].split()[0]: entry for entry in lines(log, "times") if "case" in entry}
    assert set(measured) == {"copy", *PEERS}
    assert all(entry["fused_us"] > 0 for name, entry in measured.items() if name != "copy")
    assert lines(log, "ncu")[0] == {"stage": "ncu", "case": "strip", "time": "12 ns"}
    heads = {e["case"].split()[0] for e in lines(log, "heads") if e.get("fused_ms", 0) > 0}
    assert heads == set(models.HEADS)


def test_every_operator_is_checked() -> None:
    """Every operator has its line in benchmarks/operators.py, except the one composed of other
    operators and the one that only allocates; and a reference in plain PyTorch."""
    names = torch._C._dispatch_get_all_op_names()
    native = {name.removeprefix("stripctx::").partition(".")[0] for name in names
              if name.startswith("stripctx::")}  # fmt: skip
    assert native - {"strip_conv", "map_memory"} == set(OPERATORS)
    assert all(callable(reference(name)) for name in OPERATORS)


def test_a_wrong_kernel_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = gpu_cases.check("row_gate", "float32", "contiguous", "cpu", tiny=True)
    assert facts["status"] == "passed"
    kernel = torch.ops.stripctx.row_gate
    monkeypatch.setattr(torch.ops.stripctx, "row_gate", lambda x, g: kernel(x, g) * (1 + 1e-4))
    facts = gpu_cases.check("row_gate", "float32", "contiguous", "cpu", tiny=True)
    assert facts["status"] == "failed" and facts["error"] == "1.0e-04"


def python(name: str, code: str, limit: float = 20, **options: Any) -> Stage:
    return Stage(name, limit, [sys.executable, "-c", code], **options)


WORKER = """
import os, sys
from benchmarks import gpu_cases
def crash(): os.abort()
def lost(): raise RuntimeError("an illegal memory access")
def fine(): return {"us": 1}
gpu_cases.usable = lambda device: False
cases = [("one", fine), ("two", lost), ("three", crash), ("four", fine)]
gpu_cases.run_cases(iter(cases), "cuda")
"""


def test_a_case_that_takes_the_gpu_or_the_process_with_it_is_an_entry(tmp_path: Path) -> None:
    runner = Runner(tmp_path / "gpu.jsonl", budget=60)
    assert runner.run(python("check", WORKER)) == "passed"
    *cases, last = lines(runner.log)
    assert [case["status"] for case in cases] == ["passed", "failed", "failed", "passed"]
    assert "illegal memory access" in cases[1]["error"] and cases[2]["signal"] == 6
    assert last["status"] == "passed"


def test_a_stage_over_its_limit_keeps_its_lines_and_leaves_nothing(tmp_path: Path) -> None:
    """It is interrupted first, then killed with its child processes."""
    code = (
        "import signal, subprocess, sys, time; from benchmarks import gpu_cases;"
        "gpu_cases.record(case='one', status='passed');"
        "signal.signal(signal.SIGINT, lambda *_: print('interrupted', flush=True));"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " stderr=-3);"
        "print(child.pid, flush=True); [time.sleep(1) for _ in range(60)]"
    )
    runner = Runner(tmp_path / "gpu.jsonl", budget=60)
    assert runner.run(python("endless", code, limit=3)) == "timed out"
    first, last = lines(runner.log)
    assert first["case"] == "one" and last["status"] == "timed out"
    child, word = last["tail"].split()
    assert word == "interrupted" and not is_running(int(child))


def is_running(process: int) -> bool:
    """Also returns False for a zombie process."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state in "ZX":
            return False
        time.sleep(0.1)
    return True


def test_the_budget_ends_everything(tmp_path: Path) -> None:
    runner = Runner(tmp_path / "gpu.jsonl", budget=3)
    sleeps = "import time; time.sleep(60)"
    assert runner.run(python("first", sleeps, limit=50)) == "timed out"
    assert runner.run(python("second", sleeps, limit=50)) == "skipped"
    assert lines(runner.log)[1]["reason"] == "no time left"


@pytest.mark.parametrize(
    ("build", "check", "status"),
    [("pass", "pass", 0), ("pass", "raise SystemExit(3)", 1), ("raise SystemExit(1)", "pass", 1)],
)
def test_the_exit_status(build: str, check: str, status: int, tmp_path: Path) -> None:
    """Without kernels nothing else is run; a missing sanitizer is not a failure."""
    plan = [python("build", build), python("check", check), python("tests", "pass")]
    plan.append(python("memcheck", "pass", missing="it is not installed"))
    runner = Runner(tmp_path / "gpu.jsonl", budget=60)
    assert gpu.run(plan, [], runner) == status
    ran = [line["status"] for line in lines(runner.log)]
    assert ran[2:] == (["skipped"] * 2 if build != "pass" else ["passed", "skipped"])


def test_the_plan_fits(tmp_path: Path) -> None:
    """The stages fit into seven minutes, and only the build may compile."""
    plan = list(gpu.stages(["tests/test_strip.py"], tmp_path, tiny=False))
    assert sum(stage.limit for stage in plan) <= gpu.BUDGET == 420
    assert [stage.name for stage in plan[:5]] == ["build", "check", "times", "heads", "tests"]
    assert all(stage.environment["STRIPCTX_BACKEND"] == "native" for stage in plan)
    commands = {stage.name: " ".join(stage.command) for stage in plan}
    assert "--report-api-errors no" in commands["memcheck"]
    assert "--clock-control none" in commands["ncu"]


@pytest.mark.parametrize("word", gpu.KERNEL_TESTS.split(" or "))
def test_the_kernels_tests_are_there(word: str) -> None:
    """Tests exist under the names by which `make gpu` selects them."""
    names = {path.name for path in (REPOSITORY / "tests").glob("*.py")
             if f"def test_{word}" in path.read_text()}  # fmt: skip
    assert names - {"test_gpu_script.py"}


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "tests/test_strip.py"],
        cwd=REPOSITORY,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OUT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "no GPU is visible: " in done.stderr
    assert lines(tmp_path / "gpu.jsonl")[0]["gpu"] is None
