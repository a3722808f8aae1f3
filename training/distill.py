"""Make a one-step student of a multi-step ResShift model, by the losses of SinSR (Wang et al., CVPR 2024).

    python training/distill.py --data PICTURES --output OUT                       # of the built-in model
    python training/distill.py --data PICTURES --output OUT --model TEACHER       # of any model the core loads

The student starts as the teacher. It learns (a) to return at once what the teacher's deterministic sampler reaches in all
its steps from the same noise; (b) at t = 1 the way back, from the result to x_T (--inverse); (c) to return the true picture
from the x_T that it would itself assign to it (--consistency). OUT/last.safetensors and OUT/best.safetensors carry one
default step, so the nodes, WebUI and the command line run them with `steps=1` unasked.

All settings of training/finetune.py apply (data, degradation, memory, --resume auto, torchrun), but those of the schedule,
which is the teacher's. docs/training.md has numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: let it be the module that `python -m training.distill` runs
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

import resshift_core as rs
from resshift_core.sampler import sample
from training.chain import Chain, Points
from training.degradation import make_degradation
from training.distributed import Processes
from training.finetune import prepare, prepare_data, program, train
from training.settings import SettingsError, TrainSettings, describe
from training.trainer import Trainer


@dataclass(frozen=True)
class DistillSettings(TrainSettings):
    """Settings of finetune.py, and the weights of SinSR's losses."""

    inverse: float = 1.0  # weight of the way back, from the teacher's result to x_T
    consistency: float = 1.0  # weight of the loss against the true picture


class Distillation:
    """loss(net, points) -> (loss, its parts, None), with the student as `net`."""

    def __init__(self, chain: Chain, teacher: rs.ResShiftModel, inverse: float, consistency: float):
        self.chain, self.teacher, self.inverse, self.consistency = chain, teacher, inverse, consistency
        self.discriminator = None

    @torch.no_grad()
    def teach(self, points: Points) -> torch.Tensor:
        """The teacher's x0 after all steps of the deterministic sampler, (B, C, h, w)."""
        teacher = self.teacher
        condition = teacher.unet.condition(points.lq, points.mask)

        def denoise(x_t, t):
            return teacher.denoise(x_t, points.y0, teacher.schedule, t, condition).float()

        return sample(denoise, points.y0, teacher.schedule, lambda draw: points.noise[1], sampler="deterministic")

    def ask(self, net, points: Points, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The student's answer to x at t, (B, C, h, w)."""
        return self.chain.predict_x0(net, replace(points, x_t=x, t=t))

    def __call__(self, net, points: Points):
        last = torch.full_like(points.t, self.chain.model.schedule.steps - 1)
        first = torch.zeros_like(points.t)
        x_T = self.chain.shifted(points.y0, points.y0, last, points.noise[1])
        target = self.teach(points)
        loss = F.mse_loss(self.ask(net, points, x_T, last), target)
        parts = {"mse": loss.detach()}
        if self.inverse:
            back = F.mse_loss(self.ask(net, points, target, first), x_T)
            parts["inverse"] = back.detach()
            loss = loss + self.inverse * back
        if self.consistency:
            with torch.no_grad():
                own = self.ask(self.chain.model.unet, points, points.x0, first)
            true = F.mse_loss(self.ask(net, points, own, last), points.x0)
            parts["consistency"] = true.detach()
            loss = loss + self.consistency * true
        return loss, parts, None


def run(settings: DistillSettings, processes: Processes) -> None:
    """Everything from the teacher to the student's file.

    Raises:
        SettingsError: settings that belong to fine-tuning alone are given.
    """
    not_here = [name for name in ("steps", "kappa", "p", "predict", "config") if getattr(settings, name) is not None]
    not_here += [name for name in ("lpips", "adversarial", "eq8_weight") if getattr(settings, name)]
    if not_here:
        raise SettingsError(
            f"--{not_here[0].replace('_', '-')} is of no use here: the student has its teacher's chain and losses."
        )
    settings, start = prepare(replace(settings, loss="mse", last_step_share=1.0, rollout_share=0.0), processes)
    if start.model.config.default_steps == 1:
        raise SettingsError(f"{settings.model} runs in one step already; give a model of several steps.")
    teacher = copy.deepcopy(start.model)
    start.retrain_schedule(settings)
    start.model.config = replace(start.model.config, default_steps=1)
    if processes.first:
        print(f"{start.model}\n{describe(settings)}")
    data = prepare_data(settings, start.model, processes)
    degrade = None
    if settings.degradation != "paired":
        degrade = make_degradation(settings.degradation, start.model.scale, settings.seed, settings.damaged_share)
    chain = Chain(start.model, degrade, settings.seed, 1.0, processes.device)
    objective = Distillation(chain, teacher, settings.inverse, settings.consistency)
    train(settings, start, Trainer(start.model, settings, objective, processes), data)


def main(argv=None) -> int:
    """The program."""
    return program(argv, __doc__, run, DistillSettings)


if __name__ == "__main__":
    sys.exit(main())
