"""Networks: any size, gradients, numbers, and what users do to modules."""

from __future__ import annotations

import copy
import doctest
import importlib
import pickle
from collections.abc import Callable
from typing import Any

import battery
import pytest
import torch
import torch.nn.functional as F
from battery import DEVICE
from checkpoints import count, randomise
from torch import Tensor, nn

from stripctx import StripPooling, losses, models
from stripctx.models.network import FCNHead, SegmentationNetwork


class Tiny(models.Backbone):
    """Four convolutions, for networks whose heads are what is tested."""

    channels = (8, 16, 32, 64)

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (3, *self.channels), (4, 2, 1, 1)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b, stride in zip(widths, self.channels, strides, strict=False)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return tuple(features)


# Complete networks. A new network is one more line here.

NETWORKS: dict[str, Callable[[], SegmentationNetwork]] = {
    "fcn": lambda: models.fcn(5, "resnet18"),
    "deeplabv3plus_hanet": lambda: models.deeplabv3plus_hanet(5, Tiny(), slots=[True] * 5),
    "pspnet": lambda: models.pspnet(5, Tiny(), head_channels=16),
    "spnet": lambda: models.spnet(5, Tiny(), pool_sizes=(5, 3)),
}
GLOBAL_NORMS = ("deeplabv3plus_hanet", "pspnet")  # normalise a 1x1 map, which takes two images
every_network = pytest.mark.parametrize("name", NETWORKS)


def make(name: str) -> SegmentationNetwork:
    return NETWORKS[name]().to(DEVICE)


def image(*size: int) -> Tensor:
    return torch.randn(size, device=DEVICE)


def test_registry() -> None:
    assert models.available() == sorted(NETWORKS)
    network = models.create("fcn", num_classes=4, backbone="resnet18", aux=False)
    assert network.head[4].out_channels == 4 and network.aux_head is None


@every_network
@pytest.mark.parametrize("size", [(2, 64, 64), (2, 1, 1), (2, 33, 50), (3, 97, 7), (1, 65, 129)])
def test_any_size(name: str, size: tuple[int, int, int]) -> None:
    batch, height, width = size
    network = make(name).eval()
    x = image(batch, 3, height, width)
    with torch.no_grad():
        outputs = network(x)
        assert list(outputs) == ["out"]
        assert outputs["out"].shape == (batch, 5, height, width)
        assert outputs["out"].isfinite().all()
        if batch == 1 and name in GLOBAL_NORMS:
            battery.raises(ValueError, "with global_norm=False", lambda: network.train()(x))
        elif height > 1:
            outputs = network.train()(x)
            assert {"out", "aux"} <= set(outputs)
            assert outputs["aux"].shape == outputs["out"].shape


@every_network
def test_training_step(name: str) -> None:
    """Every parameter gets a finite gradient; the auxiliary head is evaluated once."""
    network = make(name)
    outputs = network(image(2, 3, 64, 64))
    target = torch.randint(0, 5, (2, 64, 64), device=DEVICE)
    losses.SegmentationLoss()(outputs, target).backward()
    for key, parameter in network.named_parameters():
        if not parameter.requires_grad:  # HANet's fixed tables
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        # A bias before a norm has the gradient 0, but for rounding.
        assert key.endswith("bias") or parameter.grad.any(), key
    for key, value in network.state_dict().items():
        assert not key.endswith("num_batches_tracked") or value == 1, key


@every_network
def test_survives_conversions(name: str) -> None:
    network = randomise(make(name)).eval()
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)["out"]
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(other(x)["out"], expected)
            other.load_state_dict({f"module.{k}": v for k, v in network.state_dict().items()})
        state = dict(network.named_parameters()) | dict(network.named_buffers())
        assert torch.equal(torch.func.functional_call(network, state, (x,))["out"], expected)
        fresh = make(name).eval()
        fresh.load_state_dict(network.state_dict(), strict=True)
        assert torch.equal(fresh(x)["out"], expected)
        synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))
        assert any(isinstance(m, nn.SyncBatchNorm) for m in synced.modules())
        torch.testing.assert_close(synced(x)["out"], expected)


