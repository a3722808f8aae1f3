"""Pictures that continue at their opposite side: textures that must tile without a seam.

The picture is extended by its own other side before the run and cut out again after it. Its noise repeats with it
(`Repeat`), so that the two ends of the run agree, and what is left of a difference is blended away at the cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .color import WAVELET_REACH, match_color
from .noise import Repeat
from .progress import moved
from .resize import bicubic, resize

WRAPS = ("none", "x", "y", "both")
CONTEXT = 32  # low-resolution pixels, at least, that a border gets to see of the other side
RESIZE_REACH = 16  # pixels that resizing gets to see of the other side
RESIZED_TOGETHER = 2**23  # numbers of a continued picture that are resized at a time: 32 MiB


@dataclass(frozen=True)
class Side:
    """One direction: its length and what is added before and after it, in low-resolution pixels. Not wrapped: (0, 0)."""

    length: int
    before: int = 0
    after: int = 0

    def extended(self) -> torch.Tensor:
        """Source index of every pixel of the extended side; goes round as often as needed."""
        return torch.arange(-self.before, self.length + self.after) % self.length


@dataclass(frozen=True)
class Torus:
    """Both directions of a picture, of which at least one continues at its other end."""

    rows: Side
    columns: Side

    @classmethod
    def of(cls, wrap: str, height: int, width: int, multiple: int) -> Torus:
        """For one of `WRAPS`. Extended sides that wrap are multiples of `multiple`, so that nothing is padded by reflection."""

        def side(length: int, wraps: bool) -> Side:
            margin = -(-CONTEXT // multiple) * multiple
            return Side(length, margin, margin + -length % multiple) if wraps else Side(length)

        return cls(side(height, wrap in ("y", "both")), side(width, wrap in ("x", "both")))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the extended picture."""
        return tuple(side.before + side.length + side.after for side in (self.rows, self.columns))

    def extend(self, images: torch.Tensor) -> torch.Tensor:
        """(..., H, W) -> (..., before + H + after, before + W + after)."""
        rows, columns = (side.extended().to(images.device) for side in (self.rows, self.columns))
        return images.index_select(-2, rows).index_select(-1, columns)

    def cut(self, images: torch.Tensor) -> torch.Tensor:
        """What `extend` was given, of its result."""
        top, left = self.rows.before, self.columns.before
        return images[..., top : top + self.rows.length, left : left + self.columns.length]

    def without_margins(self, on_step: Callable | None) -> Callable | None:
        """`on_step` told where tiles lie in the picture itself; those that begin before it have negative rows or columns."""
        return moved(on_step, lambda i, y, x, *size: (i, y - self.rows.before, x - self.columns.before, *size))

    def repeat(self, scale: int, factor: int) -> Repeat:
        """How the noise repeats, in latent positions."""

        def axis(side: Side) -> tuple[int | None, int]:
            period = -(-side.length * scale // factor) if side.before else None
            return period, side.before * scale // factor

        (height, top), (width, left) = axis(self.rows), axis(self.columns)
        return Repeat(height, width, top, left)

    def close(self, images: torch.Tensor, scale: int) -> torch.Tensor:
        """Cut (B, C, H, W) at `scale` times the extended size back to the picture, its ends made one."""
        for dim, side in ((-2, self.rows), (-1, self.columns)):
            if side.before:
                images = _close(images, dim, side.before * scale, side.length * scale)
        return images.contiguous()


def _close(images: torch.Tensor, dim: int, start: int, length: int) -> torch.Tensor:
    """The `length` pixels from `start` on; their beginning fades in from what follows their end."""
    inner = images.narrow(dim, start, length)
    width = min(length, images.shape[dim] - start - length, start) // 2
    beyond = images.narrow(dim, start + length, width)
    fade = torch.sin((torch.arange(width, dtype=torch.float64) + 0.5) / width * (math.pi / 2)) ** 2
    fade = fade.to(images).unsqueeze(-1) if dim == -2 else fade.to(images)
    head = inner.narrow(dim, 0, width)
    head.copy_(beyond + (head - beyond) * fade)
    return inner


def resize_around(images: torch.Tensor, size: tuple[int, int], wrap: str) -> torch.Tensor:
    """As `resize`, with every wrapped direction continued at its other end."""
    height, width = images.shape[-2:]
    if wrap == "none" or (height, width) == tuple(size):
        return resize(images, size)
    shrinks = size[0] < height or size[1] < width
    images = _resize_side(images.float(), -2, size[0], wrap in ("y", "both"), shrinks)
    return _resize_side(images, -1, size[1], wrap in ("x", "both"), shrinks).clamp_(0, 1)


def _resize_side(images: torch.Tensor, dim: int, new: int, wraps: bool, shrinks: bool) -> torch.Tensor:
    """One direction to `new` pixels, some lines at a time: a side may have to be continued by twice its length, for what is
    added must become a whole number of new pixels.
    """
    length, across = images.shape[dim], -3 - dim
    if length == new:
        return images
    unit = length // math.gcd(length, new)
    pad = -(-max(RESIZE_REACH, RESIZE_REACH * length // new) // unit) * unit if wraps else 0
    index, cut = Side(length, pad, pad).extended().to(images.device), pad * new // length
    shape = list(images.shape)
    shape[dim] = new
    resized = images.new_empty(shape)
    lines = max(1, RESIZED_TOGETHER // max(1, shape[0] * shape[1] * max(len(index), new + 2 * cut)))
    for source, target in zip(images.split(lines, across), resized.split(lines, across)):
        extended = source.index_select(dim, index)
        size = list(extended.shape[-2:])
        size[dim] = new + 2 * cut
        target.copy_(bicubic(extended, tuple(size), shrinks).narrow(dim, cut, new))
    return resized


def match_color_around(result: torch.Tensor, reference: torch.Tensor, method: str, wrap: str) -> torch.Tensor:
    """As `match_color`, with every wrapped direction continued at its other end; changes `result` in place."""
    if wrap == "none" or method == "adain":  # adain looks at all pixels alike
        return match_color(result, reference, method)
    height, width = result.shape[-2:]
    rows, columns = (WAVELET_REACH * (wrap in words) for words in (("y", "both"), ("x", "both")))
    torus = Torus(Side(height, rows, rows), Side(width, columns, columns))
    matched = match_color(torus.extend(result), torus.extend(reference), method)
    return result.copy_(matched[..., rows : rows + height, columns : columns + width])
