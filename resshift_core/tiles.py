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


def lay_axis(padded: int, count: int, overlap: int, unit: int = 1, multiple: int = 1) -> Axis:
    """`count` equal tiles, evenly spread over a side of `padded` pixels, overlapping by `overlap` or more.

    `unit` is the number of low-resolution pixels per latent position (at least 1): starts are multiples of it. Tiles are
    multiples of `multiple`.
    """
    if count == 1:
        return Axis(padded, padded, (0,), 0)
    tile = _length(padded, count, overlap, multiple)
    starts = (i * ((padded - tile) // unit) // (count - 1) * unit for i in range(count))
    return Axis(padded, tile, tuple(starts), overlap)


def lay_tiles(padded: tuple[int, int], tile: int, overlap: int, unit: int = 1, multiple: int = 1) -> tuple[Axis, Axis]:
    """(rows, columns) of tiles for a padded picture, (height, width), so that as little as possible is computed twice.

    With squares, there would be as few as `tile` allows, then as small as that number allows. A side may be a quarter shorter than
    theirs, not more, because context makes pictures better, and a quarter longer than `tile`; the area is at most that of
    `tile` x `tile`, by which memory goes. 512 x 512 pixels are covered by 2 x 3 tiles of 272 x 192 rather than by 3 x 3 of 192 x 192.
    The padding is tiled too, so that pixels at the picture's border have the context that they have in a whole run. `unit`,
    `multiple`: see `lay_axis`.
    """
    if max(padded) <= tile:
        return lay_axis(padded[0], 1, 0), lay_axis(padded[1], 1, 0)
    overlap = min(-(-overlap // unit), tile // 2 // unit) * unit
    rows, columns = (_choices(side, tile, overlap, multiple) for side in padded)
    fitting = [(high, wide) for high in rows for wide in columns if high * wide <= tile * tile]

    def cost(lengths: tuple[int, int]) -> tuple[int, int]:
        """Pixels computed; among equals few rows of tiles: noise is drawn for a row at a time."""
        high, wide = lengths
        return rows[high] * high * columns[wide] * wide, rows[high]

    high, wide = min(fitting, key=cost)
    return (
        lay_axis(padded[0], rows[high], overlap, unit, multiple),
        lay_axis(padded[1], columns[wide], overlap, unit, multiple),
    )


def _choices(padded: int, tile: int, overlap: int, multiple: int) -> dict[int, int]:
    """Lengths that tiles along one side may have, with the least number of tiles for each."""
    squares = 1 if padded <= tile else -(-(padded - overlap) // (tile - overlap))
    shortest = _length(padded, squares, overlap, multiple) * 3 // 4
    counts: dict[int, int] = {}
    for count in range(1, 2 * squares + 1):
        length = _length(padded, count, overlap, multiple)
        if shortest <= length <= tile * 5 // 4:
            counts.setdefault(length, count)
    return counts


def _length(padded: int, count: int, overlap: int, multiple: int) -> int:
    """Of each of `count` equal tiles."""
    return padded if count == 1 else -(-(padded + (count - 1) * overlap) // (count * multiple)) * multiple


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
