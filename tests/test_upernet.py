"""UPerNet against the heads and networks of transformers and mmseg, in float64 with their weights,
and on timm's backbones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import operator_checks
import oracles
import pytest
import torch
from checkpoints import randomise
from networks import Tiny, undropped
from torch import Tensor, nn

from benchmarks import peers
from stripctx import models
from stripctx.models.upernet import UPerHead

CHANNELS = (4, 8, 12, 16)
SIZES = ((17, 22), (9, 11), (5, 6), (3, 3))
WIDTH = 8


def ours(align_corners: bool = False) -> UPerHead:
    head = UPerHead(
        CHANNELS, 5, width=WIDTH, bins=(1, 2, 3, 6), dropout=0.0, align_corners=align_corners,
        global_norm=True, norm_layer=nn.BatchNorm2d,
    )  # fmt: skip
    return head.double()


def of_transformers() -> nn.Module:
    transformers = oracles.transformers()
    config = transformers.UperNetConfig(
        backbone_config=transformers.ConvNextConfig(), hidden_size=WIDTH, num_labels=5
    )
    module = transformers.models.upernet.modeling_upernet
    return module.UperNetHead(config, in_channels=list(CHANNELS)).double()


def of_mmseg(align_corners: bool) -> nn.Module:
    config = {
        "type": "UPerHead", "in_channels": list(CHANNELS), "in_index": [0, 1, 2, 3],
        "channels": WIDTH, "num_classes": 5, "dropout_ratio": 0.0, "norm_cfg": {"type": "BN"},
        "align_corners": align_corners,
    }  # fmt: skip
    return oracles.mmseg().MODELS.build(config).double()


HEADS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "transformers": (of_transformers, False),
    "mmseg": (lambda: of_mmseg(False), False),
    "mmseg, aligned": (lambda: of_mmseg(True), True),
}


def maps() -> list[Tensor]:
    shapes = zip(CHANNELS, SIZES, strict=True)
    return [torch.randn(2, c, *size, dtype=torch.float64).requires_grad_() for c, size in shapes]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", HEADS)
def test_head_equals_theirs(name: str, training: bool) -> None:
    """Outputs, gradients of features and parameters, and the statistics of the norms."""
    make, align_corners = HEADS[name]
    theirs = randomise(make()).train(training)
    head = ours(align_corners).train(training)
    head.load_state_dict(theirs.state_dict(), strict=True)
    features = maps()
    got, want = head(tuple(features)), theirs(list(features))
    assert operator_checks.relative_error(got, want) < 1e-12
    upstream = torch.randn_like(want)
    expected = torch.autograd.grad(want, [*features, *theirs.parameters()], upstream)
    found = torch.autograd.grad(got, [*features, *head.parameters()], upstream)
    for a, b in zip(found[:4], expected[:4], strict=True):
        assert operator_checks.relative_error(a, b) < 1e-10
    like_theirs = ours(align_corners)
    grads = dict(zip((n for n, _ in theirs.named_parameters()), expected[4:], strict=True))
    buffers = {n: b for n, b in theirs.state_dict().items() if n not in grads}
    like_theirs.load_state_dict(grads | buffers)
    scale = max(float(one.abs().max()) for one in expected)
    for (key, a), b in zip(head.named_parameters(), found[4:], strict=True):
        want = like_theirs.get_parameter(key)
        torch.testing.assert_close(b, want, rtol=1e-9, atol=1e-11 * scale, msg=key)
        assert a.shape == want.shape
    for key, value in head.named_buffers():
        torch.testing.assert_close(value, like_theirs.get_buffer(key), msg=key)


class Around(models.Backbone):
    """Wraps another package's backbone."""

    def __init__(self, network: nn.Module, channels: Any) -> None:
        super().__init__()
        self.network, self.channels = network, tuple(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(x).feature_maps)


@pytest.mark.parametrize("aux", [True, False])
def test_network_of_transformers(aux: bool) -> None:
    """Loads its checkpoint, with the backbone's own names; compares the logits of both heads."""
    transformers = oracles.transformers()
    backbone = transformers.ConvNextConfig(
        hidden_sizes=list(CHANNELS), depths=[1] * 4, out_features=[f"stage{i}" for i in range(1, 5)]
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=WIDTH, num_labels=5, use_auxiliary_head=aux,
        auxiliary_in_channels=CHANNELS[2], auxiliary_channels=6,
    )  # fmt: skip
    theirs = randomise(transformers.UperNetForSemanticSegmentation(config)).double().eval()
    network = models.upernet(
        5, Around(copy.deepcopy(theirs.backbone), CHANNELS), head_channels=WIDTH, aux_channels=6,
        aux=aux,
    ).double().eval()  # fmt: skip
    state = theirs.state_dict()
    names = {key: key.replace("backbone.", "backbone.network.", 1) for key in state}
    network.load_state_dict({names[key]: value for key, value in state.items()}, strict=True)
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    assert operator_checks.relative_error(network(x)["out"], theirs(x).logits) < 1e-12
    if aux:
        features = theirs.backbone(x).feature_maps
        want = theirs.auxiliary_head(features)
        assert operator_checks.relative_error(network.aux_head(features[2]), want) < 1e-12


