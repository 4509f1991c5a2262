"""Wheels: their contents, and that they work when installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from sandbox import Sandbox

from stripctx.extension import cache

pytestmark = pytest.mark.slow

pytest.importorskip("setuptools.command.bdist_wheel")


def wheel(sandbox: Sandbox, **changes: str) -> Path:
    command = ("-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir")
    done = subprocess.run(
        [sys.executable, *command, str(sandbox.folder)], cwd=sandbox.tree,
        env=sandbox.environment(**changes), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = sandbox.folder.glob("*.whl")
    return built


def install(sandbox: Sandbox, built: Path) -> None:
    """Unpacks the wheel elsewhere; later imports use it."""
    target = sandbox.folder / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target)]
    subprocess.run([*command, str(built)], check=True, capture_output=True)
    sandbox.tree = target


def names(built: Path) -> set[str]:
    with zipfile.ZipFile(built) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_a_wheel_of_the_real_tree_carries_the_sources_and_no_tests(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path, stand_in=False)
    expected = {
        str(path.relative_to(sandbox.tree))
        for path in sandbox.tree.glob("stripctx/**/*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    sources = [path for path in sandbox.tree.glob("csrc/**/*") if path.is_file()]
    expected |= {f"stripctx/{path.relative_to(sandbox.tree)}" for path in sources}
    built = wheel(sandbox)
    assert built.name == "stripctx-0.2.0-py3-none-any.whl"
    assert names(built) == expected


def test_a_wheel_builds_its_library_where_it_is_installed(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    built = wheel(sandbox)
    install(sandbox, built)
    outcome = sandbox.load()
    assert outcome.code == 0, outcome.stderr
    assert (outcome.cpu["origin"], outcome.cpu["answer"]) == ("new build", 42)
    assert outcome.cpu["path"].startswith(str(sandbox.cache))


def test_a_prebuilt_wheel_needs_neither_cache_nor_compiler(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    built = wheel(sandbox, STRIPCTX_BUILD="1")
    assert built.name.startswith("stripctx-0.2.0-py3-none-") and "any" not in built.name
    libraries = {name for name in names(built) if name.endswith(".so")}
    on_x86 = os.uname().machine == "x86_64"
    sets = ("AVX512", "AVX2", "DEFAULT") if on_x86 else ("DEFAULT",)
    assert libraries == {f"stripctx/lib/stripctx_cpu_{name}.so" for name in sets}
    install(sandbox, built)
    outcome = sandbox.load(PATH="/nowhere")
    assert outcome.stderr == "" and outcome.report["warnings"] == []
    assert (outcome.cpu["origin"], outcome.cpu["answer"]) == ("prebuilt", 42)
    assert not sandbox.cache.exists()
    plain = sandbox.load(ATEN_CPU_CAPABILITY="default", PATH="/nowhere")
    assert plain.cpu["path"].endswith("stripctx_cpu_DEFAULT.so")
    library = sandbox.tree / "stripctx" / "lib" / "stripctx_cpu_DEFAULT.so"
    for path in library.parent.glob("*.so"):
        make_unloadable(path)
    foreign = sandbox.load(PATH="/nowhere")
    (warning,) = foreign.report["warnings"]
    assert "the prebuilt library does not load" in warning and "file too short" in warning
    assert "no C++ compiler" in warning
    library.write_bytes(b"cut off")
    for path in set(library.parent.glob("*.so")) - {library}:
        path.unlink()
    rebuilt = sandbox.load()
    assert (rebuilt.cpu["origin"], rebuilt.cpu["answer"]) == ("new build", 42)
    assert "is damaged; built here instead" in rebuilt.stderr
    assert "damaged" in sandbox.run("-m", "stripctx").stdout


def make_unloadable(path: Path) -> None:
    """Makes a library intact but unloadable, like one for another system."""
    path.write_bytes(b"\x7fELF")
    cache.seal(str(path))
