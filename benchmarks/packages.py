"""Imports timm and smp without torchvision: they import its image transforms and encoders, which
are not used here, so placeholder modules replace it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def load(package: str) -> ModuleType:
    """Imports the package; ImportError if it, or a dependency other than torchvision, is
    missing."""
    with torchvision_names():
        return importlib.import_module(package)


@contextmanager
def torchvision_names() -> Iterator[None]:
    """Within this context, placeholder modules replace torchvision if it is not installed."""
    if find_spec("torchvision") is not None:
        yield
        return
    names = _Names()
    sys.meta_path.append(names)
    try:
        yield
    finally:
        sys.meta_path.remove(names)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


class _Names(MetaPathFinder, Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] != "torchvision":
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _NamesModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _NamesModule(ModuleType):
    """Has any class, whose attributes are strings, and any function, which returns None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _NamesClass(name, (), {}) if name[0].isupper() else lambda *_, **__: None


class _NamesClass(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(name)
        return name
