"""Make a one-step student of a multi-step ResShift model, by the losses of SinSR (Wang et al., CVPR 2024).

    python training/distill.py --data PICTURES --output OUT                       # of the built-in model
    python training/distill.py --data PICTURES --output OUT --model TEACHER       # of any model the core loads
    python training/distill.py --data PICTURES --output OUT --trunk-blocks 2      # with a shorter trunk, where there is one

The student starts as the teacher. It learns (a) to return at once what the teacher's deterministic sampler reaches in all
its steps from the same noise; (b) at t = 1 the way back, from the result to x_T (--inverse); (c) to return the true picture
from the x_T that it would itself assign to it (--consistency); and, if asked, (d) from the x_T of (a) (--truth).
OUT/last.safetensors and OUT/best.safetensors carry one default step, so the nodes, WebUI and the command line run them with
`steps=1` unasked.

A network without a trunk so takes 1/T of the teacher's time. A trunk, as the built-in model has one, is run once for all
steps, and must become shorter for that: --trunk-blocks N keeps N of its blocks, evenly spaced, which training reconciles.

All settings of training/finetune.py apply (data, degradation, memory, --resume auto, torchrun), but those of the schedule, the
width and most of the loss (--predict, --width, --last-step-share, --rollout-share, --lpips, --spectrum, --adversarial,
--eq8-weight; nor a recipe that sets one): these are the teacher's, and refused. docs/training.md has numbers;
`python -m benchmarks.student` measures both models on your pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: let it be the module that `python -m training.distill` runs
    folder = Path(__file__).resolve().parent  # a portable Python has its library at sys.path[0], not this folder
    sys.path[:] = [str(folder.parent), *(place for place in sys.path if Path(place).resolve() != folder)]

import copy
import math
import typing
from dataclasses import dataclass, replace

import torch

import resshift_core as rs
from resshift_core.sampler import sample
from training.chain import Chain, Points
from training.dataset import degradation_of, prepare_data
from training.distributed import Processes
from training.finetune import prepare, program, train
from training.losses import distance
from training.resize import resize_trunk
from training.settings import SettingsError, TrainSettings, describe, read_config, refuse_foreign
from training.start import Start
from training.trainer import Trainer
from training.validation import Validator

NOT_HERE = (
    "steps", "kappa", "p", "min_noise_level", "predict", "width", "last_step_share", "rollout_share", "lpips", "spectrum", "adversarial", "eq8_weight",
)  # fmt: skip


@dataclass(frozen=True)
class DistillSettings(TrainSettings):
    """Settings of finetune.py, and the weights of SinSR's losses; --loss is the distance in all of them (SinSR's: mse)."""

    not_here: typing.ClassVar[tuple[str, ...]] = NOT_HERE

    inverse: float = 1.0  # weight of the way back, from the teacher's result to x_T
    consistency: float = 1.0  # weight of the loss against the true picture
    truth: float = 0.0  # weight of the true picture beside the teacher's result, from the same x_T (not SinSR's)


class Distillation:
    """loss(net, points) -> (loss, its parts, None), with the student as `net`."""

    def __init__(self, chain: Chain, teacher: rs.ResShiftModel, settings: DistillSettings):
        self.chain, self.teacher, self.settings = chain, teacher, settings
        self.kind = settings.loss or "mse"
        self.discriminator = None

    @torch.no_grad()
    def teach(self, points: Points) -> torch.Tensor:
        """The teacher's x0 after all steps of the deterministic sampler, (B, C, h, w)."""
        teacher = self.teacher
        condition = teacher.unet.condition(points.lq, points.mask, points.told)

        def denoise(x_t, t):
            return teacher.denoise(x_t, points.y0, teacher.schedule, t, condition).float()

        return sample(denoise, points.y0, teacher.schedule, lambda draw: points.noise[1], sampler="deterministic")

    def ask(self, net, points: Points, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The student's answer to x at t, (B, C, h, w)."""
        return self.chain.predict_x0(net, replace(points, x_t=x, t=t))

    def compare(self, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Mean over a batch of --loss, ()."""
        return distance(self.kind, found, wanted, self.settings.psnr_limit).mean()

    def way_back(self, net, points: Points, x_T: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """SinSR's inverse loss, ()."""
        return self.compare(self.ask(net, points, target, torch.zeros_like(points.t)), x_T)

    def round_trip(self, net, points: Points, last: torch.Tensor) -> torch.Tensor:
        """SinSR's loss against the true picture, from the x_T that the student itself assigns to it, ()."""
        with torch.no_grad():
            own = self.ask(self.chain.model.unet, points, points.x0, torch.zeros_like(points.t))
        return self.compare(self.ask(net, points, own, last), points.x0)

    def __call__(self, net, points: Points):
        settings = self.settings
        last = torch.full_like(points.t, self.chain.model.schedule.steps - 1)
        x_T = self.chain.shifted(points.y0, points.y0, last, points.noise[1])
        target = self.teach(points)
        answer = self.ask(net, points, x_T, last)
        terms = {self.kind: (1.0, self.compare(answer, target))}
        if settings.truth:
            terms["truth"] = settings.truth, self.compare(answer, points.x0)
        if settings.inverse:
            terms["inverse"] = settings.inverse, self.way_back(net, points, x_T, target)
        if settings.consistency:
            terms["consistency"] = settings.consistency, self.round_trip(net, points, last)
        loss = sum(weight * term for weight, term in terms.values())
        return loss, {name: term.detach() for name, (_, term) in terms.items()}, None


def check(settings: DistillSettings) -> None:
    """What belongs to fine-tuning alone, and ranges.

    Raises:
        SettingsError: the first setting that is wrong.
    """
    refuse_foreign(settings, "the student has its teacher's chain, width and losses")
    if settings.config is not None and "model" in read_config(settings.config):
        raise SettingsError(f"{settings.config} has a 'model', but the student is made from --model. Leave 'model' out.")
    if not all(0 <= weight < math.inf for weight in (settings.inverse, settings.consistency, settings.truth)):  # nor NaN
        raise SettingsError("--inverse, --consistency and --truth are weights; they must be 0 or numbers above it.")


def make_student(start: Start, settings: DistillSettings) -> rs.ResShiftModel:
    """Turn the model of `start` into the student; returns the teacher.

    Raises:
        SettingsError: the model runs in one step already, or --trunk-blocks does not fit it.
    """
    if start.model.config.default_steps == 1:
        raise SettingsError(f"{settings.model} runs in one step already; give a model of several steps.")
    teacher = copy.deepcopy(start.model)
    if settings.trunk_blocks is not None:
        there = teacher.config.unet.trunk_blocks
        if settings.trunk_blocks > there > 0:
            raise SettingsError(
                f"--trunk-blocks is {settings.trunk_blocks}; the teacher's trunk has {there}, so give 1 to {there}."
            )
        start.model = resize_trunk(start.model, settings.trunk_blocks)
    start.apply(settings)
    start.model.config = replace(start.model.config, default_steps=1)
    return teacher


def run(settings: DistillSettings, processes: Processes) -> None:
    """Everything from the teacher to the student's file.

    Raises:
        SettingsError: settings that belong to fine-tuning alone are given, or do not fit the teacher.
    """
    check(settings)
    settings = replace(settings, loss=settings.loss or "mse", last_step_share=1.0, rollout_share=0.0)
    settings, start = prepare(settings, processes)
    teacher = make_student(start, settings)
    if processes.first:
        print(f"{start.model}\n{describe(settings)}")
    data = prepare_data(settings, start.model, processes)
    if processes.first and not settings.dry_run:
        scores = Validator(data.pairs)(teacher).scores
        print("The teacher on the held-out pictures: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    chain = Chain(start.model, degradation_of(settings, start.model.scale), settings.seed, 1.0, processes.device)
    train(settings, start, Trainer(start.model, settings, Distillation(chain, teacher, settings), processes), data)


def main(argv=None) -> int:
    """The program."""
    return program(argv, __doc__, run, DistillSettings)


if __name__ == "__main__":
    sys.exit(main())
