"""Plain bicubic resizing, and how large a result is."""

from __future__ import annotations

from functools import cache

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


def bicubic_blocks(images: torch.Tensor, scale: int) -> torch.Tensor:
    """`bicubic`, `scale` times as large, as F.pixel_unshuffle makes channels of it: (B, C, H + 4, W + 4) -> (B, C * scale^2, H, W), of
    all but two pixels around.

    Every pixel of a block is one sum over the same 5 x 5 pixels: a convolution, in a tenth of the time on a processor. (Graphics cards
    may round what convolutions are given to ten bits.)
    """
    planes = F.conv2d(images.flatten(0, 1)[:, None], _bicubic_weights(scale))
    return planes.unflatten(0, images.shape[:2]).flatten(1, 2)


@cache
@torch.inference_mode(False)  # they are kept, and may serve outside of it
def _bicubic_weights(scale: int) -> torch.Tensor:
    """What torch's bicubic gives each of the middle pixel's successors of each pixel around, (scale^2, 1, 5, 5)."""
    single = torch.eye(25, dtype=torch.float64, device="cpu").reshape(25, 1, 5, 5)
    large = interpolated(single, (5 * scale, 5 * scale), "bicubic", antialias=False)
    middle = slice(2 * scale, 3 * scale)
    return large[:, 0, middle, middle].permute(1, 2, 0).reshape(scale**2, 1, 5, 5).float()


def interpolated(images: torch.Tensor, size: tuple[int, int], mode: str, antialias: bool) -> torch.Tensor:
    """F.interpolate to (B, C, *size), but for what torch (2.14, say) mixes up: rows of what shrinks to a single column."""
    if antialias and size[1] == 1 < size[0]:
        return interpolated(images.mT, (1, size[0]), mode, antialias).mT
    return F.interpolate(images, size=size, mode=mode, antialias=antialias, align_corners=False)
