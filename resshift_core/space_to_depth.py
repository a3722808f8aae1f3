"""The small models' stand-in for an autoencoder: blocks of pixels become channels, nothing is lost or computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class SpaceToDepthConfig:
    """`factor` x `factor` pixels of 3 colours become 3 * factor^2 channels."""

    factor: int = 4

    @property
    def latent_channels(self) -> int:
        return 3 * self.factor**2


class SpaceToDepth(nn.Module):
    """encode: (B, 3, H, W) -> (B, 3 f^2, H / f, W / f); decode is its exact inverse. It has no weights."""

    def __init__(self, config: SpaceToDepthConfig):
        super().__init__()
        self.config = config

    def encode(self, image):
        return F.pixel_unshuffle(image, self.config.factor)

    def decode(self, latent, quantize: bool = True):
        """`quantize` is accepted for the VQGAN's signature; there is no codebook."""
        return F.pixel_shuffle(latent, self.config.factor)
