"""`make gpu` where there is no GPU: the runner on made-up stages, the plan, the verdict, and what
its probes can do on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import toolkit

from benchmarks import gpu, gpu_probe, stages
from benchmarks.operators import OPERATORS
from benchmarks.stages import Command, Runner, Stage

FAMILIES = ["tests/test_strip.py"]


def python(code: str, **options: Any) -> Command:
    return Command([sys.executable, "-c", code], **options)


def read(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["stages"]
    return found


def test_each_stage_is_written_and_none_stops_the_next(tmp_path: Path) -> None:
    path, report = tmp_path / "out" / "gpu.json", tmp_path / "report.json"
    runner = Runner(path, tmp_path, budget=60)
    runner.run(Stage("good", 20, {"one": python("print('hello')"), "two": python("print(2)")}))
    assert [stage["status"] for stage in read(path)] == ["passed"]
    assert read(path)[0]["commands"]["one"]["tail"] == "hello\n"

    runner.run(Stage("bad", 20, {"one": python("pass"), "two": python("raise SystemExit('no')")}))
    assert [stage["status"] for stage in read(path)] == ["passed", "failed"]
    assert read(path)[1]["commands"]["two"]["exit_status"] == 1
    assert read(path)[1]["commands"]["two"]["tail"] == "no\n"

    absent = Command(["no-such-program"], missing="it is not installed")
    runner.run(Stage("absent", 20, {"one": absent}))
    assert read(path)[2]["status"] == "skipped"
    assert read(path)[2]["commands"]["one"]["reason"] == "it is not installed"

    code = f"import json; json.dump([1, 2], open({str(report)!r}, 'w'))"
    runner.run(Stage("report", 20, {"one": python(code, report=report)}))
    assert read(path)[3]["commands"]["one"]["report"] == [1, 2]
    runner.write(verdict="done")
    assert json.loads(path.read_text())["verdict"] == "done"
    assert [item.name for item in path.parent.iterdir()] == ["gpu.json"]


def test_a_stage_over_its_limit_is_killed_with_its_children(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    runner = Runner(tmp_path / "gpu.json", tmp_path, budget=60)
    result = runner.run(Stage("endless", 3, {"endless": python(code)}))["commands"]["endless"]
    assert result["status"] == "timed out" and result["exit_status"] == -9
    assert not is_running(int(result["tail"]))


def is_running(process: int) -> bool:
    """Also right for one that is dead and has nobody to collect it."""
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
    runner = Runner(tmp_path / "gpu.json", tmp_path, budget=6)
    sleeps = {"sleeps": python("import time; time.sleep(60)")}
    assert runner.run(Stage("first", 50, sleeps))["status"] == "timed out"
    late = runner.run(Stage("second", 50, sleeps))
    assert late["status"] == "skipped"
    assert late["commands"]["sleeps"]["reason"] == "no time left"
    assert len(read(tmp_path / "gpu.json")) == 2


def test_junit_is_counted(tmp_path: Path) -> None:
    source, report = tmp_path / "test_some.py", tmp_path / "some.xml"
    source.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'sums differ'\n"
        "def test_skipped(): pytest.skip('no')\n"
        "@pytest.fixture\ndef broken(): raise OSError('gone')\n"
        "def test_error(broken): pass\n"
    )
    command = Command(gpu.pytest(str(source), f"--junitxml={report}"), report=report)
    runner = Runner(tmp_path / "gpu.json", tmp_path, budget=60)
    outcome = runner.run(Stage("tests", 50, {"some": command}))["commands"]["some"]
    found = outcome["report"]
    assert outcome["status"] == "failed"
    assert found["tests"] == 4
    assert (found["failures"], found["errors"], found["skipped"]) == (1, 1, 1)
    assert set(found["failed"]) == {"test_bad", "test_error"}
    assert "sums differ" in found["failed"]["test_bad"]


def test_a_report_that_is_missing_or_broken_is_none(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "broken.xml").write_text("<a>")
    for name in ("none.json", "broken.json", "broken.xml"):
        assert stages.read_report(tmp_path / name) is None


def test_the_plan_fits(tmp_path: Path) -> None:
    """No limit is so long that a hanging stage leaves no time for those that matter after it."""
    plan = [gpu.machine_stage(tmp_path), *gpu.stages(FAMILIES, tmp_path, tmp_path, "9.0")]
    names = [stage.name for stage in plan]
    assert names[:4] == ["machine", "build", "correctness", "sanitizer"]
    assert names[4:] == ["profile", "counters", "benchmark strip"]
    assert sum(stage.limit for stage in plan[:4]) < gpu.BUDGET < 600
    for stage in plan[1:]:
        for command in stage.commands.values():
            assert command.environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
            assert command.environment["STRIPCTX_BACKEND"] == "native"


def script(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *FAMILIES, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_dry_run_shows_the_plan(tmp_path: Path) -> None:
    done = script(toolkit.REPOSITORY, "--dry-run", OUT=str(tmp_path / "out"))
    assert done.returncode == 0
    for words in ("machine", "--tool memcheck", "--tool racecheck", "--tool initcheck",
                  "gpu_probe profile", "STRIPCTX_TEST_DEVICE=cuda", "tests/test_strip.py",
                  "benchmarks/test_strip.py --device cuda"):  # fmt: skip
        assert words in done.stdout
    assert not (tmp_path / "out").exists()


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = script(toolkit.REPOSITORY, OUT=str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert "no GPU is visible: " in done.stderr
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["verdict"] == "no GPU is visible"
    assert [stage["name"] for stage in written["stages"]] == ["machine"]
    assert written["stages"][0]["commands"]["machine"]["report"]["gpu"] is None


@pytest.mark.parametrize(("code", "status"), [("pass", 0), ("raise SystemExit(3)", 1)])
def test_the_exit_status_is_that_of_correctness(
    code: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a pretended GPU; the sanitizer's failure has no consequence."""
    seen = {"gpu": "a GPU", "capability": "9.0", "torch": "2.11.0"}
    report = tmp_path / "machine.json"
    report.write_text(json.dumps(seen))
    machine = Stage("machine", 20, {"machine": python("pass", report=report)})
    after = [
        Stage("build", 20, {"build": python("pass")}),
        Stage("correctness", 20, {"strip": python("pass"), "other": python(code)}),
        Stage("sanitizer", 20, {"memcheck": python("raise SystemExit(86)")}),
    ]
    monkeypatch.setattr(gpu, "machine_stage", lambda scratch: machine)
    monkeypatch.setattr(gpu, "stages", lambda *arguments: iter(after))
    assert gpu.run(FAMILIES, [], tmp_path / "out", tmp_path) == status
    assert len(read(tmp_path / "out" / "gpu.json")) == 4
    assert gpu.run(FAMILIES, ["correctness"], tmp_path / "out", tmp_path) == status
    assert [stage["name"] for stage in read(tmp_path / "out" / "gpu.json")][1:] == [
        "build",
        "correctness",
    ]


def test_the_probes_run_every_operator() -> None:
    assert len(gpu_probe.run_operators("cpu", large=False)["operators"]) == 8 * len(OPERATORS)
    found = gpu_probe.profile("cpu", (1, 8, 6, 10))
    assert {entry["operator"] for entry in found["entries"]} == set(OPERATORS)
    assert all(entry["floor_bytes"] > 0 and not entry["kernels"] for entry in found["entries"])


def test_every_operator_is_probed() -> None:
    """Every operator of the library has its line in benchmarks/operators.py, but for the one that
    is composed of others and of torch's."""
    import torch

    names = torch._C._dispatch_get_all_op_names()
    native = {name.removeprefix("stripctx::").partition(".")[0] for name in names
              if name.startswith("stripctx::")}  # fmt: skip
    assert native - {"strip_conv"} == set(OPERATORS)


@pytest.mark.parametrize("program", ["compute-sanitizer", "ncu"])
def test_an_absent_program_is_named(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find", lambda name: None)
    command = gpu.sanitizer("memcheck", {}) if program != "ncu" else gpu.counters(Path(), {})
    assert command.missing == "it is not installed"
    assert command.arguments[0] == program
