"""torch.fx: tools that trace layers and networks."""

from __future__ import annotations

import importlib

import networks
import oracles
import pytest
import test_layers
import torch
from networks import DEVICE
from test_layers import LAYERS
from torch import Tensor, nn
from torch.fx.experimental import optimization

from stripctx import StripPooling, models


class Around(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, out: Tensor | None = None, pos: Tensor | None = None) -> Tensor:
        return self.layer(x) if out is None else self.layer(x, out, pos)


def leaves(outputs: object) -> list[Tensor]:
    found = torch.utils._pytree.tree_leaves(outputs)
    return [one for one in found if isinstance(one, Tensor)]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_a_leaf(name: str) -> None:
    module, inputs = Around(test_layers.make(name)).eval(), test_layers.arguments(name, 2, 9, 7)
    given = {} if len(inputs) > 1 else {"out": None, "pos": None}
    traced = torch.fx.symbolic_trace(module, given)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["layer"]
    for got, want in zip(leaves(traced(*inputs)), leaves(module(*inputs)), strict=True):
        assert torch.equal(got, want)


def test_a_layer_by_itself_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"trace torch.nn.Sequential\(layer\)"):
        torch.fx.symbolic_trace(StripPooling(4))


@pytest.mark.parametrize("name", models.available())
def test_networks(name: str) -> None:
    """For any size of image, and the outputs of training."""
    network = networks.make(name).eval()
    traced = torch.fx.symbolic_trace(network)
    for size in ((1, 3, 64, 48), (2, 3, 33, 65)):
        image = networks.image(*size)
        for got, want in zip(leaves(traced(image)), leaves(network(image)), strict=True):
            assert torch.equal(got, want)
    if name != "deepten":
        assert set(torch.fx.symbolic_trace(network.train())(image)) == set(network(image))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return models.pspnet(5, "resnet18", aux=False).to(DEVICE).eval()


def test_feature_extractors(network: nn.Module) -> None:
    oracles.torchvision()
    extraction = importlib.import_module("torchvision.models.feature_extraction")
    image = networks.image(2, 3, 33, 41)
    nodes = {"backbone.layer2": "features", "head.0": "context"}
    names = extraction.get_graph_node_names(network)[1]
    nodes = {next(n for n in names if n.startswith(prefix)): key for prefix, key in nodes.items()}
    found = extraction.create_feature_extractor(network, nodes)(image)
    assert set(found) == {"features", "context"} and found["context"].shape[0] == 2


def test_normalisations_are_folded(network: nn.Module) -> None:
    folded, image = optimization.fuse(network), networks.image(2, 3, 33, 41)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.backbone.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(image), network(image), rtol=1e-3, atol=1e-4)
