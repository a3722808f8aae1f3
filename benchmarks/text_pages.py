"""Pages of rendered text, the same on every machine: the demonstration data of docs/training.md.

    python -m benchmarks.text_pages OUT --pages 40 --seed 0

Letters are those of Pillow's own font unless --fonts names a folder of font files; words are made of syllables.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.arguments import make_folder

SYLLABLES = (
    "ba be bri co cru da de dro fa fi flo ga gra hi ho ja ke kli la le lu ma mi mon na ne no pa pe pri qua ra re ri ro "
    "sa se shi sta stru ta te tho tri u va ve vor wa we wi xo ya ze zu"
).split()
MARKS = ("", "", "", "", "", ",", ".", ";", "?", "!", ":")
WIDTH, HEIGHT, MARGIN = 768, 1024, 48  # pixels


def make_word(rng: np.random.Generator) -> str:
    if rng.random() < 0.06:
        return str(int(rng.integers(0, 10000)))
    word = "".join(rng.choice(SYLLABLES, int(rng.integers(1, 5))))
    word = word.upper() if rng.random() < 0.03 else word.capitalize() if rng.random() < 0.15 else word
    return word + str(rng.choice(MARKS))


def write_paragraph(draw: ImageDraw.ImageDraw, top: float, points: float, ink, font, rng: np.random.Generator) -> float:
    """A block of lines from `top` on; returns where the next one may start."""
    for _ in range(int(rng.integers(2, 9))):
        x = float(MARGIN)
        while True:
            word = make_word(rng)
            length = draw.textlength(word + " ", font=font)
            if x + length > WIDTH - MARGIN:
                break
            draw.text((x, top), word, fill=ink, font=font)
            x += length
        top += 1.3 * points
        if top > HEIGHT - MARGIN:
            break
    return top + points


def make_page(number: int, seed: int = 0, fonts: tuple[str, ...] = ()) -> Image.Image:
    """Page `number`, RGB: dark on light, every fifth light on dark."""
    rng = np.random.default_rng([seed, number])
    paper, ink = tuple(int(v) for v in rng.integers(225, 256, 3)), tuple(int(v) for v in rng.integers(0, 70, 3))
    if rng.random() < 0.2:
        paper, ink = ink, paper
    page = Image.new("RGB", (WIDTH, HEIGHT), paper)
    draw, top = ImageDraw.Draw(page), float(MARGIN)
    while top < HEIGHT - MARGIN:
        points = float(rng.choice([16, 20, 24, 32, 44], p=[0.2, 0.3, 0.25, 0.15, 0.1]))
        font = ImageFont.truetype(str(rng.choice(fonts)), points) if fonts else ImageFont.load_default(points)
        top = write_paragraph(draw, top, points, ink, font, rng)
    return page


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--pages", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fonts", type=Path, help="folder of .ttf or .otf files")
    args = parser.parse_args(argv)
    fonts = tuple(sorted(str(path) for path in args.fonts.rglob("*.[to]tf"))) if args.fonts else ()
    if args.fonts and not fonts:
        parser.error(f"there is no .ttf or .otf file in {args.fonts}")
    make_folder(args.output, parser)
    for number in range(args.pages):
        make_page(number, args.seed, fonts).save(args.output / f"page_{number:03d}.png")


if __name__ == "__main__":
    main()
