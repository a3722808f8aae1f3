"""A batch of pictures of different sizes on one tensor, and the operators of the degradations on it.

Every operator works on the whole batch on the device of the pixels: resizing is two batched matrix products whose
matrices come from torch's own interpolation, blurring is kornia's filter2d with one kernel per picture, JPEG is libjpeg
(torchvision) on a CPU and batched blocks elsewhere. Results do not depend on which pictures share a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import kornia
import torch
import torch.nn.functional as F
from torchvision.io import decode_jpeg, encode_jpeg

from .jpeg import jpeg_blocks
from .upload import upload

BLOCK = 16  # pixels: JPEG's unit with halved colour; canvases are multiples of it
MODES = ("area", "bilinear", "bicubic")
GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue


@dataclass(frozen=True)
class Canvas:
    """Picture i occupies pixels[i, :, :heights[i], :widths[i]], values nominally in [0, 1]; the rest is anything."""

    pixels: torch.Tensor  # (B, 3, H, W) float32
    heights: tuple[int, ...]
    widths: tuple[int, ...]

    @classmethod
    def of(cls, images: torch.Tensor) -> Canvas:
        """A batch of pictures of one size, (B, 3, H, W)."""
        count, _, height, width = images.shape
        return cls(images, (height,) * count, (width,) * count)

    def select(self, which: Sequence[int]) -> Canvas:
        """Some of the pictures, in the given order."""
        pixels = self.pixels[upload(list(which), self.pixels.device)]
        return Canvas(pixels, tuple(self.heights[i] for i in which), tuple(self.widths[i] for i in which))

    def replace(self, pixels: torch.Tensor) -> Canvas:
        return Canvas(pixels, self.heights, self.widths)

    def clamp(self) -> Canvas:
        return self.replace(self.pixels.clamp(0, 1))


def _reach(lengths: Sequence[int], first: int, last: int, device, reflect: bool) -> torch.Tensor:
    """(B, last - first) source positions for first..last-1 of each picture: reflected, or stuck to the border."""
    position = torch.arange(first, last, device=device).expand(len(lengths), -1)
    length = upload(lengths, device).view(-1, 1)
    if reflect:
        period = (2 * length - 2).clamp(min=1)
        position = position.remainder(period)
        position = torch.where(position < length, position, period - position)
    return position.clamp(min=0).minimum(length - 1)


def extend(canvas: Canvas, margin: int, height: int, width: int, reflect: bool) -> torch.Tensor:
    """Pixels -margin .. height + margin - 1 of every picture, (B, 3, height + 2 margin, width + 2 margin)."""
    pixels = canvas.pixels
    rows = _reach(canvas.heights, -margin, height + margin, pixels.device, reflect)
    columns = _reach(canvas.widths, -margin, width + margin, pixels.device, reflect)
    channels = pixels.shape[1]
    pixels = pixels.gather(2, rows[:, None, :, None].expand(-1, channels, -1, pixels.shape[3]))
    return pixels.gather(3, columns[:, None, None, :].expand(-1, channels, pixels.shape[2], -1))


def blur(canvas: Canvas, kernels: torch.Tensor) -> Canvas:
    """Filter picture i with kernels[i], (B, S, S); borders are reflected.

    By torch's own kernel: sizes are new in nearly every batch, and AMD's MIOpen would search an algorithm for each of them.
    """
    height, width = canvas.pixels.shape[2:]
    padded = extend(canvas, kernels.shape[-1] // 2, height, width, reflect=True)
    with torch.backends.cudnn.flags(enabled=False):  # of MIOpen, too
        return canvas.replace(kornia.filters.filter2d(padded, kernels.to(padded), padding="valid"))


def resize_matrix(length: int, target: int, mode: str, antialias: bool, device) -> torch.Tensor:
    """(target, length): what torch's interpolation along one axis does, which is linear."""
    unit = torch.eye(length, device=device)[None, None]
    if mode == "area":
        return F.interpolate(unit, size=(target, length), mode="area")[0, 0]
    return F.interpolate(unit, size=(target, length), mode=mode, antialias=antialias, align_corners=False)[0, 0]


