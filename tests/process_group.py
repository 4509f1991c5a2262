"""Work done by the processes of a process group, for tests."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as distributed

SIZE = 2


def run(worker: Callable[..., None], folder: Path, *arguments: object) -> None:
    """Calls `worker(rank, *arguments)` in each of `SIZE` spawned processes, which form a gloo group
    over a file in `folder`; raises an error if one fails."""
    torch.multiprocessing.spawn(_member, (worker, folder / "store", arguments), nprocs=SIZE)


def _member(rank: int, worker: Callable[..., None], store: Path, arguments: tuple[object]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=SIZE,
        timeout=datetime.timedelta(seconds=120),
    )
    worker(rank, *arguments)
    distributed.destroy_process_group()
    # The group's threads can outlive it (torch 2.13) and then abort an interpreter that shuts down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
