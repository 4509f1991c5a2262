"""Unit tests of the extension: compilers, architectures, cache keys, folders, messages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from sandbox import Sandbox

from stripctx.extension import (
    UnavailableError,
    architectures,
    build,
    locate,
    ninja,
    report,
    toolchain,
)

CLEARED = ("CXX", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS")
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*CLEARED, *RANKS):
        monkeypatch.delenv(name, raising=False)


def fake_nvcc(folder: Path, version: str) -> Path:
    """A toolkit folder whose nvcc only reports its version."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\n")
    path.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.0 8.6+PTX", ("8.0", "8.6+PTX")),
        ("10.0;9.0;8.0", ("8.0", "9.0", "10.0")),
        ("9.0, 9.0+PTX,9.0", ("9.0+PTX",)),
        ("Hopper;7.5", ("7.5", "9.0+PTX")),
        ("Blackwell", ("10.0", "10.3", "12.0", "12.1+PTX")),
        ("9.0a 12.0f", ("9.0a", "12.0f")),
    ],
)
def test_architectures_are_sorted_as_numbers_and_named_once(
    text: str, expected: tuple[str, ...]
) -> None:
    assert architectures.parse(text) == expected


@pytest.mark.parametrize("text", ["hopper", "9", "sm_90", "8.0 nonsense"])
def test_unknown_architectures_are_refused(text: str) -> None:
    with pytest.raises(UnavailableError, match="TORCH_CUDA_ARCH_LIST holds"):
        architectures.parse(text)


def test_gencode() -> None:
    assert architectures.gencode(("9.0+PTX", "12.0+PTX")) == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=compute_90",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


def test_architectures_come_from_the_variable_the_gpus_or_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(architectures, "from_nvml", lambda: [(9, 0), (8, 0), (9, 0)])
    assert architectures.wanted() == [("8.0", "9.0"), architectures.DEFAULT]
    monkeypatch.setattr(architectures, "from_nvml", lambda: [])
    assert architectures.wanted() == [architectures.DEFAULT]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6")
    assert architectures.wanted() == [("8.6",)]


def test_the_default_list_is_cut_to_what_nvcc_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    known = "\n".join(f"compute_{number}" for number in (75, 80, 86, 89, 90))
    monkeypatch.setattr(toolchain, "output_of", lambda *command: known)
    cut = architectures.known_to("nvcc", architectures.DEFAULT)
    assert cut == ("7.5", "8.0", "8.6", "8.9", "9.0+PTX")
    assert architectures.known_to("nvcc", ("9.0a",)) == ("9.0a",)
    with pytest.raises(UnavailableError, match=r"nvcc cannot compile for 12\.0; it knows 75, 80"):
        architectures.known_to("nvcc", ("9.0", "12.0"))


def test_nvcc_of_another_major_version_is_refused_with_a_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = str(fake_nvcc(tmp_path / "old", "12.8") / "bin/nvcc")
    monkeypatch.setattr(toolchain, "nvcc_candidates", lambda: [old])
    with pytest.raises(UnavailableError) as caught:
        toolchain.toolkit("13.0")
    assert "torch was built for CUDA 13.0" in caught.value.reason
    assert f"{old} is CUDA 12.8" in caught.value.reason
    assert "pip install 'nvidia-cuda-nvcc==13.0.*'" in caught.value.cure

    new = str(fake_nvcc(tmp_path / "new", "13.2") / "bin/nvcc")
    monkeypatch.setattr(toolchain, "nvcc_candidates", lambda: [old, new])
    assert toolchain.toolkit("13.0").nvcc == new  # a matching one, independent of its position
    assert toolchain.toolkit(None).nvcc == old

    monkeypatch.setattr(toolchain, "nvcc_candidates", list)
    with pytest.raises(UnavailableError, match="no nvcc was found"):
        toolchain.toolkit("12.8")


