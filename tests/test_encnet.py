"""EncNet: its formula, mmseg's network, and options."""

from __future__ import annotations

from typing import Any

import operator_checks
import oracles
import pytest
import torch
import torch.nn.functional as F
from checkpoints import randomise
from networks import Tiny, image, make, undropped
from operator_checks import DEVICE
from test_layers_encoding import plain_context, soften
from torch import Tensor, nn

from stripctx import models


def prepared(network: nn.Module, training: bool) -> nn.Module:
    soften(randomise(network))
    return undropped(network).to(DEVICE).double().train(training)


def plain_encnet(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """EncNet in plain PyTorch, with the network's modules."""

    def up(y: Tensor, size: torch.Size) -> Tensor:
        return F.interpolate(y, size, mode="bilinear", align_corners=True)

    head = network.head
    _, second, third, fourth = network.backbone(x)
    y = head.reduce(fourth)
    sides = [
        up(unit(side), y.shape[2:])
        for unit, side in zip(head.laterals, (second, third), strict=True)
    ]
    y, presence = plain_context(head.context, head.fuse(torch.cat([y, *sides], 1)))
    outputs = {"out": up(head.classify(y), x.shape[2:])}
    if network.training:
        outputs |= {"se": presence, "se_stage3": plain_context(head.stage3, third)[1]}
        outputs["aux"] = up(network.aux_head(third), x.shape[2:])
    return outputs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backbone", [None, "resnet18"])
def test_equals_plain(training: bool, backbone: str | None) -> None:
    """The stages of `Tiny` differ in size, so laterals are resized."""
    network = prepared(make("encnet", backbone), training)
    x = image(2, 3, 65, 49).double()
    with torch.no_grad():
        got, want = network(x), plain_encnet(network, x)
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert operator_checks.relative_error(got[key], value) < 1e-11, key


def mmseg_encnet(lateral: bool) -> nn.Module:
    """mmseg's whole network, built from its configurations, on a ResNet-18."""
    shared = {
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "align_corners": False,
        "num_classes": 5,
    }
    config: dict[str, Any] = {
        "type": "EncoderDecoder",
        "backbone": {
            "type": "ResNetV1c",
            "depth": 18,
            "dilations": (1, 1, 2, 4),
            "strides": (1, 2, 1, 1),
            "norm_cfg": shared["norm_cfg"],
            "contract_dilation": True,
        },
        "decode_head": {
            "type": "EncHead",
            "in_channels": [128, 256, 512],
            "in_index": (1, 2, 3),
            "channels": 16,
            "num_codes": 4,
            "add_lateral": lateral,
            **shared,
        },
        "auxiliary_head": {
            "type": "FCNHead",
            "in_channels": 256,
            "in_index": 2,
            "channels": 64,
            "num_convs": 1,
            "concat_input": False,
            **shared,
        },
        "test_cfg": {"mode": "whole"},
    }
    return oracles.mmseg().MODELS.build(config)


@pytest.mark.filterwarnings("ignore:When align_corners")
@pytest.mark.filterwarnings("ignore:``build_loss``")
@pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore``")
@pytest.mark.parametrize("lateral", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_equals_mmseg(lateral: bool, training: bool) -> None:
    """The whole network with its checkpoint: outputs and the gradient of the image."""
    theirs = prepared(mmseg_encnet(lateral), training)
    ours = models.encnet(
        5,
        "resnet18c",
        lateral=lateral,
        num_codes=4,
        head_channels=16,
        channel_dropout=True,
        align_corners=False,
    )
    ours.load_state_dict({"state_dict": theirs.state_dict(), "meta": {}}, strict=True)
    undropped(ours).to(DEVICE).double().train(training)

    def outputs_of_theirs(x: Tensor) -> dict[str, Tensor]:
        features = theirs.extract_feat(x)
        out, presence = theirs.decode_head(features)
        maps = {"out": out, "aux": theirs.auxiliary_head(features)}
        maps = {
            key: F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=False)
            for key, y in maps.items()
        }
        return {**maps, "se": presence} if training else {"out": maps["out"]}

    results = []
    for function in (ours, outputs_of_theirs):
        x = torch.linspace(-2, 2, 2 * 3 * 65 * 49, dtype=torch.float64, device=DEVICE).sin()
        x = x.view(2, 3, 65, 49).requires_grad_()
        outputs: dict[str, Any] = function(x)
        torch.stack([y.square().sum() for y in outputs.values()]).sum().backward()
        results.append({**outputs, "gradient": x.grad})
    got, want = results
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert operator_checks.relative_error(got[key], value) < 1e-10, key


def test_options() -> None:
    network = models.encnet(
        5, Tiny(), aux=False, se_loss=False, reduction="sum", scale_dropout=True, num_codes=3,
        channel_dropout=True, head_channels=8,
    )  # fmt: skip
    head = network.head
    assert head.fuse is None and len(head.laterals) == 0 and head.stage3 is None
    assert head.context.presence is None and head.context.reduction == "sum"
    assert head.context.encoding.scale is None and head.context.encoding.num_codes == 3
    assert isinstance(head.classify[0], nn.Dropout2d)
    assert list(network(torch.randn(2, 3, 32, 32))) == ["out"]
