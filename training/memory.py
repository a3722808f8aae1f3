"""The largest micro-batch that fits: tried before the start, halved until it does."""

from __future__ import annotations

import logging

import torch

from resshift_core.device import is_out_of_memory, release_memory

from .trainer import Trainer

log = logging.getLogger("resshift.training")


def _try(trainer: Trainer, numbers: list[int], crops: dict[str, torch.Tensor]) -> bool:
    """Whether two micro-batches forward and backward fit beside the optimiser's memory and, with several processes, the
    buckets in which gradients travel. Leaves no trace.
    """
    reserve = []
    fits = True
    try:
        copies = 1 if trainer.processes.world > 1 else 0
        if not trainer.optimizer.state:  # the moments do not exist yet: two in float32, or in 8 bits
            copies += 0.5 if "8bit" in trainer.settings.optimizer else 2
        reserve = [torch.empty(int(copies * p.numel()), dtype=p.dtype, device=p.device) for p in trainer.raw.parameters()]
        net, trainer.net = trainer.net, trainer.raw  # without the other processes: each finds out for itself
        try:
            chosen = slice(0, trainer.micro_batch)
            points = trainer.chain.draw(numbers[chosen], {name: value[chosen] for name, value in crops.items()})
            for _ in range(2):  # the second one beside the gradients of the first
                with trainer.autocast():
                    loss, _, _ = trainer.objective(trainer.net, points)
                loss.backward()
        finally:
            trainer.net = net
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    del reserve
    trainer.optimizer.zero_grad(set_to_none=True)
    if trainer.judge is not None:
        trainer.judge_optimizer.zero_grad(set_to_none=True)
    release_memory(trainer.device)
    return fits


def fit_micro_batch(trainer: Trainer, numbers: list[int], crops: dict[str, torch.Tensor]) -> str:
    """Halve the trainer's micro-batch until a step fits, in every process alike; says what was chosen.

    Raises:
        MemoryError: not even one crop fits.
    """
    asked = trainer.micro_batch
    while not trainer.processes.agree(float(_try(trainer, numbers, crops)), "min"):
        if trainer.micro_batch == 1:
            raise MemoryError(
                f"Not even one crop of {trainer.settings.crop} pixels fits into the memory of {trainer.device}. Use a smaller "
                "--crop, --checkpointing True, --optimizer bnbadamw8bit, or another device."
            )
        log.warning("Out of memory with %d crops at a time.", trainer.micro_batch)
        trainer.micro_batch //= 2
    times = -(-trainer.share // trainer.micro_batch)
    because = f" ({asked} did not fit)" if trainer.micro_batch != asked else ""
    return (
        f"{trainer.micro_batch} crops at a time{because}, gradients of {times} micro-batches added up, {trainer.processes.world} "
        f"process(es): {trainer.settings.batch_size} crops per update."
    )
