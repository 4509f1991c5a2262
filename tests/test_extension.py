"""Importing the package with an empty, locked or damaged cache and without compilers; each case in
separate processes with a separate cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from sandbox import IMPORT, Sandbox

from stripctx import extension

pytestmark = pytest.mark.slow

COMPILING = "stripctx: compiling the cpu kernels"
NO_COMPILER = {"PATH": "/nowhere"}
NO_PROCESS = """
import os, subprocess, torch
def refuse(*args, **kwargs):
    raise AssertionError("the warm path starts no process")
subprocess.Popen.__init__ = os.fork = os.posix_spawn = os.system = refuse
"""


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def assert_built(sandbox: Sandbox, **changes: str) -> None:
    outcome = sandbox.load(**changes)
    assert outcome.code == 0, outcome.stderr
    assert outcome.report["warnings"] == []
    assert (outcome.cpu["origin"], outcome.cpu["answer"]) == ("new build", 42)
    assert sandbox.leftovers() == []


def test_builds_once_then_imports_silently_without_subprocesses(sandbox: Sandbox) -> None:
    first = sandbox.load()
    assert first.cpu["origin"] == "new build"
    assert COMPILING in first.stderr and "compiled the cpu kernels in" in first.stderr
    assert Path(first.cpu["log"]).is_file()

    second = sandbox.load(NO_PROCESS)
    assert second.code == 0, second.stderr
    assert second.stderr == ""
    assert (second.cpu["origin"], second.cpu["answer"]) == ("cache", 42)
    assert not {"filelock", "ninja", "torch.utils.cpp_extension"} & set(second.report["modules"])


KILL = "import os, subprocess; {target} = lambda *a, **k: os.kill(os.getpid(), 9)\n"


@pytest.mark.parametrize("target", ["subprocess.Popen", "os.rename"])
def test_survives_a_builder_killed_before_ninja_or_before_publishing(
    sandbox: Sandbox, target: str
) -> None:
    killed = sandbox.load("import torch\n" + KILL.format(target=target))
    assert killed.code == -signal.SIGKILL
    assert len(sandbox.leftovers()) == 1
    assert_built(sandbox)


@pytest.mark.parametrize("option", ["-c", "-shared"])
def test_survives_a_builder_killed_while_it_compiles_or_links(
    sandbox: Sandbox, option: str
) -> None:
    mark = sandbox.folder / "reached"
    stall = f'case "$STALL $*" in "1 "*"{option} "*) touch {mark}; sleep 60;; esac'
    compiler = sandbox.compiler(stall)
    builder = sandbox.start("import stripctx", CXX=compiler, STALL="1")
    try:
        while not mark.exists():
            assert builder.poll() is None, builder.communicate()
            time.sleep(0.02)
        builder.kill()  # ninja and its compiler keep running
        builder.wait()
        assert_built(sandbox, CXX=compiler)
    finally:
        os.killpg(builder.pid, signal.SIGKILL)


def test_processes_that_import_at_once_build_once(sandbox: Sandbox) -> None:
    compiler = sandbox.compiler("sleep 1")  # long enough for all processes to start
    processes = [sandbox.start(IMPORT, CXX=compiler) for _ in range(3)]
    answers = [process.communicate(timeout=200) for process in processes]
    reports = [json.loads(output)["libraries"]["cpu"] for output, _ in answers]
    assert [report["answer"] for report in reports] == [42] * 3
    assert sorted(report["origin"] for report in reports) == ["cache"] * 2 + ["new build"]
    said = [errors for _, errors in answers]
    assert "".join(said).count(COMPILING) == 1
    assert all(errors.count("waiting for another process") <= 1 for errors in said)


def test_an_unusable_cache_is_replaced_by_a_temporary_folder(sandbox: Sandbox) -> None:
    (sandbox.folder / "file").write_text("")
    temporary = sandbox.folder / "temporary"
    temporary.mkdir()
    changes = {"STRIPCTX_CACHE_DIR": str(sandbox.folder / "file/cache"), "TMPDIR": str(temporary)}
    first = sandbox.load(**changes)
    assert first.cpu["answer"] == 42
    assert "the cache folder cannot be used" in first.stderr
    private = temporary / f"stripctx-{os.getuid()}"
    assert first.cpu["path"].startswith(str(private))
    assert private.stat().st_mode & 0o777 == 0o700
    second = sandbox.load(**changes)
    assert (second.cpu["origin"], second.stderr) == ("cache", "")


def test_without_a_compiler_the_reference_runs_with_one_warning(sandbox: Sandbox) -> None:
    outcome = sandbox.load(**NO_COMPILER)
    assert outcome.code == 0 and not outcome.cpu["loaded"]
    (warning,) = outcome.report["warnings"]
    for words in ("no C++ compiler", "apt install g++", "python -m stripctx build", "=reference"):
        assert words in warning
    native = sandbox.load(STRIPCTX_BACKEND="native", **NO_COMPILER)
    assert native.code != 0
    assert "ImportError: STRIPCTX_BACKEND=native" in native.stderr
    assert "apt install" in native.stderr


def test_a_damaged_library_is_built_again(sandbox: Sandbox) -> None:
    """Each kind of damage is applied to the library rebuilt after the previous one."""
    assert_built(sandbox)
    (library,) = sandbox.cache.glob("*/stripctx_cpu.so")
    seal = library.with_name("stripctx_cpu.so.checksum")
    content = library.read_bytes()
    no_library = b"#!/bin/sh\n"  # with a valid checksum, but not a library
    for damage, text in {
        "truncated": content[: len(content) // 2],
        "garbage": bytes(reversed(content)),
        "empty": b"",
        "not a library": no_library,
        "unsealed": content,
    }.items():
        library.write_bytes(text)
        if damage == "unsealed":
            seal.unlink()
        elif damage == "not a library":
            seal.write_text(f"{len(text)} {hashlib.sha256(text).hexdigest()}\n")
        print(damage)  # pytest shows the last line on failure
        assert_built(sandbox)
        (corrupt,) = sandbox.cache.glob("*.corrupt")
        shutil.rmtree(corrupt)


def test_a_changed_header_triggers_a_build(sandbox: Sandbox) -> None:
    assert_built(sandbox)
    sandbox.write("csrc/core/answer.hpp", "constexpr int kAnswer = 43;\n")
    os.utime(sandbox.tree / "csrc/core/answer.hpp", (0, 0))  # only the content counts
    changed = sandbox.load()
    assert (changed.cpu["origin"], changed.cpu["answer"]) == ("new build", 43)


def test_a_build_removes_caches_unused_for_ninety_days(sandbox: Sandbox) -> None:
    assert_built(sandbox)
    (loaded,) = (path.parent for path in sandbox.cache.glob("*/stripctx_cpu.so"))
    touched, read, unused = (sandbox.cache / f"stripctx_cpu-{digit * 20}" for digit in "abc")
    failed, foreign = sandbox.cache / f"{unused.name}.failed", sandbox.cache / "stripctx_notes"
    long_ago = time.time() - 91 * 24 * 3600
    for folder in (touched, read, unused, failed, foreign):
        shutil.copytree(loaded, folder)
    for folder in (loaded, touched, read, unused, failed, foreign):
        for path in (*folder.iterdir(), folder):
            os.utime(path, (long_ago, long_ago))
    assert sandbox.load().cpu["origin"] == "cache"
    for path in loaded.iterdir():  # not every file system records access times
        os.utime(path, (long_ago, long_ago))
    os.utime(touched)
    os.utime(read / "stripctx_cpu.so", (time.time(), long_ago))

    sandbox.write("csrc/core/answer.hpp", "constexpr int kAnswer = 43;\n")
    new = Path(sandbox.load().cpu["path"]).parent
    folders = {path for path in sandbox.cache.iterdir() if path.is_dir()}
    assert folders == {loaded, touched, read, foreign, new}


def test_a_failed_build_is_not_repeated_until_requested(sandbox: Sandbox) -> None:
    compiler = sandbox.compiler('test -z "$BREAK" || { echo "out of luck" >&2; exit 1; }')
    broken = {"CXX": compiler, "BREAK": "1"}
    first = sandbox.load(**broken)
    assert COMPILING in first.stderr and "could not compile" in first.stderr
    assert "out of luck" in Path(first.cpu["log"]).read_text()

    second = sandbox.load(**broken)  # fails at once, with the log and the way to retry
    assert COMPILING not in second.stderr
    (warning,) = second.report["warnings"]
    assert second.cpu["log"] in warning and "python -m stripctx build" in warning

    native = sandbox.load(STRIPCTX_BACKEND="native", **broken)
    assert native.code != 0 and COMPILING in native.stderr
    assert first.cpu["log"] in native.stderr and "out of luck" in native.stderr

    command = ("-m", "stripctx", "build", "--device", "cpu")
    again = sandbox.run(*command, **broken)
    assert again.code == 1 and again.stderr.count(COMPILING) == 1
    mended = sandbox.run(*command, CXX=compiler)
    assert mended.code == 0, mended.stderr
    assert sandbox.load(CXX=compiler).cpu["origin"] == "cache"


def test_the_reference_backend_loads_no_library_and_prints_nothing(sandbox: Sandbox) -> None:
    outcome = sandbox.load(STRIPCTX_BACKEND="reference", **NO_COMPILER)
    assert (outcome.stderr, outcome.report["warnings"]) == ("", [])
    assert outcome.report["libraries"] == {} and outcome.report["backend"] == "reference"
    assert not sandbox.cache.exists()


def test_an_unknown_backend_is_refused(sandbox: Sandbox) -> None:
    outcome = sandbox.load(STRIPCTX_BACKEND="fast")
    assert "ValueError: STRIPCTX_BACKEND" in outcome.stderr
    for words in ("auto, native, reference, emulated", "'fast'"):
        assert words in outcome.stderr


def test_only_rank_0_prints(sandbox: Sandbox) -> None:
    outcome = sandbox.load(RANK="1")
    assert (outcome.cpu["origin"], outcome.stderr) == ("new build", "")


def test_the_command_reports_the_kernels_and_the_reason(sandbox: Sandbox) -> None:
    outcome = sandbox.run("-m", "stripctx")
    assert outcome.code == 0, outcome.stderr
    for words in ("native kernels, new build", "torch", str(sandbox.cache), "compiler", "0.2.0"):
        assert words in outcome.stdout


def test_the_warm_import_of_the_real_package_is_lean(tmp_path: Path) -> None:
    """From the cache: no subprocess, and no imports except the package's modules, the standard
    library and torch's counter of FLOPs."""
    library = extension.status().libraries.get("cpu")
    if library is None or not library.loaded:
        pytest.skip("needs the native library, which this process imports or builds")
    sandbox = Sandbox(tmp_path, stand_in=False)
    built = Path(library.path).parent
    shutil.copytree(built, sandbox.cache / built.name)
    compiler = {name: os.environ[name] for name in ("CXX",) if name in os.environ}
    outcome = sandbox.run("-c", NO_PROCESS + LEAN, **compiler)
    assert (outcome.code, outcome.stderr) == (0, ""), outcome.stderr
    origin, modules = json.loads(outcome.stdout)
    assert origin == "cache"
    modules = [name for name in modules if name not in COUNTER]
    packages = {name.partition(".")[0] for name in modules} - {"stripctx"}
    assert packages <= sys.stdlib_module_names, packages - sys.stdlib_module_names
    assert len(modules) < 100


COUNTER = ("torch.utils.flop_counter", "torch.utils.module_tracker")
LEAN = """
import json, sys, torch
before = set(sys.modules)
import stripctx
library = stripctx.extension.status().libraries["cpu"]
modules = sorted(set(sys.modules) - before)
assert torch.ops.stripctx.strip_pool(torch.ones(1, 2, 3, 4))[0].shape == (1, 2, 3, 1)
print(json.dumps([library.origin, modules]))
"""


def test_the_emulated_library_is_for_checkouts(sandbox: Sandbox) -> None:
    outcome = sandbox.load(STRIPCTX_BACKEND="emulated")
    if "CUDA headers were not found" in outcome.stderr:
        pytest.skip("no CUDA headers here: pip install -r requirements-dev.txt")
    assert outcome.report["libraries"]["emulated"]["answer"] == 44
    shutil.move(sandbox.tree / "csrc", sandbox.tree / "stripctx/csrc")  # as in an installed package
    installed = sandbox.load(STRIPCTX_BACKEND="emulated")
    assert "ImportError" in installed.stderr and "source checkout" in installed.stderr
