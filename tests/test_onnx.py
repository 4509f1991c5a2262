"""ONNX: every layer and every network, exported by a plain call for any batch and size, against
ONNX Runtime."""

from __future__ import annotations

import io
from typing import Any

import networks
import numpy as np
import onnx_checks
import pytest
import test_layers
import torch
from test_layers import LAYERS
from torch import Tensor, nn

from stripctx import HeightAttention, PyramidPooling, PyramidPoolingConv, functional

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # warnings inside torch and onnxscript
    pytest.mark.skipif(networks.DEVICE.type != "cpu", reason="ONNX Runtime's CPU kernels"),
]
DYNAMIC = torch.export.Dim.DYNAMIC


def sizes_of(inputs: tuple[Tensor, ...]) -> tuple[dict[int, Any], ...]:
    """Dynamic sizes: all but the channels of maps, and both of positions (N, H)."""
    return tuple(
        {0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC} if x.dim() == 4 else {0: DYNAMIC, 1: DYNAMIC}
        for x in inputs
    )


class Exported:
    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> None:
        file = io.BytesIO()
        with torch.no_grad():
            self.program = torch.onnx.export(
                module.eval(), inputs, dynamo=True, verbose=False, dynamic_shapes=sizes_of(inputs),
                **options,
            )  # fmt: skip
        self.program.save(file)
        self.session = onnxruntime.InferenceSession(file.getvalue())

    def operators(self) -> list[str]:
        assert all(node.domain == "" for node in self.program.model.graph), "not standard"
        return [node.op_type for node in self.program.model.graph]

    def __call__(self, *inputs: Tensor) -> list[np.ndarray]:
        names = [one.name for one in self.session.get_inputs()]
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=False)}
        return self.session.run(None, feed)


def check(module: nn.Module, *examples: tuple[Tensor, ...]) -> Exported:
    """Exports with the first example and compares on all."""
    exported = Exported(module, examples[0])
    exported.operators()
    onnx_checks.agree(exported, module, examples)
    return exported


@pytest.mark.parametrize("name", LAYERS)
def test_layers_for_any_size(name: str) -> None:
    layer = test_layers.make(name)
    sizes = ((2, 9, 7), (1, 16, 5), (3, 3, 3), (1, 40, 61))
    check(layer, *(test_layers.arguments(name, *size) for size in sizes))


@pytest.mark.parametrize("name", ["encnet", "upernet"])  # upernet contains pspnet's pyramid
def test_networks_for_any_size(name: str) -> None:
    network = networks.make(name)
    check(network, *((networks.image(n, 3, h, w),) for n, h, w in ((2, 64, 96), (1, 97, 65))))


def test_an_example_as_large_as_a_level() -> None:
    """Export must not infer from this example that the sizes are always equal."""
    maps = [(torch.randn(2, 8, h, w),) for h, w in ((6, 9), (13, 17), (3, 2), (6, 6))]
    check(PyramidPoolingConv(8, 5), *maps)
    check(PyramidPooling(8, (2, (6, 9)), align_corners=False), *maps)
    layer = HeightAttention(8, 8, reduction=2, pooling="max")
    rows = [(torch.randn(2, 8, h, 5), torch.randn(2, 8, w, 5)) for h, w in ((16, 16), (9, 21))]
    check(layer, *rows)


class Decoder(nn.Module):
    """A level of half the size and one of any size, in a convolution and in a sum."""

    def __init__(self, kernel: int, mode: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 6, kernel, padding=kernel // 2)
        self.mode = mode

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        half = nn.functional.avg_pool2d(x, 2)
        out = functional.pyramid_conv(
            x, [half, level], self.conv.weight, self.conv.bias, padding=self.conv.padding,
            mode=self.mode,
        )  # fmt: skip
        return functional.pyramid_add(out, [torch.cat([half[:, :2], half], 1)], mode=self.mode)


@pytest.mark.parametrize(
    ("kernel", "mode"), [(1, "bilinear"), (3, "bilinear"), (3, "nearest"), (1, "nearest-exact")]
)
def test_decoders(kernel: int, mode: str) -> None:
    """The convolution over a pyramid runs on the small maps, without their concatenation."""
    sizes = ((16, 24, 5, 7), (30, 8, 30, 3), (192, 190, 70, 100))
    examples = [(torch.randn(2, 4, h, w), torch.randn(2, 4, y, x)) for h, w, y, x in sizes]
    exported = check(Decoder(kernel, mode), *examples)
    assert exported.operators().count("Conv") == 3
    if (kernel, mode) == (1, "bilinear"):  # the only form that depends on the example's size
        larger = check(Decoder(kernel, mode), examples[2], *examples)
        assert "Resize" not in exported.operators() and "Resize" in larger.operators()


def test_an_exported_program() -> None:
    """torch.onnx.export also accepts the result of torch.export."""
    layer, x = PyramidPoolingConv(8, 5).eval(), torch.randn(2, 8, 9, 7)
    program = torch.export.export(layer, (x,))
    assert any("stripctx" in str(node.target) for node in program.graph.nodes)
    file = io.BytesIO()
    torch.onnx.export(program, dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, layer(x).detach().numpy(), rtol=1e-4, atol=1e-4)
