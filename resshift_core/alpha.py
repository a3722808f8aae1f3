"""Colours under transparent pixels: files fill these with one colour, black mostly, and the chain would sharpen its border."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .wrap import Torus, resize_around

Color = tuple[float, ...]


def fill_hidden_around(images: torch.Tensor, mask: torch.Tensor | None, torus: Torus | None):
    """`fill_hidden`, with the other side of a picture that wraps in sight."""
    if torus is None:
        return fill_hidden(images, mask)
    filled, hidden = fill_hidden(torus.extend(images), None if mask is None else torus.extend(mask))
    return torus.cut(filled), hidden


def fill_hidden(images: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, list[Color | None]]:
    """(B, 4, H, W), alpha last, -> (B, 3, H, W), and what `put_back` needs: the colour that was replaced in each picture.

    Where all pixels with alpha 0 have one colour, they get those of the visible pixels around them. Where they have several,
    these may mean something (textures keep data in alpha), and stay. So do pictures in which nothing is visible. What lies in
    a hole, where mask, (B, 1, H, W), is above 0, is not looked at: it is to be gone.

    Means over ever larger squares, of visible pixels alone, fill what the smaller ones left open ("push-pull"; Gortler et al.,
    "The Lumigraph", SIGGRAPH 1996, section 3.4).
    """
    rgb, hidden = images[:, :3], ~(images[:, 3] > 0)
    kept = torch.ones_like(hidden) if mask is None else mask[:, 0] <= 0
    colors = [_filling(picture, unseen & there, ~unseen & there) for picture, unseen, there in zip(rgb, hidden, kept)]
    if not any(colors):
        return rgb, colors
    filled = rgb.clone()
    for picture, unseen, there, color in zip(filled, hidden, kept, colors):
        if color:
            sources = ~unseen & there
            weights = _halved(sources.float())
            for channel in picture:  # one at a time: a picture may be most of the memory
                _fill(channel, unseen, sources, weights)
    return filled, colors


def put_back(images: torch.Tensor, alpha: torch.Tensor, colors: list[Color | None]) -> None:
    """Change (B, 3, H, W) in place: the colours of `fill_hidden` wherever alpha, (B, 1, H, W), is 0 in a file of 8 bits."""
    for picture, opacity, color in zip(images, alpha[:, 0], colors):
        for channel, value in zip(picture, color or ()):
            channel.masked_fill_(opacity * 255 <= 0.5, value)


def resize_visible(images: torch.Tensor, size: tuple[int, int], wrap: str = "none") -> torch.Tensor:
    """As `resize_around`, (B, C, H, W) -> (B, C, *size); where C = 4, the colours of `fill_hidden` do not bleed into others."""
    if images.shape[1] != 4:
        return resize_around(images, size, wrap)
    torus = Torus.of(wrap, *images.shape[-2:], 1) if wrap != "none" else None
    filled, colors = fill_hidden_around(images, None, torus)
    resized, alpha = resize_around(filled, size, wrap), resize_around(images[:, 3:], size, wrap)
    put_back(resized, alpha, colors)
    return torch.cat([resized, alpha], dim=1)


def constant_around(alpha: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W): 1 where all that resizing would look at, two pixels in every direction, is equal, else 0."""
    highest, lowest = F.max_pool2d(alpha, 5, 1, 2), -F.max_pool2d(-alpha, 5, 1, 2)
    return (highest == lowest).to(alpha.dtype)


def _filling(picture: torch.Tensor, hidden: torch.Tensor, visible: torch.Tensor) -> Color | None:
    """The colour that all hidden pixels of (3, H, W) have; None where there are several, none, or nothing visible."""
    if not bool(hidden.any()) or not bool(visible.any()):
        return None
    first = hidden.flatten().to(torch.uint8).argmax()
    color = picture.flatten(1)[:, first]
    one = bool(((picture == color[:, None, None]).all(0) | ~hidden).all())
    return tuple(value.item() for value in color) if one else None


def _halved(x: torch.Tensor) -> list[torch.Tensor]:
    """Means of (H, W) over squares of 2, 4, 8, ... pixels, down to one; each (1, 1, h, w)."""
    levels = [F.avg_pool2d(x[None, None], 2, ceil_mode=True)]
    while max(levels[-1].shape[-2:]) > 1:
        levels.append(F.avg_pool2d(levels[-1], 2, ceil_mode=True))
    return levels


def _fill(channel: torch.Tensor, hidden: torch.Tensor, sources: torch.Tensor, weights: list[torch.Tensor]) -> None:
    """Change the hidden values of (H, W) in place. weights: `_halved` of `sources`, (H, W)."""
    filled = None
    for total, weight in zip(reversed(_halved((channel * sources).float())), reversed(weights)):
        mean = total / weight.clamp_min(1e-12)
        filled = mean if filled is None else torch.where(weight > 0, mean, _enlarged(filled, total.shape[-2:]))
    channel.copy_(torch.where(hidden, _enlarged(filled, channel.shape)[0, 0].to(channel), channel))


def _enlarged(x: torch.Tensor, size) -> torch.Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
