"""Plain bicubic resizing, and how large a result is."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def target_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Output height and width for a low-resolution picture: round(H * s), round(W * s), at least 1."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, C, H, W) in [0, 1] to `size`: bicubic, antialiased when shrinking; float32, clamped to [0, 1]."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images.float()
    shrinks = size[0] < images.shape[-2] or size[1] < images.shape[-1]
    return bicubic(images.float(), size, shrinks).clamp_(0, 1)


def bicubic(images: torch.Tensor, size: tuple[int, int], antialias: bool = False) -> torch.Tensor:
    """torch's, on the device of `images`; Apple's GPU has had it since torch 2.6, and not yet with antialiasing."""
    here = images.cpu() if images.device.type == "mps" else images
    return interpolated(here, size, "bicubic", antialias).to(images.device)


def interpolated(images: torch.Tensor, size: tuple[int, int], mode: str, antialias: bool) -> torch.Tensor:
    """F.interpolate to (B, C, *size), but for what torch (2.14, say) mixes up: rows of what shrinks to a single column."""
    if antialias and size[1] == 1 < size[0]:
        return interpolated(images.mT, (1, size[0]), mode, antialias).mT
    return F.interpolate(images, size=size, mode=mode, antialias=antialias, align_corners=False)
