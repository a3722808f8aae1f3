"""What happened to a low-resolution picture: compression, noise and blur, estimated from all of it.

A network of convolutions sees a few pixels around each of its own. How strong noise is, and how coarse JPEG was, is written
all over a picture; a network that is told so restores it better (Zhang et al., "Learning a Single Convolutional
Super-Resolution Network for Multiple Degradations", CVPR 2018; Wang et al., "Unsupervised Degradation Representation Learning
for Blind Super-Resolution", CVPR 2021).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .device import without_autocast

DESCRIPTION = (  # every number in [0, 1]
    "damaged",  # 0 = only ever shrunk
    "compressed",
    "coarseness",  # of JPEG: (100 - quality) / 70
    "noise",  # log2(1 + standard deviation in 8-bit levels at middle grey) / 5
    "shot",  # noise grows with brightness
    "grey",  # noise is the same in all colours
    "blur",  # standard deviation in high-resolution pixels
    "area", "bilinear", "bicubic",  # what it was shrunk with
)  # fmt: skip

WINDOW = 64  # low-resolution pixels, a multiple of JPEG's 8
LEAST = 16  # smaller pictures are padded to this
MOST_WINDOWS = 8  # along a side
TOGETHER = 8  # of them: 64 would take 125 MiB
LUMA = (0.299, 0.587, 0.114)
STEPS = 24  # of JPEG's quantisation, in levels: 1 to so many are looked for
COARSE = [8 * row + column for row in range(8) for column in range(8) if 1 <= row + column <= 3]  # low frequencies
LEAD = 0.15  # by which another grid must fit better than that of the picture's corner; without JPEG it is 0.09 at most
BUSIEST, LEAST_BLOCKS = 4, 40  # windows that are searched for the grid, and blocks without which it is not looked for
FILTERS, FILTER = 48, 5
FEATURES = 96  # of either kind


def windows(picture: torch.Tensor) -> torch.Tensor:
    """(3, H, W) -> (N, 3, h, w), h and w at most WINDOW: evenly spread, on JPEG's grid, not more for larger pictures."""
    picture = _at_least(picture[None])[0]
    rows, columns = (_starts(side) for side in picture.shape[1:])
    return torch.stack([picture[:, top : top + WINDOW, left : left + WINDOW] for top in rows for left in columns])


def _at_least(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W), with the last pixels repeated up to LEAST."""
    down, across = (max(0, LEAST - side) for side in pictures.shape[2:])
    return F.pad(pictures.float(), (0, across, 0, down), mode="replicate") if down or across else pictures


def _starts(side: int) -> list[int]:
    count = min(MOST_WINDOWS, -(-side // WINDOW))
    return [i * (side - WINDOW) // (count - 1) // 8 * 8 for i in range(count)] if count > 1 else [0]


class Compression(nn.Module):
    """JPEG's traces: after it, the cosine transform of every block of 8 x 8 pixels is near multiples of its quantisation steps."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(64 * (STEPS + 1), FEATURES)

    def forward(self, levels):
        """(B, 3, h, w) in 8-bit levels -> (B, FEATURES)."""
        coefficients = transformed(levels)
        strength = coefficients.abs().mean(2).add(0.3).log()
        features = torch.cat([combs(coefficients).flatten(1), strength], 1)
        return F.silu(F.linear(features, self.net.weight.float(), self.net.bias.float()))


def combs(coefficients) -> torch.Tensor:
    """How well each step fits: the mean of cos(2 pi c / step), 1 where all c are its multiples, about 0 where they lie anywhere.

    (B, coefficients, blocks) -> (B, STEPS, coefficients), for the steps 1, 2, ... STEPS.
    """
    return torch.stack([torch.cos(coefficients * (2 * math.pi / step)).mean(2) for step in range(1, STEPS + 1)], 1)


def _luma(levels) -> torch.Tensor:
    """(B, 3, h, w) -> (B, 1, h, w), around 0."""
    red, green, blue = levels.split(1, 1)
    return red * LUMA[0] + green * LUMA[1] + blue * LUMA[2] - 128


def transformed(levels) -> torch.Tensor:
    """The cosine transform of the luminance of every block, (B, 3, h, w) in 8-bit levels -> (B, 64, blocks)."""
    return F.conv2d(_luma(levels), COSINES.to(levels.device, non_blocking=True), stride=8).flatten(2)


