"""The reverse chain: from x_T, the low-resolution latent plus noise, to x0 (paper section 3; symbols are the paper's)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .schedule import ShiftSchedule

SAMPLERS = ("stochastic", "deterministic")


def sample(
    denoise: Callable,  # (x_t, t) -> x0: ResShiftModel.denoise with its condition bound
    y0,  # (B, C, h, w) float32, latent of the upsampled low-resolution picture
    schedule: ShiftSchedule,
    noise: Callable,  # draw number -> N(0, 1) of y0's shape; 0 = x_T, then one draw per step
    *,
    sampler: str = "stochastic",  # "deterministic" draws noise for x_T only
    on_step: Callable | None = None,  # (step counted from 1, t, x0, x_{t-1}) -> None; may raise to stop
):
    """Run all T steps and return x0, (B, C, h, w). The step at t = 1 has no noise, so the result is its x0."""
    mean, std = schedule.prior(y0)
    x = torch.add(mean, noise(0), alpha=std)  # x_T
    for step, t in enumerate(range(schedule.steps, 0, -1), start=1):
        x0 = None  # the last step's is of no more use, and the network takes memory
        x0 = denoise(x, t).to(y0.dtype)
        if t == 1:
            x = x0
        elif sampler == "deterministic":
            k, m, j = schedule.deterministic_coefficients(t)
            x = k * x0 + m * x + j * y0
        else:
            _, of_x0 = schedule.posterior_coefficients(t)  # eq. 6; both add up to 1
            x = torch.lerp(x, x0, of_x0).add_(noise(step), alpha=schedule.posterior_std(t))
        if on_step is not None:
            on_step(step, t, x0, x)
    return x
