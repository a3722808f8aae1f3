"""Dead leaves: training pictures of shapes that hide one another, filled with photographs, stripes, gradients and colours.

Edges of photographs are where one thing hides another. A model that lays random shapes over one another has their statistics
(Lee, Mumford and Huang, "Occlusion Models for Natural Images", IJCV 2001), and networks that saw nothing else restore
photographs (Achddou, Gousseau and Ladjal, SSVM 2021). Beside few photographs it gives what they lack: edges between any two
textures, at any angle, and fences, shutters and stripes of every width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from .drawings import OVERSAMPLING

SMALLEST, LARGEST, EXPONENT = 0.03, 0.6, 1.6  # radii over the side of the crop; their density falls by this power
FILLINGS = 5  # made for a crop; shapes share them

Photo = Callable[[int], torch.Tensor]  # side -> (3, side, side), 0 to 255


def draw_leaves(size: int, rng: np.random.Generator, photo: Photo) -> torch.Tensor:
    """A picture of 4 to 27 shapes, uint8 (3, size, size), drawn larger and then shrunk; some as a soft lens shows it.

    photo: a square piece of a photograph, for a side in pixels.
    """
    side = size * OVERSAMPLING
    canvas = _filling(side, rng, photo)
    count = int(rng.integers(4, 28))
    fillings = [_filling(side, rng, photo) for _ in range(min(count, FILLINGS))]
    for radius in sorted(_radii(count, rng), reverse=True):  # small things in front, or they would not be seen
        mask = _shape(side, side * radius, rng)
        if rng.random() < 0.3:
            canvas.paste(tuple(int(level) for level in rng.integers(0, 256, 3)), mask=mask)
        else:
            canvas.paste(fillings[int(rng.integers(len(fillings)))], mask=mask)
    page = canvas.resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.4:
        page = page.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.25, 0.8))))
    return torch.from_numpy(np.array(page)).permute(2, 0, 1).contiguous()


def _radii(count: int, rng: np.random.Generator) -> np.ndarray:
    power = 1 - EXPONENT
    return (SMALLEST**power + rng.random(count) * (LARGEST**power - SMALLEST**power)) ** (1 / power)


# ---------------------------------------------------------------------------------------------------- what fills a shape


def _filling(side: int, rng: np.random.Generator, photo: Photo) -> Image.Image:
    kind = rng.random()
    if kind < 0.4:
        values = photo(side).numpy()
    else:
        one, two = _two_colours(rng)
        if kind < 0.55:
            mix = np.zeros((side, side), np.float32)
        elif kind < 0.7:
            mix = _gradient(side, rng)
        else:
            mix = _pattern(side, rng)
        values = one + mix * (two - one)
        if rng.random() < 0.4:  # with a grain of its own
            values += (photo(side).numpy() - 128) * rng.uniform(0.1, 0.6)
    levels = np.clip(values, 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(3, 1, 1) each."""
    one, two = (rng.integers(0, 256, 3).astype(np.float32) for _ in range(2))
    if rng.random() < 0.6:  # most things differ in light more than in hue
        two = np.clip(one + rng.normal(0, 50) + rng.normal(0, 12, 3), 0, 255).astype(np.float32)
    return one[:, None, None], two[:, None, None]


def _distance_along(side: int, rng: np.random.Generator) -> np.ndarray:
    """Pixels along a random direction, (side, side); for two in five in perspective."""
    angle = rng.uniform(0, 2 * math.pi)
    steps = np.arange(side, dtype=np.float32)
    y, x = steps[:, None], steps
    along, aside = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    if rng.random() < 0.4:
        along = along / (1 + rng.uniform(-0.4, 0.9) * np.clip(aside / side, -1, 1))
    return along


def _fraction(values: np.ndarray) -> np.ndarray:
    return values - np.floor(values)  # a third of the time of `% 1`


def _gradient(side: int, rng: np.random.Generator) -> np.ndarray:
    along = _distance_along(side, rng)
    return (along - along.min()) / max(np.ptp(along), 1e-3)


def _pattern(side: int, rng: np.random.Generator) -> np.ndarray:
    """Waves or stripes, one in four crossed by bars as bricks are by mortar, (side, side) from 0 to 1."""
    period = OVERSAMPLING * math.exp(rng.uniform(math.log(2.5), math.log(40)))
    phase = _fraction(_distance_along(side, rng) / period + rng.random())
    if rng.random() < 0.4:
        pattern = 0.5 + 0.5 * np.cos(2 * math.pi * phase)
    else:
        width, softness = rng.uniform(0.15, 0.85), OVERSAMPLING * rng.uniform(0.3, 0.9) / period
        pattern = np.clip(np.minimum(phase, width - phase) / softness + 0.5, 0, 1)
    if rng.random() < 0.25:
        period = OVERSAMPLING * math.exp(rng.uniform(math.log(3), math.log(40)))
        bars = (0.2 - _fraction(_distance_along(side, rng) / period)) * (period / OVERSAMPLING)
        pattern = np.maximum(pattern, np.clip(bars + 0.5, 0, 1))
    return pattern


# ---------------------------------------------------------------------------------------------------- shapes


def _shape(side: int, radius: float, rng: np.random.Generator) -> Image.Image:
    """A mask: an ellipse, a polygon, a bar, or a blob, of which some are but a curved line."""
    mask = Image.new("L", (side, side), 0)
    draw, kind = ImageDraw.Draw(mask), rng.random()
    if kind < 0.3:
        outline = _turned(_circle(48) * rng.uniform(0.4, 1, 2), rng)
    elif kind < 0.6:
        angles = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(3, 7))))
        outline = np.stack([np.cos(angles), np.sin(angles)], 1)
    elif kind < 0.8:
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
        outline = _turned(corners * (1.15, rng.uniform(0.035, 0.65)), rng)
    else:
        waves = np.arange(1, 7)[:, None]
        angles = 2 * math.pi * np.arange(64) / 64
        swell = (rng.normal(0, 0.35, (6, 1)) / waves * np.cos(waves * angles + rng.uniform(0, 2 * math.pi, (6, 1)))).sum(0)
        outline = 0.8 * (1 + swell)[:, None] * _circle(64)
    points = [tuple(point) for point in (rng.uniform(0, side, 2) + radius * outline).tolist()]
    if kind > 0.93:
        draw.line(points[: int(rng.integers(10, 50))], fill=255, width=int(rng.integers(1, 8)))
    else:
        draw.polygon(points, fill=255)
    return mask


def _circle(count: int) -> np.ndarray:
    angles = 2 * math.pi * np.arange(count) / count
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _turned(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, math.pi)
    return points @ np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
