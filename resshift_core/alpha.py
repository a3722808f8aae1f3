"""Colours under transparent pixels: files hold anything there, black mostly, and the chain would sharpen its border."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def spread_visible(images: torch.Tensor) -> torch.Tensor:
    """(B, 4, H, W), alpha last, -> (B, 3, H, W): where alpha is 0, the colours of the visible pixels around.

    Means over ever larger squares, of visible pixels alone, fill what the smaller ones left open ("push-pull"; Gortler et al.,
    "The Lumigraph", SIGGRAPH 1996, section 3.4). Pictures without hidden pixels, or without visible ones, stay as they are.
    """
    rgb, visible = images[:, :3], images[:, 3:] > 0
    if bool(visible.all()):
        return rgb
    filled = rgb.clone()
    for picture, seen in zip(filled, visible):
        if bool(seen.any()):
            weights = _halved(seen[0].float())
            for channel in picture:  # one at a time: a picture may be most of the memory
                _fill(channel, seen[0], weights)
    return filled


def _halved(x: torch.Tensor) -> list[torch.Tensor]:
    """Means of (H, W) over squares of 2, 4, 8, ... pixels, down to one; each (1, 1, h, w)."""
    levels = [F.avg_pool2d(x[None, None], 2, ceil_mode=True)]
    while max(levels[-1].shape[-2:]) > 1:
        levels.append(F.avg_pool2d(levels[-1], 2, ceil_mode=True))
    return levels


def _fill(channel: torch.Tensor, visible: torch.Tensor, weights: list[torch.Tensor]) -> None:
    """Change the hidden values of (H, W) in place. weights: `_halved` of `visible`, (H, W)."""
    filled = None
    for total, weight in zip(reversed(_halved((channel * visible).float())), reversed(weights)):
        mean = total / weight.clamp_min(1e-12)
        filled = mean if filled is None else torch.where(weight > 0, mean, _enlarged(filled, total.shape[-2:]))
    channel.copy_(torch.where(visible, channel, _enlarged(filled, channel.shape)[0, 0].to(channel)))


def _enlarged(x: torch.Tensor, size) -> torch.Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
