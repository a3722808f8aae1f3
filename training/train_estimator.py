"""Give a model an estimator of degradations, or train the one that it has.

    python training/train_estimator.py --data PICTURES --output OUT [--model builtin] [--degradation everyday] [--damaged-share 0.7]

The estimator is shown low-resolution crops, and told what was done to them: noise, JPEG, blur, or nothing. Then
OUT/estimator.safetensors is MODEL with this estimator. A model that had none returns the same pictures as before, and its trunk
can learn what to make of the estimates:

    python training/finetune.py --model OUT/estimator.safetensors --data PICTURES --output OUT2 --degradation everyday \\
        --damaged-share 0.7

which leaves the estimator as it is. Prints for every number how much of its variance is explained, for crops that it was not
trained on. A run is short and cannot be resumed. docs/training.md says more. Of the settings below, those of other things
than data, crops, degradation, learning rate and model are refused.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: let it be the module that `python -m training.train_estimator` runs
    folder = Path(__file__).resolve().parent  # a portable Python has its library at sys.path[0], not this folder
    sys.path[:] = [str(folder.parent), *(place for place in sys.path if Path(place).resolve() != folder)]

import logging
import math
import typing
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

import resshift_core as rs
from resshift_core.degradation import DESCRIPTION
from resshift_core.device import is_out_of_memory
from resshift_core.errors import brief
from training.data import Positions, default_workers, load_batches
from training.dataset import degradation_of, prepare_data
from training.degradation import descriptions
from training.distributed import Processes
from training.finetune import prepare, program
from training.resize import add_estimator
from training.settings import SettingsError, TrainSettings, refuse_foreign
from training.trainer import BAD_STEPS, NotFinite
from training.upload import may_run_ahead
from training.validation import NUMBERS_FROM

log = logging.getLogger("resshift.training")

KNOWN = ("everyday", "paper-b1")
CHANNELS = 64  # of the embedding, in a model that has none
HELD = 16  # batches that are only looked at


@dataclass(frozen=True)
class EstimatorSettings(TrainSettings):
    """Settings of finetune.py that say what crops are, and these."""

    not_here: typing.ClassVar[tuple[str, ...]] = (
        "trunk_blocks", "width", "config", "preset", "resume", "dry_run", "contact_sheet", "steps", "kappa", "p", "min_noise_level",
        "predict", "last_step_share", "rollout_share", "micro_batch", "schedule", "final_rate", "warmup_share", "optimizer", "betas",
        "clip", "ema", "precision", "checkpointing", "compile", "loss", "psnr_limit", "eq8_weight", "lpips", "lpips_net", "spectrum",
        "adversarial", "pairs", "validation", "validation_count", "validation_crop", "validate_every", "save_every", "log_every",
        "best_by",
    )  # fmt: skip

    iterations: int = 3000
    damaged_share: float = 0.7  # of crops that get it; the rest is plainly bicubic, which is to be recognised, too
    batch_size: int = 8
    repeats: int = 4  # of every crop in a batch, each with a degradation of its own
    weight_decay: float = 1e-3


class Batches:
    """(low-resolution crops, what was done to them), on the device of the run."""

    def __init__(self, settings: EstimatorSettings, crops, scale: int, device: torch.device):
        self.settings, self.crops, self.device = settings, crops, device
        self.degrade = degradation_of(settings, scale)
        self.workers = default_workers(device, 1) if settings.workers is None else settings.workers

    def degraded(self, numbers, hr) -> tuple[torch.Tensor, torch.Tensor]:
        """Every crop of a batch, (B, 3, H, W) in [0, 1], `repeats` times: (lq in [-1, 1], descriptions)."""
        settings, small, wanted = self.settings, [], []
        for repeat in range(settings.repeats):
            own = [number * settings.repeats + repeat for number in numbers]
            small.append(self.degrade(hr, own))
            wanted.append(descriptions(settings.degradation, own, settings.seed, settings.damaged_share))
        return torch.cat(small) * 2 - 1, torch.cat(wanted).to(self.device)

    def __iter__(self):
        positions = Positions(0, self.settings.batch_size, 0, 1)
        for numbers, crops in load_batches(self.crops, positions, self.workers, pin=self.device.type == "cuda"):
            yield self.degraded(numbers, crops["hr"].to(self.device, non_blocking=may_run_ahead(self.device)))

    def held(self):
        """Batches that no run trains on, always the same."""
        size = self.settings.batch_size
        for batch in range(HELD):
            numbers = [NUMBERS_FROM + batch * size + i for i in range(size)]
            hr = torch.stack([self.crops[number]["hr"] for number in numbers]).to(self.device)
            yield self.degraded(numbers, hr)


@torch.no_grad()
def explained(estimator, batches) -> dict[str, float]:
    """Share of each number's variance that the estimates explain, where it varies: 1 = all, 0 = nothing."""
    found, wanted = (torch.cat(parts) for parts in zip(*((estimator(lq), wanted) for lq, wanted in batches)))
    left, there = (found - wanted).square().mean(0).tolist(), wanted.var(0, unbiased=False).tolist()
    return {name: 1 - error / variance for name, error, variance in zip(DESCRIPTION, left, there) if variance > 1e-4}


