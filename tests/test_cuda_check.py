"""tests/cuda_check.py parses nvcc's reports correctly: a kernel with spills must not pass."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cuda_check
import pytest
import toolkit

needs_nvcc = pytest.mark.skipif(toolkit.nvcc() is None, reason="needs nvcc")
needs_cuobjdump = pytest.mark.skipif(toolkit.cuobjdump() is None, reason="needs cuobjdump")

# An array indexed by what only the device knows lives on the stack.
USES_STACK = """
__global__ void uses_stack(const int* index, float* out) {
  float values[32];
  for (int i = 0; i < 32; ++i) values[i] = out[i * i];
  for (int i = 0; i < 32; ++i) values[index[i]] += 1.0f;
  out[threadIdx.x] = values[index[threadIdx.x]];
}
"""

# More live values than the registers that the launch bounds leave: 2048 threads a processor.
SPILLS = """
__global__ void __launch_bounds__(1024, 2) spills(const float* x, float* out) {
  float values[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) values[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) out[i * 1024 + threadIdx.x] = values[i] * values[63 - i];
}
"""


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("source", [USES_STACK, SPILLS], ids=["stack", "spill"])
def test_stack_and_spills_fail(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.cu"
    path.write_text(source)
    assert cuda_check.main([str(path), "--arch", "80", "90"]) == 1
    captured = capsys.readouterr()
    assert "SPILLS" in captured.out
    assert "wrong.cu: " in captured.err and "on sm_80: " in captured.err and "bytes" in captured.err


@pytest.mark.slow
@needs_nvcc
@needs_cuobjdump
def test_the_table_of_known_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = toolkit.EMULATOR / "kernels" / "types.cu"
    written = tmp_path / "table.json"
    assert cuda_check.main([str(source), "--arch", "75", "90", "--json", str(written)]) == 0
    kernels = {kernel["name"]: kernel for kernel in json.loads(written.read_text())}
    for name in ("double", "float", "__half", "__nv_bfloat16"):
        assert kernels[f"copy_packs<{name}>"]["loads"] == {"128": 1}
        assert kernels[f"copy_packs<{name}>"]["stores"] == {"128": 1}
    assert kernels["widen<__half>"]["loads"] == {"16": 1}
    assert kernels["widen<__half>"]["stores"] == {"32": 1}
    assert kernels["widen<double>"]["loads"] == {"64": 1}
    for kernel in kernels.values():
        assert set(kernel["usage"]) == {"75", "90"}
        assert 1 < kernel["usage"]["90"]["registers"] < 32
        assert kernel["usage"]["90"]["shared"] == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:4] == ["source", "kernel", "sm_75", "sm_90"]
    assert len(printed) == 1 + len(kernels)


@pytest.mark.slow
@needs_nvcc
@needs_cuobjdump
def test_computed_packs_are_stored_whole(tmp_path: Path) -> None:
    """nvcc takes a pack apart where its values were computed, unless Global<T> says otherwise."""
    source = toolkit.SOURCES / "strip" / "expand_cuda.cu"
    written = tmp_path / "table.json"
    assert cuda_check.main([str(source), "--arch", "90", "--json", str(written)]) == 0
    for kernel in json.loads(written.read_text()):
        template = re.fullmatch(r"\w+<(\w+), (\d+)(?:, \d+)?>", kernel["name"])
        assert template, kernel["name"]
        bytes_each = {"double": 8, "float": 4}.get(template[1], 2)
        assert set(kernel["stores"]) == {str(8 * bytes_each * int(template[2]))}, kernel["name"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_nvcc
def test_no_kernel_spills() -> None:
    """`make cuda-check` compiles every kernel for every architecture; this, what has changed since
    its last record."""
    changed = cuda_check.unchecked(90)
    assert not changed or cuda_check.main([*map(str, changed), "--arch", "90"]) == 0


def test_the_record_holds_for_the_code_and_the_architectures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_check, "RECORD", tmp_path / "record.json")
    every = sorted(toolkit.SOURCES.glob("*/*.cu"))
    assert cuda_check.unchecked(90) == every
    cuda_check.record(every[:2], [80, 90])
    cuda_check.record(every[:1], [75])
    assert cuda_check.unchecked(90) == every[2:]
    assert cuda_check.unchecked(75) == every[1:]
    code_of = toolkit.code_of
    changed = {every[1]: "other"}
    monkeypatch.setattr(toolkit, "code_of", lambda path: changed.get(path) or code_of(path))
    assert cuda_check.unchecked(90) == every[1:]


@needs_nvcc
def test_what_does_not_compile_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.cu"
    path.write_text("__global__ void broken() { undeclared(); }\n")
    assert cuda_check.main([str(path), "--arch", "90"]) == 1
    assert "undeclared" in capsys.readouterr().err


def test_without_nvcc_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toolkit, "nvcc", lambda: None)
    assert cuda_check.main([]) == cuda_check.NO_COMPILER
    assert "no nvcc" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("_ZN8stripctx4cuda5widenI6__halfEEvNS0_7ConvertE", "widen<__half>"),
        ("_ZN8stripctx4cuda12_GLOBAL__N_14copyIfLi4ELb1EEEvNS_4ViewE", "copy<float, 4, true>"),
        ("plain_c", "plain_c"),
    ],
)
def test_names_are_short(symbol: str, name: str) -> None:
    assert cuda_check.demangle(symbol) == name


def test_accesses_are_told_apart() -> None:
    sass = """
        Function : kernel
        /*0080*/  LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0090*/  @P0 LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*00a0*/  LDG.E.64 R4, [R2.64] ;
        /*00b0*/  LD.E R4, desc[UR4][R2.64] ;
        /*00c0*/  LDS.128 R4, [R2] ;
        /*00d0*/  LDC.64 R2, c[0x0][0x210] ;
        /*00e0*/  STG.E desc[UR4][R2.64], R7 ;
    """
    loads, stores = cuda_check.parse_accesses(sass)["kernel"]
    assert loads == {"128": 1, "16": 1, "64": 1, "generic": 1}
    assert stores == {"32": 1}