def _resize_matrices(lengths, targets, modes, antialias, extent: int, device) -> torch.Tensor:
    """(B, largest target, extent), rounded up to JPEG's block where targets differ."""
    rows = max(targets)
    if min(targets) != rows:
        rows = -(-rows // BLOCK) * BLOCK
    matrices = torch.zeros(len(lengths), rows, extent, device=device)
    for i, (length, target, mode) in enumerate(zip(lengths, targets, modes)):
        matrices[i, :target, :length] = resize_matrix(length, target, mode, antialias, device)
    return matrices


def resize(canvas: Canvas, heights, widths, modes: Sequence[str], antialias: bool) -> Canvas:
    """Picture i to heights[i] x widths[i] with modes[i], one of MODES."""
    height, width = canvas.pixels.shape[2:]
    device = canvas.pixels.device
    down = _resize_matrices(canvas.heights, heights, modes, antialias, height, device)
    across = _resize_matrices(canvas.widths, widths, modes, antialias, width, device)
    pixels = down[:, None] @ canvas.pixels @ across[:, None].transpose(2, 3)
    return Canvas(pixels, tuple(heights), tuple(widths))


@dataclass(frozen=True)
class Noise:
    """Noise of one picture. Gaussian: strength is the standard deviation in 8-bit levels. Poisson: strength is the factor
    on the shot noise of a picture whose counts are its 8-bit levels. `grey` gives the three colours one field."""

    kind: str = "none"  # or "gaussian", "poisson"
    strength: float = 0.0
    grey: bool = False


def _noise_field(image: torch.Tensor, noise: Noise, generator: torch.Generator) -> torch.Tensor:
    """(3 or 1, h, w) to be added to one picture (3, h, w) in [0, 1]."""
    if noise.kind == "gaussian":
        channels = 1 if noise.grey else image.shape[0]
        field = torch.randn((channels, *image.shape[1:]), generator=generator, device=image.device)
        return field * (noise.strength / 255)
    levels = image.mul(255).round()
    if noise.grey:
        weights = upload(GREY, levels.device, levels.dtype)  # kornia of Python 3.10 makes its own there, and waits
        levels = kornia.color.rgb_to_grayscale(levels, weights).round()
    return (torch.poisson(levels, generator=generator) - levels) * (noise.strength / 255)


def add_noise(canvas: Canvas, noises: Sequence[Noise], generators: Sequence[torch.Generator]) -> Canvas:
    """Every picture its own noise from its own generator; the result is clamped to [0, 1]."""
    pixels = canvas.pixels.clamp(0, 1)
    for i, noise in enumerate(noises):
        if noise.kind != "none":
            image = pixels[i, :, : canvas.heights[i], : canvas.widths[i]]
            image += _noise_field(image, noise, generators[i])
    return canvas.replace(pixels.clamp_(0, 1))


def _libjpeg(canvas: Canvas, qualities: Sequence[int]) -> torch.Tensor:
    pixels = canvas.pixels.clone()
    for i, quality in enumerate(qualities):
        image = pixels[i, :, : canvas.heights[i], : canvas.widths[i]]
        stored = encode_jpeg(image.clamp(0, 1).mul(255).round().byte().contiguous(), int(quality))
        image.copy_(decode_jpeg(stored).float() / 255)
    return pixels


def _batched_jpeg(canvas: Canvas, qualities: Sequence[int]) -> torch.Tensor:
    height, width = (-(-side // BLOCK) * BLOCK for side in canvas.pixels.shape[2:])
    whole = extend(canvas, 0, height, width, reflect=False).clamp(0, 1)  # libjpeg too repeats the border into its blocks
    return jpeg_blocks(whole, qualities)[:, :, : canvas.pixels.shape[2], : canvas.pixels.shape[3]]


def jpeg(canvas: Canvas, qualities: Sequence[int], which: Sequence[bool] | None = None, codec: str = "auto") -> Canvas:
    """Through JPEG with halved colour and back, 8 bit. qualities: 1-100 per picture; `which` picks some pictures.

    codec: "libjpeg" (on the CPU), "blocks" (on any device), "auto" = libjpeg for a batch on the CPU.
    """
    chosen = [i for i in range(len(qualities)) if which is None or which[i]]
    if not chosen:
        return canvas
    part = canvas.select(chosen)
    on_cpu = canvas.pixels.device.type == "cpu"
    code = _libjpeg if codec == "libjpeg" or codec == "auto" and on_cpu else _batched_jpeg
    pixels = canvas.pixels.clone()
    pixels[upload(chosen, pixels.device)] = code(part, [qualities[i] for i in chosen])
    return canvas.replace(pixels)
