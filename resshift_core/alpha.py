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
    return torch.stack([_filled(picture, seen) if bool(seen.any()) else picture for picture, seen in zip(rgb, visible)])


def _filled(picture: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """(3, H, W) and (1, H, W) -> (3, H, W)."""
    weight = visible[None].float()
    levels = [(picture[None].float() * weight, weight)]
    while max(levels[-1][0].shape[-2:]) > 1:
        colors, weight = levels[-1]
        both = F.avg_pool2d(torch.cat([colors, weight], 1), 2, ceil_mode=True)
        levels.append((both[:, :3], both[:, 3:]))
    coarse = None
    for colors, weight in reversed(levels):
        own = colors / weight.clamp_min(1e-12)
        if coarse is not None:
            around = F.interpolate(coarse, size=own.shape[-2:], mode="bilinear", align_corners=False)
            own = torch.where(weight > 0, own, around)
        coarse = own
    return torch.where(visible, picture, coarse[0].to(picture))
