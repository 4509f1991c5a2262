"""One process or many: started plainly there is one, started by torchrun there are several."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from examples.commands import ArgumentError

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """This process among those that train one network together."""

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU

    @property
    def first(self) -> bool:
        """Whether this one writes files and speaks to the user."""
        return self.rank == 0

    def sum_(self, value: Tensor) -> Tensor:
        """In place over all processes; the result is the same in each."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def share(self, value: Any) -> Any:
        """What the first process has, to all: they may be on machines with other disks."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """What each process has, to all, in the order of the processes."""
        if self.size == 1:
            return [value]
        everyone = [None] * self.size
        distributed.all_gather_object(everyone, value)
        return everyone

    def any(self, here: bool) -> bool:
        """Whether it holds in any process; all must ask. Waits for the device."""
        if self.size == 1:
            return here
        return bool(self.sum_(torch.tensor(int(here), device=self.device)).item())

    def distribute(self, network: nn.Module, norms: str) -> nn.Module:
        """What to call for training instead of `network`, which is on the device.

        norms: `sync` gives batch norms the statistics of the whole batch, on GPUs; else each
        process has its own, and those of the first are kept.
        """
        if self.size == 1:
            return network
        if norms == "sync" and self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, devices)


def join(device: str = "") -> Processes:
    """Joins the others where torchrun started this process; takes the GPU of its own number.

    Args:
        device: cpu or cuda; by default cuda where there is one.

    Raises:
        ArgumentError: the GPU is not there.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if kind == "cuda" and local >= torch.cuda.device_count():
        raise ArgumentError(
            f"--device: cuda needs {local + 1} GPUs here, and torch {torch.__version__} finds "
            f"{torch.cuda.device_count()}"
        )
    place = torch.device("cuda", local) if kind == "cuda" else torch.device(kind)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    return Processes(int(os.environ.get("RANK", 0)), size, place)


def leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def set_training(network: nn.Module, *, frozen_norms: bool) -> None:
    """Training mode, but for norms whose statistics are frozen."""
    network.train()
    if frozen_norms:
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
