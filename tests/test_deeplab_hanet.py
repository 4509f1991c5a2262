"""DeepLabv3+ with height attention: its formula, variants and options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import operator_checks
import pytest
import torch
import torch.nn.functional as F
from checkpoints import randomise
from networks import Tiny, undropped
from torch import Tensor

from benchmarks import peers
from stripctx import functional, models


def plain_hanet(network: models.SegmentationNetwork, x: Tensor, pos: Tensor | None) -> Tensor:
    """DeepV3PlusHANet in plain PyTorch, with the network's modules."""

    def up(y: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(y, like.shape[2:], mode="bilinear", align_corners=True)

    def gate(slot: int, source: Tensor, out: Tensor) -> Tensor:
        layer = getattr(head, f"hanet{slot}")
        if layer is None:
            return out
        _, attention = layer(source, out, pos, return_attention=True)
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


SLOTS = [(True,) * 5, (True, False, False, True, False), (False,) * 5]


@pytest.mark.parametrize("with_pos", [True, False])
@pytest.mark.parametrize("slots", SLOTS)
def test_hanet_equals_plain(with_pos: bool, slots: tuple[bool, ...]) -> None:
    """Without attention, the network is DeepLabv3+."""
    network = models.deeplabv3plus_hanet(5, Tiny(), slots=slots)
    randomise(network).double().eval()
    x = torch.randn(2, 3, 65, 49, dtype=torch.float64)
    heights = torch.arange(65).mul(128).div(65, rounding_mode="floor").expand(2, 65)
    pos = heights.to(torch.uint8)[:, :, None].expand(2, 65, 49) if with_pos else None
    got = network(x, pos)["out"]
    assert operator_checks.relative_error(got, plain_hanet(network, x, pos)) < 1e-12
    assert torch.equal(network(x, heights)["out"], got) == (with_pos or not any(slots))


@pytest.mark.parametrize("slots", SLOTS)
def test_decoder_gradients_equal_those_of_the_concatenation(
    slots: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients equal those of plain PyTorch, which materialises the convolution's input; ours does
    so for hanet3 only."""
    network = models.deeplabv3plus_hanet(5, Tiny(), slots=slots)
    undropped(randomise(network)).double()
    named = {key: p for key, p in network.head.named_parameters() if p.requires_grad}
    x = torch.randn(2, 3, 65, 49, dtype=torch.float64)
    with peers.installed():
        want = torch.autograd.grad(network(x)["out"].square().sum(), named.values())
    built = 0
    concat = functional.pyramid_concat

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal built
        built += 1
        return concat(*args, **kwargs)

    monkeypatch.setattr(functional, "pyramid_concat", counted)
    got = torch.autograd.grad(network(x)["out"].square().sum(), named.values())
    assert built == slots[3]
    for key, a, b in zip(named, got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=key)


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
    """D4, D, D16 and OS32: every 3x3 convolution of a dilated stage, including the first
    block's."""
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


def test_auxiliary_logits_may_stay_small() -> None:
    network = models.deeplabv3plus_hanet(5, Tiny(), enlarge_aux=False, dropout=0)
    x = torch.randn(2, 3, 64, 48)
    small = network(x)
    network.enlarge_aux = True
    large = network(x)
    assert small["aux"].shape == (2, 5, *network.backbone(x)[2].shape[2:])
    assert small["out"].shape == large["out"].shape == large["aux"].shape == (2, 5, 64, 48)
    enlarged = F.interpolate(small["aux"], (64, 48), mode="bilinear", align_corners=True)
    torch.testing.assert_close(large["aux"], enlarged)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: models.deeplabv3plus_hanet(0, Tiny()), "num_classes must be positive, got 0"),
    (lambda: models.deeplabv3plus_hanet(3, Tiny(), slots=[True]), "slots must be five booleans"),
    (lambda: models.deeplabv3plus_hanet(3, Tiny(), rates=(1,)), "rates must be three positive"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_refuses(call: Callable[[], Any], words: str) -> None:
    operator_checks.raises(ValueError, words, call)
