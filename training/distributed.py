"""The processes of a run, as torchrun starts them. Without torchrun there is one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from resshift_core.device import resolve_device
from resshift_core.errors import InputError, brief
from resshift_core.ranks import Rank

LONGEST_WAIT = timedelta(hours=12)  # the first process decodes every picture of a folder, however large, before the start


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int
    world: int
    device: torch.device
    here: int = 1  # of them on this machine

    @property
    def first(self) -> bool:
        """The one that writes files and talks."""
        return self.rank == 0

    def agree(self, value: float, how: str = "max") -> float:
        """The largest ("max"), smallest ("min") or average ("mean") of every process's number."""
        if self.world == 1:
            return value
        numbers = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(numbers, {"max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN, "mean": dist.ReduceOp.SUM}[how])
        return float(numbers) / (self.world if how == "mean" else 1)

    def share(self, value):
        """What the first process has, in every process."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def _asked_for(device: str, world: int) -> torch.device:
    if device == "auto" and world == 1:
        found = resolve_device("auto")
        return found if found.type == "cuda" else torch.device("cpu")  # nothing else was ever trained on
    if device == "auto":  # trying the first GPU would take memory on it, in every process
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if world == 1:
        return resolve_device(device)
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise InputError(f"The device {device!r} cannot be used ({brief(error)}). Try cpu or auto.") from error


def start(device: str = "auto") -> Processes:
    """Join the other processes, if torchrun's variables are set. device: "auto", "cuda", "cpu", "cuda:1", ...

    Raises:
        InputError: there is no such device, or the environment makes no sense.
    """
    place = Rank.from_environment()
    world = place.count
    where = _asked_for(device, world)
    if where.type == "meta":
        raise InputError("The device meta computes nothing. Choose cuda or cpu.")
    if world == 1:
        if where.type == "cuda" and where.index is not None:
            torch.cuda.set_device(where)  # or helpers of torch would take memory on the first GPU, too
        return Processes(0, 1, where)
    if where.type == "cuda":
        where = torch.device("cuda", place.local)
        torch.cuda.set_device(where)
    backend = "nccl" if where.type == "cuda" and dist.is_nccl_available() else "gloo"  # Windows has no NCCL
    dist.init_process_group(backend, timeout=LONGEST_WAIT)
    return Processes(dist.get_rank(), world, where, int(os.environ.get("LOCAL_WORLD_SIZE", world)))


def stop(processes: Processes) -> None:
    if processes.world > 1 and dist.is_initialized():
        dist.destroy_process_group()
