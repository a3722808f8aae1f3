"""What the network is trained on: a random point of the chain for every crop of a batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

import resshift_core as rs

from .degradation import Degrade, torch_seed
from .upload import may_run_ahead, upload


@dataclass(frozen=True)
class Points:
    """x_t of eq. 2 for a batch, and what the network is given with it. All on the training device, float32."""

    hr: torch.Tensor  # (B, 3, H, W) in [-1, 1]
    lq: torch.Tensor  # (B, 3, H / s, W / s) in [-1, 1]
    mask: torch.Tensor | None  # (B, 1, H / s, W / s), -1 = keep, +1 = hole
    x0: torch.Tensor  # (B, C, h, w), the latent to be predicted
    y0: torch.Tensor  # (B, C, h, w), the latent of the upsampled low-resolution crop
    t: torch.Tensor  # (B,) int64, from 0
    x_t: torch.Tensor  # (B, C, h, w), as the chain has it
    noise: torch.Tensor  # (N, B, C, h, w): that of x_t, then those of a run of the chain, as far as a sample goes
    rolled: tuple[int | None, ...]  # t, where x_t is to be what the network's own chain arrives at, see Chain.roll_out
    told: torch.Tensor | None = None  # (B, 10), what is known of the pictures that lq are parts of; None = estimated from lq


class Chain:
    """Draws Points. What sample n gets depends on (seed, n) alone."""

    def __init__(
        self,
        model: rs.ResShiftModel,
        degrade: Degrade | None,
        seed: int,
        last_step_share: float,
        device,
        rollout_share: float = 0.0,
    ):
        self.model, self.degrade, self.seed = model, degrade, seed
        self.last_step_share, self.rollout_share = last_step_share, rollout_share
        self.device = torch.device(device)
        self.encoder, self.may_overflow = model.autoencoder, False
        schedule, space = model.schedule, model.config.space
        self.eta = torch.tensor(schedule.eta, dtype=torch.float32, device=self.device)
        scales = [schedule.input_scale(t, space) for t in range(1, schedule.steps + 1)]
        self.input_scale = torch.tensor(scales, dtype=torch.float32, device=self.device)
        gain = schedule.residual_gain(model.config.residual_std)
        self.gain = torch.tensor(gain, dtype=torch.float32, device=self.device)

    def draw(self, numbers: Sequence[int], crops: dict[str, torch.Tensor]) -> Points:
        """crops: {"hr": (B, 3, H, W) in [0, 1]}, with "lq" where pairs are given, perhaps "told", and "hole" for inpainting."""
        with torch.no_grad():
            hr, lq, mask = self._pictures(numbers, crops)
            told = crops["told"].to(self.device, non_blocking=may_run_ahead(self.device)) if "told" in crops else None
            x0, y0 = self.encode(hr), self.encode(self.upsample(lq))
            t, rolled, noise = self._random(numbers, x0.shape[1:])
            return Points(hr, lq, mask, x0, y0, t, self.shifted(x0, y0, t, noise[0]), noise, rolled, told)

    def _pictures(self, numbers, crops):
        hr = crops["hr"].to(self.device, non_blocking=may_run_ahead(self.device))
        if "lq" in crops:
            lq = crops["lq"].to(self.device, non_blocking=may_run_ahead(self.device))
        else:
            lq = self.degrade(hr, numbers)
        hr, lq, mask = hr * 2 - 1, lq * 2 - 1, None
        if "hole" in crops:
            hole = crops["hole"].to(self.device, non_blocking=may_run_ahead(self.device)) > 0
            lq, mask = torch.where(hole, -1.0, lq), hole.float() * 2 - 1
        layout = torch.channels_last
        return hr.contiguous(memory_format=layout), lq.contiguous(memory_format=layout), mask

    def upsample(self, lq):
        """Bicubic to the output's size, as before encoding in every run."""
        scale = self.model.scale
        return F.interpolate(lq, scale_factor=scale, mode="bicubic", align_corners=False) if scale != 1 else lq

    def encode_in(self, dtype: torch.dtype) -> None:
        """Encode in this number format from here on, as the engine does on a GPU; the model's autoencoder stays as it is.

        To encode its two pictures is 690 of the 994 billion operations that a crop of the published x4 network costs. In
        float32 these alone take several times as long as all the others in half precision.
        """
        if any(True for _ in self.model.autoencoder.parameters()):
            self.encoder = copy.deepcopy(self.model.autoencoder).to(dtype)
            self.may_overflow = dtype == torch.float16

    def encode(self, image):
        latent = self.encoder.encode(image).float()
        if self.may_overflow and not bool(latent.isfinite().all()):
            return self.model.autoencoder.encode(image).float()
        return latent

    def _random(self, numbers, shape):
        """(t counted from 0, rolled, noise): every sample from its own generators. What it does not need is zero.

        t is the same on every device. Noise is drawn where it is needed: in pixel space it is several numbers for every one of
        the picture, more than a processor draws for a GPU.
        """
        last, steps, rolled = self.model.schedule.steps - 1, [], []
        noise = torch.zeros(2 + (last if self.rollout_share else 0), len(numbers), *shape, device=self.device)
        for i, number in enumerate(numbers):
            generator = torch.Generator().manual_seed(torch_seed(self.seed, number, 4))
            there = generator
            if self.device.type != "cpu":
                there = torch.Generator(self.device).manual_seed(torch_seed(self.seed, number, 7))
            at_end = float(torch.rand((), generator=generator)) < self.last_step_share
            uniform = int(torch.randint(0, last + 1, (), generator=generator))
            steps.append(last if at_end else uniform)
            rolls = float(torch.rand((), generator=generator)) < self.rollout_share and steps[-1] != last
            rolled.append(steps[-1] if rolls else None)
            draws = 2 + last - steps[-1] if rolls else 1 if self.rollout_share else 2
            noise[:draws, i] = torch.randn((draws, *shape), generator=there, device=self.device)
        return upload(steps, self.device), tuple(rolled), noise

    def shifted(self, x0, y0, t, noise):
        """x_t ~ q(x_t | x0, y0), eq. 2."""
        eta = self.eta[t].view(-1, 1, 1, 1)
        return x0 + eta * (y0 - x0) + self.model.schedule.kappa * eta.sqrt() * noise

    @torch.no_grad()
    def roll_out(self, points: Points) -> Points:
        """Replace x_t of the samples marked `rolled` by what the network's own chain arrives at, from x_T on.

        A network that has seen x_t of eq. 2 alone, which hold the truth, takes every detail in x_t for real. Its chain then
        draws samples from the posterior: crisp, and up to 3 dB of PSNR below the mean. Trained on its own x_t it keeps to
        the mean.
        """
        goals = {place: t for place, t in enumerate(points.rolled) if t is not None}
        if not goals:
            return points
        which = upload(list(goals), self.device)  # to ask the tensor t who goes on would be to wait for all that was launched
        schedule, y0 = self.model.schedule, points.y0[which]
        mask = None if points.mask is None else points.mask[which]
        told = None if points.told is None else points.told[which]
        condition = self.model.unet.condition(points.lq[which], mask, told)
        mean, std = schedule.prior(y0)
        x = mean + std * points.noise[1][which]
        for step in range(schedule.steps, 1, -1):  # to x_{step - 1}, for the samples that go so far
            going = [i for i, t in enumerate(goals.values()) if t < step - 1]
            if not going:
                break
            going = upload(going, self.device)
            x0 = self.model.denoise(x[going], y0[going], schedule, step, condition[going])
            mean, std = schedule.posterior(x[going], x0, step)  # eq. 6
            x[going] = mean + std * points.noise[2 + schedule.steps - step][which][going]
        x_t = points.x_t.clone()
        x_t[which] = x
        return replace(points, x_t=x_t)

    def predict_x0(self, net, points: Points) -> torch.Tensor:
        """The network's x0, (B, C, h, w) float32: `ResShiftModel.denoise` with a step of its own for every sample."""
        x = points.x_t * self.input_scale[points.t].view(-1, 1, 1, 1)
        told = {} if points.told is None else {"degradation": points.told}
        out = net(x.contiguous(memory_format=torch.channels_last), points.t, points.lq, points.mask, **told).float()
        if self.model.config.predict == "x0":
            return out
        return out + torch.lerp(points.y0, points.x_t, self.gain[points.t].view(-1, 1, 1, 1))