def learn(estimator, batches: Batches) -> None:
    """AdamW on the squared error, with a cosine; the printed error is a moving average.

    Raises:
        NotFinite: the third loss in a row is not finite.
    """
    settings, error, skipped = batches.settings, 0.0, 0
    optimizer = torch.optim.AdamW(estimator.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    for done, (lq, wanted) in enumerate(batches):
        if done == settings.iterations:
            return
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (0.505 + 0.495 * math.cos(math.pi * done / settings.iterations))
        loss = F.mse_loss(estimator.unlimited(lq), wanted)
        skipped = 0 if bool(torch.isfinite(loss)) else skipped + 1
        if skipped:
            log.warning("The loss of iteration %d is not finite; the step is skipped.", done)
            if skipped == BAD_STEPS:
                raise NotFinite(
                    f"The loss was not finite in {BAD_STEPS} steps in a row. Lower --learning-rate and start again."
                )
            continue
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(estimator.parameters(), 1.0)
        optimizer.step()
        error += 0.02 * (float(loss.detach()) - error) if done else float(loss.detach())
        if done % 100 == 99:
            print(f"{done + 1} of {settings.iterations}: mean square error {error:.4f}", flush=True)


def run(settings: EstimatorSettings, processes: Processes) -> None:
    """Everything from the loaded model to the file.

    Raises:
        SettingsError: degradations that no few numbers describe, several processes, or a model without a trunk.
    """
    refuse_foreign(settings, "only the estimator is trained")
    if processes.world > 1:
        raise SettingsError("The estimator is trained by one process. Start it without torchrun.")
    kind, rate = settings.degradation or "everyday", settings.learning_rate or 2e-3
    if kind not in KNOWN:
        raise SettingsError(f"--degradation is {kind}; an estimator can learn {' or '.join(KNOWN)}.")
    if settings.repeats < 1:
        raise SettingsError(f"--repeats is {settings.repeats}; it must be at least 1.")
    settings, start = prepare(replace(settings, degradation=kind, learning_rate=rate), processes)
    start.model = model = add_estimator(start.model, CHANNELS)
    start.apply(settings)
    data = prepare_data(settings, model, processes)
    estimator = model.unet.degradation.to(processes.device).train().requires_grad_(True)
    batches = Batches(settings, data.crops, model.scale, processes.device)
    try:
        learn(estimator, batches)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"Out of memory ({brief(error)}). Lower --batch-size or --repeats.") from None
    print("Explained: " + ", ".join(f"{name} {share:.2f}" for name, share in explained(estimator, batches.held()).items()))
    path = settings.output / "estimator.safetensors"
    seen = settings.description or f"{data.count} pictures, fingerprint {data.fingerprint}"
    notes = {"parent": start.parent, "parent_sha256": start.parent_sha256, "estimator_data": seen}
    rs.save_model(model.eval(), path, notes)
    print(path)


def main(argv=None) -> int:
    """The program."""
    return program(argv, __doc__, run, EstimatorSettings)


if __name__ == "__main__":
    sys.exit(main())
