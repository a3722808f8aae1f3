"""Low-resolution pictures out of high-resolution ones: plain bicubic, and the paper's Appendix B.1."""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def bicubic(image: torch.Tensor, scale: int = 4) -> torch.Tensor:
    """Antialiased bicubic 1 / scale, clamped and rounded to 8 bit. (B, 3, H, W) in [0, 1] -> (B, 3, H / s, W / s)."""
    small = F.interpolate(image, scale_factor=1 / scale, mode="bicubic", antialias=True)
    return small.clamp(0, 1).mul(255).round().div(255)


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, angle: float) -> torch.Tensor:
    """A rotated Gaussian of `size` x `size`, summing to 1, float32."""
    c, s = np.cos(angle), np.sin(angle)
    rotation = np.array([[c, -s], [s, c]])
    inverse = rotation @ np.diag([sigma_x**-2, sigma_y**-2]) @ rotation.T
    axis = np.arange(size) - (size - 1) / 2
    points = np.stack(np.meshgrid(axis, axis), -1)
    kernel = np.exp(-0.5 * np.einsum("yxi,ij,yxj->yx", points, inverse, points))
    return torch.from_numpy(kernel / kernel.sum()).float()


def jpeg(image: torch.Tensor, quality: int) -> torch.Tensor:
    """(3, H, W) in [0, 1] through libjpeg and back."""
    pixels = image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float() / 255


def paper_b1(image: torch.Tensor, rng: np.random.Generator, scale: int = 4) -> torch.Tensor:
    """The degradation of the paper's test sets (Appendix B.1), one picture. (3, H, W) in [0, 1] -> (3, H / s, W / s).

    Blur 13x13 (isotropic with probability .6, widths .2-.8), area, bilinear or bicubic downsampling, Gaussian noise of
    1-15 levels or Poisson noise of scale .05-.3, JPEG of quality 70-95.
    """
    sigma_x, sigma_y = rng.uniform(0.2, 0.8, 2)
    if rng.random() < 0.6:
        sigma_y = sigma_x
    kernel = gaussian_kernel(13, sigma_x, sigma_y, rng.uniform(-np.pi, np.pi))
    blurred = F.conv2d(F.pad(image[:, None], (6, 6, 6, 6), mode="reflect"), kernel[None, None])[:, 0]
    mode = ("area", "bilinear", "bicubic")[rng.integers(3)]
    antialias = {} if mode == "area" else {"antialias": True}
    height, width = image.shape[1] // scale, image.shape[2] // scale
    small = F.interpolate(blurred[None], size=(height, width), mode=mode, **antialias)[0].clamp(0, 1)
    if rng.random() < 0.5:
        noise = torch.from_numpy(rng.standard_normal(small.shape, dtype=np.float32)) * (rng.uniform(1, 15) / 255)
    else:
        levels = small.mul(255).round().numpy()
        noise = torch.from_numpy((rng.poisson(levels) - levels).astype(np.float32)) * (rng.uniform(0.05, 0.3) / 255)
    return jpeg(small + noise, int(rng.integers(70, 96)))


def mixed(images: torch.Tensor, seed: int, first: int, damaged_share: float, scale: int = 4) -> torch.Tensor:
    """Bicubic for most of a batch, Appendix B.1 for `damaged_share` of it; picture i depends on (seed, first + i)."""
    small = bicubic(images, scale)
    for i, image in enumerate(images):
        rng = np.random.default_rng([seed, first + i, 1])
        if rng.random() < damaged_share:
            small[i] = paper_b1(image, rng, scale)
    return small
