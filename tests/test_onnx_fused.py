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
from stripctx.fusion import cost

# Heads of mmseg, each with the sizes (N, H, W) to run. torch exports UPerNet's adaptive pooling,
# fused or not, for the example's height and width only.
HEADS = {
    "SegformerHead": ((2, 64, 96), (1, 128, 64)),
    "UPerHead": ((2, 64, 96), (1, 64, 96)),
}


@pytest.mark.parametrize("name", HEADS)
def test_for_any_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "pays", lambda *shapes: True)  # the maps are small
    torch.manual_seed(0)
    head = {"type": name, **decoder_networks.FOUR, "channels": 32}
    network = Inference(decoder_networks.mmseg(decoder_networks.STAGES, head)).eval()
    images = [(torch.randn(n, 3, h, w),) for n, h, w in HEADS[name]]
    widest = max(one.in_channels for one in network.modules() if isinstance(one, nn.Conv2d))
    assert fuse(network, images[0][0]).replaced
    exported = check(network, *images)
    weights = [node.inputs[1] for node in exported.program.model.graph if node.op_type == "Conv"]
    assert max(int(weight.shape[1]) for weight in weights) < widest, "maps are concatenated"
