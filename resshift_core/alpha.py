"""Colours under transparent pixels: files fill these with one colour, black mostly, and the chain would sharpen its border."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def fill_hidden(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(B, 4, H, W), alpha last, -> (B, 3, H, W), and the colours to put back, (B, 3, 1, 1), NaN for none; or None for all.

    Where all pixels with alpha 0 have one colour, they get those of the visible pixels around them. Where they have several,
    these may mean something (textures keep data in alpha), and stay. So do pictures in which nothing is visible.

    Means over ever larger squares, of visible pixels alone, fill what the smaller ones left open ("push-pull"; Gortler et al.,
    "The Lumigraph", SIGGRAPH 1996, section 3.4).
    """
    rgb, visible = images[:, :3], images[:, 3:] > 0
    if bool(visible.all()):
        return rgb, None
    filled, colors = rgb.clone(), rgb.new_full((len(rgb), 3, 1, 1), torch.nan)
    for picture, seen, color in zip(filled, visible[:, 0], colors):
        if not seen.all() and seen.any() and _is_one(own := picture[:, ~seen]):
            color[:, 0, 0] = own[:, 0]
            weights = _halved(seen.float())
            for channel in picture:  # one at a time: a picture may be most of the memory
                _fill(channel, seen, weights)
    return filled, colors


def put_back(images: torch.Tensor, alpha: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) with the colours of `fill_hidden` wherever alpha, (B, 1, H, W), is 0."""
    return torch.where((alpha == 0) & ~colors.isnan(), colors.to(images), images)


def _is_one(colors: torch.Tensor) -> bool:
    """Whether (3, N) is one colour N times."""
    return bool((colors == colors[:, :1]).all())


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
