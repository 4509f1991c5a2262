"""EncodingLayer and ContextEncoding: against plain PyTorch and mmseg, published key layouts, and
common uses of modules."""

from __future__ import annotations

import copy
from typing import Any

import operator_checks
import oracles
import pytest
import torch
import torch.nn.functional as F
from operator_checks import DEVICE, FORMATS
from torch import Tensor, nn

from stripctx import ContextEncoding, EncodingLayer


def plain_encoding(layer: EncodingLayer, x: Tensor, scale: Tensor | None = None) -> Tensor:
    residuals = x.flatten(2).mT[:, :, None] - layer.codewords
    scale = layer.scale if scale is None else scale
    assignments = (residuals.square().sum(-1) * scale).softmax(-1)
    return (assignments[..., None] * residuals).sum(1)


def plain_context(layer: ContextEncoding, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """EncNet's module in plain PyTorch, with the layer's modules."""
    encoded = plain_encoding(layer.encoding, F.relu(layer.norm(layer.conv(x))))
    encoded = F.relu(layer.code_norm(encoded))
    pooled = encoded.mean(1) if layer.reduction == "mean" else encoded.sum(1)
    logits = None if layer.presence is None else layer.presence(pooled)
    if layer.gate is None:
        return x, logits
    return F.relu(x + x * layer.gate(pooled).sigmoid()[..., None, None]), logits


def soften(module: nn.Module) -> None:
    """Spreads codewords like the features, so that assignments are neither 0 nor 1."""
    for part in module.modules():
        if hasattr(part, "codewords"):
            nn.init.normal_(part.codewords)
            with torch.no_grad():
                if part.scale is not None:
                    part.scale /= part.codewords.size(1)


def assert_same(value: Tensor | None, expected: Tensor | None, tolerance: float = 1e-11) -> None:
    assert value is not None and expected is not None
    assert operator_checks.relative_error(value, expected) < tolerance


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_context_equals_plain(training: bool, layout: str, reduction: str) -> None:
    layer = ContextEncoding(8, 5, 6, reduction=reduction).to(DEVICE).double().train(training)
    soften(layer)
    other = copy.deepcopy(layer)
    x = operator_checks.make((3, 8, 9, 7), torch.float64, layout).requires_grad_()
    y = x.detach().clone().requires_grad_()
    out, expected = layer(x), plain_context(other, y)
    for values in (out, expected):
        (values[0].square().sum() + values[1].square().sum()).backward()
    for a, b in zip(out, expected, strict=True):
        assert_same(a, b)
    assert_same(x.grad, y.grad)
    for a, b in zip(layer.parameters(), other.parameters(), strict=True):
        assert_same(a.grad, b.grad)
    for a, b in zip(layer.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_initial_values() -> None:
    """U(-1/sqrt(KD), 1/sqrt(KD)) and U(-1, 0), as upstream."""
    layer = EncodingLayer(128, 32)
    bound = (32 * 128) ** -0.5
    assert 0.9 * bound < layer.codewords.abs().max() <= bound
    assert -1 <= layer.scale.min() < layer.scale.max() <= 0
    assert sum(p.numel() for p in ContextEncoding(512, 150).parameters()) == 619_254


def test_without_logits() -> None:
    layer = ContextEncoding(8, 0, 4, se_loss=False).to(DEVICE)
    features, logits = layer(torch.randn(2, 8, 3, 4, device=DEVICE))
    assert features.shape == (2, 8, 3, 4) and logits is None


def test_scale_dropout() -> None:
    """EncodingDrop: a new U(-1, 0) at each call in training, -1/2 in evaluation; the scale is
    neither learnt nor overwritten."""
    layer = EncodingLayer(3, 4, scale_dropout=True).to(DEVICE).double()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, device=DEVICE)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    drawn = -torch.rand(4, dtype=torch.float64, device=DEVICE)
    assert_same(first, plain_encoding(layer, x, drawn))
    assert operator_checks.relative_error(layer(x), first) > 1e-3
    first.sum().backward()
    assert layer.codewords.grad.any() and layer.scale is None
    half = torch.full((4,), -0.5, dtype=torch.float64, device=DEVICE)
    assert_same(layer.eval()(x), plain_encoding(layer, x, half))
    codewords = torch.randn(4, 3)
    for entry in ({}, {"scale": torch.randn(4)}):  # our layout, and upstream's
        layer.load_state_dict({"codewords": codewords, **entry}, strict=True)
        assert torch.equal(layer.codewords.float().cpu(), codewords)
    assert list(layer.state_dict()) == ["codewords"]
    whole = ContextEncoding(3, 5, 4, scale_dropout=True)
    whole.load_state_dict(PyTorchEncoding(3, 5, 4).state_dict(), strict=True)
    operator_checks.raises(
        RuntimeError, "scale", lambda: EncodingLayer(3, 4).load_state_dict(layer.state_dict())
    )


def test_without_gate() -> None:
    """The map is unchanged, and the logits equal those of the same module with a gate."""
    gated = ContextEncoding(8, 5, 4).to(DEVICE)
    layer = ContextEncoding(8, 5, 4, gated=False).to(DEVICE)
    state = {k: v for k, v in gated.state_dict().items() if not k.startswith("gate")}
    layer.load_state_dict(state, strict=True)
    x = torch.randn(2, 8, 3, 4, device=DEVICE)
    features, logits = layer(x)
    assert features is x and torch.equal(logits, gated(x)[1])


# Modules and key layouts of other projects.


class PyTorchEncoding(nn.Module):
    """The parameters of PyTorch-Encoding's EncModule, under its names."""

    def __init__(self, channels: int, classes: int, codes: int) -> None:
        super().__init__()
        self.encoding = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            EncodingLayer(channels, codes),
            nn.BatchNorm1d(codes),
            nn.ReLU(),
        )
        self.fc = nn.Sequential(nn.Linear(channels, channels), nn.Sigmoid())
        self.selayer = nn.Linear(channels, classes)


