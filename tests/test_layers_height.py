"""HeightAttention: equal to plain PyTorch, HANet's keys and counts, positions and their noise, and
common uses of modules."""

from __future__ import annotations

import copy
import doctest
import math
from collections.abc import Callable
from typing import Any

import operator_checks
import pytest
import torch
import torch.nn.functional as F
from checkpoints import count, randomise, same_state
from operator_checks import DEVICE, FORMATS
from torch import Tensor, nn

from stripctx import HeightAttention
from stripctx.layers import height as module

POS_HEIGHT = 37  # of a label map, which differs from x's and out's

# HANet's module in plain PyTorch, with the layer's convolutions, norms and table.


def plain_positions(table: Tensor, pos: Tensor, rows: int) -> Tensor:
    heights = pos if pos.dim() == 2 else pos[:, :, 0]
    bands = (heights.long() // (128 // rows)).tolist()
    scale = len(bands[0]) / rows
    picked = [[line[math.floor(i * scale)] for i in range(rows)] for line in bands]
    return torch.stack([table[line] for line in picked]).transpose(1, 2)


def plain(layer: HeightAttention, x: Tensor, out: Tensor, pos: Tensor | None = None) -> Any:
    pool = F.adaptive_avg_pool2d if layer.pooling == "mean" else F.adaptive_max_pool2d
    y = pool(x, (layer.rows, 1)).squeeze(3)
    if pos is not None and layer.pos_emb1d_1st is not None:
        y = y + plain_positions(layer.pos_emb1d_1st.pos_layer.weight, pos, layer.rows)
    y = layer.attention_first(y)
    if pos is not None and layer.pos_emb1d_2nd is not None:
        y = y + plain_positions(layer.pos_emb1d_2nd.pos_layer.weight, pos, layer.rows)
    y = layer.attention_second(y)
    if layer.attention_third is not None:
        y = layer.attention_third(y)
    attention = F.interpolate(y.sigmoid(), out.shape[2], mode="linear", align_corners=False)
    return out * attention[..., None], attention


VARIANTS: dict[str, dict[str, Any]] = {
    "hanet": {"reduction": 4},
    "learned": {"reduction": -2, "pos_encoding": "learned", "pos_injection": 1, "pooling": "max"},
    "two": {"reduction": 3, "layers": 2, "kernel_size": 1, "pos_rfactor": 16},
    "bare": {"reduction": 64, "pos_encoding": None, "kernel_size": 5},
}
every_variant = pytest.mark.parametrize("name", VARIANTS)


def make(name: str, **options: Any) -> HeightAttention:
    layer = HeightAttention(8, 6, **{**VARIANTS[name], **options}).to(DEVICE)
    randomise(layer)
    for key, value in layer.named_parameters():
        if "pos_layer" in key and value.requires_grad:
            nn.init.normal_(value)  # initially zero, which would hide the weight's use
    return layer


def positions(batch: int) -> Tensor:
    """Heights of a crop per image, followed by padding; columns differ, but only one is used."""
    first = torch.randint(0, 60, (batch, 1, 1))
    heights = (first + 2 * torch.arange(POS_HEIGHT)[:, None]).clamp(max=127).repeat(1, 1, 5)
    heights[:, -4:] = 128
    heights[:, :, 1:] = 0
    return heights.to(DEVICE, torch.uint8)


def maps(dtype: torch.dtype, layout: str = "contiguous") -> tuple[Tensor, Tensor]:
    x = operator_checks.make((3, 8, 21, 5), dtype, layout)
    return x, operator_checks.make((3, 6, 13, 7), dtype, layout)


@every_variant
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_pos", [True, False])
def test_equals_plain(name: str, training: bool, with_pos: bool) -> None:
    layer = make(name).double().train(training)
    other = copy.deepcopy(layer)
    pos = positions(3) if with_pos else None
    for layout in FORMATS:
        layer.zero_grad()
        other.zero_grad()
        x, out = (y.requires_grad_() for y in maps(torch.float64, layout))
        x2, out2 = (y.detach().clone().requires_grad_() for y in (x, out))
        results = layer(x, out, pos, return_attention=True)
        expected = plain(other, x2, out2, pos)
        for result, want in zip(results, expected, strict=True):
            assert operator_checks.relative_error(result, want) < 1e-12
        weights = [torch.randn_like(want) for want in expected]
        for values in (results, expected):
            sum((v * w).sum() for v, w in zip(values, weights, strict=True)).backward()
        assert operator_checks.relative_error(x.grad, x2.grad) < 1e-9
        assert operator_checks.relative_error(out.grad, out2.grad) < 1e-11
        for (key, a), b in zip(layer.named_parameters(), other.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None), key
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, msg=key, rtol=1e-8, atol=1e-9)
        for a, b in zip(layer.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(a, b)


def test_returns_the_result_without_attention() -> None:
    layer, (x, out), pos = make("hanet").eval(), maps(torch.float32), positions(3)
    gated, attention = layer(x, out, pos, return_attention=True)
    assert torch.equal(layer(x, out, pos), gated)
    assert attention.shape == (3, 6, 13)
    assert not torch.allclose(layer(x, out), gated)


# Positions.


def test_sinusoid() -> None:
    """Row 1 of HANet's 17 x 16 table; row 0 is 1, 2, 1, 2; a new cycle above 50 channels."""
    table = make("hanet", reduction=-2).pos_emb1d_2nd.pos_layer.weight.cpu()
    assert table.shape == (17, 16) and not table.requires_grad
    expected = torch.tensor([1.8415, 1.5403, 1.5332, 1.8460])
    torch.testing.assert_close(table[1, :4], expected, rtol=0, atol=5e-5)
    torch.testing.assert_close(table[0], torch.tensor([1.0, 2.0] * 8))
    for channels, cycle in ((50, 100.0), (52, 10.0), (51, 10.0)):
        for p, j in ((3, 7), (16, 8), (5, channels - 1)):
            angle = p / cycle ** (2 * (j // 2) / channels)
            value = 1 + (math.cos(angle) if j % 2 else math.sin(angle))
            assert abs(module.sinusoid(17, channels)[p, j].item() - value) < 1e-6


def test_learned_table_starts_at_zero() -> None:
    layer = HeightAttention(8, 6, pos_encoding="learned")
    table = layer.pos_emb1d_2nd.pos_layer.weight
    assert table.requires_grad and not table.any()
    x, out = (y.cpu() for y in maps(torch.float32))
    layer.eval()
    assert torch.equal(layer(x, out, positions(3).cpu()), layer(x, out))


def test_position_formats() -> None:
    """Maps and their first columns, any integer type; values above 128 are padding."""
    layer, (x, out), pos = make("hanet").eval(), maps(torch.float32), positions(3)
    expected = layer(x, out, pos)
    for other in (pos.int(), pos.long(), pos[:, :, 0], pos[:, :, 0].short()):
        assert torch.equal(layer(x, out, other), expected)
    ignored = torch.where(pos == 128, 255, pos)
    assert torch.equal(layer(x, out, ignored), expected)


@pytest.mark.parametrize("symmetric", [True, False])
def test_noise(symmetric: bool) -> None:
    """Rounded or floored normal deviates, at most two bands for pos_rfactor 8, in training."""
    table = module.RowPositions(1, 8, True, 0.5, symmetric).to(DEVICE)
    with torch.no_grad():
        table.pos_layer.weight.copy_(torch.arange(17.0)[:, None])
    pos = torch.full((2000, 16), 8 * 8 + 3, device=DEVICE)
    moved = (table(pos, 16) - 8).flatten().long().cpu()
    shares = [(moved == step).float().mean().item() for step in range(-2, 3)]
    # Tail probabilities of the normal distribution beyond 1, 2 and 3 standard deviations (1/2
    # each).
    beyond1, beyond2, beyond3 = 0.1587, 0.0228, 0.00135
    if symmetric:
        side = beyond1 - beyond3
        expected = [beyond3, side, 1 - 2 * beyond1, side, beyond3]
    else:
        expected = [beyond2, 0.5 - beyond2, 0.5 - beyond2, beyond2, 0.0]
    for share, want in zip(shares, expected, strict=True):
        assert abs(share - want) < 0.012
    assert sum(shares) == pytest.approx(1)
    low, high = table(torch.zeros_like(pos), 16), table(torch.full_like(pos, 128), 16)
    assert low.min() == 0 and high.max() == 16
    assert (table.eval()(pos, 16) == 8).all()


def test_noise_trains() -> None:
    """Upstream's fails on every version of torch 2."""
    layer, (x, out) = make("learned", pos_noise=0.5), maps(torch.float32)
    layer(x, out, positions(3)).square().sum().backward()
    assert layer.pos_emb1d_1st.pos_layer.weight.grad.any()


def test_dropout_drops_channels() -> None:
    layer = make("bare", dropout=0.5, reduction=1)
    layer.attention_first = nn.Identity()
    seen = []
    layer.attention_second.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x, out = maps(torch.float32)
    layer(x, out)
    zero = seen[0] == 0
    assert zero.any() and not zero.all() and torch.equal(zero.all(2), zero.any(2))


# Keys and counts.


def test_keys_equal_upstreams() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    first = {"attention_first.0.weight", *(f"attention_first.1.{entry}" for entry in norm)}
    second = {"attention_second.0.weight", "attention_second.0.bias"}
    third = {f"attention_second.1.{entry}" for entry in norm}
    third |= {"attention_third.0.weight", "attention_third.0.bias"}
    for options, keys in (
        ({}, first | second | third | {"pos_emb1d_2nd.pos_layer.weight"}),
        ({"pos_injection": 1}, first | second | third | {"pos_emb1d_1st.pos_layer.weight"}),
        ({"pos_encoding": None, "layers": 2}, first | second),
    ):
        assert set(HeightAttention(8, 6, **options).state_dict()) == keys
    shapes = {
        k: tuple(v.shape) for k, v in HeightAttention(130, 6, kernel_size=5).named_parameters()
    }
    assert shapes["attention_first.0.weight"] == (3, 130, 1)
    assert shapes["attention_second.0.weight"] == (6, 3, 3)
    assert shapes["attention_third.0.weight"] == (6, 6, 5)
    assert shapes["pos_emb1d_2nd.pos_layer.weight"] == (17, 3)


def test_loads() -> None:
    source, target = make("hanet"), make("hanet")
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    nn.init.zeros_(target.pos_emb1d_2nd.pos_layer.weight)  # loading must restore the file's table
    nn.Sequential(target).load_state_dict(
        {f"0.{key.removeprefix('module.')}": value for key, value in state.items()}, strict=True
    )
    same_state(source, target)


@pytest.mark.parametrize(
    ("channels", "parameters"),
    [
        ((1024, 2048), 216_976),
        ((2048, 1280), 319_520),
        ((1280, 256), 59_476),
        ((304, 256), 9_731),
        ((256, 19), 1_695),
    ],
)
def test_parameter_counts(channels: tuple[int, int], parameters: int) -> None:
    """Equal to HANet's, including the fixed table."""
    assert count(HeightAttention(*channels)) == parameters


# Common uses of modules.


def test_trains() -> None:
    """The target's rows depend on the height only, so positions are necessary."""
    layer = HeightAttention(8, 6, reduction=1).to(DEVICE)
    _, out = maps(torch.float32)
    x = torch.randn(3, 8, 13, 7, device=DEVICE)
    heights = torch.arange(13, device=DEVICE).mul(128).div(13, rounding_mode="floor").expand(3, 13)
    target = out * torch.linspace(0, 1, 13, device=DEVICE)[:, None]
    optimizer = torch.optim.Adam((p for p in layer.parameters() if p.requires_grad), lr=0.03)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x, out, heights), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def call(*sizes: tuple[int, ...], pos: Tensor | None = None) -> Callable[[], Any]:
    return lambda: HeightAttention(8, 6)(*(torch.zeros(size) for size in sizes), pos)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: HeightAttention(0, 6), "HeightAttention: in_channels must be positive, got 0"),
    (lambda: HeightAttention(8, 0), "out_channels must be positive, got 0"),
    (lambda: HeightAttention(8, 6, kernel_size=4), "kernel_size must be odd, got 4"),
    (lambda: HeightAttention(8, 6, reduction=0), "reduction must be other than 0, got 0"),
    (lambda: HeightAttention(8, 6, layers=4), "layers must be 2 or 3, got 4"),
    (lambda: HeightAttention(8, 6, pooling="sum"), 'pooling must be "mean" or "max", got \'sum\''),
    (lambda: HeightAttention(8, 6, pos_rfactor=0), "pos_rfactor must be from 1 to 128, got 0"),
    (lambda: HeightAttention(8, 6, pos_injection=0), "pos_injection must be 1 or 2, got 0"),
    (lambda: HeightAttention(8, 6, pos_encoding="cosine"), "or None, got 'cosine'"),
    (lambda: HeightAttention(8, 6, pos_noise=-1), "pos_noise must be 0 or more, got -1"),
    (lambda: HeightAttention(8, 6, dropout=2), "dropout must be from 0 to 1, got 2"),
    (call((2, 6, 5, 5), (2, 6, 5, 5)), "x must have shape (N, 8, H, W), got (2, 6, 5, 5)"),
    (call((2, 8, 5, 5), (2, 8, 5, 5)), "out must have shape (N, 6, H, W), got (2, 8, 5, 5)"),
    (
        call((2, 8, 5, 5), (2, 6, 5, 5), pos=torch.zeros(2, 5)),
        "pos must be an integer tensor (N, H, W) or (N, H), got float32 (2, 5)",
    ),
    (
        call((2, 8, 5, 5), (2, 6, 5, 5), pos=torch.zeros(1, 5).int()),
        "pos must be of 2 images, as x, got 1",
    ),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_refuses(call: Callable[[], Any], words: str) -> None:
    operator_checks.raises(ValueError, words, call)


def test_examples_run() -> None:
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0
