"""Common uses of modules, for every layer: copying, pickling, loading, functional calls, conversion
of norms, memory format and dtype, autocast, torch.compile and torch.export."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import operator_checks
import pytest
import torch
from checkpoints import randomise, same_state
from operator_checks import DEVICE
from test_layers_encoding import soften
from torch import Tensor, nn

from stripctx import (
    ContextEncoding,
    EncodingLayer,
    HeightAttention,
    MixedPooling,
    PyramidPooling,
    PyramidPoolingConv,
    StripPooling,
)

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "StripPooling": lambda: StripPooling(8),
    "MixedPooling": lambda: MixedPooling(8, (5, 3)),
    "MixedPooling-global": lambda: MixedPooling(8, (5, 3), arms="long", pooling="global"),
    "PyramidPooling": lambda: PyramidPooling(8, (1, 3), x_first=False, global_norm=False),
    "PyramidPoolingConv": lambda: PyramidPoolingConv(8, 5, (1, 3)),
    "HeightAttention": lambda: HeightAttention(8, 8, reduction=2),
    "EncodingLayer": lambda: EncodingLayer(8, 4),
    "EncodingLayer-dropout": lambda: EncodingLayer(8, 4, scale_dropout=True),
    "ContextEncoding": lambda: ContextEncoding(8, 3, 4),
}
# Under autocast a convolution's result is bfloat16; other layers return x's dtype.
HALF_UNDER_AUTOCAST = ("PyramidPoolingConv",)
every_layer = pytest.mark.parametrize("name", LAYERS)


def make(name: str) -> nn.Module:
    layer = randomise(LAYERS[name]())
    soften(layer)
    return layer.to(DEVICE)


def arguments(name: str, batch: int = 2, height: int = 9, width: int = 7) -> tuple[Tensor, ...]:
    x = torch.randn(batch, 8, height, width, device=DEVICE)
    if name != "HeightAttention":
        return (x,)
    heights = torch.arange(height, device=DEVICE).mul(128).div(height, rounding_mode="floor")
    return x, torch.randn(batch, 8, height + 2, width + 1, device=DEVICE), heights.expand(batch, -1)


def assert_close(got: Any, want: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    for a, b in zip(operator_checks.tuple_of(got), operator_checks.tuple_of(want), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def assert_equal(got: Any, want: Any) -> None:
    assert_close(got, want, rtol=0, atol=0)


def map_to(tensors: tuple[Tensor, ...], **kwargs: Any) -> tuple[Tensor, ...]:
    return tuple(t.to(**kwargs) if t.is_floating_point() else t for t in tensors)


@every_layer
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:, :5], "must have shape"),
        (lambda x: x.long(), "must be float64, float32, float16 or bfloat16, got int64"),
        (lambda x: x[0, :, :, 0], "must have shape"),
    ],
    ids=["channels", "dtype", "rank"],
)
def test_refuses_other_maps(name: str, change: Callable[[Tensor], Tensor], words: str) -> None:
    """In the layer's own words, not in those of a convolution inside it."""
    x, *others = arguments(name)
    with pytest.raises(ValueError, match=f"^[A-Za-z]+: x {words}"):
        make(name)(change(x), *others)


@every_layer
def test_copies(name: str) -> None:
    layer, inputs = make(name).eval(), arguments(name)
    expected = layer(*inputs)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_equal(other(*inputs), expected)
        other.load_state_dict(make(name).state_dict(), strict=True)
        other.load_state_dict(layer.state_dict(), strict=True)
        same_state(other, layer)
        assert_equal(other(*inputs), expected)
    state = dict(layer.named_parameters()) | dict(layer.named_buffers())
    assert_equal(torch.func.functional_call(layer, state, inputs), expected)


