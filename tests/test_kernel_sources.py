"""Kernel sources use only the project's own types for memory and launches, and no torch headers.
The emulator checks and counts accesses through Global<T> and Shared<T>; this test finds all others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import toolkit

SOURCES = sorted(toolkit.SOURCES.glob("*/*.cu"))
KERNELS = SOURCES + sorted(toolkit.SOURCES.glob("*/*.cuh"))
PLAIN = [
    path
    for path in sorted(toolkit.SOURCES.glob("*/*"))
    if path.is_file() and path.parent.name != "bind" and path.name != "bind.cpp"
]


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


# Words that kernels must not use, and the headers that may.
FORBIDDEN = {
    r"\b__shared__\b": "memory.cuh",
    r"\b__device__ +(?!inline\b|void\b)\w+ +\w+ *(=|;|\[)": "",  # device variables
    r"\b__constant__\b": "",
    r"<<<|>>>\s*\(": "",
    r"\bcudaLaunch\w*": "launch.cuh",
    r"\batomic[A-Z]\w*": "",
    r"\breinterpret_cast\b": "memory.cuh launch.cuh",
    r"\b__ld[a-z]+\b|\b__st[a-z]+\b": "memory.cuh",
    r"\bmem(cpy|move|set)\b": "memory.cuh mma.cuh widen.cuh matrix.cuh",  # only between registers
    r"\basm\b": "mma.cuh wgmma.cuh device.cuh memory.cuh async_copy.cuh sigmoid.cuh "
    "exponential.cuh",
    r"\bstatic_cast<[^<>]*\*\s*>": "launch.cuh memory.cuh",  # except to create a Global, see below
    r"\(\s*(const +)?\w+\s*\*\s*\)": "",
    r"\b(printf|malloc|new|delete)\b": "",
    r"\bcuda::|\bcooperative_groups\b|\bcub::": "",
}


# Memory without a View, such as partial sums: Global<A>(static_cast<A*>(parts), count).
MAKES_GLOBAL = re.compile(r"\bGlobal<[\w ]+>(\s+\w+)?\(\s*static_cast<[^<>]*\*>")


def code(text: str) -> str:
    """The code without comments, strings, creations of a Global, and this namespace's own name."""
    text = re.sub(r'"(\\.|[^"\\])*"', '""', text)
    text = MAKES_GLOBAL.sub("Global", re.sub(r"//[^\n]*", "", text))
    return text.replace("namespace stripctx::cuda", "").replace("cuda::launch(", "launch(")


def pointers(text: str) -> Iterator[str]:
    """The declarations of pointers to numbers: parameters, variables, members, results."""
    number = r"(?:const +)?\b(?:T|A|float|double|__half|__nv_bfloat16|u?int\w*|unsigned|char)\b"
    yield from (m[0] for m in re.finditer(rf"{number}(?: +const)? *\* *(?:const +)?\w+", text))


@pytest.mark.parametrize("path", KERNELS, ids=named)
def test_kernels_use_only_the_projects_memory_types(path: Path) -> None:
    text = code(path.read_text())
    for pattern, allowed in FORBIDDEN.items():
        if path.name not in allowed.split():
            found = re.search(pattern, text)
            assert not found, f"{path.name}: {found and found[0]!r}, for {pattern}"


@pytest.mark.parametrize("path", KERNELS, ids=named)
def test_kernels_declare_their_block_size(path: Path) -> None:
    """Otherwise nvcc may wait for one load before it starts the next, to save registers that a
    block of this size does not need."""
    kernels = re.findall(r"__global__\s+void\s+(\w+)", path.read_text())
    assert set(kernels) <= {"__launch_bounds__"}, kernels


def test_every_kernel_is_in_the_contributors_table() -> None:
    text = (toolkit.REPOSITORY / "CONTRIBUTING.md").read_text()
    table = text.partition("### The CUDA kernels")[2].partition("\n\nA few lines")[0]
    kernels = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    declared = r"__global__ void __launch_bounds__\((?:[^()]|\(\))*\)\s+(\w+)\("
    defined = {name for path in KERNELS for name in re.findall(declared, path.read_text())}
    assert set(re.findall(r"`(\w+)`", " ".join(kernels))) == defined


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_kernels_hold_no_pointers(path: Path) -> None:
    """Kernels cannot bypass the checks if they have no pointers to numbers: arguments are Views or
    void* and become a Global<T> at once."""
    assert list(pointers(code(path.read_text()))) == []


@pytest.mark.parametrize("path", PLAIN, ids=named)
def test_kernels_include_no_torch_headers(path: Path) -> None:
    for line in code(path.read_text()).splitlines():
        include = re.match(r"\s*#\s*include\s*(.*)", line)
        assert not include or not re.search(r"torch|ATen|c10|pybind11", line), line
    assert not re.search(r"\b(torch|at|c10)::", code(path.read_text()))


@pytest.mark.parametrize(
    "wrong",
    [
        "__shared__ float x[32];",
        "extern __shared__ float x[];",
        "__device__ float total = 0;",
        "kernel<<<1, 32>>>(op);",
        "atomicAdd(&x, 1.0f);",
        "const float v = *static_cast<const float*>(op.x.data);",
        "const float v = static_cast<const float*>(op.x.data)[3];",
        "auto p = reinterpret_cast<float4*>(q);",
        "cudaLaunchKernelEx(a, b);",
        "const float v = __ldg(p);",
        "memcpy(&a, p, 4);",
        "const auto* x = (const float*)op.x.data;",
        "const T* x = first(op);",
        "float* __restrict__ x",
    ],
)
def test_forbidden_words_are_detected(wrong: str) -> None:
    text = code(wrong)
    hits = [pattern for pattern in FORBIDDEN if re.search(pattern, text)]
    assert hits or list(pointers(text))