def test_nvcc_is_looked_for_in_cuda_home_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [fake_nvcc(tmp_path / name, "13.0") for name in ("home", "other", "path")]
    monkeypatch.setenv("CUDA_HOME", str(folders[0]))
    monkeypatch.setenv("CUDA_PATH", str(folders[1]))
    monkeypatch.setenv("PATH", str(folders[2] / "bin"))
    found = toolchain.nvcc_candidates()[:3]
    assert found == [str(folder / "bin/nvcc") for folder in folders]


def test_the_key_changes_with_whatever_changes_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilers = []
    for name in ("one", "two"):
        compilers.append(tmp_path / name)
        shutil.copy("/bin/sh", compilers[-1])
    keys = set()
    for compiler in compilers:
        monkeypatch.setenv("CXX", str(compiler))
        keys.add(build.target("cpu").key())
    os.utime(compilers[-1], (1, 1))
    keys.add(build.target("cpu").key())
    monkeypatch.setenv("CXX", f"{compilers[-1]} -m64")
    keys.add(build.target("cpu").key())
    keys.add(build.target("cpu", "AVX2").key())
    for chosen in (("8.0",), ("9.0",), ("8.0", "9.0")):
        keys.add(build.target("cuda", architectures=chosen).key())
    monkeypatch.setattr(build, "this_cpu", lambda: "flags: another machine")
    keys.add(build.target("cpu").key())
    monkeypatch.setattr(build, "CXX_FLAGS", (*build.CXX_FLAGS, "-ffast-math"))
    keys.add(build.target("cpu").key())
    assert len(keys) == 10
    assert build.target("cpu").key() == build.target("cpu").key()


def test_a_compiler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(UnavailableError, match="CXX=no-such-compiler -O1 was not found"):
        toolchain.cxx()


def test_jobs_follow_the_variable_then_cores_memory_and_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    monkeypatch.setattr(toolchain, "free_gibibytes", lambda: 10.0)
    assert toolchain.jobs(20, 1.0) == 8
    assert toolchain.jobs(20, 2.0) == 5
    assert toolchain.jobs(3, 1.0) == 3
    monkeypatch.setattr(toolchain, "free_gibibytes", lambda: 0.1)
    assert toolchain.jobs(20, 1.0) == 1
    monkeypatch.setenv("MAX_JOBS", "40")
    assert toolchain.jobs(20, 1.0) == 40
    monkeypatch.setenv("MAX_JOBS", "many")
    with pytest.raises(UnavailableError, match="MAX_JOBS must be a positive number, got 'many'"):
        toolchain.jobs(20, 1.0)


def test_the_cache_root_follows_the_variables_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    for name in ("XDG_CACHE_HOME", "TORCH_EXTENSIONS_DIR", "STRIPCTX_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert locate.cache_root() == "/home/somebody/.cache/stripctx"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert locate.cache_root() == "/xdg/stripctx"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/extensions")
    assert locate.cache_root() == "/extensions/stripctx"
    monkeypatch.setenv("STRIPCTX_CACHE_DIR", "~/mine")
    assert locate.cache_root() == "/home/somebody/mine"


def test_a_folder_mounted_noexec_is_not_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locate.why_unusable(str(tmp_path / "new")) == ""
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.X_OK)
    assert "noexec" in locate.why_unusable(str(tmp_path / "new"))


def test_a_temporary_folder_that_others_can_write_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPCTX_CACHE_DIR", "/dev/null/cache")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    os.mkdir(locate.temporary_root())
    os.chmod(locate.temporary_root(), 0o777)
    assert list(locate.lookup_roots()) == ["/dev/null/cache"]
    root, problem = locate.build_root()
    assert root != locate.temporary_root() and root.startswith(str(tmp_path))
    assert problem == "/dev/null/cache: Not a directory"


@pytest.mark.parametrize("variable", RANKS)
def test_other_ranks_are_silent(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "0")
    report.say("spoken")
    monkeypatch.setenv(variable, "3")
    report.say("kept quiet")
    assert capsys.readouterr().err == "stripctx: spoken\n"


