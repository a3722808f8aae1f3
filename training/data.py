"""Training pictures: decoded once, cropped at random, rescaled, flipped and turned; plus rendered text and line art."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif"}


def find_images(root: Path, split: str | None = None) -> list[Path]:
    """All pictures below `root`, sorted; `split` keeps those a MANIFEST.csv in `root` lists under that word."""
    manifest = Path(root) / "MANIFEST.csv"
    if split and manifest.exists():
        with open(manifest, newline="", encoding="utf-8") as file:
            return sorted(Path(root) / row["file"] for row in csv.DictReader(file) if row["split"] == split)
    return sorted(path for path in Path(root).rglob("*") if path.suffix.lower() in SUFFIXES)


def read_rgb(path: Path) -> torch.Tensor:
    """uint8 (3, H, W), upright."""
    with Image.open(path) as image:
        pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class CropConfig:
    size: int = 160  # pixels of the high-resolution crop
    min_rescale: float = 0.4  # a crop is shrunk by a factor drawn from [min_rescale, 1]
    drawn_share: float = 0.08  # share of crops that are rendered text or line art


def draw_page(size: int, rng: np.random.Generator, fonts: list[str]) -> torch.Tensor:
    """Text or line art in random colours and sizes, uint8 (3, size, size). Drawn at four times the size, then shrunk."""
    over = 2
    n = size * over
    paper, ink = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
    if rng.random() < 0.6:  # most pages people have are dark on light
        paper, ink = rng.integers(220, 256, 3), rng.integers(0, 60, 3)
        if rng.random() < 0.25:
            paper, ink = ink, paper
    page = Image.new("RGB", (n, n), tuple(int(c) for c in paper))
    draw = ImageDraw.Draw(page)
    if rng.random() < 0.7:
        points = float(rng.uniform(9, 40)) * over
        font = ImageFont.truetype(str(rng.choice(fonts)), points) if fonts else ImageFont.load_default(points)
        letters = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?()&%@#/+-=     "))
        y = float(rng.uniform(-points, points / 2))
        while y < n:
            line = "".join(rng.choice(letters, int(3.5 * n / points) + 2))
            draw.text((float(rng.uniform(-points, 0)), y), line, fill=tuple(int(c) for c in ink), font=font)
            y += points * float(rng.uniform(1.05, 1.4))
    else:
        for _ in range(int(rng.integers(4, 24))):
            box = rng.uniform(-0.1 * n, 1.1 * n, 4)
            colour = tuple(int(c) for c in (ink if rng.random() < 0.5 else rng.integers(0, 256, 3)))
            width = int(rng.integers(1, 8)) * over // 2 + 1
            kind = rng.integers(0, 4)
            if kind == 0:
                draw.line(list(box), fill=colour, width=width)
            else:
                x0, x1 = sorted(box[[0, 2]])
                y0, y1 = sorted(box[[1, 3]])
                shape = (draw.ellipse, draw.rectangle, draw.arc)[kind - 1]
                if kind == 3:
                    shape([x0, y0, x1, y1], float(rng.uniform(0, 360)), float(rng.uniform(0, 360)), fill=colour, width=width)
                else:
                    shape([x0, y0, x1, y1], outline=colour, width=width, fill=colour if rng.random() < 0.3 else None)
    page = page.resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(page)).permute(2, 0, 1).contiguous()


class CropSource:
    """Random high-resolution crops; crop number n of a run depends on (seed, n) alone, so a resumed run goes on exactly."""

    def __init__(self, paths: list[Path], config: CropConfig, seed: int = 0, fonts: list[str] | None = None):
        self.images = [read_rgb(path) for path in paths]
        self.images = [image for image in self.images if min(image.shape[1:]) >= config.size]
        if not self.images:
            raise ValueError(f"none of {len(paths)} pictures is at least {config.size} pixels wide and high")
        areas = np.array([math.sqrt(image.shape[1] * image.shape[2]) for image in self.images])
        self.weights = areas / areas.sum()
        self.config, self.seed, self.fonts = config, seed, fonts or []

    def crop(self, n: int) -> torch.Tensor:
        """float32 (3, size, size) in [0, 1]."""
        rng = np.random.default_rng([self.seed, n])
        size = self.config.size
        if rng.random() < self.config.drawn_share:
            patch = draw_page(size, rng, self.fonts).float()
        else:
            image = self.images[rng.choice(len(self.images), p=self.weights)]
            span = min(round(size / rng.uniform(self.config.min_rescale, 1.0)), *image.shape[1:])
            y, x = (int(rng.integers(0, extent - span + 1)) for extent in image.shape[1:])
            patch = image[:, y : y + span, x : x + span].float()
            if span != size:
                patch = F.interpolate(patch[None], size=(size, size), mode="bicubic", antialias=True)[0].clamp(0, 255)
        patch = torch.rot90(patch, int(rng.integers(4)), (1, 2))
        if rng.random() < 0.5:
            patch = patch.flip(2)
        return patch / 255

    def batch(self, first: int, count: int) -> torch.Tensor:
        """Crops first .. first + count - 1, float32 (count, 3, size, size) in [0, 1]."""
        return torch.stack([self.crop(first + i) for i in range(count)])
