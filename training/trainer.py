"""The loop's machinery: one update of the weights, with accumulation, mixed precision, EMA and skipped steps."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers, muon
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import resshift_core as rs
from resshift_core.device import resolve_dtype
from resshift_core.unet import ResBlock, Stage

from .chain import Chain, Points
from .distributed import Processes
from .losses import Discriminator, Objective, relativistic
from .settings import SettingsError, TrainSettings

log = logging.getLogger("resshift.training")

BAD_STEPS = 3  # in a row, then the run stops


class NotFinite(RuntimeError):
    """The loss was NaN or infinite three times in a row; the text says where the batch lies and what to try."""


@dataclass
class Position:
    """How far a run is. The next batch holds crops number iteration * batch_size and following."""

    iteration: int = 0
    skipped: int = 0
    skipped_in_row: int = 0


def zero_branches(network: nn.Module) -> None:
    """Let every residual block in it return what it is given."""
    for module in network.modules():
        if isinstance(module, ResBlock):
            nn.init.zeros_(module.out_layers[3].weight)
            nn.init.zeros_(module.out_layers[3].bias)


def zero_init(unet: rs.SwinUNet) -> None:
    """Let every residual branch and the output start at zero: a new network predicts nothing, then learns what to add."""
    zero_branches(unet)
    nn.init.zeros_(unet.out[2].weight)
    nn.init.zeros_(unet.out[2].bias)


def ema_decay(limit: float, updates: int) -> float:
    """min(limit, (1 + n) / (10 + n)): a short run shows in the average, too."""
    return min(limit, (1 + updates) / (10 + updates))


def make_average(net: nn.Module, limit: float) -> AveragedModel:
    """torch's moving average of the weights with `ema_decay`."""

    @torch.no_grad()
    def lerp(averages, values, updates):
        torch._foreach_lerp_(averages, values, 1 - ema_decay(limit, int(updates)))

    return AveragedModel(net, multi_avg_fn=lerp)


def recompute_activations(net: rs.SwinUNet) -> None:
    """Checkpoint every stage and every residual block of the trunk, without touching their keys."""
    blocks = [module for module in net.modules() if isinstance(module, Stage)]
    blocks += list(net.trunk) if net.config.trunk_blocks else []
    for block in blocks:
        block.forward = functools.partial(checkpoint, functools.partial(_of_copies, block.forward), use_reentrant=False)


def _of_copies(forward, x, *rest):
    """A block empties the list that it is given, and is asked again."""
    return forward(list(x) if isinstance(x, list) else x, *rest)


def make_optimizer(parameters, settings: TrainSettings):
    """timm's, by name.

    Raises:
        SettingsError: the name is unknown, or the optimiser lacks what it needs (a package, a CUDA device).
    """
    name = settings.optimizer
    if name not in list_optimizers():
        needs = " It needs bitsandbytes: pip install bitsandbytes." if name.startswith("bnb") else ""
        raise SettingsError(f"--optimizer {name} is not among timm's: {', '.join(list_optimizers())}.{needs}")
    info = get_optimizer_info(name)
    if getattr(info, "second_order", False):
        raise SettingsError(f"--optimizer {name} needs derivatives of gradients, which are not computed here. Choose another.")
    betas = {"betas": settings.betas} if info.has_betas and getattr(info, "num_betas", 2) == 2 else {}  # Adan has three
    if "muon" in name and resolve_dtype("auto", next(parameters.parameters()).device) != torch.bfloat16:
        _orthogonalise_in_float32()
    try:
        return create_optimizer_v2(parameters, name, lr=settings.learning_rate, weight_decay=settings.weight_decay, **betas)
    except (ImportError, AssertionError) as error:
        raise SettingsError(f"--optimizer {name} cannot be used here ({error}).") from error


