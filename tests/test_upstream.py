"""Whole networks load published checkpoints strictly, with or without a wrapper's prefix."""

from __future__ import annotations

import pytest
import torch
from checkpoints import BACKBONE_OF_ENCODING, randomise, renamed, same_state
from torch import nn

from stripctx import (
    ContextEncoding,
    EncodingLayer,
    HeightAttention,
    MixedPooling,
    PyramidPooling,
    PyramidPoolingConv,
    StripPooling,
    models,
    upstream,
)
from stripctx.models.heads import FCNHead

NETWORK_LAYOUTS = {
    "PyTorch-Encoding": (
        "resnet18s",
        (
            *BACKBONE_OF_ENCODING,
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


BACKBONE = {
    "semseg": ((r"backbone\.stem\.", "layer0."), (r"backbone\.", "")),
    "PyTorch-Encoding": BACKBONE_OF_ENCODING,
    "mmseg": (),
}
AUX = {
    "semseg": ((r"aux_head\.", "aux."),),
    "PyTorch-Encoding": ((r"aux_head\.", "auxlayer.conv5."),),
    "mmseg": (
        (r"aux_head\.0\.", "auxiliary_head.convs.0.conv."),
        (r"aux_head\.1\.", "auxiliary_head.convs.0.bn."),
        (r"aux_head\.4\.", "auxiliary_head.conv_seg."),
    ),
}
PYRAMID = r"head\.0\.branches\.(\d)\."
PSPNET = {
    "semseg": (
        (PYRAMID + r"0\.", r"ppm.features.\1.1."),
        (PYRAMID + r"1\.", r"ppm.features.\1.2."),
        (r"head\.0\.conv\.", "cls.0."),
        (r"head\.", "cls."),
    ),
    "PyTorch-Encoding": (
        *((rf"head\.0\.branches\.{i}\.", f"head.conv5.0.conv{i + 1}.") for i in range(4)),
        (r"head\.0\.conv\.", "head.conv5.1."),
        (r"head\.1\.", "head.conv5.2."),
        (r"head\.4\.", "head.conv5.5."),
    ),
    "mmseg": (
        (PYRAMID + r"0\.", r"decode_head.psp_modules.\1.1.conv."),
        (PYRAMID + r"1\.", r"decode_head.psp_modules.\1.1.bn."),
        (r"head\.0\.conv\.", "decode_head.bottleneck.conv."),
        (r"head\.1\.", "decode_head.bottleneck.bn."),
        (r"head\.4\.", "decode_head.conv_seg."),
    ),
}
SPNET = (
    (r"head\.reduce\.", "head.trans_layer."),
    (r"head\.mixed\.0\.", "head.strip_pool1."),
    (r"head\.mixed\.1\.", "head.strip_pool2."),
    (r"head\.classify\.", "head.score_layer."),
)
ENCODING = {"conv": "0", "norm": "1", "encoding": "3", "code_norm": "4"}
ENCNET = {
    "PyTorch-Encoding": (
        (r"head\.reduce\.", "head.conv5."),
        (r"head\.laterals\.", "head.connect."),
        (r"head\.fuse\.", "head.fusion."),
        *((rf"head\.context\.{a}\.", f"head.encmodule.encoding.{b}.") for a, b in ENCODING.items()),
        (r"head\.context\.gate\.", "head.encmodule.fc.0."),
        (r"head\.context\.presence\.", "head.encmodule.selayer."),
        (r"head\.classify\.", "head.conv6."),
    ),
    "mmseg": (
        (r"head\.reduce\.0\.", "decode_head.bottleneck.conv."),
        (r"head\.reduce\.1\.", "decode_head.bottleneck.bn."),
        (r"head\.laterals\.(\d)\.0\.", r"decode_head.lateral_convs.\1.conv."),
        (r"head\.laterals\.(\d)\.1\.", r"decode_head.lateral_convs.\1.bn."),
        (r"head\.fuse\.0\.", "decode_head.fusion.conv."),
        (r"head\.fuse\.1\.", "decode_head.fusion.bn."),
        (r"head\.context\.conv\.", "decode_head.enc_module.encoding_project.conv."),
        (r"head\.context\.norm\.", "decode_head.enc_module.encoding_project.bn."),
        (r"head\.context\.encoding\.", "decode_head.enc_module.encoding.0."),
        (r"head\.context\.code_norm\.", "decode_head.enc_module.encoding.1."),
        (r"head\.context\.gate\.", "decode_head.enc_module.fc.0."),
        (r"head\.context\.presence\.", "decode_head.se_layer."),
        (r"head\.classify\.1\.", "decode_head.conv_seg."),
    ),
}


@pytest.mark.parametrize("layout", PSPNET)
def test_pspnet_loads(layout: str) -> None:
    def make() -> nn.Module:
        return models.pspnet(5, "resnet18c" if layout == "mmseg" else "resnet18s", head_channels=16)

    source, target = randomise(make()), randomise(make())
    state = renamed(source.state_dict(), *BACKBONE[layout], *AUX[layout], *PSPNET[layout])
    assert not any(key.startswith(("aux_head.", "head.0.")) for key in state)
    target.load_state_dict({"state_dict": {f"module.{k}": v for k, v in state.items()}})
    same_state(source, target)


@pytest.mark.parametrize("layout", ENCNET)
@pytest.mark.parametrize("lateral", [True, False])
def test_encnet_loads(layout: str, lateral: bool) -> None:
    def make() -> nn.Module:
        backbone = "resnet18c" if layout == "mmseg" else "resnet18s"
        return models.encnet(5, backbone, lateral=lateral, num_codes=4, head_channels=16)

    source, target = randomise(make()), randomise(make())
    state = renamed(source.state_dict(), *BACKBONE[layout], *AUX[layout], *ENCNET[layout])
    assert not any(key.startswith(("aux_head.", "head.context")) for key in state)
    target.load_state_dict({"state_dict": {f"module.{k}": v for k, v in state.items()}})
    same_state(source, target)


def test_spnet_loads() -> None:
    def make() -> nn.Module:
        return models.spnet(5, "resnet50s")

    source = randomise(make())
    rules = (*BACKBONE["PyTorch-Encoding"], *AUX["PyTorch-Encoding"], *SPNET)
    state = renamed(source.state_dict(), *rules)
    for key in (
        "pretrained.conv1.6.weight",
        "pretrained.bn1.running_var",
        "pretrained.layer4.2.spm.conv3.bias",
        "head.trans_layer.1.weight",
        "head.strip_pool2.conv2_6.0.weight",
        "head.score_layer.4.bias",
        "auxlayer.conv5.4.bias",
    ):
        assert key in state
    target = make()
    target.load_state_dict({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}})
    same_state(source, target)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet18s", "mobilenet_v2"])
def test_hanet_loads(backbone: str) -> None:
    def make() -> nn.Module:
        return models.deeplabv3plus_hanet(5, backbone)

    source, target = randomise(make()), make()
    rules = (*BACKBONE["semseg"], (r"aux_head\.", "dsn."), (r"head\.", ""))
    state = renamed(source.state_dict(), *rules)
    for key in (
        *(
            ("layer0.0.0.weight", "layer3.6.conv.3.bias", "layer4.0.0.weight")
            if backbone == "mobilenet_v2"
            else ("layer0.0.weight", "layer4.1.conv2.weight")
        ),
        "aspp.features.3.1.running_mean",
        "aspp.img_conv.0.weight",
        "bot_fine.1.bias",
        "bot_aspp.0.weight",
        "final1.4.weight",
        "final2.0.bias",
        "dsn.0.bias",
        "dsn.4.weight",
        "hanet0.attention_first.1.running_var",
        "hanet3.pos_emb1d_2nd.pos_layer.weight",
    ):
        assert key in state
    target.load_state_dict({"state_dict": {f"module.{k}": v for k, v in state.items()}})
    same_state(source, target)


class Parts(nn.Module):
    """The parts that SEMSEG and MMSEG rename in every network: the backbone and the auxiliary
    head."""

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


def test_unknown_keys_are_refused() -> None:
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


@pytest.mark.parametrize("name", ["deeplabv3plus_hanet", "pspnet", "spnet"])
def test_class_weights_of_a_criterion_are_ignored(name: str) -> None:
    """Upstream's networks contain their losses, whose class weights are saved too."""
    options = {"strip_pooling": False, "pool_sizes": (3, 2)} if name == "spnet" else {}
    backbone = "resnet18s"
    build = getattr(models, name)
    source, target = (randomise(build(5, backbone, **options)) for _ in range(2))
    prefix = "pretrained." if name == "spnet" else ""
    rules = BACKBONE_OF_ENCODING if name == "spnet" else BACKBONE["semseg"]
    state = renamed(source.state_dict(), *rules)
    assert any(key.startswith(prefix or "layer0.") for key in state)
    weights = {"criterion.weight": torch.ones(5), "criterion_aux.nll_loss.weight": torch.ones(5)}
    target.load_state_dict({**state, **weights}, strict=True)
    same_state(source, target)
    with pytest.raises(RuntimeError, match="Unexpected"):
        target.load_state_dict({**state, "other.weight": torch.ones(5)}, strict=True)


LAYERS = {
    "StripPooling": lambda: StripPooling(8),
    "MixedPooling": lambda: MixedPooling(8, (3, 2)),
    "PyramidPooling": lambda: PyramidPooling(8, (1, 2)),
    "PyramidPoolingConv": lambda: PyramidPoolingConv(8, 4, (1, 2)),
    "HeightAttention": lambda: HeightAttention(8, 4, reduction=2),
    "EncodingLayer": lambda: EncodingLayer(8, 4),
    "EncodingLayer, scale_dropout": lambda: EncodingLayer(8, 4, scale_dropout=True),
    "ContextEncoding": lambda: ContextEncoding(8, 3, 4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_take_wrapped_files(name: str) -> None:
    source, target = (randomise(LAYERS[name]()) for _ in range(2))
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    target.load_state_dict({"epoch": 1, "state_dict": state}, strict=True)
    same_state(source, target)
    network = nn.Sequential(randomise(LAYERS[name]()))  # also as part of a network
    network.load_state_dict({f"0.{key[7:]}": value for key, value in state.items()}, strict=True)
    same_state(source, network[0])


def test_pspnet_with_elementwise_dropout() -> None:
    network = models.pspnet(5, "resnet18", channel_dropout=False)
    assert not any(isinstance(one, nn.Dropout2d) for one in network.modules())
    assert any(isinstance(one, nn.Dropout) for one in network.modules())
