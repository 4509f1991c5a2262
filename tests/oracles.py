"""Implementations from other packages; tests that need a missing package are skipped:

    pip install --no-deps -r requirements-oracles.txt
    pip install --no-deps -r requirements-networks.txt    # transformers and timm: whole networks

`make setup` runs both. Without --no-deps they install OpenCV, SciPy and another torch, which are
not needed. mmseg and mmcv import the first two in their `__init__`, so the packages are replaced by
empty shells and only the files that define a module are executed. The same is done for smp if timm
is not installed, with a substitute for its encoder: `Features`, three strided convolutions.
torchvision is replaced by a stub (benchmarks/packages.py), except in tests of its own networks.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import packages


@functools.cache
def mmseg() -> SimpleNamespace:
    """mmseg's modules, heads and segmentor, and `MODELS`, which builds them from configurations
    with norms of type "BN"."""
    _require("mmseg", "mmcv", "mmengine", "addict", "yapf", "termcolor", "rich")
    if find_spec("cv2") is None:
        _stand_in("cv2")
    _shell("mmcv")
    _shell("mmseg")
    for package in ("utils", "models", *(f"models.{name}" for name in _MMSEG_MODELS)):
        _shell(f"mmseg.{package}")
    _fill("mmseg.utils", "typing_utils", "misc")
    for package, files in _MMSEG_MODELS.items():
        _fill(f"mmseg.models.{package}", *files)
    heads = vars(sys.modules["mmseg.models.decode_heads"])
    names = ("PPM", "PSPHead", "EncHead", "EncModule", "Encoding")
    models = importlib.import_module("mmseg.registry").MODELS
    return SimpleNamespace(MODELS=models, **{name: heads[name] for name in names})


_MMSEG_MODELS = {
    "utils": ("wrappers", "encoding", "res_layer", "inverted_residual"),
    "losses": ("utils", "accuracy", "cross_entropy_loss"),
    "decode_heads": (
        *("decode_head", "fcn_head", "psp_head", "enc_head", "segformer_head", "uper_head"),
        *("ham_head", "fpn_head", "aspp_head", "sep_aspp_head", "sep_fcn_head"),
    ),
    "backbones": ("resnet", "hrnet", "icnet", "fast_scnn"),
    "necks": ("ic_neck",),
    "segmentors": ("base", "encoder_decoder"),
}


@functools.cache
def smp() -> SimpleNamespace:
    """smp's PSPNet on `Features`, its decoder, and the pyramids of PSPNet and UPerNet."""
    _require("segmentation_models_pytorch")
    root = "segmentation_models_pytorch"
    if _missing(*_TIMM):
        _shell(root)
        for package in ("base", "decoders", "decoders.pspnet", "decoders.upernet"):
            _shell(f"{root}.{package}")
        _stand_in(f"{root}.base.hub_mixin", SMPHubMixin=_Hub, supports_config_loading=lambda f: f)
        _stand_in(f"{root}.encoders", get_encoder=Features, TimmUniversalEncoder=_Hub)
        _fill(f"{root}.base", "modules", "heads", "model")
    else:
        whole_smp()
    decoder = importlib.import_module(f"{root}.decoders.pspnet.decoder")
    model: Any = importlib.import_module(f"{root}.decoders.pspnet.model")
    get_encoder = model.get_encoder
    model.get_encoder = lambda name, **options: (
        get_encoder(name, **options) if name else Features(name, **options)
    )
    return SimpleNamespace(
        PSPNet=model.PSPNet,
        PSPDecoder=decoder.PSPDecoder,
        PSPModule=decoder.PSPModule,
        UPerNetPSPModule=importlib.import_module(f"{root}.decoders.upernet.decoder").PSPModule,
    )


@functools.cache
def whole_smp() -> ModuleType:
    """The unmodified package smp."""
    _require("segmentation_models_pytorch")
    timm()
    return packages.load("segmentation_models_pytorch")


@functools.cache
def timm() -> ModuleType:
    _require(*_TIMM)
    return packages.load("timm")


@functools.cache
def transformers() -> ModuleType:
    _require("transformers", "tokenizers", "huggingface_hub", "safetensors", "regex")
    return importlib.import_module("transformers")


@functools.cache
def torchvision() -> ModuleType:
    """torchvision's networks. Its default wheel, installed in a separate folder, cannot load its
    kernels with a CPU-only torch. The networks do not need them, so placeholders are registered for
    the two operators that the import requires."""
    _require("numpy", "PIL")
    if not _missing("torchvision"):
        return importlib.import_module("torchvision")
    folder = Path(sys.prefix, "apart")
    if not folder.is_dir():
        pytest.skip("torchvision is not installed (Makefile says how)")
    for name in ("nms", "qnms"):
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{name}", schema)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("torchvision")
    finally:
        sys.path.remove(str(folder))


_TIMM = ("timm", "huggingface_hub", "safetensors", "httpx2")


class Features(nn.Module):
    """smp's interface of an encoder: returns the image and a map for each halving."""

    def __init__(self, name: str, in_channels: int = 3, depth: int = 3, **_: object) -> None:
        super().__init__()
        self.out_channels = [in_channels, *(8 * 2**i for i in range(depth))]
        self.output_stride = 2**depth
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())
            for a, b in zip(self.out_channels, self.out_channels[1:], strict=False)
        )

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        maps = [x]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class _Hub:
    """Replaces a base class that communicates with a model hub."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return super().__new__(cls)


def _require(*packages: str) -> None:
    for package in _missing(*packages):
        pytest.skip(f"{package} is not installed (tests/oracles.py says how)")


def _missing(*packages: str) -> list[str]:
    return [package for package in packages if find_spec(package) is None]


def _shell(name: str) -> None:
    """Imports an installed package without running its `__init__`."""
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
    _register(package)


def _fill(package: str, *files: str) -> None:
    """Runs some files of such a package and adds their names to it, as its `__init__` would."""
    for file in files:
        module = importlib.import_module(f"{package}.{file}")
        names = (name for name in vars(module) if not name.startswith("_"))
        vars(sys.modules[package]).update({name: vars(module)[name] for name in names})


def _stand_in(name: str, **contents: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(contents)
    _register(module)


def _register(module: ModuleType) -> None:
    sys.modules[module.__name__] = module
    parent, _, child = module.__name__.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
