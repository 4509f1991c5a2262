"""Two processes under DistributedDataParallel or fully_shard give the gradients of one process on
the whole batch.

Norms are frozen, because their statistics differ between half a batch and a whole one.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from stripctx import StripPooling, fuse

pytestmark = pytest.mark.slow

PROCESSES = 2


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


def train_half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=PROCESSES,
        timeout=datetime.timedelta(seconds=120),
    )
    images, labels = (part.chunk(PROCESSES)[rank] for part in batch())
    result = gradients(DistributedDataParallel(network()), images, labels)
    fused = decoder()
    assert fuse(fused).replaced
    sharded = fully_shard(fused, mesh=init_device_mesh("cpu", (PROCESSES,)))
    shards = gradients(sharded, images, labels)
    result += [shard.full_tensor() for shard in shards if isinstance(shard, DTensor)]
    torch.save(result, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    multiprocessing.spawn(train_half, (str(tmp_path),), nprocs=PROCESSES)
    expected = gradients(network(), *batch()) + gradients(decoder(), *batch())
    for rank in range(PROCESSES):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for gradient, want in zip(result, expected, strict=True):
            torch.testing.assert_close(gradient, want, rtol=1e-10, atol=1e-13)
