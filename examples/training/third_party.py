"""Networks of other packages in recipes, computed with stripctx's functions by `fuse`.

    network: {name: smp:Segformer, backbone: mit_b0, weights: imagenet}

names a class of segmentation_models_pytorch: `backbone` is its encoder, `weights` the encoder's
weights (smp's name for them), `options` the arguments of the class.

    network: {name: transformers:SegformerForSemanticSegmentation, weights: nvidia/mit-b0}

names a class of transformers: `options` are those of its configuration, `weights` is an argument
of its from_pretrained, a folder or a name on the hub; modules without matching weights are
initialized. Auxiliary heads are left out. `weights` are loaded only when a run starts, not when it
resumes.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from examples.training.recipe import Network, RecipeError
from stripctx import fuse

PACKAGES = {"smp": "segmentation_models_pytorch", "transformers": "transformers"}
_INSTALLED_AS = {"smp": "segmentation-models-pytorch", "transformers": "transformers"}


def is_meant(name: str) -> bool:
    """Whether a recipe's network.name refers to another package."""
    return name.partition(":")[0] in PACKAGES and ":" in name


def build(settings: Network, num_classes: int, *, pretrained: bool) -> nn.Module:
    """Builds the network and fuses it.

    Args:
        settings: the recipe's section `network`.
        num_classes: K.
        pretrained: whether to load the weights that it names.

    Raises:
        RecipeError: the package or the class does not exist, or an option is invalid.
    """
    package, _, name = settings.name.partition(":")
    kind = getattr(_imported(package), name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise RecipeError(f"network.name: {PACKAGES[package]} has no network {name}")
    weights = str(Path(settings.weights).expanduser()) if pretrained and settings.weights else ""
    if package == "smp":
        network = kind(
            settings.backbone,
            encoder_weights=weights or None,
            classes=num_classes,
            **settings.options,
        )
        stride = network.encoder.output_stride
    else:
        network = _of_transformers(kind, settings.options, num_classes, weights)
        stride = 1
    fuse(network)
    return Adapted(network, stride)


def _of_transformers(
    kind: Any, options: dict[str, Any], num_classes: int, weights: str
) -> nn.Module:
    config = kind.config_class(num_labels=num_classes, **options)
    if weights:
        return kind.from_pretrained(weights, config=config, ignore_mismatched_sizes=True)
    return kind(config)


class Adapted(nn.Module):
    """Adapts a network's interface: an image of any size to logits of that size, or with
    resize=False to logits that may be smaller.

    Args:
        network: returns logits, or an object with an attribute for them; they may be smaller than
            the image.
        stride: the height and width of the network's input are multiples of it. The image is padded
            at the right and the bottom by repeating the edge, and the logits are cropped.

    Loading adds the wrapper's prefix to the names, so files of the network itself fit.
    """

    def __init__(self, network: nn.Module, stride: int) -> None:
        super().__init__()
        self.network, self.stride = network, stride
        self.register_load_state_dict_pre_hook(_add_name)

    align_corners = False  # of the final resize

    def forward(self, x: Tensor, *, resize: bool = True) -> Tensor:
        height, width = x.shape[2:]
        below, right = -height % self.stride, -width % self.stride
        seen = F.pad(x, (0, right, 0, below), mode="replicate") if below or right else x
        outputs = self.network(seen)
        logits = outputs if isinstance(outputs, Tensor) else outputs.logits
        if logits.shape[2:] != seen.shape[2:]:
            if not resize and seen is x:
                return logits
            logits = F.interpolate(logits, seen.shape[2:], mode="bilinear", align_corners=False)
        return logits[:, :, :height, :width]


def _add_name(_: nn.Module, state: dict[str, Any], prefix: str, *__: object) -> None:
    own = f"{prefix}network."
    for key in [key for key in state if key.startswith(prefix) and not key.startswith(own)]:
        state[own + key.removeprefix(prefix)] = state.pop(key)


def _imported(package: str) -> ModuleType:
    try:
        return importlib.import_module(PACKAGES[package])
    except ImportError as error:
        raise RecipeError(
            f"network.name: {package}: needs pip install {_INSTALLED_AS[package]} ({error})"
        ) from None
