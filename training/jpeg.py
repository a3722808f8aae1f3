"""Baseline JPEG with halved colour as batched tensor operations, for batches on an accelerator.

kornia's codec is not used: it is made to be differentiable, its rounding of coefficients is soft, and textured pictures
come out 2-5 levels away from libjpeg on average. This one stays within about one, and its tables are libjpeg's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .upload import upload

# ITU-T T.81, Annex K: tables K.1 (luminance) and K.2 (chrominance) at quality 50.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *((99,) * 8,) * 4,
)  # fmt: skip
YCBCR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))  # JFIF


def _cosines(device) -> torch.Tensor:
    """The orthonormal 8-point DCT-II, (8, 8)."""
    k = torch.arange(8, dtype=torch.float32, device=device)
    basis = torch.cos(math.pi / 16 * (2 * k[None] + 1) * k[:, None]) / 2
    basis[0] /= math.sqrt(2)
    return basis


def quantisation(table, qualities: Sequence[int], device) -> torch.Tensor:
    """libjpeg's scaling of a table by quality 1-100, (B, 8, 8), integers from 1 to 255."""
    quality = upload(qualities, device, torch.float32).clamp(1, 100).view(-1, 1, 1)
    scale = torch.where(quality < 50, torch.floor(5000 / quality), 200 - 2 * quality)
    return torch.floor((upload(table, device, torch.float32) * scale + 50) / 100).clamp(1, 255)


def _code_plane(plane: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """(B, H, W) levels around 0, multiples of 8, through the quantised DCT with steps (B, 8, 8)."""
    count, height, width = plane.shape
    basis = _cosines(plane.device)
    blocks = plane.view(count, height // 8, 8, width // 8, 8).transpose(2, 3)  # (B, rows, columns, 8, 8)
    steps = steps[:, None, None]
    coefficients = torch.round(basis @ blocks @ basis.T / steps) * steps
    return (basis.T @ coefficients @ basis).transpose(2, 3).reshape(count, height, width)


def jpeg_blocks(images: torch.Tensor, qualities: Sequence[int]) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1], H and W multiples of 16, one quality per picture -> as it comes back, 8-bit levels."""
    device = images.device
    back = torch.linalg.inv(torch.tensor(YCBCR).double()).tolist()  # on the processor: a GPU is waited for by whoever inverts
    to_ycbcr, to_rgb = upload(YCBCR, device), upload(back, device, torch.float32)
    levels = images.mul(255).round()
    planes = torch.einsum("yc,bchw->byhw", to_ycbcr, levels)
    luma, chroma = (planes[:, 0] - 128).round(), planes[:, 1:].round()
    chroma = F.avg_pool2d(chroma, 2).round()
    luma = _code_plane(luma, quantisation(LUMINANCE, qualities, device)).add(128).round().clamp(0, 255)
    steps = quantisation(CHROMINANCE, qualities, device).repeat_interleave(2, 0)
    chroma = _code_plane(chroma.flatten(0, 1), steps).round().clamp(-128, 127).unflatten(0, (-1, 2))
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)  # libjpeg's "fancy upsampling"
    planes = torch.cat([luma[:, None], chroma], 1)
    rgb = torch.einsum("cy,byhw->bchw", to_rgb, planes)
    return rgb.round().clamp(0, 255) / 255
