"""Compiles a file in this folder, which binds csrc/core to NumPy with pybind11, into a module."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent.parent / "csrc"


def module(name: str, folder: Path) -> ModuleType:
    """Builds the module `name` from `name`.cpp into `folder`."""
    library = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = (SOURCES, pybind11.get_include(), sysconfig.get_path("include"))
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror"]
    command = [os.environ.get("CXX", "g++"), *flags, *(f"-I{folder}" for folder in includes)]
    subprocess.run([*command, str(HERE / f"{name}.cpp"), "-o", str(library)], check=True)
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