@every_network
def test_channels_last_and_autocast(name: str) -> None:
    network = make(name).eval()
    x = image(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)["out"]
        last = network.to(memory_format=torch.channels_last)(
            x.contiguous(memory_format=torch.channels_last)
        )["out"]
        assert battery.relative_error(last, expected) < 1e-4
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        outputs = network.train()(x)
        assert outputs["out"].dtype == torch.bfloat16
        assert all(y.isfinite().all() for y in outputs.values())
        loss = losses.SegmentationLoss()(outputs, torch.zeros_like(x[:, 0]).long())
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


@every_network
def test_compiles(name: str) -> None:
    torch._dynamo.reset()
    network = make(name)
    for module in network.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend="aot_eager")
    for height, width in ((64, 96), (48, 70)):
        x = image(2, 3, height, width)
        got, want = compiled(x), network(x)
        assert got.keys() == want.keys()
        for key, value in want.items():
            torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-4)


@every_network
def test_exports(name: str) -> None:
    """For any size of image."""
    network = make(name).eval()
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.export.export(network, (image(2, 3, 64, 96),), dynamic_shapes=(sizes,))
        for height, width in ((64, 96), (65, 77)):
            x = image(2, 3, height, width)
            torch.testing.assert_close(program.module()(x)["out"], network(x)["out"])


def test_without_auxiliary_head() -> None:
    """Upstream's SPNet fails to train so."""
    network = models.fcn(5, "resnet18", aux=False)
    assert list(network(torch.randn(2, 3, 32, 32))) == ["out"]


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (models.fcn, {}),
        (models.pspnet, {}),
        (models.spnet, {"strip_pooling": False}),
        (models.deeplabv3plus_hanet, {"slots": [False] * 5}),
    ],
)
def test_other_norm_layers(function: Callable[..., nn.Module], options: dict[str, Any]) -> None:
    def norm(channels: int) -> nn.Module:
        return nn.GroupNorm(4, channels)

    network = function(5, "resnet18", norm_layer=norm, **options)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert network(torch.randn(1, 3, 32, 32))["out"].shape == (1, 5, 32, 32)


def test_parameter_counts() -> None:
    """As upstream's networks have them, auxiliary heads included."""
    with torch.device("meta"):
        for network, parameters in (
            (models.pspnet(150, "resnet50s"), 49_180_908),
            (models.pspnet(19, "resnet101s"), 68_072_166),
            (models.spnet(150, "resnet50s"), 47_838_124),
            (models.spnet(150, "resnet50s", strip_pooling=False), 41_721_068),
            (models.spnet(150, "resnet101s"), 66_830_252),
            (models.deeplabv3plus_hanet(19, "resnet101s"), 64_803_149),
            (models.deeplabv3plus_hanet(19, "resnet50", output_stride=16), 45_687_245),
        ):
            assert count(network) == parameters
        assert len(models.pspnet(150, "resnet50s").state_dict()) == 370


@pytest.mark.parametrize(("zoom_factor", "size"), [(1, (9, 7)), (2, (17, 13)), (4, (33, 25))])
def test_pspnet_zoom(zoom_factor: int, size: tuple[int, int]) -> None:
    network = models.pspnet(5, Tiny(), head_channels=16, zoom_factor=zoom_factor)
    outputs = network(torch.randn(2, 3, 65, 49))
    assert {y.shape[2:] for y in outputs.values()} == {size}


