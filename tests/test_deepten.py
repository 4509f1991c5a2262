"""Deep TEN: its formula and published layout."""

from __future__ import annotations

import operator_checks
import torch
from checkpoints import BACKBONE_OF_ENCODING, count, randomise, renamed, same_state
from networks import image, make
from operator_checks import DEVICE
from test_layers_encoding import plain_encoding, soften

from stripctx import models
from stripctx.models.resnet import ResNet


def test_equals_plain() -> None:
    network = make("deepten").double().eval()
    soften(randomise(network))
    x = image(2, 3, 65, 49).double()
    conv, norm, _, encoding, _, _, linear = network.head
    encoded = plain_encoding(encoding, norm(conv(network.backbone(x)[3])).relu()).flatten(1)
    want = linear(encoded / encoded.norm(dim=1, keepdim=True))
    assert operator_checks.relative_error(network(x), want) < 1e-11


def test_published_layout() -> None:
    """PyTorch-Encoding's keys, including ImageNet's classifier, and its strides."""
    source, target = (randomise(models.deepten(5, "resnet18s")) for _ in range(2))
    state = renamed(source.state_dict(), *BACKBONE_OF_ENCODING)
    for key in ("pretrained.bn1.weight", "head.0.bias", "head.3.codewords", "head.6.weight"):
        assert key in state
    state |= {"pretrained.fc.weight": torch.zeros(9, 512), "pretrained.fc.bias": torch.zeros(9)}
    target.load_state_dict({"state_dict": {f"module.{k}": v for k, v in state.items()}})
    same_state(source, target)


def test_parameter_count() -> None:
    with torch.device("meta"):
        network = models.deepten(23, "resnet50s")
        head = 2048 * 128 + 128 + 2 * 128 + 32 * 128 + 32 + 32 * 128 * 23 + 23
        assert count(network) == count(ResNet(50, stem="64-64-128")) + head
        assert network.backbone(torch.empty(1, 3, 224, 224))[3].shape[2:] == (7, 7)


def test_empty_encoding() -> None:
    """An image whose features all equal the codewords has no direction; the result is not NaN."""
    network = make("deepten").to(DEVICE).eval()
    with torch.no_grad():
        network.head[0].weight.zero_()
        network.head[0].bias.zero_()
        network.head[3].codewords.zero_()
        network.head[1].bias.zero_()
    logits = network(image(1, 3, 64, 64))
    assert torch.equal(logits[0], network.head[6].bias)
