"""Several processes at one training, started by ``torchrun``: who is who, sums over all, one model in step.

One process writes and speaks; all read. Without ``torchrun`` there is one process, and nothing here does anything.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from lrmil_cli.device import pick_device

#: Processes wait so long for each other: one of them may still be encoding its share of a large cohort.
PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class World:
    """The processes of a training: ``rank`` is this one's number, ``size`` how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            torch.distributed.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """``values``, summed over all processes."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def share(self, items: Any) -> Any:
        """This process's part of a sequence: every ``size``-th item."""
        return items[self.rank :: self.size]

    def together(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over the processes in each backward pass.

        Blocks behind the last distilled layer get no gradient, so unused parameters are looked for.
        """
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        ids = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True)


@contextmanager
def join(device: str = "auto") -> Iterator[tuple[World, torch.device]]:
    """Join the processes that ``torchrun`` started, and choose this one's device: on a GPU one each, by ``LOCAL_RANK``.

    Raises:
        UsageError, MachineError: as :func:`lrmil_cli.device.pick_device`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(), pick_device(device)
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    where = pick_device(f"cuda:{local}" if on_gpu else device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    world = World(int(os.environ["RANK"]), size)
    if not world.first:
        # It has nothing to clean up, and may sit in a wait that no Python handler gets through to.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Torch for Windows has no NCCL; gloo takes GPUs as well, more slowly.
    fast = where.type == "cuda" and torch.distributed.is_nccl_available()
    torch.distributed.init_process_group("nccl" if fast else "gloo", timeout=PATIENCE)
    try:
        yield world, where
    finally:
        torch.distributed.destroy_process_group()