def test_pspnet_is_plain() -> None:
    """The whole network against its formula in plain PyTorch, the pyramid built."""
    network = randomise(models.pspnet(5, Tiny(), head_channels=16)).double().eval()
    x = torch.randn(2, 3, 65, 49, dtype=torch.float64)
    y = network.backbone(x)[-1]
    pyramid, *rest = network.head
    parts = [y]
    for size, branch in zip((1, 2, 3, 6), pyramid.branches, strict=True):
        level = branch(F.adaptive_avg_pool2d(y, size))
        parts.append(F.interpolate(level, y.shape[2:], mode="bilinear", align_corners=True))
    logits = nn.Sequential(*rest)(pyramid.conv(torch.cat(parts, 1)))
    want = F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)
    assert battery.relative_error(network(x)["out"], want) < 1e-12


def test_pspnet_trains_on_one_image() -> None:
    network = models.pspnet(5, Tiny(), head_channels=16, global_norm=False)
    network(torch.randn(1, 3, 32, 32))["out"].sum().backward()
    assert all(p.grad.isfinite().all() for p in network.head.parameters())


def test_spnet_variants() -> None:
    with torch.device("meta"):
        network = models.spnet(5, "resnet50s")
        gated = [key for key, m in network.named_modules() if isinstance(m, StripPooling)]
        places = ("1.2", "2.3", "3.5", "4.0", "4.1", "4.2")
        assert gated == [f"backbone.layer{place}.spm" for place in places]
        assert [b.conv2.dilation[0] for b in network.backbone.layer4] == [4, 8, 16]
        assert [b.conv2.dilation[0] for b in network.backbone.layer3] == [1, 2, 2, 2, 2, 2]
        plain = models.spnet(5, "resnet50s", strip_pooling=False)
        assert not any(isinstance(m, StripPooling) for m in plain.modules())
    assert len(models.spnet(5, Tiny(), mixed=0).head.mixed) == 0
    one = models.spnet(5, Tiny(), mixed=1, arms="long", pool_sizes=((3, 2), 5)).eval()
    assert [m.arms for m in one.head.mixed] == ["long"]
    assert one(torch.randn(1, 3, 32, 40))["out"].shape == (1, 5, 32, 40)


