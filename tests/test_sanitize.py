"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer. To save time, `make test`
leaves the machine's own instruction set without them, for comparison, and the AVX2 build out;
`make sanitize` tries every build with them (STRIPCTX_SANITIZE_ALL).

tests/sanitize runs every CPU kernel on exact-size buffers at the shapes of every family's tests, in
all dtypes and layouts, compiled once for each variant of csrc/cpu/simd.hpp. The sanitizers stop at
the first access out of bounds and the first undefined operation. (They do not instrument AVX-512's
masked loads and stores; the other two builds make the same accesses without masks.) The program
itself detects elements that are never written and results that depend on the division of the work;
this test compares the results of the builds.
"""

from __future__ import annotations

import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import toolkit
from operator_checks import SHAPES

pytestmark = pytest.mark.slow

FOLDER = toolkit.REPOSITORY / "tests" / "sanitize"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
IS_X86 = platform.machine() in ("x86_64", "AMD64")
# Names as in stripctx/extension/build.py, starting with the machine's own instruction set.
BUILDS = ["native", "DEFAULT"] if IS_X86 else ["native"]
PLAIN = ["native"] if IS_X86 else []
if IS_X86 and os.environ.get("STRIPCTX_SANITIZE_ALL"):
    BUILDS.append("AVX2")
    PLAIN.clear()

# Rows. The CPU kernels divide fewer; the families' 2100, for the CUDA kernels, would take most of
# the time.
TALLEST = 600

# ||a - b|| / ||b|| between builds: orders of summation and fused multiply-adds differ.
TOLERANCE = {"float64": 1e-14, "float32": 1e-6, "float16": 5e-4, "bfloat16": 4e-3}


@dataclass
class Run:
    status: int
    errors: str
    results: dict[str, np.ndarray]


def flags(name: str) -> list[str]:
    """Unoptimised, so that every access in the source is checked, and compiling takes a third of
    the time. Reports only need line numbers from -g."""
    ours = [flag for flag in toolkit.build.CXX_FLAGS if flag != "-O3"]
    return [*ours, *toolkit.build.INSTRUCTION_SETS[name], "-O0", *sanitizers(name)]


def sanitizers(name: str) -> list[str]:
    return [] if name in PLAIN else ["-g1", *SANITIZE]


def runs_here(name: str) -> bool:
    """Whether this CPU supports the build's instructions."""
    return name != "AVX2" or "avx2" in Path("/proc/cpuinfo").read_text()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The program compiled for each build, in parallel on all cores."""
    folder = tmp_path_factory.mktemp("sanitize")
    compiler = [*toolkit.toolchain.cxx().command]
    probe = folder / "probe.cpp"
    probe.write_text("int main() {}\n")
    try:
        toolkit.run([*compiler, *SANITIZE, str(probe), "-o", str(folder / "probe")])
    except RuntimeError as error:
        pytest.skip(f"the compiler has no sanitizers: {error}")
    includes = [f"-I{toolkit.SOURCES}", f"-I{FOLDER}"]
    # The largest first, to finish early.
    sources = [
        *toolkit.SOURCES.glob("*/*cpu.cpp"),
        *toolkit.SOURCES.glob("cpu/*.cpp"),
        *FOLDER.glob("*.cpp"),
    ]
    sources.sort(key=lambda path: -path.stat().st_size)
    objects: dict[str, list[str]] = {name: [] for name in BUILDS}
    commands = []
    for source in sources:
        for name in BUILDS:
            objects[name].append(str(folder / f"{name}-{source.parent.name}-{source.stem}.o"))
            arguments = [*flags(name), *includes, "-c", str(source), "-o", objects[name][-1]]
            commands.append([*compiler, *arguments])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(toolkit.run, commands))
    for name in BUILDS:
        toolkit.run([*compiler, *sanitizers(name), *objects[name], "-o", str(folder / name)])
    return {name: folder / name for name in BUILDS}


def run(program: Path) -> Run:
    output = program.with_suffix(".results")
    shapes = [f"{n},{c},{min(h, TALLEST)},{w}" for n, c, h, w in SHAPES]
    # Leak detection is not needed, and fails under a debugger or in a sandbox.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [str(program), str(output), *shapes],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    values = np.fromfile(output, dtype=np.float64)
    results: dict[str, np.ndarray] = {}
    begin = 0
    for index, line in enumerate(done.stdout.splitlines()):
        title, count = line.rsplit(": ", 1)
        results[f"{title} result {index}"] = values[begin : begin + int(count)]
        begin += int(count)
    return Run(done.returncode, done.stderr, results)


@pytest.fixture(scope="session")
def outcomes(programs: dict[str, Path]) -> dict[str, Run]:
    """Runs one program per core at a time."""
    found = {name: path for name, path in programs.items() if runs_here(name)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(found, pool.map(run, found.values()), strict=True))


@pytest.mark.parametrize("name", BUILDS)
def test_kernels_run_clean(name: str, outcomes: dict[str, Run]) -> None:
    if name not in outcomes:
        pytest.skip(f"this CPU has no {name}")
    assert outcomes[name].errors == ""
    assert outcomes[name].status == 0
    assert len(outcomes[name].results) >= 4 * 4 * len(SHAPES)


@pytest.mark.parametrize("name", BUILDS[1:])
def test_builds_agree(name: str, outcomes: dict[str, Run]) -> None:
    if name not in outcomes:
        pytest.skip(f"this CPU has no {name}")
    first, other = outcomes[BUILDS[0]].results, outcomes[name].results
    assert first.keys() == other.keys()
    for title, expected in first.items():
        error = np.linalg.norm(other[title] - expected)
        assert error <= TOLERANCE[title.split()[1]] * np.linalg.norm(expected), title


# Loads a whole vector where only one element is left.
MISTAKE = """
#include "cpu/simd.hpp"
#include "sample.hpp"
using namespace stripctx;
int main() {
  sanitize::Sample sample({{1, 3, 5, 7}, DType::kFloat32, {"contiguous", false, false}, false});
  const View x = sample.map();
  return cpu::load(static_cast<const float*>(x.data) + x.extent() - 1)[0] > 9;
}
"""


def test_an_element_too_many_is_seen(programs: dict[str, Path], tmp_path: Path) -> None:
    """The sanitizers are active and the buffers have exact sizes."""
    source, program = tmp_path / "mistake.cpp", tmp_path / "mistake"
    source.write_text(MISTAKE)
    includes = [f"-I{toolkit.SOURCES}", f"-I{FOLDER}"]
    compiler = [*toolkit.toolchain.cxx().command]
    toolkit.run([*compiler, *flags("DEFAULT"), *includes, str(source), "-o", str(program)])
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