def test_progress_rewrites_its_line_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = report.Progress("the cpu kernels")
    progress.step("[1/2] csrc/strip/reduce_cpu.cpp")
    progress.done(ok=True)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.endswith("\n")
    lines = [line.rstrip() for line in said.split("\r") if line]
    assert lines[1] == "stripctx: compiling the cpu kernels [1/2] csrc/strip/reduce_cpu.cpp"
    assert re.fullmatch(r"stripctx: compiled the cpu kernels in \d\.\d s", lines[2])


def test_ninja_takes_paths_with_spaces_and_dollars(tmp_path: Path) -> None:
    folder = tmp_path / "a $folder: here"
    folder.mkdir()
    source = folder / "in put"
    source.write_text("text")
    steps = [ninja.Step([str(source)], "out $put", ["cp", str(source), "out $put"], "copying")]
    log = ninja.run(str(folder), steps, 1, ["a note"])
    assert (folder / "out $put").read_text() == "text"
    assert ninja.tail(log).splitlines() == ["# a note", "[1/1] copying"]


NVML = """
extern "C" {
int nvmlInit_v2() { return 0; }
int nvmlShutdown() { return 0; }
int nvmlDeviceGetCount_v2(unsigned* count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  *device = reinterpret_cast<void*>(0x7f0000000001ul + index);
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(void* device, int* major, int* minor) {
  *major = device == reinterpret_cast<void*>(0x7f0000000001ul) ? 9 : 8;
  *minor = 0;
  return 0;
}
}
"""


