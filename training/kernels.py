"""Blur kernels of the degradations: drawn as a few numbers per picture, made for a whole batch at once on its device.

The families are those of Real-ESRGAN (Wang et al., 2021), which ResShift trains with: Gaussian, generalised Gaussian and
plateau-shaped, each round or elongated, and the circular low-pass filter (sinc).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .upload import upload

KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")


@dataclass(frozen=True)
class KernelRange:
    """What kernels of one stage are drawn from."""

    sizes: tuple[int, int]  # odd, in pixels, both ends included
    sigma: tuple[float, float]  # pixels
    shares: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # of KINDS
    sinc_share: float = 0.1
    beta_generalized: tuple[float, float] = (0.5, 4.0)
    beta_plateau: tuple[float, float] = (1.0, 2.0)


@dataclass(frozen=True)
class Kernel:
    """One drawn kernel. kind "none" leaves the picture as it is; sinc uses `cutoff` (radians per pixel) alone."""

    kind: str = "none"
    size: int = 1
    sigma_x: float = 1.0
    sigma_y: float = 1.0
    angle: float = 0.0  # radians
    beta: float = 1.0
    cutoff: float = math.pi


NO_BLUR = Kernel()


def draw_sinc(rng: np.random.Generator, sizes: tuple[int, int], lowest_of_large: float = math.pi / 5) -> Kernel:
    """A low-pass filter with its edge in [pi / 3, pi]; from `lowest_of_large` on where the kernel is large enough to hold it."""
    size = _draw_size(rng, sizes)
    lowest = math.pi / 3 if size < 13 else lowest_of_large
    return Kernel("sinc", size, cutoff=float(rng.uniform(lowest, math.pi)))


def draw_kernel(rng: np.random.Generator, ranges: KernelRange) -> Kernel:
    """A kernel of any family, by the shares of `ranges`."""
    if rng.random() < ranges.sinc_share:
        return draw_sinc(rng, ranges.sizes)
    kind = str(rng.choice(KINDS, p=ranges.shares))
    sigma_x, sigma_y = (float(value) for value in rng.uniform(*ranges.sigma, 2))
    beta = 1.0
    if not kind.startswith(("iso", "aniso")):
        low, high = ranges.beta_generalized if kind.startswith("gen") else ranges.beta_plateau
        beta = float(rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high))  # flatter or more pointed: even odds
    if kind.endswith("_iso") or kind == "iso":
        sigma_y = sigma_x
    return Kernel(kind, _draw_size(rng, ranges.sizes), sigma_x, sigma_y, float(rng.uniform(-math.pi, math.pi)), beta)


def _draw_size(rng: np.random.Generator, sizes: tuple[int, int]) -> int:
    return int(rng.integers(sizes[0] // 2, sizes[1] // 2 + 1)) * 2 + 1


def _column(kernels: Sequence[Kernel], name: str, device) -> torch.Tensor:
    return upload([getattr(kernel, name) for kernel in kernels], device, torch.float32).view(-1, 1, 1)


def _quadratic_form(kernels, x, y, device):
    """v^T Sigma^-1 v at every position, (B, S, S), for Sigma = R diag(sigma_x^2, sigma_y^2) R^T."""
    angle = _column(kernels, "angle", device)
    along = x * angle.cos() + y * angle.sin()
    across = y * angle.cos() - x * angle.sin()
    return (along / _column(kernels, "sigma_x", device)) ** 2 + (across / _column(kernels, "sigma_y", device)) ** 2


def _sinc(cutoff, radius):
    """cutoff J1(cutoff r) / (2 pi r), and its limit cutoff^2 / (4 pi) at the centre: an ideal circular low-pass filter."""
    ring = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius.clamp(min=1e-6))
    return torch.where(radius > 0, ring, cutoff**2 / (4 * math.pi))


def make_kernels(kernels: Sequence[Kernel], device: torch.device | str = "cpu") -> torch.Tensor:
    """(B, S, S) float32, every one summing to 1, S the largest size; smaller ones lie centred in zeros."""
    size = max(kernel.size for kernel in kernels)
    axis = torch.arange(size, dtype=torch.float32, device=device) - size // 2
    y, x = axis[:, None], axis[None, :]
    form = _quadratic_form(kernels, x, y, device)
    powered = form ** _column(kernels, "beta", device)
    gaussian, plateau = torch.exp(-0.5 * powered), 1 / (1 + powered)
    radius = (x**2 + y**2).sqrt().expand_as(form)
    sinc = _sinc(_column(kernels, "cutoff", device), radius)

    def has(test):
        return upload([test(kernel.kind) for kernel in kernels], device).view(-1, 1, 1)

    weights = torch.where(has(lambda kind: kind.startswith("plateau")), plateau, gaussian)
    weights = torch.where(has(lambda kind: kind == "sinc"), sinc, weights)
    weights = torch.where(has(lambda kind: kind == "none"), (radius == 0).float(), weights)
    half = upload([kernel.size // 2 for kernel in kernels], device).view(-1, 1, 1)
    weights = weights * ((x.abs() <= half) & (y.abs() <= half))
    return weights / weights.sum((1, 2), keepdim=True)
