"""int8 networks made as in docs/deploy.md: backbone and head convolve in int8."""

from __future__ import annotations

import copy
from importlib.util import find_spec

import networks
import pytest
import torch
from networks import DEVICE
from torch import Tensor, nn

from stripctx import models

pytestmark = [
    # torch.ao.quantization warns of its removal; torchao's too
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(DEVICE.type != "cpu", reason="int8 kernels of CPUs"),
]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return models.pspnet(5, "resnet18", aux=False).eval()


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    return [networks.image(1, 3, 65, 65) for _ in range(3)]


def assert_similar(int8: nn.Module, network: nn.Module, image: Tensor) -> None:
    with torch.no_grad():
        got, want = int8(image)["out"], network(image)["out"]
    assert 0 < float((got - want).abs().max()) < 0.2 * float(want.abs().max())
    assert float((got.argmax(1) == want.argmax(1)).float().mean()) > 0.9


@pytest.mark.skipif(
    find_spec("torch.ao.quantization.quantize_fx") is None, reason="this torch has no quantize_fx"
)
def test_by_fx(network: nn.Module, images: list[Tensor]) -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    observed = prepare_fx(copy.deepcopy(network), get_default_qconfig_mapping("x86"), (images[0],))
    with torch.no_grad():
        for image in images:
            observed(image)
        int8 = convert_fx(observed)
    kinds = {type(module).__name__ for module in int8.modules()}
    assert {"ConvReLU2d", "PyramidPoolingConv"} <= kinds
    assert_similar(int8, network, images[0])


def test_by_pt2e(images: list[Tensor]) -> None:
    """Every convolution is quantised, including those of residual blocks, which add two maps."""
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    torch.manual_seed(0)
    network = models.spnet(5, "resnet18", strip_pooling=False, aux=False).eval()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        observed = prepare_pt2e(torch.export.export(network, (images[0],)).module(), quantizer)
        for image in images:
            observed(image)
        int8 = convert_pt2e(observed)
    called = [str(node.target) for node in int8.graph.nodes]
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert sum("dequantize_per_channel" in one for one in called) == convolutions
    assert any("stripctx" in one for one in called)
    assert_similar(int8, network, images[0])