def test_network_of_mmseg() -> None:
    """Loads a whole checkpoint strictly."""
    heads = {"num_classes": 5, "norm_cfg": {"type": "BN"}, "align_corners": False}
    config = {
        "type": "EncoderDecoder",
        "backbone": {"type": "ResNetV1c", "depth": 18, "norm_cfg": {"type": "BN"}},
        "decode_head": {
            "type": "UPerHead", "in_channels": [64, 128, 256, 512], "in_index": [0, 1, 2, 3],
            "channels": WIDTH, **heads,
        },
        "auxiliary_head": {
            "type": "FCNHead", "in_channels": 256, "in_index": 2, "channels": 6, "num_convs": 1,
            "concat_input": False, **heads,
        },
    }  # fmt: skip
    theirs = randomise(oracles.mmseg().MODELS.build(config)).double().eval()
    network = models.upernet(5, "resnet18c", head_channels=WIDTH, aux_channels=6).double().eval()
    network.load_state_dict({"state_dict": theirs.state_dict()}, strict=True)
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        features = network.extract(x)
        for got, want in zip(features, theirs.extract_feat(x), strict=True):
            assert operator_checks.relative_error(got, want) < 1e-12
        got, want = network.decode(features)["out"], theirs.decode_head(features)
        assert operator_checks.relative_error(got, want) < 1e-12
        got, want = network.aux_head(features[2]), theirs.auxiliary_head(features)
        assert operator_checks.relative_error(got, want) < 1e-12


def test_network_equals_plain() -> None:
    """Against plain PyTorch, which materialises the concatenation and each interpolated map."""
    network = randomise(undropped(models.upernet(5, Tiny(), head_channels=WIDTH))).double()
    other = copy.deepcopy(network)
    x = torch.randn(2, 3, 65, 49, dtype=torch.float64)
    got = network(x)
    with peers.installed():
        want = other(x)
    for key, value in want.items():
        assert operator_checks.relative_error(got[key], value) < 1e-12
    sum(y.square().sum() for y in got.values()).backward()
    sum(y.square().sum() for y in want.values()).backward()
    for (key, a), b in zip(network.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-8, msg=key)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("convnext_atto", (40, 80, 160, 320)),
        ("swin_tiny_patch4_window7_224", (96, 192, 384, 768)),
    ],
)
def test_backbones_of_timm(name: str, channels: tuple[int, ...]) -> None:
    """Images of any size; includes a Swin transformer, whose features are (N, H, W, C)."""
    timm = oracles.timm()
    network = models.upernet(5, f"timm:{name}", head_channels=WIDTH, aux_channels=8)
    assert network.backbone.channels == channels
    for size in ((64, 96), (70, 97)):
        outputs = network(torch.randn(2, 3, *size))
        assert {key: y.shape for key, y in outputs.items()} == dict.fromkeys(
            ("out", "aux"), (2, 5, *size)
        )
    outputs["out"].sum().backward()
    assert all(p.grad is not None for p in network.head.parameters())
    plain = timm.create_model(name, features_only=True).eval()
    plain.load_state_dict(network.backbone.network.state_dict(), strict=False)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for got, want in zip(network.eval().extract(x), plain(x)[-4:], strict=True):
            want = want.movedim(-1, 1) if name.startswith("swin") else want
            assert got.shape == want.shape
            torch.testing.assert_close(got, want)


def test_trains_on_one_image() -> None:
    network = models.upernet(5, Tiny(), head_channels=WIDTH, global_norm=False)
    network(torch.randn(1, 3, 32, 32))["out"].sum().backward()
    assert all(p.grad.isfinite().all() for p in network.head.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": 0}, "upernet: num_classes must be positive, got 0"),
        ({"head_channels": 0}, "upernet: head_channels must be positive, got 0"),
        ({"bins": (1, 0)}, "bins must be one to eight positive integers"),
    ],
)
def test_refuses(options: dict[str, Any], words: str) -> None:
    arguments = {"num_classes": 5, "backbone": Tiny(), **options}
    operator_checks.raises(ValueError, words, lambda: models.upernet(**arguments))