def test_loads_pytorch_encoding() -> None:
    upstream = PyTorchEncoding(8, 5, 6).eval()
    layer = ContextEncoding(8, 5, 6).eval()
    layer.load_state_dict(upstream.state_dict(), strict=True)
    x = torch.randn(2, 8, 5, 6)
    pooled = upstream.encoding(x).mean(1)
    features, logits = layer.to(DEVICE)(x.to(DEVICE))
    gate = upstream.fc(pooled)[..., None, None]
    torch.testing.assert_close(features.cpu(), F.relu(x + x * gate))
    torch.testing.assert_close(logits.cpu(), upstream.selayer(pooled))
    layer.load_state_dict(ContextEncoding(8, 5, 6).state_dict(), strict=True)
    missing = {key: value for key, value in upstream.state_dict().items() if "scale" not in key}
    with pytest.raises(RuntimeError, match=r"encoding\.scale"):
        layer.load_state_dict(missing, strict=True)


def test_loads_from_a_data_parallel_network() -> None:
    network = nn.ModuleDict({"head": PyTorchEncoding(8, 5, 6)})
    ours = nn.ModuleDict({"head": ContextEncoding(8, 5, 6)})
    ours.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(ours["head"].encoding.scale, network["head"].encoding[3].scale)


def test_encoding_equals_mmseg() -> None:
    theirs = oracles.mmseg().Encoding(12, 7).to(DEVICE).double()
    soften(theirs)
    ours = EncodingLayer(12, 7).to(DEVICE).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 12, 9, 7, dtype=torch.float64, device=DEVICE, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    out, expected = ours(x), theirs(y)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in ((out, expected), (x.grad, y.grad)):
        assert_same(a, b)
    for name, parameter in theirs.named_parameters():
        assert_same(ours.get_parameter(name).grad, parameter.grad)


@pytest.mark.parametrize("training", [True, False])
def test_context_equals_mmseg(training: bool) -> None:
    theirs = oracles.mmseg().EncModule(
        12, 7, None, {"type": "BN", "requires_grad": True}, {"type": "ReLU"}
    )
    soften(theirs)
    theirs = theirs.to(DEVICE).double().train(training)
    ours = ContextEncoding(12, 1, 7, se_loss=False).to(DEVICE).double().train(training)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(3, 12, 9, 7, dtype=torch.float64, device=DEVICE, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    out, expected = ours(x)[0], theirs(y)[1]
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in ((out, expected), (x.grad, y.grad)):
        assert_same(a, b)
    names = {
        "conv.weight": "encoding_project.conv.weight",
        "norm.weight": "encoding_project.bn.weight",
        "encoding.codewords": "encoding.0.codewords",
        "encoding.scale": "encoding.0.scale",
        "code_norm.weight": "encoding.1.weight",
        "gate.weight": "fc.0.weight",
        "gate.bias": "fc.0.bias",
    }
    for mine, other in names.items():
        assert_same(ours.get_parameter(mine).grad, theirs.get_parameter(other).grad)


def test_loads_mmseg_with_its_heads_logits() -> None:
    """mmseg keeps se_layer outside the module; in a network, a prefix precedes the same layout."""
    state = ContextEncoding(8, 5, 6).state_dict()
    names = {
        "conv": "encoding_project.conv",
        "norm": "encoding_project.bn",
        "encoding": "encoding.0",
        "code_norm": "encoding.1",
        "gate": "fc.0",
        "presence": "se_layer",
    }
    theirs: dict[str, Any] = {}
    for key, value in state.items():
        part, _, name = key.partition(".")
        theirs[f"{names[part]}.{name}"] = value
    layer = ContextEncoding(8, 5, 6)
    layer.load_state_dict(theirs, strict=True)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, state[key])


# Common uses of modules.


def test_layers_train() -> None:
    """The logits learn which of two textures is present; the gate passes gradients on."""
    layer = ContextEncoding(8, 2, 4).to(DEVICE)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    shift = torch.zeros(8, device=DEVICE)
    shift[:4] = 2
    present = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 2, device=DEVICE)
    losses = []
    for _ in range(40):
        noise = torch.randn(4, 8, 6, 7, device=DEVICE)
        x = noise + (present[:, :1] * shift)[..., None, None]
        features, logits = layer(x)
        loss = F.binary_cross_entropy_with_logits(logits, present) + features.mean() ** 2 * 0.01
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_layer_refuses() -> None:
    for arguments, words in (
        ((0, 4), "EncodingLayer: in_channels must be positive, got 0"),
        ((8, 0), "EncodingLayer: num_codes must be positive, got 0"),
    ):
        operator_checks.raises(ValueError, words, lambda a=arguments: EncodingLayer(*a))
    operator_checks.raises(
        ValueError, "num_classes must be positive", lambda: ContextEncoding(8, 0)
    )
    words = "se_loss or gated must be true, got neither"
    operator_checks.raises(
        ValueError, words, lambda: ContextEncoding(8, 3, se_loss=False, gated=False)
    )
    operator_checks.raises(
        ValueError,
        'reduction must be "mean" or "sum", got \'max\'',
        lambda: ContextEncoding(8, 3, reduction="max"),
    )
    wrong = torch.zeros(2, 7, 4, 5, device=DEVICE)
    words = "x must have shape (N, 8, H, W) or (N, 8, L), got (2, 7, 4, 5)"
    operator_checks.raises(ValueError, words, lambda: EncodingLayer(8, 4).to(DEVICE)(wrong))
