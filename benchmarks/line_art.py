"""Line drawings, the same on every machine: the second demonstration data of docs/training.md.

    python -m benchmarks.line_art OUT --drawings 40 --seed 0

Ink on paper: curved strokes of changing width, hatched shapes, circles and grids, drawn at four times the size and shrunk.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.arguments import make_folder

SIDE, OVERSAMPLING = 640, 4  # pixels


def stroke(draw: ImageDraw.ImageDraw, side: int, ink, rng: np.random.Generator) -> None:
    """A smooth curve through random points that swells and thins like a pen's."""
    points = np.cumsum(rng.normal(0, side / 8, (6, 2)), 0) + rng.uniform(0.1, 0.9, 2) * side
    t = np.linspace(0, 1, 160)[:, None]
    binomial = (1, 5, 10, 10, 5, 1)
    curve = sum(binomial[k] * t**k * (1 - t) ** (5 - k) * points[k] for k in range(6))  # Bezier, degree 5
    widest = float(rng.uniform(1.0, 4.0)) * OVERSAMPLING
    for (x, y), share in zip(curve, np.sin(np.pi * t[:, 0])):
        radius = 0.5 * (0.3 + 0.7 * share) * widest
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=ink)
    draw.line([tuple(point) for point in curve], fill=ink, width=max(1, int(0.4 * widest)), joint="curve")


def hatching(draw: ImageDraw.ImageDraw, side: int, ink, rng: np.random.Generator) -> None:
    """Parallel lines at an angle inside a circle."""
    centre, radius = rng.uniform(0.1, 0.9, 2) * side, float(rng.uniform(0.04, 0.15)) * side
    angle, gap = float(rng.uniform(0, np.pi)), float(rng.uniform(4, 10)) * OVERSAMPLING
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    for offset in np.arange(-radius, radius, gap):
        half = np.sqrt(max(0.0, radius**2 - offset**2))
        ends = [tuple(centre + offset * across + sign * half * along) for sign in (-1, 1)]
        draw.line(ends, fill=ink, width=int(rng.uniform(1, 1.8) * OVERSAMPLING))


def shape(draw: ImageDraw.ImageDraw, side: int, ink, rng: np.random.Generator) -> None:
    """A circle, a polygon or a grid in outline."""
    width = int(rng.uniform(1, 3.5) * OVERSAMPLING)
    x, y = rng.uniform(0.1, 0.9, 2) * side
    size = float(rng.uniform(0.03, 0.16)) * side
    kind = rng.integers(3)
    if kind == 0:
        draw.ellipse([x - size, y - size, x + size, y + size], outline=ink, width=width)
    elif kind == 1:
        turns = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
        corners = [(x + size * np.cos(turn), y + size * np.sin(turn)) for turn in turns]
        draw.line([*corners, corners[0]], fill=ink, width=width, joint="curve")
    else:
        for step in np.linspace(-size, size, int(rng.integers(3, 9))):
            draw.line([x - size, y + step, x + size, y + step], fill=ink, width=width)
            draw.line([x + step, y - size, x + step, y + size], fill=ink, width=width)


def make_drawing(number: int, seed: int = 0) -> Image.Image:
    """Drawing `number`, RGB."""
    rng = np.random.default_rng([seed, number, 77])
    side = SIDE * OVERSAMPLING
    paper, ink = tuple(int(v) for v in rng.integers(235, 256, 3)), tuple(int(v) for v in rng.integers(0, 50, 3))
    page = Image.new("RGB", (side, side), paper)
    draw = ImageDraw.Draw(page)
    for kind, count in ((stroke, rng.integers(10, 25)), (hatching, rng.integers(4, 12)), (shape, rng.integers(6, 16))):
        for _ in range(int(count)):
            kind(draw, side, ink, rng)
    return page.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--drawings", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    make_folder(args.output, parser)
    for number in range(args.drawings):
        make_drawing(number, args.seed).save(args.output / f"drawing_{number:03d}.png")


if __name__ == "__main__":
    main()
