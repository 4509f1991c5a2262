"""One training process, or several when started by torchrun."""

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
    """This process and the group that trains one network."""

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum_(self, value: Tensor) -> Tensor:
        """Sums over all processes in place; the result is the same in each."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def share(self, value: Any) -> Any:
        """Broadcasts the first process's value; other machines may have other disks."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Gathers the values of all processes, in order, in every process."""
        if self.size == 1:
            return [value]
        everyone = [None] * self.size
        distributed.all_gather_object(everyone, value)
        return everyone

    def any(self, here: bool) -> bool:
        """Whether the condition holds in any process. All must call it. Synchronizes the device."""
        if self.size == 1:
            return here
        return bool(self.sum_(torch.tensor(int(here), device=self.device)).item())

    def distribute(self, network: nn.Module, norms: str) -> nn.Module:
        """Returns the module to call for training in place of `network`, which is on the device.

        norms: `sync` computes batch norm statistics over the whole batch (GPUs only); otherwise
        each process uses its own, and the first process's are saved.
        """
        if self.size == 1:
            return network
        if norms == "sync" and self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, devices)


def join(device: str = "") -> Processes:
    """Joins the process group if torchrun started this process; selects the GPU of its local rank.

    Args:
        device: cpu or cuda; by default cuda if available.

    Raises:
        ArgumentError: there is no such GPU.
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
    """Sets training mode, but eval mode for norms if their statistics are frozen."""
    network.train()
    if frozen_norms:
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
