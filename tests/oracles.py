"""Somebody else's implementations, for tests that run where these are installed and skip elsewhere:

    pip install --no-deps mmsegmentation==1.2.2 mmcv-lite==2.1.0 mmengine-lite==0.10.7 \\
        addict yapf platformdirs termcolor rich prettytable packaging pyyaml

Without --no-deps these bring OpenCV and SciPy, which nothing here needs, so requirements-dev.txt
leaves them out. mmseg's and mmcv's packages import all of both; here they are entered through empty
shells, and only the files that define a module are run.
"""

from __future__ import annotations

import functools
import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import nn


@functools.cache
def mmseg_encoding() -> SimpleNamespace:
    """mmseg's `Encoding` and `EncModule`, which has `BN` for its norm_cfg."""
    for package in ("mmseg", "mmcv", "mmengine", "addict", "yapf", "termcolor", "rich"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed (tests/oracles.py says how)")
    if find_spec("cv2") is None:
        _stand_in("cv2")
    _shell("mmcv")
    for package in ("mmseg", "mmseg.models", "mmseg.models.utils", "mmseg.models.decode_heads"):
        _shell(package)
    encoding = importlib.import_module("mmseg.models.utils.encoding").Encoding
    sys.modules["mmseg.models.utils"].__dict__.update(Encoding=encoding, resize=None)
    _stand_in("mmseg.models.builder", build_loss=None)
    _stand_in("mmseg.registry", MODELS=_Registry())
    _stand_in("mmseg.utils", ConfigType=Any, SampleList=Any)
    _stand_in("mmseg.models.decode_heads.decode_head", BaseDecodeHead=nn.Module)
    module = importlib.import_module("mmseg.models.decode_heads.enc_head").EncModule
    return SimpleNamespace(Encoding=encoding, EncModule=module)


class _Registry:
    def register_module(self) -> Any:
        return lambda registered: registered


def _shell(name: str) -> None:
    """An installed package whose own `__init__` does not run."""
    if name in sys.modules:
        return
    parent, _, child = name.rpartition(".")
    if parent:
        folder = Path(sys.modules[parent].__path__[0], child)
    else:
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None
        folder = Path(spec.origin).parent
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    package.__spec__ = ModuleSpec(name, None, is_package=True)
    sys.modules[name] = package


def _stand_in(name: str, **contents: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(contents)
    sys.modules[name] = module
