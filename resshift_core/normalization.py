"""The normalisation layers that a network may be configured with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .device import layout_for


class PositionNorm(nn.Module):
    """Root-mean-square norm over the channels of each position: a tile's result does not depend on its surroundings.

    (B, C, H, W) -> (B, C, H, W); statistics in float32.
    """

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x):
        scale = x.float().square().mean(1, keepdim=True).add(self.eps).rsqrt()
        return x * scale.to(x.dtype) * self.weight.view(1, -1, 1, 1)


class GroupNorm(nn.GroupNorm):
    """GroupNorm over (up to) 32 groups. torch accumulates its statistics in float32 for every input dtype.

    On foreign backends torch's own kernel takes planes of channels only, and attention hands on pixels (see `layout_for`).
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__(math.gcd(32, channels), channels, eps=eps)

    def forward(self, x):
        if layout_for(x.device) is torch.contiguous_format:
            x = x.contiguous()
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


NORMS = {"group": GroupNorm, "position": PositionNorm, "none": nn.Identity}