def grid_of(levels) -> tuple[int, int]:
    """Where JPEG's grid begins in windows, (N, 3, h, w) in 8-bit levels -> (rows, columns), each 0 to 7.

    (0, 0) where it cannot be told, as without JPEG, or is of no matter: pictures cut out of others are the ones that have
    another.
    """
    chosen = levels.flatten(1).var(1).topk(min(BUSIEST, len(levels))).indices
    coarse = COARSE_COSINES.to(levels.device, non_blocking=True)
    places = F.conv2d(_luma(levels[chosen]), coarse)  # blocks that begin anywhere
    count, kinds, height, width = places.shape
    rows, columns = height // 8, width // 8
    if count * rows * columns < LEAST_BLOCKS:
        return 0, 0
    grids = places[:, :, : 8 * rows, : 8 * columns].reshape(count, kinds, rows, 8, columns, 8)
    fits = combs(grids.permute(3, 5, 1, 0, 2, 4).reshape(64, kinds, -1))[:, 2:]  # (64 grids, steps from 3 on, coefficients)
    lead = (fits - fits.mean(0)).amax(1).mean(1)
    leads = lead.cpu().tolist()
    best = max(range(64), key=leads.__getitem__)
    return divmod(best, 8) if leads[best] - leads[0] > LEAD else (0, 0)


@torch.inference_mode(False)  # it must serve training, too, also if a host's upscale is what first imports this
def _cosines() -> torch.Tensor:
    """The 64 functions of the orthonormal 8 x 8 cosine transform, (64, 1, 8, 8), on the processor."""
    place = torch.arange(8, dtype=torch.float32, device="cpu")
    line = torch.cos(math.pi * (2 * place + 1) * place[:, None] / 16) / 2
    line[0] = math.sqrt(1 / 8)
    return (line[:, None, :, None] * line[:, None]).reshape(64, 1, 8, 8)


COSINES = _cosines()
COARSE_COSINES = COSINES[COARSE]  # kept: Apple's GPU may read a tensor after the program has forgotten it


class Texture(nn.Module):
    """How small differences are distributed: noise is everywhere, also where a picture is flattest."""

    def __init__(self):
        super().__init__()
        self.filters = nn.Conv2d(3, FILTERS, FILTER, bias=False)
        self.net = nn.Linear(4 * FILTERS, FEATURES)

    def forward(self, levels):
        """(B, 3, h, w) in 8-bit levels -> (B, FEATURES)."""
        filters = self.filters.weight.float()
        response = F.conv2d(levels / 16, filters - filters.mean((2, 3), keepdim=True))
        energy = F.avg_pool2d(response.square(), 6, 3).add(1e-4).log().flatten(2)
        flattest = (torch.softmax(-2 * energy, 2) * energy).sum(2)
        spread = energy.var(2, unbiased=False).add(1e-6).sqrt()
        mean = response.abs().mean((2, 3)).add(1e-3).log()
        features = torch.cat([energy.mean(2), flattest, spread, mean], 1)
        return F.silu(F.linear(features, self.net.weight.float(), self.net.bias.float()))


class DegradationEstimator(nn.Module):
    """(B, 3, h, w) in [-1, 1] -> DESCRIPTION, (B, 10) float32 in [0, 1].

    It computes in float32 whatever its weights are: JPEG's traces are finer than half precision. (On NVIDIA's cards torch lets
    convolutions keep ten bits, TF32. That moves pictures by 78 dB and less, those of one colour by 49.)
    """

    def __init__(self):
        super().__init__()
        self.compression, self.texture = Compression(), Texture()
        self.head = nn.Sequential(nn.Linear(2 * FEATURES, FEATURES), nn.SiLU(), nn.Linear(FEATURES, len(DESCRIPTION)))

    def features(self, lq) -> torch.Tensor:
        """Windows, (B, 3, h, w) float32 in [-1, 1], -> (B, 2 FEATURES), to be averaged over a picture."""
        levels = lq * 127.5 + 127.5
        return torch.cat([self.compression(levels), self.texture(levels)], 1)

    def describe(self, features) -> torch.Tensor:
        """(B, 10), not yet limited to [0, 1]."""
        first, last = self.head[0], self.head[2]
        hidden = F.silu(F.linear(features, first.weight.float(), first.bias.float()))
        return F.linear(hidden, last.weight.float(), last.bias.float())

    def unlimited(self, lq) -> torch.Tensor:
        """As `forward`, before the limits, beyond which there is nothing to learn from."""
        with without_autocast(lq.device):
            parts = torch.cat([windows(picture.float()) for picture in lq])
            return self.describe(self.features(parts).unflatten(0, (len(lq), -1)).mean(1))

    def forward(self, lq):
        return self.unlimited(lq).clamp(0, 1)

    def of_picture(self, picture) -> torch.Tensor:
        """(3, H, W) in [0, 1], of any size and on any device, -> (1, 10) on the estimator's device. JPEG's grid is looked for."""
        device = self.head[0].weight.device
        with without_autocast(device):
            parts = windows(picture).float().to(device)
            top, left = grid_of(parts * 255)
            if top or left:
                parts = windows(picture[:, top:, left:]).float().to(device)
            found = [self.features(some * 2 - 1) for some in parts.split(TOGETHER)]
            return self.describe(torch.cat(found).mean(0, keepdim=True)).clamp(0, 1)
