"""ONNX files of fused networks from other packages: any batch and image size, and the convolution
over a pyramid without the pyramid."""

from __future__ import annotations

import decoder_networks
import pytest
import torch
from test_onnx import check, pytestmark  # noqa: F401
from torch import nn

from benchmarks.networks import Inference
from stripctx import fuse

# Each with the sizes (N, H, W) to run. torch exports UPerNet's adaptive pooling, fused or not, for
# the example's height and width only.
NETWORKS = {
    "SegFormer, transformers": (
        lambda: decoder_networks.huggingface_segformer(256),
        ((2, 64, 96), (1, 128, 64)),
    ),
    "UPerNet, smp": (lambda: decoder_networks.smp("UPerNet"), ((2, 64, 96), (1, 64, 96))),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_for_any_size(name: str) -> None:
    torch.manual_seed(0)
    build, sizes = NETWORKS[name]
    network = Inference(build()).eval()
    images = [(torch.randn(n, 3, h, w),) for n, h, w in sizes]
    widest = max(one.in_channels for one in network.modules() if isinstance(one, nn.Conv2d))
    assert fuse(network, images[0][0]).replaced
    exported = check(network, *images)
    weights = [node.inputs[1] for node in exported.program.model.graph if node.op_type == "Conv"]
    assert max(int(weight.shape[1]) for weight in weights) < widest, "maps are concatenated"
