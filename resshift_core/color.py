"""Colour transfer: the upscaled picture takes its low frequencies, or its mean and contrast, from the original.

All in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .errors import InputError
from .resize import resize

COLOR_FIXES = ("none", "wavelet", "adain")
WAVELET_LEVELS = 5
WAVELET_REACH = 2**WAVELET_LEVELS  # pixels; an upper bound of how far a pixel's low frequency looks (1 + 2 + 4 + 8 + 16)
BAND_ROWS = 256


def low_frequency(image: torch.Tensor, levels: int = WAVELET_LEVELS) -> torch.Tensor:
    """The à trous wavelet's coarsest level: 3x3 binomial blurs with holes of 1, 2, 4, ... pixels, borders replicated.

    (B, C, H, W) -> same shape.
    """
    channels = image.shape[1]
    kernel = torch.tensor([1.0, 2.0, 1.0], device=image.device, dtype=image.dtype) / 4
    kernel = torch.outer(kernel, kernel).repeat(channels, 1, 1, 1)
    for level in range(levels):
        hole = 2**level
        padded = F.pad(image, (hole,) * 4, mode="replicate")
        image = F.conv2d(padded, kernel, groups=channels, dilation=hole)
    return image


def match_color(result: torch.Tensor, reference: torch.Tensor, method: str) -> torch.Tensor:
    """Changes `result` in place and returns it. Both (B, C, H, W) float32 in [0, 1].

    "wavelet": high frequencies of `result` plus low frequencies of `reference`, the original at the result's size, in bands of
    rows, so that memory does not grow with the picture. "adain": mean and standard deviation of each channel as in `reference`,
    the original at its own size; the result is shrunk to that before it is measured, for otherwise its sharpness would count as
    contrast.

    Raises:
        InputError: `method` is none of "none", "wavelet", "adain".
    """
    if method not in COLOR_FIXES:
        raise InputError(f"color_fix is {method!r}; known are {', '.join(COLOR_FIXES)}.")
    if method == "adain":
        std, mean = torch.std_mean(resize(result, reference.shape[-2:]), dim=(2, 3), correction=0, keepdim=True)
        std_reference, mean_reference = torch.std_mean(reference, dim=(2, 3), correction=0, keepdim=True)
        result.sub_(mean).mul_(std_reference / std.clamp_min(1e-5)).add_(mean_reference)
    elif method == "wavelet":
        height, bands = result.shape[2], []
        for top in range(0, height, BAND_ROWS):
            bottom = min(height, top + BAND_ROWS)
            low, high = max(0, top - WAVELET_REACH), min(height, bottom + WAVELET_REACH)
            shift = low_frequency(reference[:, :, low:high] - result[:, :, low:high])
            bands.append((top, bottom, shift[:, :, top - low : top - low + bottom - top].clone()))
            if len(bands) > 1:  # the band before is no longer looked at
                first, last, change = bands.pop(0)
                result[:, :, first:last] += change
        for first, last, change in bands:
            result[:, :, first:last] += change
    return result.clamp_(0, 1)