def load_moments(optimizer, state: dict) -> None:
    """The state of an optimiser, with the settings that it has now; its rate among them, for where no scheduler sets it."""
    names = ("lr", "betas", "weight_decay", "eps", "momentum")
    settings = [{name: group[name] for name in names if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings):
        group.update(own)


def _orthogonalise_in_float32() -> None:
    """In timm's Muon, for this process. It does so in bf16, which took a third of a step where the processor has to emulate it,
    and which cuBLAS refuses on NVIDIA's Pascal.
    """
    muon.zeropower_via_newtonschulz = functools.partial(muon.zeropower_via_newtonschulz, dtype=torch.float32)


GROWN_WARMUP = 20  # iterations, at least, of a model that was made longer or wider


def make_scheduler(optimizer, settings: TrainSettings):
    """timm's cosine over the iterations; it keeps no state of its own. A constant rate is a cosine that ends where it starts."""
    final = settings.final_rate if settings.schedule == "cosine" else 1.0
    warmup = round(settings.warmup_share * settings.iterations)
    if settings.width is not None or settings.trunk_blocks is not None:  # new weights explode at the full rate
        warmup = max(warmup, min(GROWN_WARMUP, settings.iterations // 2))
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=settings.iterations, min_lr=settings.learning_rate * final,
        warmup_epochs=warmup, warmup_lr=settings.learning_rate * 1e-3,
        step_on_epochs=False, updates_per_epoch=1,
    )  # fmt: skip
    return scheduler


class Trainer:
    """One run's weights, optimiser and average. `model` is trained in place (its raw weights, not the average)."""

    def __init__(self, model: rs.ResShiftModel, settings: TrainSettings, objective: Objective, processes: Processes):
        self.model, self.settings, self.objective, self.processes = model, settings, objective, processes
        self.device = processes.device
        self.chain: Chain = objective.chain
        self.raw = model.unet.train().requires_grad_(True)
        if model.config.unet.degradation_channels:
            self.raw.degradation.requires_grad_(False)  # training/train_estimator.py trains it, against what is known
        self.average = make_average(self.raw, settings.ema)
        if settings.checkpointing:
            recompute_activations(self.raw)
        self.precision = resolve_dtype(settings.precision, self.device)  # of autocast; float32 = none
        if self.device.type == "cuda" and self.precision != torch.float32:
            self.chain.encode_in(self.precision)
        self.optimizer = make_optimizer(self.raw, settings)
        self.scheduler = make_scheduler(self.optimizer, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.position = Position()
        self._ahead: tuple[list[int], Points] | None = None  # numbers of the next micro-batch, drawn already
        self.micro_batch = min(settings.micro_batch or settings.batch_size, self.share)
        self.net = self._wrap(torch.compile(self.raw) if settings.compile else self.raw)
        self.judge = None
        if settings.adversarial:
            self._add_discriminator()

    @property
    def share(self) -> int:
        """Crops of this process per update."""
        return self.settings.batch_size // self.processes.world

    def _wrap(self, module: nn.Module) -> nn.Module:
        if self.processes.world == 1:
            return module
        if self.settings.compile and self.settings.checkpointing:  # older versions of torch refuse to split such a graph
            torch._dynamo.config.optimize_ddp = False
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids)

    def _add_discriminator(self) -> None:
        torch.manual_seed(self.settings.seed)
        self.objective.discriminator = Discriminator().to(self.device)
        self.judge = self._wrap(self.objective.discriminator)
        self.judge_optimizer = make_optimizer(self.objective.discriminator, self.settings)

    def autocast(self):
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def accumulate(self, numbers: list[int], crops: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict]:
        """Gradients of the mean loss over this process's crops, micro-batch by micro-batch. -> (loss, parts), detached."""
        total, parts, starts = torch.zeros((), device=self.device), {}, range(0, len(numbers), self.micro_batch)
        for start in starts:
            chosen = slice(start, start + self.micro_batch)
            weight = len(numbers[chosen]) / len(numbers)
            last = start == starts[-1]
            hold = contextlib.nullcontext() if last or self.processes.world == 1 else self.net.no_sync()
            with hold:
                loss, new = self._backward(
                    numbers[chosen], {name: value[chosen] for name, value in crops.items()}, weight, last
                )
            total += loss * weight
            for name, value in new.items():
                parts[name] = parts.get(name, 0) + value * weight
        return total, parts

    def draw_ahead(self, numbers: list[int], crops: dict[str, torch.Tensor]) -> None:
        """Draw the points of the first micro-batch of this step while the GPU is at the one before."""
        chosen = slice(0, self.micro_batch)
        numbers, crops = numbers[chosen], {name: value[chosen] for name, value in crops.items()}
        self._ahead = numbers, self.chain.draw(numbers, crops)

    def _draw(self, numbers, crops) -> Points:
        ahead, self._ahead = self._ahead, None
        return ahead[1] if ahead is not None and ahead[0] == numbers else self.chain.draw(numbers, crops)

    def _backward(self, numbers, crops, weight: float, last: bool):
        points = self._draw(numbers, crops)
        if self.judge is not None:
            self.objective.discriminator.requires_grad_(False)
        with self.autocast():
            loss, parts, image = self.objective(self.net, points)
        self.scaler.scale(loss * weight).backward()
        if self.judge is not None:
            self.objective.discriminator.requires_grad_(True)
            hold = contextlib.nullcontext() if last or self.processes.world == 1 else self.judge.no_sync()
            with hold:
                with self.autocast() if self.precision == torch.bfloat16 else contextlib.nullcontext():  # fp16 wants a scaler
                    truth, made = self.judge(torch.cat([points.hr, image.detach()])).chunk(2)
                    judged = relativistic(truth, made)
                (judged * weight).backward()
            parts["discriminator"] = judged.detach()
        return loss.detach(), parts

    def step(self, numbers: list[int], crops: dict[str, torch.Tensor], following: tuple | None = None) -> dict[str, float]:
        """One update from this process's crops. -> loss, its parts, learning rate, gradient norm, skipped (0 or 1).

        following: numbers and crops of the step after this one, see `draw_ahead`.

        Raises:
            NotFinite: the third step in a row whose loss or gradient is not finite.
        """
        self.scheduler.step_update(self.position.iteration)
        self.optimizer.zero_grad(set_to_none=True)
        if self.judge is not None:
            self.judge_optimizer.zero_grad(set_to_none=True)
            self.objective.discriminator.advance()
        loss, parts = self.accumulate(numbers, crops)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.raw.parameters(), self.settings.clip or math.inf)
        if following is not None:
            self.draw_ahead(*following)  # before it is asked whether the loss is finite, which is to wait for the GPU
        losses = loss + parts.get("discriminator", 0)
        finite = bool(torch.isfinite(losses)) and (self.scaler.is_enabled() or bool(torch.isfinite(norm)))
        finite = self.processes.agree(float(finite), "min") == 1.0
        rate = self.optimizer.param_groups[0]["lr"]
        sound = finite and self._update()
        if not sound:
            self._skip(numbers, crops, finite)
        values = {name: self.processes.agree(float(value), "mean") for name, value in {"loss": loss, **parts}.items()}
        self.position.iteration += 1
        return {**values, "rate": rate, "gradient": float(norm), "skipped": float(not sound)}

    def _update(self) -> bool:
        """False where the scaler of fp16 has found a gradient that is not finite."""
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() < scale:
            return False
        if self.judge is not None:
            self.judge_optimizer.step()
        self.average.update_parameters(self.raw)
        self.position.skipped_in_row = 0
        return True

    def _skip(self, numbers, crops, loss_is_finite: bool) -> None:
        position = self.position
        position.skipped += 1
        if loss_is_finite and self.scaler.get_scale() >= 1:  # fp16 looks for its scale so, at the start and now and then
            return
        if self.scaler.is_enabled() and not loss_is_finite:
            self.scaler.update(self.scaler.get_scale() / 2)
        position.skipped_in_row += 1
        log.warning("The loss or the gradient of iteration %d is not finite; the step is skipped.", position.iteration)
        if position.skipped_in_row < BAD_STEPS:
            return
        path = Path(self.settings.output) / f"bad_batch_{self.processes.rank}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"iteration": position.iteration, "numbers": numbers, "crops": crops}, path)
        raise NotFinite(
            f"The loss was not finite in {BAD_STEPS} steps in a row, the last at iteration {position.iteration}. The batch is in "
            f"{path}. Lower --learning-rate (now {self.settings.learning_rate:g}), use --precision bf16 or fp32, and check "
            "that the starting model gives sound pictures; then start again with --resume auto."
        )

    # ------------------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict:
        """Everything that the next step depends on."""
        state = {
            "position": asdict(self.position),
            "net": self.raw.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),  # a few optimisers draw from it
        }
        if self.judge is not None:
            state["discriminator"] = self.objective.discriminator.state_dict()
            state["discriminator_optimizer"] = self.judge_optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict, optimizer: str | None = None, weight_decay: float | None = None) -> None:
        """Inverse of `state_dict`. What the run did not have so far begins anew: a discriminator, another optimiser's moments.

        optimizer, weight_decay: the settings of the run so far; None = as now.
        """
        settings = self.settings
        self.position = Position(**state["position"])
        self.raw.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        known = optimizer in (None, settings.optimizer)
        known &= weight_decay is None or bool(weight_decay) == bool(settings.weight_decay)  # it makes groups of parameters
        if known:
            load_moments(self.optimizer, state["optimizer"])
        else:
            log.warning("The optimiser is another one than in the run so far: its moments begin anew.")
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if "rng" in state:
            torch.set_rng_state(state["rng"])
        if self.judge is None:
            return
        if "discriminator" not in state:
            log.warning("The run so far had no discriminator: it begins anew.")
            return
        self.objective.discriminator.load_state_dict(state["discriminator"])
        if known:
            load_moments(self.judge_optimizer, state["discriminator_optimizer"])

    def averaged_model(self) -> rs.ResShiftModel:
        """A model of its own with the averaged weights, for validation and export, on the training device."""
        model = rs.ResShiftModel(self.model.config, self.model.metadata)
        model.unet.load_state_dict(self.average.module.state_dict())
        model.autoencoder = self.model.autoencoder
        return model.eval().to(self.device)
