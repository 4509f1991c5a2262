"""ONNX by torch.onnx.export(dynamo=False), which traces by TorchScript: every layer, every network
and functions that are given sizes, for any batch and size, against ONNX Runtime."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import decoder_networks
import networks
import numpy as np
import pytest
import test_layers
import torch
from onnx_checks import Inputs, agree
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.networks import Inference
from stripctx import functional, fuse

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # warnings inside torch
    pytest.mark.skipif(networks.DEVICE.type != "cpu", reason="ONNX Runtime's CPU kernels"),
]


def check(module: nn.Module, *examples: Inputs, opset: int = 17) -> None:
    """Exports with the first example and compares on all."""
    file, module = io.BytesIO(), module.eval()
    names = [f"input_{k}" for k in range(len(examples[0]))]
    free = {  # every size but the channels
        name: [axis for axis in range(x.dim()) if x.dim() < 4 or axis != 1]
        for name, x in zip(names, examples[0], strict=True)
    }
    torch.onnx.export(
        module, examples[0], file, dynamo=False, opset_version=opset, input_names=names,
        dynamic_axes=free,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(file.getvalue())
    known = {one.name for one in session.get_inputs()}

    def run(*inputs: Tensor) -> list[np.ndarray]:
        feed = {n: x.numpy() for n, x in zip(names, inputs, strict=True) if n in known}
        return session.run(None, feed)

    agree(run, module, examples)


@pytest.mark.parametrize("name", test_layers.LAYERS)
def test_layers_for_any_size(name: str) -> None:
    sizes = ((2, 9, 7), (1, 16, 5), (3, 3, 3), (1, 40, 61))
    check(test_layers.make(name), *(test_layers.arguments(name, *size) for size in sizes))


@networks.every_network
def test_networks_for_any_size(name: str) -> None:
    images = [(networks.image(*size),) for size in ((2, 3, 64, 96), (1, 3, 97, 65))]
    check(networks.make(name), *images, opset=18)


class Around(nn.Module):
    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, **self.options)


def labels(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    size, target = x.shape[2:], x[:, 0].abs().to(torch.int64) % 5
    found = functional.upsample_softmax_max(y, size, align_corners=False, dtype=torch.int32)
    loss = functional.upsample_cross_entropy(y, target, align_corners=True, label_smoothing=0.1)
    sums = functional.upsample_dice(y, target, align_corners=False)
    binary = functional.upsample_binary_cross_entropy(y, x.sigmoid(), align_corners=False)
    return (functional.upsample_argmax(y, size, align_corners=True), *found, loss, *sums, binary)


WEIGHT = torch.randn(3, 12, 3, 3)
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "labels": labels,
    "row_pool": lambda x, y: functional.row_pool(x, y.shape[2]),
    "row_pool, max": lambda x, y: functional.row_pool(x, y.shape[2], "max"),
    "pyramid_pool": lambda x, y: functional.pyramid_pool(x, [y.shape[2:], 2]),
    **{
        f"pyramid_add, {mode}": lambda x, y, mode=mode: functional.pyramid_add(x, [y], mode=mode)
        for mode in ("bilinear", "nearest", "nearest-exact")
    },
    "pyramid_conv": lambda x, y: functional.pyramid_conv(
        x, [x - 1, y], WEIGHT, padding=1, align_corners=True, x_index=1
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_with_size_arguments(name: str) -> None:
    """In other examples the ratio of y to x differs, or is 1. torch.jit.trace too."""
    sizes = ((2, 12, 14, 6, 7), (1, 60, 97, 40, 31), (1, 5, 6, 5, 6))
    examples = [(torch.randn(n, 4, h, w), torch.randn(n, 4, y, x)) for n, h, w, y, x in sizes]
    module = Around(FUNCTIONS[name])
    check(module, *examples)
    traced = torch.jit.trace(module, examples[0], check_trace=False)
    for inputs in examples:
        outputs = tree_leaves(traced(*inputs)), tree_leaves(module(*inputs))
        for got, want in zip(*outputs, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


FUSED: dict[str, Callable[[], nn.Module]] = {
    "SegFormer, transformers": lambda: decoder_networks.huggingface_segformer(256),
    "U-Net, smp": lambda: decoder_networks.smp("Unet"),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_networks(name: str) -> None:
    """Tracing uses the original forwards."""
    torch.manual_seed(0)
    network = Inference(FUSED[name]()).eval()
    images = [(torch.randn(n, 3, h, w),) for n, h, w in ((2, 64, 96), (1, 128, 64))]
    assert fuse(network, images[0][0]).replaced
    check(network, *images)
