"""Whole networks, every stripctx layer inside on its own kernels or on plain PyTorch, in one
process: inference on one image, and a training step to the gradients of all parameters, without
the optimizer, which is the same for both.

torch.compile of a whole network takes minutes: with `--every-case` only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import results
from benchmarks.compare import bind, compare
from benchmarks.family import Measurable
from benchmarks.inputs import Size
from stripctx import models
from stripctx.losses import SegmentationLoss

CLASSES = 19  # Cityscapes
NETWORKS = ("pspnet", "spnet", "deeplabv3plus_hanet", "encnet")
SIDES = {"resnet18": 129, "resnet50": 97}  # of the image
IMAGES = {"inference": 1, "training": 2}
QUICK_SIDE = 17
OPTIONS = {("spnet", "resnet18"): {"strip_pooling": False}}  # its blocks are those of a ResNet-50


class Inference(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.network(image)["out"]
        return out


class Loss(Inference):
    criterion = SegmentationLoss()

    def forward(self, image: Tensor) -> Tensor:
        """Every label stands somewhere in the target."""
        labels = torch.arange(image[0, 0].numel(), device=image.device) % CLASSES
        target = labels.view(1, *image.shape[2:]).expand(len(image), -1, -1)
        return self.criterion(self.network(image), target)


@dataclass(frozen=True)
class Network:
    name: str
    backbone: str
    mode: str
    side: int
    with_compile: bool = False
    batch: int = 1  # multiplies IMAGES

    def __str__(self) -> str:
        return f"{self.name}-{self.backbone}-{self.side}-{self.mode}"

    def measured(
        self, device: str, *, with_compile: bool, quick: bool
    ) -> tuple[dict[str, Any], Callable[[], Any]]:
        torch.manual_seed(0)
        options: dict[str, Any] = OPTIONS.get((self.name, self.backbone), {})
        network = models.create(self.name, num_classes=CLASSES, backbone=self.backbone, **options)
        for module in network.modules():  # the same results from every call
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        shape: Size = (IMAGES[self.mode] * self.batch, 3, self.side, self.side)
        image = torch.randn(shape).to(device)
        training = self.mode == "training"
        function = (Loss if training else Inference)(network).to(device).train(training)
        mode = "fwd+bwd" if training else "fwd"
        comparison = compare(
            function,
            [image],
            mode=mode,
            with_compile=with_compile and self.with_compile,
            device=device,
            rounds=20,
            budget=0.1 if quick else 3.0,
        )
        facts = {"dtype": "float32", "layout": "contiguous", "mode": self.mode}
        entry = results.entry(f"{self.name} {self.backbone}", shape, comparison, **facts)
        return entry, bind(function, [image], mode)


class Networks:
    """Every one of NETWORKS."""

    def cases(
        self, *, quick: bool = False, every: bool = False, batch: int = 1
    ) -> Iterator[Network]:
        for backbone, name, mode in product(SIDES, NETWORKS, IMAGES):
            if not quick:
                yield Network(name, backbone, mode, SIDES[backbone], every, batch)
            elif backbone == "resnet18" and (mode == "inference" or name == NETWORKS[0]):
                yield Network(name, backbone, mode, QUICK_SIDE, batch=batch)


FAMILY = Networks()


def test_network(case: Network, run: Callable[[Measurable], None]) -> None:
    run(case)
