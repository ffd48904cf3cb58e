"""One process, or several under torchrun: who this one is, and sums over all of them."""
import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from audiocodec.tokens import choose_device


@dataclass(frozen=True)
class Team:
    """The processes that train together. The first one leads: it alone writes, and what it decides holds for all."""

    device: str = "cpu"
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """A module whose gradients are means over the team's."""
        return DistributedDataParallel(module) if self.size > 1 else module

    def sum(self, *tensors: Tensor) -> None:
        """Replace tensors by their sums over the team."""
        for tensor in tensors if self.size > 1 else ():
            distributed.all_reduce(tensor)

    def share(self, *tensors: Tensor) -> None:
        """Replace tensors by the leader's."""
        for tensor in tensors if self.size > 1 else ():
            distributed.broadcast(tensor, 0)

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            distributed.barrier()


@contextlib.contextmanager
def join(device: str) -> Iterator[Team]:
    """Join the team that torchrun made, or be one alone. Raises NacError for CUDA where there is none."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = choose_device(device)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        torch.set_float32_matmul_precision("high")
    if size == 1:
        yield Team(device)
        return
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Team(device, rank, size)
    finally:
        distributed.destroy_process_group()


def leave() -> NoReturn:
    """End this process, which does not lead, at once and without taking the interpreter apart.

    DistributedDataParallel keeps gloo's threads beyond the group's end. One that still holds the tensors of the last
    sum needs Python's lock to let go of them, and aborts a process that has begun to take Python apart; torchrun then
    ends the leader too. So it happened in one run of thirty.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
