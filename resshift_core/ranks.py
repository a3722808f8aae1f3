"""Several processes started by torchrun, each on a GPU of its own; of one list of pictures, each takes every n-th."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from .errors import InputError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # that a process waits for the others at the end


@dataclass(frozen=True)
class Rank:
    """This process's place among those of one run; alone: 0 of 1."""

    index: int = 0  # over all machines
    count: int = 1
    local: int = 0  # on this machine

    @classmethod
    def from_environment(cls) -> Rank:
        """RANK, WORLD_SIZE and LOCAL_RANK as torchrun sets them.

        Raises:
            InputError: they are no numbers that belong together.
        """
        words = {
            name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        }
        try:
            rank = cls(int(words["RANK"]), int(words["WORLD_SIZE"]), int(words["LOCAL_RANK"]))
        except ValueError:
            rank = None
        alone = rank is not None and rank.count > 1 and "RANK" not in os.environ  # some launchers leave WORLD_SIZE behind
        if rank is None or alone or not 0 <= rank.index < rank.count or rank.local < 0:
            told = ", ".join(f"{name}={value if name in os.environ else ''}" for name, value in words.items())
            raise InputError(
                f"The environment says {told}, which makes no sense. torchrun sets these; unset them to run alone."
            )
        return rank

    def share(self, items: list[T]) -> list[T]:
        """The part of a list that this process does; all processes must be given the same list."""
        return items[self.index :: self.count]

    def device(self, asked: str) -> str:
        """The device as asked, but "auto" and "cuda" mean this process's own GPU where there are several processes."""
        if self.count == 1 or asked not in ("auto", "cuda"):
            return asked
        import torch

        if not torch.cuda.is_available():
            return asked
        return f"cuda:{self.local % torch.cuda.device_count()}"

    def any_failed(self, failed: bool) -> bool:
        """Whether a picture failed in any process of the run; waits until all are done.

        torchrun ends all processes as soon as one reports failure, so none may do so while others work.
        """
        if self.count == 1 or not _is_torchrun():
            return failed
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo", timeout=PATIENCE)
        try:
            failures = torch.tensor(int(failed))
            dist.all_reduce(failures)
            return bool(failures)
        finally:
            dist.destroy_process_group()


def _is_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and "MASTER_ADDR" in os.environ
