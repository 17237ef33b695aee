"""Several processes that train one model, as ``torchrun`` starts them: each computes a share of every batch.

All see the same batch and draw the same noise, take their own rows of it, and average the gradients; so each does the
same step, and the result is that of one process up to rounding. Without ``torchrun`` there is a team of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Team:
    """Who takes part.

    Attributes:
        rank: which of the processes this one is, from 0; the first one writes the files.
        size: how many there are.
        device: where this one computes.
    """

    rank: int
    size: int
    device: torch.device

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's rows of ``(N, ...)``; ``N`` is a multiple of the team's size."""
        return rows[self.rank :: self.size]

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten().float() for tensor in tensors]) / self.size
        dist.all_reduce(flat)
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, mean in zip(tensors, torch.split(flat, sizes), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def agree(self, progress: float, stopping: bool) -> tuple[float, bool]:
        """Return the furthest progress of all, and whether any of them wants to stop: clocks and signals differ."""
        if self.size == 1:
            return progress, stopping
        both = torch.tensor([progress, float(stopping)], dtype=torch.float64, device=self.device)
        dist.all_reduce(both, dist.ReduceOp.MAX)
        furthest, stop = both.tolist()
        return furthest, bool(stop)


@contextmanager
def team_on(device: torch.device, batch_size: int) -> Iterator[Team]:
    """Give the team that ``torchrun`` announced in the environment, connected; on ``cuda`` each has a GPU of its own.

    Raises:
        ValueError: the batch cannot be shared out evenly.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if batch_size % size:
        raise ValueError(f"--batch-size: got {batch_size}; expected a multiple of the {size} processes")
    if device.type == "cuda" and size > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if size == 1:
        yield Team(rank, size, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Team(rank, size, device)
    finally:
        dist.destroy_process_group()