@pytest.mark.slow
def test_a_machine_with_gpus_builds_for_them(tmp_path: Path) -> None:
    """torch's CUDA support and the driver are mocked; compiler, linker and loader are real."""
    sandbox = Sandbox(tmp_path)
    try:
        toolchain.toolkit("13.0").includes  # noqa: B018
    except UnavailableError as error:
        pytest.skip(error.reason)
    (tmp_path / "nvml.cpp").write_text(NVML)
    library = str(tmp_path / "libnvidia-ml.so.1")
    compiler = toolchain.cxx().command
    command = [*compiler, "-shared", "-fPIC", "-o", library, str(tmp_path / "nvml.cpp")]
    subprocess.run(command, check=True)
    changes = {"PRETEND_CUDA": "13.0", "LD_LIBRARY_PATH": str(tmp_path)}
    outcome = sandbox.load(**changes)
    assert outcome.code == 0, outcome.stderr
    cuda = outcome.report["libraries"]["cuda"]
    assert (cuda["origin"], cuda["answer"]) == ("new build", 43), cuda
    text = Path(cuda["log"]).with_name("build.ninja").read_text()
    assert set(re.findall(r",code=(\w+)", text)) == {"sm_80", "sm_90a"}
    log = Path(cuda["log"]).read_text()
    assert "registers" in log and "0 bytes spill stores" in log
    assert sandbox.load(**changes).report["libraries"]["cuda"]["origin"] == "cache"

    mismatch = sandbox.load(PRETEND_CUDA="7.0", LD_LIBRARY_PATH=str(tmp_path))
    (warning,) = mismatch.report["warnings"]
    assert "torch was built for CUDA 7.0" in warning and mismatch.cpu["loaded"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_real_cuda_library_needs_only_torch_and_the_system(tmp_path: Path) -> None:
    """Every binding, unoptimised, and the kernels of one family: test_no_kernel_spills compiles all
    of them."""
    sandbox = Sandbox(tmp_path, stand_in=False)
    library = tmp_path / "stripctx_cuda.so"
    changes = {
        "sources": ("csrc/*/bind.cpp", "csrc/cuda/*.cu", "csrc/height/cuda.cu"),
        "flags": (*build.LIBRARIES["cuda"].flags, "-O0"),
    }
    code = f"""
import dataclasses
from stripctx.extension import build
build.LIBRARIES["cuda"] = dataclasses.replace(build.LIBRARIES["cuda"], **{changes})
build.cuda(["9.0"], {str(library)!r})
"""
    outcome = sandbox.run("-c", code, timeout=1100, STRIPCTX_BACKEND="reference")
    if "no nvcc was found" in outcome.stderr or "lacks" in outcome.stderr:
        pytest.skip(outcome.stderr.splitlines()[-1])
    assert outcome.code == 0, outcome.stderr
    command = ["nm", "-D", "--demangle", str(library)]
    names = subprocess.run(command, capture_output=True, text=True, check=True)
    undefined = re.findall(
        r"^ +U ([^@\n]+)$", names.stdout, re.MULTILINE
    )  # system symbols have @versions
    known = ("aoti_torch_", "torch_", "stripctx::cuda::")  # the last: the other families' kernels
    assert [name for name in undefined if not name.startswith(known)] == []
    assert " T cuda" not in names.stdout  # the runtime is not exported


@pytest.mark.parametrize(
    ("log", "cure"),
    [
        (
            "# /usr/bin/c++\n# g++-10 (Debian 10.2.1-6) 10.2.1\nerror",
            "this is g++ 10: install g++ 11",
        ),
        ("# clang++\n# Debian clang version 13.0.1\nerror", "this is clang 13: install g++ 11 or"),
        ("# c++\n# c++ (Debian 12.2.0-14) 12.2.0\nerror", "read the log, or try another compiler"),
        ("# c++\nc++: fatal error: Killed signal terminated program cc1plus", "MAX_JOBS=1 python"),
        ("# c++\nfatal error: x.o: No space left on device", "set STRIPCTX_CACHE_DIR to another"),
    ],
)
def test_cure_of_a_failed_build(tmp_path: Path, log: str, cure: str) -> None:
    path = tmp_path / "build.log"
    path.write_text(log)
    assert cure in ninja.cure(str(path))
    assert ninja.cure(str(tmp_path / "none")).endswith("python -m stripctx build")


@pytest.mark.parametrize("flags", [(), ("-mf16c",)], ids=["software", "instruction"])
def test_float16_on_the_cpu(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Every half widens to torch's float; floats at and next to every midpoint round as torch's."""
    if flags and "f16c" not in build.this_cpu():
        pytest.skip("this CPU has no F16C")
    source = tmp_path / "half.cpp"
    source.write_text(
        """
        #include <cstdio>
        #include "cpu/simd.hpp"
        using namespace stripctx::cpu;
        int main() {
          for (uint32_t i = 0; i < 65536; ++i) {
            Float16 half;
            half.bits = static_cast<uint16_t>(i);
            const uint32_t wide = std::bit_cast<uint32_t>(value_of(&half));
            fwrite(&wide, 4, 1, stdout);
          }
          uint32_t word;
          while (fread(&word, 4, 1, stdin) == 1) {
            Float16 half;
            store(&half, splat(std::bit_cast<float>(word)), 1);
            fwrite(&half.bits, 2, 1, stdout);
          }
        }
        """
    )
    program = tmp_path / "half"
    root = locate.source_root()
    command = [*toolchain.cxx().command, "-std=c++20", "-O1", *flags, f"-I{root}/csrc"]
    subprocess.run([*command, str(source), "-o", str(program)], check=True)
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)
    finite = every[every.isfinite()].double()
    midpoints = (finite[1:] + finite[:-1]) / 2
    edges = torch.tensor([65519.99, 65520.0, 1e6, 2.0**-25, 2.0**-25 * 1.001, 1e-30, torch.inf])
    floats = torch.cat([finite.float(), midpoints.float(), edges, -edges])
    words = torch.cat([floats.view(torch.int32) + step for step in (-1, 0, 1)])
    words = words[~words.view(torch.float32).isnan()]
    done = subprocess.run(
        [str(program)], input=words.numpy().tobytes(), capture_output=True, check=True
    )
    wide = torch.frombuffer(bytearray(done.stdout[: 4 * 65536]), dtype=torch.float32)
    torch.testing.assert_close(wide, every.float(), rtol=0, atol=0, equal_nan=True)
    rounded = torch.frombuffer(bytearray(done.stdout[4 * 65536 :]), dtype=torch.int16)
    want = words.view(torch.float32).half().view(torch.int16)
    assert torch.equal(rounded, want)
