"""Two processes under DistributedDataParallel or fully_shard give the gradients of one process on
the whole batch.

Norms are frozen, because their statistics differ between half a batch and a whole one.
"""

from __future__ import annotations

from pathlib import Path

import process_group
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from stripctx import StripPooling, fuse

pytestmark = pytest.mark.slow


def network() -> nn.Module:
    torch.manual_seed(7)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), StripPooling(8), nn.Conv2d(8, 4, 1))
    return layers.double().eval()


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(3 + 8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        up = nn.functional.interpolate(self.down(x), x.shape[2:], mode="bilinear")
        return self.conv(torch.cat([x, up], 1))


def decoder() -> nn.Module:
    torch.manual_seed(9)
    return Decoder().double()


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(8)
    return torch.randn(4, 3, 10, 12, dtype=torch.float64), torch.randint(0, 4, (4, 10, 12))


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    nn.functional.cross_entropy(model(images), labels).backward()
    return [parameter.grad for parameter in model.parameters()]


def train_half(rank: int, folder: Path) -> None:
    images, labels = (part.chunk(process_group.SIZE)[rank] for part in batch())
    result = gradients(DistributedDataParallel(network()), images, labels)
    fused = decoder()
    assert fuse(fused).replaced
    sharded = fully_shard(fused, mesh=init_device_mesh("cpu", (process_group.SIZE,)))
    shards = gradients(sharded, images, labels)
    result += [shard.full_tensor() for shard in shards if isinstance(shard, DTensor)]
    torch.save(result, folder / f"{rank}.pt")


def test_two_processes_equal_one(tmp_path: Path) -> None:
    process_group.run(train_half, tmp_path, tmp_path)
    expected = gradients(network(), *batch()) + gradients(decoder(), *batch())
    for rank in range(process_group.SIZE):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for gradient, want in zip(result, expected, strict=True):
            torch.testing.assert_close(gradient, want, rtol=1e-10, atol=1e-13)
