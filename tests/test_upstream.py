"""Whole networks load published checkpoints, wrapped or not, and strictly."""

from __future__ import annotations

import pytest
import torch
from checkpoints import randomise, renamed, same_state
from torch import nn

from stripctx import models, upstream
from stripctx.models.network import FCNHead

NETWORK_LAYOUTS = {
    "PyTorch-Encoding": (
        "resnet18s",
        (
            (r"backbone\.stem\.7\.", "pretrained.bn1."),
            (r"backbone\.stem\.", "pretrained.conv1."),
            (r"backbone\.", "pretrained."),
            (r"head\.", "head.conv5."),
            (r"aux_head\.", "auxlayer.conv5."),
        ),
    ),
    "torchvision": (
        "resnet18",
        (
            (r"backbone\.stem\.0\.", "backbone.conv1."),
            (r"backbone\.stem\.1\.", "backbone.bn1."),
            (r"head\.", "classifier."),
            (r"aux_head\.", "aux_classifier."),
        ),
    ),
}


@pytest.mark.parametrize("layout", NETWORK_LAYOUTS)
def test_fcn_loads(layout: str) -> None:
    backbone, rules = NETWORK_LAYOUTS[layout]
    source = randomise(models.fcn(5, backbone))
    state = renamed(source.state_dict(), *rules)
    target = models.fcn(5, backbone)
    for prefix, wrapper in (("", ""), ("module.", "state_dict"), ("module._orig_mod.", "model")):
        entries = {prefix + key: value for key, value in state.items()}
        checkpoint = {"epoch": 3, wrapper: entries} if wrapper else entries
        randomise(target).load_state_dict(checkpoint, strict=True)
        same_state(source, target)


class Parts(nn.Module):
    """What SEMSEG and MMSEG rename in every network: the backbone and the auxiliary head."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = models.create_backbone(backbone)
        self.aux_head = FCNHead(256, 5, channel_dropout=True, bias=True)
        layouts = (
            upstream.ENCODING,
            upstream.SEMSEG.plus((r"cls\.", "head.")),
            upstream.MMSEG.plus((r"decode_head\.conv_seg\.", "head.")),
        )
        self.head = nn.Conv2d(512, 5, 1)
        upstream.accept(self, *layouts)


@pytest.mark.parametrize(
    ("backbone", "rules"),
    [
        (
            "resnet18s",
            (
                (r"backbone\.stem", "layer0"),
                (r"backbone\.", ""),
                (r"aux_head", "aux"),
                (r"head", "cls"),
            ),
        ),
        (
            "resnet18",
            (
                (r"backbone\.stem", "layer0"),
                (r"backbone\.", ""),
                (r"aux_head", "dsn"),
                (r"head", "cls"),
            ),
        ),
        (
            "resnet18c",
            (
                (r"aux_head\.0", "auxiliary_head.convs.0.conv"),
                (r"aux_head\.1", "auxiliary_head.convs.0.bn"),
                (r"aux_head\.4", "auxiliary_head.conv_seg"),
                (r"head", "decode_head.conv_seg"),
            ),
        ),
    ],
    ids=["semseg", "HANet", "mmseg"],
)
def test_parts_load(backbone: str, rules: tuple[tuple[str, str], ...]) -> None:
    source = randomise(Parts(backbone))
    target = Parts(backbone)
    target.load_state_dict(renamed(source.state_dict(), *rules), strict=True)
    same_state(source, target)
    nested = nn.Sequential(Parts(backbone))
    state = {f"0.{k}": v for k, v in renamed(source.state_dict(), *rules).items()}
    nested.load_state_dict(state, strict=True)
    same_state(source, nested[0])


def test_strict_stays_strict() -> None:
    network = models.fcn(5, "resnet18")
    rules = NETWORK_LAYOUTS["torchvision"][1]
    state = renamed(network.state_dict(), *rules)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*classifier2"):
        network.load_state_dict({**state, "classifier2.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.* \"backbone.conv1.weight\""):
        network.load_state_dict({**network.state_dict(), **state})
    state.pop("classifier.4.bias")
    with pytest.raises(RuntimeError, match=r"Missing key.*head\.4\.bias"):
        network.load_state_dict(state)
