"""Static types of the public API: `make lint` checks this file with mypy, and the tests run it."""

from __future__ import annotations

import sys
import typing
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

from stripctx import fuse, models
from stripctx.fusion import Report
from stripctx.models import registry
from stripctx.models.deeplab_hanet import DeepLabHANet
from stripctx.models.deepten import DeepTEN
from stripctx.models.fcn import FCN


def test_a_network_made_by_name_has_its_type() -> None:
    network = models.create("fcn", num_classes=3, backbone="resnet18")
    assert_type(network, FCN)
    image = torch.randn(2, 3, 33, 33)
    outputs = network(image)
    assert_type(outputs, dict[str, Tensor])
    assert_type(outputs["out"], Tensor)
    assert_type(network.eval().predict(image), Tensor)
    assert_type(network.backbone(image), tuple[Tensor, ...])
    assert_type(fuse(network), Report)


def test_networks_with_other_arguments_or_results() -> None:
    with torch.device("meta"):
        attended = models.create("deeplabv3plus_hanet", num_classes=3, backbone="resnet18")
        assert_type(attended, DeepLabHANet)
        pos = torch.zeros(2, 33, dtype=torch.int64)
        assert_type(attended(torch.randn(2, 3, 33, 33), pos), dict[str, Tensor])
        encoder = models.create("deepten", num_classes=3, backbone="resnet18")
        assert_type(encoder, DeepTEN)
        assert_type(encoder(torch.randn(2, 3, 33, 33)), Tensor)


def test_a_name_of_type_str_gives_a_module() -> None:
    name: str = models.available()[0]
    with torch.device("meta"):
        assert_type(models.create(name, num_classes=3, backbone="resnet18"), nn.Module)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.get_overloads is new in 3.11")
def test_every_network_has_an_overload() -> None:
    get_overloads: Any = getattr(typing, "get_overloads")  # noqa: B009
    said = [overload.__annotations__ for overload in get_overloads(registry.create)]
    names = {eval(one["name"], {"Literal": Literal, "str": str}) for one in said}
    assert names == {str, *(Literal[name] for name in models.available())}
    for one in said[:-1]:
        name = typing.get_args(eval(one["name"], {"Literal": Literal}))[0]
        made = registry._FACTORIES[name].__annotations__["return"]
        assert one["return"] == made, name
