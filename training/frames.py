"""Frames: lines along the sides of a picture, as scans of film, captured video and letterboxed films have them.

Crops from the middle of photographs never show one. At the border of a picture, where a network sees nothing further, it has
to tell a dark line from dark content by one row of the low-resolution picture.
"""

from __future__ import annotations

import math

import numpy as np
import torch

NARROWEST, WIDEST = 0.5, 24.0  # pixels; as many narrow ones as wide ones
SOFTEST = 3.0  # pixels from frame to picture


def draw_frame(patch: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """(3, H, W) from 0 to 255, with a frame on one to four sides: two in five black, one in ten white, the others of any colour.

    Black ones alone would teach a network that whatever darkens the first row is a black line.
    """
    colour = _colour(rng)[:, None, None]
    chosen = rng.random(4) < 0.5
    chosen[int(rng.integers(4))] = True
    picture = np.ones(patch.shape[1:])  # how much of it is left
    for side in np.flatnonzero(chosen):
        turned = np.rot90(picture, side)  # a view: its first row is that side
        turned *= _left(*turned.shape, rng)
    picture = torch.from_numpy(picture).to(patch)
    return torch.lerp(torch.from_numpy(colour).to(patch).expand_as(patch), patch, picture)


def _colour(rng: np.random.Generator) -> np.ndarray:
    kind = rng.random()
    if kind < 0.4:
        return rng.uniform(0, 30) * rng.uniform(0.7, 1, 3)
    return 255 - rng.uniform(0, 30) * rng.uniform(0.7, 1, 3) if kind < 0.5 else rng.uniform(0, 255, 3)


def _left(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """What a frame at the first row leaves of every pixel, (height, width) from 0 to 1; one in three does not lie straight."""
    line = math.exp(rng.uniform(math.log(NARROWEST), math.log(WIDEST)))
    tilt = rng.uniform(-1, 1) if rng.random() < 0.33 else 0.0
    ends = line * (1 + tilt * np.linspace(-0.5, 0.5, width))
    softness = rng.uniform(1, SOFTEST)
    return np.clip((np.arange(height)[:, None] + 0.5 - ends) / softness + 0.5, 0, 1)
