"""The library without the package: processes that only load it know every operator, and a C++
program runs an exported network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toolkit
import torch
from operator_checks import DEVICE
from torch import Tensor, nn

from stripctx import HeightAttention, PyramidPoolingConv, StripPooling, extension, functional
from stripctx.ops import schemas

LIBRARY = next(
    (one for one in extension.status().libraries.values() if one.loaded and one.name != "cuda"),
    None,
)
needs_library = pytest.mark.skipif(LIBRARY is None, reason="the reference backend loads no library")


def script(code: str, *arguments: object, quiet: bool = True) -> str:
    """The output of a process that imports torch and, of stripctx, only what it loads itself."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RANK")}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0 and not (quiet and done.stderr), done.stderr
    return done.stdout


def test_operators_match_their_schemas() -> None:
    names = {n for n in torch._C._dispatch_get_all_op_names() if n.startswith("stripctx::")}
    assert names == {f"stripctx::{name}" for name in schemas.SCHEMAS}
    for name, text in schemas.SCHEMAS.items():
        operator = schemas.find(name)
        assert str(operator._schema) == str(torch._C.parse_schema(f"stripctx::{text}"))
        assert set(schemas.TAGS) <= set(operator.tags)


def test_a_different_definition_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(schemas.SCHEMAS, "row_gate", "row_gate(Tensor x) -> Tensor")
    with pytest.raises(ImportError, match="belongs to this version"):
        schemas.declare("row_gate")


KNOWS = """
import json, sys, torch
torch.ops.load_library(sys.argv[1])
names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("stripctx::")]
known = {}
for name in names:
    base, _, overload = name.partition("::")[2].partition(".")
    schema = getattr(getattr(torch.ops.stripctx, base), overload or "default")._schema
    known[name] = [str(schema), torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")]
assert "stripctx" not in sys.modules
print(json.dumps(known))
"""


@needs_library
def test_every_operator_without_python() -> None:
    known = json.loads(script(KNOWS, LIBRARY.path))
    for name, text in schemas.SCHEMAS.items():
        expected = str(torch._C.parse_schema(f"stripctx::{text}"))
        assert known.pop(f"stripctx::{name}") == [expected, True]
    assert not known


RUNS = """
import sys, torch
torch.ops.load_library(sys.argv[1])
name, arguments = torch.load(sys.argv[2])
torch.save(getattr(torch.ops.stripctx, name)(*arguments), sys.argv[3])
"""


@needs_library
def test_an_operator_runs_without_python(tmp_path: Path) -> None:
    rows, cols = torch.randn(2, 6, 5, 1), torch.randn(2, 6, 1, 7)
    arguments = rows, cols, torch.randn(4, 6, 1, 1)
    torch.save(("strip_conv", arguments), tmp_path / "in.pt")
    script(RUNS, LIBRARY.path, tmp_path / "in.pt", tmp_path / "out.pt")
    got, want = torch.load(tmp_path / "out.pt"), torch.ops.stripctx.strip_conv(*arguments)
    assert torch.equal(got, want)


LATER = """
import sys, torch
torch.ops.load_library(sys.argv[1])
import stripctx
print(stripctx.extension.status().libraries["cpu"].origin)
torch.ops.load_library(sys.argv[2])
x = torch.ones(1, 2, 3, 4, requires_grad=True)
stripctx.functional.strip_pool(x)[0].sum().backward()
assert x.grad.sum() == 6
"""


@needs_library
@pytest.mark.skipif(LIBRARY is None or LIBRARY.name != "cpu", reason="tests the CPU library")
def test_a_library_loaded_before_or_after_the_package(tmp_path: Path) -> None:
    """It is not loaded again, and a copy at another path does not define operators twice."""
    path = f"import sys; sys.path.insert(0, {str(toolkit.REPOSITORY)!r})\n"
    other = shutil.copy(LIBRARY.path, tmp_path)
    said = script(path + LATER, LIBRARY.path, other, quiet=False)
    assert said == "loaded before stripctx was imported\n"


@needs_library
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pixels", [7, 0])
def test_the_strip_convolution(layout: torch.memory_format, pixels: int) -> None:
    """The only composed operator: another kernel and the library's convolution."""
    rows = torch.randn(2, 6, 5, 1, device=DEVICE).contiguous(memory_format=layout)
    cols = torch.randn(2, 6, 1, pixels, device=DEVICE).contiguous(memory_format=layout)
    weight = torch.randn(4, 6, 1, 1, device=DEVICE).contiguous(memory_format=layout)
    got = torch.ops.stripctx.strip_conv(rows, cols, weight)
    want = (
        nn.functional.conv2d((rows + cols).relu(), weight) if pixels else got.new_zeros(2, 4, 5, 0)
    )
    torch.testing.assert_close(got, want)
    if pixels:
        assert got.is_contiguous(memory_format=layout)


class Head(nn.Module):
    """Uses operators of several families."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(3, 8, 4, stride=4)
        self.strips = StripPooling(8)
        self.pyramid = PyramidPoolingConv(8, 6)
        self.rows = HeightAttention(8, 6, reduction=2)

    def forward(self, image: Tensor) -> Tensor:
        x = self.strips(self.reduce(image))
        return functional.upsample_argmax(
            self.rows(x, self.pyramid(x)), image.shape[2:], align_corners=False
        )


@pytest.mark.slow
@needs_library
@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake")
@pytest.mark.skipif(DEVICE.type != "cpu", reason="the example loads the CPU library")
@pytest.mark.filterwarnings("ignore")
def test_a_program_in_cpp(tmp_path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    network, image = Head().eval(), torch.randn(2, 3, 48, 64)
    package, build = tmp_path / "head.aoti.pt2", tmp_path / "build"
    with torch.no_grad():
        aoti_compile_and_package(
            torch.export.export(network, (image,)), package_path=str(package),
            inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},
        )  # fmt: skip
        want = network(image)
    source = toolkit.REPOSITORY / "examples" / "cpp"
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (["-S", source, "-B", build, prefix], ["--build", build]):
        subprocess.run(["cmake", *map(str, command)], check=True, capture_output=True)
    torch.save(image, tmp_path / "image.pt")
    files = [LIBRARY.path, package, tmp_path / "image.pt", tmp_path / "labels.pt"]
    program = [str(build / "segment"), *map(str, files)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "output [2, 48, 64]\n"), done.stderr
    assert (torch.load(tmp_path / "labels.pt") != want).float().mean() < 1e-3
    missing = subprocess.run([program[0], "/none.so", *program[2:]], capture_output=True, text=True)
    assert missing.returncode == 2 and "/none.so" in missing.stderr
