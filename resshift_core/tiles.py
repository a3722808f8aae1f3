"""Where tiles lie, and how their results are blended."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Axis:
    """Tiles along one side of a picture: equal lengths, evenly spread, in low-resolution pixels."""

    length: int  # of the padded picture
    tile: int
    starts: tuple[int, ...]
    overlap: int

    def weights(self, index: int, scale: int) -> torch.Tensor:
        """Blending weights of tile number `index` for its tile * scale output pixels, float32; all tiles sum to 1."""
        return _weights(self, index, scale)

    def _ramp(self, index: int, scale: int) -> torch.Tensor:
        """Smooth from 0 to 1 over the middle half of the overlap: the outer quarter, which lacks context, counts nothing.

        The first tile does not fall off towards the picture's start, nor the last towards its end.
        """
        weights = torch.ones(self.tile * scale, dtype=torch.float64)
        if self.overlap == 0:
            return weights
        width = self.overlap * scale
        position = (torch.arange(width, dtype=torch.float64) + 0.5) / width
        rise = torch.sin(((position - 0.25) * 2).clamp(0, 1) * (torch.pi / 2)) ** 2
        if index > 0:
            weights[:width] *= rise
        if index < len(self.starts) - 1:
            weights[-width:] *= rise.flip(0)
        return weights


@lru_cache(maxsize=256)
def _weights(axis: Axis, index: int, scale: int) -> torch.Tensor:
    """Kept, because every tile of a row asks for the same ones."""
    total = torch.zeros(axis.length * scale, dtype=torch.float64)
    for i, start in enumerate(axis.starts):
        total[start * scale : (start + axis.tile) * scale] += axis._ramp(i, scale)
    start = axis.starts[index] * scale
    return (axis._ramp(index, scale) / total[start : start + axis.tile * scale]).float()


def lay_axis(padded: int, tile: int, overlap: int, unit: int = 1, multiple: int = 1) -> Axis:
    """Equal tiles of at most `tile` pixels, evenly spread over a side of `padded` pixels, overlapping by `overlap` or more.

    As few tiles as the largest size allows, then as small as that number allows: a side of 512 pixels is covered by 3 tiles
    of 192 rather than by 3 of 256. The padding is tiled too, so that pixels at the picture's border have the context that
    they have in a whole run. `unit` is the number of low-resolution pixels per latent position (at least 1): starts are
    multiples of it. Tiles are multiples of `multiple`.
    """
    if padded <= tile:
        return Axis(padded, padded, (0,), 0)
    overlap = min(-(-overlap // unit), tile // 2 // unit) * unit
    count = -(-(padded - overlap) // (tile - overlap))
    tile = -(-(padded + (count - 1) * overlap) // (count * multiple)) * multiple
    starts = (i * ((padded - tile) // unit) // (count - 1) * unit for i in range(count))
    return Axis(padded, tile, tuple(starts), overlap)


def lay_side(config, side: int, tile: int, overlap: int) -> Axis:
    """`lay_axis` of a picture's side of `side` pixels, padded as a model of that ModelConfig needs it."""
    return lay_axis(config.padded(side), tile, overlap, config.unit, config.tile_multiple)


def mirror_index(first: int, last: int, padded: int, length: int) -> torch.Tensor:
    """As `reflect_index`, mirrored at the picture's edge instead of at the middle of its last pixel, which so occurs twice.

    Half a pixel further out lies the edge of the large picture, too.
    """
    index = torch.arange(first, last).clamp(0, padded - 1) % (2 * length)
    return torch.where(index < length, index, 2 * length - 1 - index)


def reflect_index(first: int, last: int, padded: int, length: int) -> torch.Tensor:
    """Source rows for rows first..last-1 of a side of `length` pixels, reflected to `padded`, then replicated beyond.

    Reflection repeats as often as needed, so a side of any length from 1 can be padded to anything.
    """
    index = torch.arange(first, last).clamp(0, padded - 1)
    if length == 1:
        return torch.zeros_like(index)
    period = 2 * (length - 1)
    index = index % period
    return torch.where(index < length, index, period - index)