def plain_hanet(network: models.SegmentationNetwork, x: Tensor, pos: Tensor | None) -> Tensor:
    """DeepV3PlusHANet in plain PyTorch, on the network's own modules."""

    def up(y: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(y, like.shape[2:], mode="bilinear", align_corners=True)

    def gate(slot: int, source: Tensor, out: Tensor) -> Tensor:
        _, attention = getattr(head, f"hanet{slot}")(source, out, pos, return_attention=True)
        return out * attention[..., None]

    head = network.head
    low, _, third, fourth = network.backbone(x)
    fourth = gate(0, third, fourth)
    together = up(head.aspp.img_conv(F.adaptive_avg_pool2d(fourth, 1)), fourth)
    for feature in head.aspp.features:
        together = torch.cat((together, feature(fourth)), 1)
    together = gate(1, fourth, together)
    coarse = gate(2, together, head.bot_aspp(together))
    decoder = torch.cat([head.bot_fine(low), up(coarse, low)], 1)
    final = gate(3, decoder, head.final1(decoder))
    return up(gate(4, final, head.final2(final)), x)


@pytest.mark.parametrize("with_pos", [True, False])
def test_hanet_is_plain(with_pos: bool) -> None:
    network = randomise(NETWORKS["deeplabv3plus_hanet"]()).double().eval()
    x = torch.randn(2, 3, 65, 49, dtype=torch.float64)
    heights = torch.arange(65).mul(128).div(65, rounding_mode="floor").expand(2, 65)
    pos = heights.to(torch.uint8)[:, :, None].expand(2, 65, 49) if with_pos else None
    got = network(x, pos)["out"]
    assert battery.relative_error(got, plain_hanet(network, x, pos)) < 1e-12
    assert torch.equal(network(x, heights)["out"], got) == with_pos


@pytest.mark.parametrize(
    ("output_stride", "rates", "dilations"),
    [
        (4, (24, 48, 72), (2, 4, 8)),
        (8, (12, 24, 36), (1, 2, 4)),
        (16, (6, 12, 18), (1, 1, 2)),
        (32, (3, 6, 9), (1, 1, 1)),
    ],
)
def test_hanet_variants(
    output_stride: int, rates: tuple[int, ...], dilations: tuple[int, ...]
) -> None:
    """D4, D, D16 and OS32: every 3x3 convolution of a dilated stage, the first block's too."""
    with torch.device("meta"):
        network = models.deeplabv3plus_hanet(5, "resnet50", output_stride=output_stride)
        chosen = models.deeplabv3plus_hanet(5, Tiny(), rates=(1, 2, 3))
    assert tuple(f[0].dilation[0] for f in network.head.aspp.features) == (1, *rates)
    assert tuple(f[0].dilation[0] for f in chosen.head.aspp.features) == (1, 1, 2, 3)
    stages = (network.backbone.layer2, network.backbone.layer3, network.backbone.layer4)
    for stage, dilation in zip(stages, dilations, strict=True):
        assert {block.conv2.dilation[0] for block in stage} == {dilation}


def test_hanet_options() -> None:
    network = models.deeplabv3plus_hanet(
        5, Tiny(), slots=(1, 0, 0, 0, 1), reduction=4, pooling="mean", pos_encoding="learned",
        pos_noise=0.5, attention_dropout=0.1, global_norm=False,
    )  # fmt: skip
    head = network.head
    assert head.hanet1 is None and head.hanet2 is None and head.hanet3 is None
    assert head.hanet0.pooling == "mean" and head.hanet4.pooling == "max"
    assert head.hanet0.attention_first[0].out_channels == 8 and head.hanet0.dropout.p == 0.1
    outputs = network(torch.randn(1, 3, 64, 48), torch.randint(0, 129, (1, 64)))
    outputs["out"].sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    assert head.hanet0.pos_emb1d_2nd.pos_layer.weight.grad.any()


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: models.create("unet", num_classes=3), "name must be one of"),
    (lambda: models.fcn(0, "resnet18"), "num_classes must be positive, got 0"),
    (lambda: models.pspnet(0, Tiny()), "pspnet: num_classes must be positive, got 0"),
    (lambda: models.pspnet(3, Tiny(), zoom_factor=3), "zoom_factor must be 1, 2, 4 or 8, got 3"),
    (lambda: models.deeplabv3plus_hanet(0, Tiny()), "num_classes must be positive, got 0"),
    (lambda: models.deeplabv3plus_hanet(3, Tiny(), slots=[True]), "slots must be five booleans"),
    (lambda: models.deeplabv3plus_hanet(3, Tiny(), rates=(1,)), "rates must be three positive"),
    (lambda: models.spnet(3, Tiny(), mixed=9), "spnet: mixed must be from 0 to 8, got 9"),
    (lambda: models.spnet(3, "resnet18"), "strip_pooling needs a depth of 50 or more, got 18"),
    (lambda: models.spnet(3, Tiny(), arms="none"), "arms must be one of both, short, long"),
    (lambda: FCNHead(0, 3), "in_channels must be positive, got 0"),
    (
        lambda: models.fcn(3, "resnet18")(torch.zeros(1, 4, 8, 8)),
        "FCN: x must have shape (N, 3, H, W), got (1, 4, 8, 8)",
    ),
    (lambda: models.fcn(3, "resnet18")(torch.zeros(3, 8, 8)), "got (3, 8, 8)"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_refuses(call: Callable[[], Any], words: str) -> None:
    battery.raises(ValueError, words, call)


@pytest.mark.parametrize(
    "module",
    ["backbones", "deeplab_hanet", "fcn", "network", "pspnet", "registry", "resnet", "spnet"],
)
def test_examples_run(module: str) -> None:
    code = importlib.import_module(f"stripctx.models.{module}")
    results = doctest.testmod(code, extraglobs={"torch": torch, **vars(models)})
    assert results.failed == 0
