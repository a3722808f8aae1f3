"""PSNR, SSIM and LPIPS of pictures in [0, 1], by torchmetrics."""

from __future__ import annotations

from pathlib import Path

import kornia
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

LPIPS_FILES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}


def psnr(result: torch.Tensor, truth: torch.Tensor) -> float:
    """dB, over all values of (B, C, H, W)."""
    return float(peak_signal_noise_ratio(result, truth, data_range=1.0))


def ssim(result: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean structural similarity, 11x11 Gaussian window of sigma 1.5."""
    return float(structural_similarity_index_measure(result, truth, data_range=1.0))


def luma(image: torch.Tensor) -> torch.Tensor:
    """Y of YCbCr in studio range, in which super-resolution papers measure. (B, 3, H, W) -> (B, 1, H, W), [16, 235] / 255."""
    return kornia.color.rgb_to_y(image) * (219 / 255) + 16 / 255


def lpips_is_here(net: str = "alex") -> bool:
    """Whether the backbone's weights are on this machine: a validation never downloads anything."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_FILES[net]).is_file()
