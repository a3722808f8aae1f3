"""Rendered text, line art and plain colours as training pictures: what folders of photographs lack."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .scan import files_below

log = logging.getLogger("resshift.training")

OVERSAMPLING = 2
FONTS = (".ttf", ".otf", ".ttc", ".otc")
HOLE_LEAST = 0.01  # of a picture
PLAIN_SHARE = 0.15  # of the pages: photographs have no saturated colours without detail, and networks leave borders on them
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?()&%@#/+-=     "))


def usable_fonts(folder: Path) -> list[str]:
    """The font files below a folder, behind links to folders, too, that can be drawn at any size; the others, such as bitmap fonts,
    are named and left out.
    """
    fonts = []
    for path in sorted(path for path in files_below(folder) if path.suffix.lower() in FONTS):
        try:
            for points in (9, 40.5):
                ImageFont.truetype(str(path), points * OVERSAMPLING).getmask("Ag")
        except (OSError, ValueError) as error:
            log.warning("The font %s is left out (%s).", path, error)
            continue
        fonts.append(str(path))
    return fonts


def _colour(values) -> tuple[int, int, int]:
    return tuple(int(value) for value in values)


def _paper_and_ink(rng: np.random.Generator):
    if rng.random() >= 0.6:
        return rng.integers(0, 256, 3), rng.integers(0, 256, 3)
    paper, ink = rng.integers(220, 256, 3), rng.integers(0, 60, 3)  # most pages people have are dark on light
    return (ink, paper) if rng.random() < 0.25 else (paper, ink)


def _write(draw: ImageDraw.ImageDraw, side: int, ink, rng: np.random.Generator, fonts: Sequence[str]) -> None:
    points = float(rng.uniform(9, 40)) * OVERSAMPLING
    font = ImageFont.truetype(str(rng.choice(fonts)), points) if fonts else ImageFont.load_default(points)
    y = float(rng.uniform(-points, points / 2))
    while y < side:
        line = "".join(rng.choice(LETTERS, int(3.5 * side / points) + 2))
        draw.text((float(rng.uniform(-points, 0)), y), line, fill=_colour(ink), font=font)
        y += points * float(rng.uniform(1.05, 1.4))


def _sketch(draw: ImageDraw.ImageDraw, side: int, ink, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(4, 24))):
        box = rng.uniform(-0.1 * side, 1.1 * side, 4)
        colour = _colour(ink if rng.random() < 0.5 else rng.integers(0, 256, 3))
        width = int(rng.integers(1, 8)) * OVERSAMPLING // 2 + 1
        kind = ("line", "ellipse", "rectangle", "arc")[rng.integers(0, 4)]
        (x0, x1), (y0, y1) = sorted(box[[0, 2]]), sorted(box[[1, 3]])
        if kind == "line":
            draw.line(list(box), fill=colour, width=width)
        elif kind == "arc":
            start, end = (float(angle) for angle in rng.uniform(0, 360, 2))
            draw.arc([x0, y0, x1, y1], start, end, fill=colour, width=width)
        else:
            fill = colour if rng.random() < 0.3 else None
            getattr(draw, kind)([x0, y0, x1, y1], outline=colour, width=width, fill=fill)


def draw_page(size: int, rng: np.random.Generator, fonts: Sequence[str] = ()) -> torch.Tensor:
    """Text (7 of 10) or line art in random colours and sizes, uint8 (3, size, size), drawn larger and then shrunk; or one colour.

    fonts: font files; none = Pillow's own font.
    """
    side = size * OVERSAMPLING
    paper, ink = _paper_and_ink(rng)
    page = Image.new("RGB", (side, side), _colour(paper))
    draw = ImageDraw.Draw(page)
    if rng.random() < 0.7:
        _write(draw, side, ink, rng, fonts)
    else:
        _sketch(draw, side, ink, rng)
    page = page.resize((size, size), Image.Resampling.LANCZOS)
    if rng.random() < PLAIN_SHARE:
        levels = np.where(rng.random(3) < 0.5, rng.choice((0, 255), 3), rng.integers(0, 256, 3))
        page.paste(_colour(levels), (0, 0, size, size))
    return torch.from_numpy(np.array(page)).permute(2, 0, 1).contiguous()


def draw_hole(height: int, width: int, rng: np.random.Generator) -> torch.Tensor:
    """A mask for inpainting, float32 (1, height, width), 1 = hole, HOLE_LEAST of it at least: brush strokes, or a box."""
    while True:  # what a wide picture leaves of a square may hold nothing of its hole
        hole = _draw_hole(max(height, width), rng)[:, :height, :width]
        if hole.mean() >= HOLE_LEAST:
            return hole


def _draw_hole(size: int, rng: np.random.Generator) -> torch.Tensor:
    page = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(page)
    if rng.random() < 0.3:
        x0, y0 = rng.uniform(0, 0.6, 2) * size
        width, height = rng.uniform(0.2, 0.5, 2) * size
        draw.rectangle([x0, y0, x0 + width, y0 + height], fill=255)
    else:
        for _ in range(int(rng.integers(1, 6))):
            points = [tuple(point) for point in np.cumsum(rng.normal(0, size / 5, (4, 2)), 0) + rng.uniform(0, size, 2)]
            draw.line(points, fill=255, width=int(rng.uniform(0.03, 0.15) * size) + 1, joint="curve")
    return torch.from_numpy(np.array(page)).gt(127).float()[None]