@every_layer
def test_conversions(name: str) -> None:
    layer, inputs = make(name).eval(), arguments(name)
    expected = layer(*inputs)
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in layer.modules())
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in synced.modules()) == norms
    assert_close(synced(*inputs), expected)
    last = map_to(inputs[:1], memory_format=torch.channels_last)
    last += map_to(inputs[1:2], memory_format=torch.channels_last) + inputs[2:]
    outputs = layer.to(memory_format=torch.channels_last)(*last)
    assert_close(outputs, expected)
    for y in operator_checks.tuple_of(outputs):
        assert y.dim() != 4 or y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "kind",
    [
        StripPooling,
        MixedPooling,
        PyramidPooling,
        lambda channels, **options: PyramidPoolingConv(channels, 4, **options),
        lambda channels, **options: ContextEncoding(channels, 3, **options),
    ],
)
def test_other_norm_layers(kind: Callable[..., nn.Module]) -> None:
    layer = kind(8, norm_layer=lambda channels: nn.GroupNorm(1, channels)).to(DEVICE)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in layer.modules())
    for y in operator_checks.tuple_of(layer(*arguments("", batch=1))):
        assert y.isfinite().all()


@every_layer
@pytest.mark.parametrize("training", [True, False])
def test_half(name: str, training: bool) -> None:
    """Under autocast, and converted to bfloat16."""
    layer, inputs = make(name).train(training), arguments(name)
    torch.manual_seed(1)
    expected = operator_checks.tuple_of(layer(*inputs))
    leaf = inputs[0].clone().requires_grad_()
    torch.manual_seed(1)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        outputs = operator_checks.tuple_of(layer(leaf, *inputs[1:]))
    half = torch.bfloat16 if name in HALF_UNDER_AUTOCAST else torch.float32
    assert outputs[0].dtype == half
    sum(y.float().square().sum() for y in outputs).backward()
    assert leaf.grad.isfinite().all() and leaf.grad.any()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.requires_grad)
    for a, b in zip(outputs, expected, strict=True):
        assert operator_checks.relative_error(a, b) < 0.05
    if name == "EncodingLayer-dropout" and training:
        return  # bfloat16 draws other scales
    outputs = operator_checks.tuple_of(layer.bfloat16()(*map_to(inputs, dtype=torch.bfloat16)))
    for a, b in zip(outputs, expected, strict=True):
        assert a.dtype == torch.bfloat16 and operator_checks.relative_error(a, b) < 0.05


@pytest.mark.slow
@every_layer
def test_compiles(name: str) -> None:
    """As one graph, for any size, forward and backward, in training."""
    torch._dynamo.reset()
    layer = make(name)
    other = copy.deepcopy(layer)
    compiled = torch.compile(other, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((2, 16, 17), (3, 19, 15)):
        inputs = arguments(name, *size)
        results = []
        for function, parameters in ((layer, layer.parameters()), (compiled, other.parameters())):
            torch.manual_seed(1)
            outputs = operator_checks.tuple_of(function(*inputs))
            total = sum(y.square().mean() for y in outputs)
            wanted = [p for p in parameters if p.requires_grad]
            results.append((*outputs, *torch.autograd.grad(total, wanted)))
        assert_close(*reversed(results))
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        torch.manual_seed(1)
        want = layer(*inputs)
        torch.manual_seed(1)
        assert_close(compiled(*inputs), want, rtol=0.05, atol=0.05)


@every_layer
def test_exports(name: str) -> None:
    """For any map size."""
    layer = make(name).eval()
    dynamic = torch.export.Dim.DYNAMIC
    maps, positions = {0: dynamic, 2: dynamic, 3: dynamic}, {0: dynamic, 1: dynamic}
    inputs = arguments(name, 2, 16, 17)
    shapes = tuple(maps if t.dim() == 4 else positions for t in inputs)
    program = torch.export.export(layer, inputs, dynamic_shapes=shapes).module()
    for size in ((2, 16, 17), (3, 5, 7)):
        inputs = arguments(name, *size)
        assert_close(program(*inputs), layer(*inputs))
