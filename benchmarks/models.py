"""The networks of stripctx.models with native kernels and in plain PyTorch: inference on one image,
and a training step to the gradients of all parameters, without the optimizer, which is the same for
both. Without torch.compile, which takes minutes per network. benchmarks.networks measures networks
of other packages.

Also defines whole heads, from a backbone's features to logits and from logits to a loss, for the
GPU script. To add a head, add its constructor to `HEADS`.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks import family
from benchmarks.compare import compare
from benchmarks.family import Entry, Family
from benchmarks.inputs import Size
from stripctx import losses, models

CLASSES = 19  # Cityscapes
NETWORKS = ("pspnet", "spnet", "deeplabv3plus_hanet", "encnet")
SIDES = {"resnet18": 129, "resnet50": 97}  # the side of the image
IMAGES = {"inference": 1, "training": 2}
QUICK_SIDE = 17
HEAD_IMAGES, HEAD_SIDE = 4, 96  # features of crops of 768
WIDTHS = (256, 512, 1024, 2048)  # channels of a ResNet-50's stages
TINY_SIDE, TINY_WIDTHS = 4, (8, 8, 16, 16)
OPTIONS = {("spnet", "resnet18"): {"strip_pooling": False}}  # this backbone lacks the blocks for it


class Inference(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.network(image)["out"]
        return out


class Loss(Inference):
    criterion = losses.SegmentationLoss()

    def forward(self, image: Tensor) -> Tensor:
        """The loss for a target in which every label occurs."""
        labels = torch.arange(image[0, 0].numel(), device=image.device) % CLASSES
        target = labels.view(1, *image.shape[2:]).expand(len(image), -1, -1)
        return self.criterion(self.network(image), target)


@dataclass(frozen=True)
class Network:
    name: str
    backbone: str
    mode: str
    side: int
    batch: int = 1  # multiplies IMAGES
    dtype: ClassVar[str] = "float32"
    layout: ClassVar[str] = "contiguous"

    @property
    def operator(self) -> str:
        return f"{self.name} {self.backbone}"

    @property
    def shape(self) -> Size:
        return IMAGES[self.mode] * self.batch, 3, self.side, self.side

    def measured(self, device: str, *, with_compile: bool, quick: bool) -> Entry:
        torch.manual_seed(0)
        options: dict[str, Any] = OPTIONS.get((self.name, self.backbone), {})
        network = models.create(self.name, num_classes=CLASSES, backbone=self.backbone, **options)
        without_dropout(network)
        training = self.mode == "training"
        function = (Loss if training else Inference)(network).to(device).train(training)
        found = compare(
            function,
            [torch.randn(self.shape).to(device)],
            mode="fwd+bwd" if training else "fwd",
            with_compile=False,
            device=device,
            rounds=20,
            budget=0.1 if quick else 3.0,
        )
        return family.entry(self, found)


class Models(Family):
    """Measures each of NETWORKS."""

    def cases(self, *, quick: bool = False, batch: int = 1) -> Iterator[Network]:
        for backbone, name, mode in product(SIDES, NETWORKS, IMAGES):
            if not quick:
                yield Network(name, backbone, mode, SIDES[backbone], batch)
            elif backbone == "resnet18" and (mode == "inference" or name == NETWORKS[0]):
                yield Network(name, backbone, mode, QUICK_SIDE)


def without_dropout(network: nn.Module) -> None:
    """Disables dropout, so that every call has the same results."""
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0


Made = tuple[nn.Module, list[Tensor]]


class Given(models.Backbone):
    """A backbone with these widths that returns given features."""

    def __init__(self, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.channels = channels


class Decoder(nn.Module):
    """The part of a network after its backbone."""

    def __init__(self, network: models.SegmentationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, *features: Tensor) -> Tensor:
        return self.network.decode(features)["out"]


class Labels(nn.Module):
    """The loss of logits at 1/8 of the labels' size, interpolated to that size."""

    def __init__(self, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        size = target.shape[1:]
        whole = nn.functional.interpolate(logits, size, mode="bilinear", align_corners=True)
        return self.criterion(whole, target)


def decoder(name: str, tiny: bool, **options: Any) -> Made:
    widths, side = (TINY_WIDTHS, TINY_SIDE) if tiny else (WIDTHS, HEAD_SIDE)
    if tiny and name in ("pspnet", "encnet"):
        options["head_channels"] = 16
    network: Any = models.create(name, num_classes=CLASSES, backbone=Given(widths), **options)
    without_dropout(network)
    sides = [2 * side, side, side, side]
    images = 2 if tiny else HEAD_IMAGES
    features = [torch.randn(images, c, s, s) for c, s in zip(widths, sides, strict=True)]
    return Decoder(network), features


def labels(criterion: Callable[[Tensor, Tensor], Tensor], tiny: bool) -> Made:
    side = TINY_SIDE if tiny else HEAD_SIDE
    target = torch.arange(HEAD_IMAGES * (8 * side) ** 2) % CLASSES
    logits = torch.randn(HEAD_IMAGES, CLASSES, side, side)
    return Labels(criterion), [logits, target.view(HEAD_IMAGES, 8 * side, 8 * side)]


HEADS: dict[str, Callable[[bool], Made]] = {
    "fcn": partial(decoder, "fcn"),
    "pspnet": partial(decoder, "pspnet"),
    "spnet": partial(decoder, "spnet", strip_pooling=False),
    "deeplabv3plus_hanet": partial(decoder, "deeplabv3plus_hanet"),
    "encnet": partial(decoder, "encnet"),
    "cross_entropy": partial(labels, losses.cross_entropy),
    "ohem_cross_entropy": partial(labels, losses.ohem_cross_entropy),
}


def make_head(name: str, device: str, tiny: bool) -> tuple[nn.Module, list[Tensor]]:
    """The head and its arguments in bfloat16 and channels_last, as in training; a tiny one in
    float32."""
    torch.manual_seed(0)
    dtype = torch.float32 if tiny else torch.bfloat16
    with torch.device(device):
        module: Any
        module, arguments = HEADS[name](tiny)
    given = [
        as_trained(value, dtype) if value.is_floating_point() else value for value in arguments
    ]
    return module.to(dtype).to(memory_format=torch.channels_last), given


def as_trained(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


FAMILY = Models("models", {})

if __name__ == "__main__":
    sys.exit(FAMILY.main())
