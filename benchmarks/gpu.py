"""Everything that is worth knowing from a machine with a GPU, in ten minutes, with the python3 at
hand: `make gpu`, or

    python3 -m benchmarks.gpu tests/test_strip.py ... [--only correctness ...] [--dry-run]

It needs torch, pytest, pytest-benchmark, ninja, a C++ compiler and nvcc, installs nothing, and
builds for the GPU in sight alone. Stages: machine, build, correctness, sanitizer, profile, and one
benchmark a family. gpu.json, rewritten after each stage, and the benchmarks' result files go to
$OUT, or else to benchmarks/results/gpu. Exit status: 0 where every family is correct on CUDA,
1 where one is not, 2 where no GPU is visible. Other stages fail without consequence.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.stages import PASSED, Command, Runner, Stage

REPOSITORY = Path(__file__).resolve().parent.parent
BUDGET = 560.0  # seconds for everything
BENCHMARK_SECONDS = 60.0  # of one family
SANITIZERS = ("memcheck", "racecheck", "initcheck")
DRAM = "dram__bytes_read.sum,dram__bytes_write.sum,gpu__time_duration.sum"


def machine_stage(scratch: Path) -> Stage:
    return Stage("machine", 45, {"machine": probe("machine", scratch)})


def stages(families: list[str], folder: Path, scratch: Path, arch: str) -> Iterator[Stage]:
    """Those after the first, for a GPU of the compute capability `arch`, "9.0"."""
    native = {
        "STRIPCTX_BACKEND": "native",
        "TORCH_CUDA_ARCH_LIST": arch,
        "STRIPCTX_CACHE_DIR": "build/gpu",
    }
    yield Stage("build", 150, {"build": probe("build", scratch, native)})
    yield Stage(
        "correctness",
        200,
        {name_of(path): correctness(path, scratch, native) for path in families},
    )
    yield Stage("sanitizer", 90, {tool: sanitizer(tool, native) for tool in SANITIZERS})
    yield Stage("profile", 60, {"profile": probe("profile", scratch, native)})
    yield Stage("counters", 60, {"ncu": counters(scratch, native)})
    for name in map(name_of, families):
        if (REPOSITORY / "benchmarks" / f"test_{name}.py").is_file():
            command = benchmark(name, folder, native)
            yield Stage(f"benchmark {name}", BENCHMARK_SECONDS + 30, {name: command})


def probe(what: str, scratch: Path, environment: dict[str, str] | None = None) -> Command:
    report = scratch / f"{what}.json"
    arguments = [sys.executable, "-m", "benchmarks.gpu_probe", what, "--report", str(report)]
    return Command(arguments, environment or {}, report)


def pytest(*arguments: str) -> list[str]:
    """Without pyproject's options, which may name plugins that are not installed here."""
    return [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-q",
            "--tb=short", *arguments]  # fmt: skip


def correctness(path: str, scratch: Path, native: dict[str, str]) -> Command:
    report = scratch / f"{name_of(path)}.xml"
    environment = {**native, "STRIPCTX_TEST_DEVICE": "cuda"}
    return Command(pytest(path, f"--junitxml={report}"), environment, report)


def sanitizer(tool: str, native: dict[str, str]) -> Command:
    """Every operator once, each tensor an allocation of its own, so that its bounds are known."""
    program = find("compute-sanitizer")
    arguments = [program or "compute-sanitizer", "--tool", tool, "--error-exitcode", "86"]
    arguments += [sys.executable, "-m", "benchmarks.gpu_probe", "operators"]
    environment = {**native, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Command(arguments, environment, missing="" if program else "it is not installed")


def counters(scratch: Path, native: dict[str, str]) -> Command:
    """Bytes that reached memory, and time, of each of our kernels, by Nsight Compute."""
    program, report = find("ncu"), scratch / "ncu.csv"
    arguments = [program or "ncu", "--csv", "--log-file", str(report), "--metrics", DRAM]
    arguments += ["--kernel-name-base", "demangled", "--kernel-name", "regex:stripctx"]
    arguments += [sys.executable, "-m", "benchmarks.gpu_probe", "operators", "--large"]
    return Command(arguments, native, report, missing="" if program else "it is not installed")


def benchmark(name: str, folder: Path, native: dict[str, str]) -> Command:
    options = ["--device", "cuda", "--without-compile", "--seconds", f"{BENCHMARK_SECONDS:.0f}"]
    file = f"benchmarks/test_{name}.py"
    return Command(pytest(file, *options, "--results", str(folder)), native)


def find(program: str) -> str | None:
    toolkits = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", ""), "/usr/local/cuda"]
    folders = [os.path.join(root, "bin") for root in toolkits if root]
    return shutil.which(program) or shutil.which(program, path=os.pathsep.join(folders))


def name_of(path: str) -> str:
    """tests/test_strip.py is "strip"."""
    return Path(path).stem.removeprefix("test_")


def print_plan(families: list[str], folder: Path) -> None:
    scratch = Path("SCRATCH")
    plan = [machine_stage(scratch), *stages(families, folder, scratch, "CAPABILITY")]
    for stage in plan:
        print(f"{stage.name}, at most {stage.limit:.0f} s")
        for command in stage.commands.values():
            print(f"    {command}" + (f"    ({command.missing})" if command.missing else ""))
    print(f"at most {BUDGET:.0f} s together; gpu.json and result files in {folder}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("families", nargs="+", help="test files: tests/test_strip.py ...")
    parser.add_argument("--only", nargs="+", default=[], help="of the stages after the build")
    parser.add_argument("--dry-run", action="store_true", help="print stages and commands, no more")
    options = parser.parse_args(arguments)
    default = REPOSITORY / "benchmarks" / "results" / "gpu"
    folder = Path(os.environ.get("OUT") or default).resolve()
    if options.dry_run:
        print_plan(options.families, folder)
        return 0
    with tempfile.TemporaryDirectory(prefix="stripctx-") as scratch:
        return run(options.families, options.only, folder, Path(scratch))


def run(families: list[str], only: list[str], folder: Path, scratch: Path) -> int:
    runner = Runner(folder / "gpu.json", REPOSITORY, BUDGET)
    seen = runner.run(machine_stage(scratch))["commands"]["machine"]
    report: dict[str, Any] = seen.get("report") or {}
    if not report.get("gpu"):
        why = report.get("why", f"torch could not be asked: {seen.get('tail', '')[-500:]}")
        print(f"no GPU is visible: {why}", file=sys.stderr)
        runner.write(verdict="no GPU is visible")
        return 2
    print(f"{report['gpu']}, compute capability {report['capability']}, torch {report['torch']}")
    correct = False
    for stage in stages(families, folder, scratch, report["capability"]):
        if only and stage.name.split()[0] not in ("build", *only):
            continue
        result = runner.run(stage)
        if stage.name == "correctness":
            correct = result["status"] == PASSED
            print_counts(result)
    verdict = "correct on CUDA" if correct else "not shown to be correct on CUDA"
    runner.write(verdict=verdict)
    print(f"{verdict}; see {runner.path}")
    return 0 if correct else 1


def print_counts(result: dict[str, Any]) -> None:
    for name, outcome in result["commands"].items():
        counts = dict(outcome.get("report") or {})
        failed = counts.pop("failed", {})
        print(f"  {name}: {outcome['status']}", *(f"{n} {what}" for what, n in counts.items()))
        for test, message in list(failed.items())[:10]:
            print(f"    {test}: {message.splitlines()[0] if message else ''}")


if __name__ == "__main__":
    sys.exit(main())
