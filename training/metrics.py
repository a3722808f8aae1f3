"""PSNR, SSIM and LPIPS of pictures in [0, 1], by torchmetrics, and the energy of their texture.

SSIM is averaged over the whole picture, whose borders are reflected; where papers leave five pixels of border out, it
differs from theirs by up to 0.006.
"""

from __future__ import annotations

from pathlib import Path

import kornia
import torch
import torch.nn.functional as F
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

PSNR_MOST = 100.0  # dB
LPIPS_SMALLEST = 32  # pixels: of less, its networks' pooling leaves nothing
LPIPS_FILES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}


def psnr(result: torch.Tensor, truth: torch.Tensor) -> float:
    """dB, over all values of (B, C, H, W); at most PSNR_MOST, or one exact picture would make every mean infinite."""
    return min(float(peak_signal_noise_ratio(result, truth, data_range=1.0)), PSNR_MOST)


def ssim(result: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean structural similarity, 11x11 Gaussian window of sigma 1.5."""
    return float(structural_similarity_index_measure(result, truth, data_range=1.0))


def luma(image: torch.Tensor) -> torch.Tensor:
    """Y of YCbCr in studio range, in which super-resolution papers measure. (B, 3, H, W) -> (B, 1, H, W), [16, 235] / 255."""
    return kornia.color.rgb_to_y(image) * (219 / 255) + 16 / 255


def texture_energy(image: torch.Tensor, scale: int) -> float:
    """Energy of the luminance at frequencies that a picture of 1 / scale the size cannot hold. (B, 3, H, W), any unit."""
    grey = luma(image).double()
    height, width = grey.shape[-2:]
    windows = [torch.hann_window(side, device=grey.device, dtype=grey.dtype) for side in (height, width)]
    grey = (grey - grey.mean((-2, -1), keepdim=True)) * windows[0][:, None] * windows[1]
    down, across = (torch.fft.fftfreq(side, device=grey.device).abs() for side in (height, width))
    fine = torch.maximum(down[:, None], across) > 0.5 / scale
    return float(torch.fft.fft2(grey, norm="ortho").abs().square()[..., fine].sum())


def texture(result: torch.Tensor, truth: torch.Tensor, scale: int) -> float:
    """`texture_energy` over the truth's: 1 = as much, in the right places or not."""
    floor = truth[:, 0].numel() * (0.5 / 255) ** 2 / 8  # noise of half a level in the same windows, for flat truths
    return texture_energy(result, scale) / max(texture_energy(truth, scale), floor)


def lpips_distance(net: torch.nn.Module, result: torch.Tensor, truth: torch.Tensor) -> float:
    """By a network of `losses.make_lpips`, of (B, 3, H, W) in [0, 1]; small pictures get a border of their outermost pixels."""
    down, across = (max(0, LPIPS_SMALLEST - side) for side in truth.shape[-2:])
    pair = [F.pad(image, (0, across, 0, down), mode="replicate") * 2 - 1 for image in (result, truth)]
    with torch.no_grad():
        return float(net(*pair).mean())


def lpips_is_here(net: str = "alex") -> bool:
    """Whether the backbone's weights are on this machine: a validation never downloads anything."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_FILES[net]).is_file()
