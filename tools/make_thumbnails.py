"""Writes the thumbnails of example_workflows/ with the built-in models: before at the left, after at the right.

python tools/make_thumbnails.py PICTURE      a photograph; a square out of its middle is used
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import resshift_core as rs  # noqa: E402
from benchmarks.fidelity import to_tensor  # noqa: E402
from training.program import exit_status  # noqa: E402

SIDE, LOW = 480, 120  # pixels of the thumbnail and of what is upscaled to it


def to_image(tensor: torch.Tensor) -> Image.Image:
    return Image.fromarray((tensor[0].movedim(0, -1).clamp(0, 1) * 255).round().byte().numpy())


def halves(before: Image.Image, after: Image.Image) -> Image.Image:
    """Before, as it is, at the left of a white line, after at the right."""
    made = before.resize((SIDE, SIDE), Image.Resampling.NEAREST)
    made.paste(after.resize((SIDE, SIDE)).crop((SIDE // 2, 0, SIDE, SIDE)), (SIDE // 2, 0))
    ImageDraw.Draw(made).line([(SIDE // 2, 0), (SIDE // 2, SIDE)], fill="white", width=3)
    return made


def grid(picture: Image.Image) -> Image.Image:
    made = picture.copy()
    draw = ImageDraw.Draw(made)
    for at in range(SIDE // 4, SIDE, SIDE // 4):
        draw.line([(SIDE // 2, at), (SIDE, at)], fill="white")
        draw.line([(at, 0), (at, SIDE)], fill="white") if at > SIDE // 2 else None
    return made


def frames(picture: Image.Image) -> Image.Image:
    made = Image.new("RGB", (SIDE, SIDE), "#222")
    for i in range(3):
        made.paste(picture.resize((SIDE - 80, SIDE - 80)), (i * 40, i * 40))
        ImageDraw.Draw(made).rectangle([i * 40, i * 40, i * 40 + SIDE - 81, i * 40 + SIDE - 81], outline="white", width=2)
    return made


def hole(picture: Image.Image) -> Image.Image:
    """What the mask covers; the filling itself needs a checkpoint that cannot be shipped."""
    made = picture.copy()
    ImageDraw.Draw(made).ellipse([SIDE * 0.3, SIDE * 0.3, SIDE * 0.62, SIDE * 0.62], fill="black", outline="white", width=3)
    return made


def strips(low: torch.Tensor, model) -> Image.Image:
    """The same part of the picture at three strengths of noise."""
    trained, made = model.schedule.kappa, Image.new("RGB", (SIDE, SIDE))
    for i, factor in enumerate((0.25, 1, 3)):
        picture = to_image(rs.upscale(model, low, kappa=factor * trained)).resize((SIDE, SIDE))
        made.paste(picture.crop((SIDE // 3, 0, SIDE // 3 * 2, SIDE)), (i * SIDE // 3, 0))
    for at in (SIDE // 3, SIDE // 3 * 2):
        ImageDraw.Draw(made).line([(at, 0), (at, SIDE)], fill="white", width=3)
    return made


def damage(low: torch.Tensor) -> torch.Tensor:
    """JPEG of quality 60, as small pictures on web pages have it."""
    stored = io.BytesIO()
    to_image(low).save(stored, "JPEG", quality=60)
    return to_tensor(Image.open(stored))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    with Image.open(parser.parse_args().picture) as stored:
        whole = stored.convert("RGB")
    side = min(whole.size)
    left, top = (whole.width - side) // 2, (whole.height - side) // 2
    before = whole.crop((left, top, left + side, top + side)).resize((LOW, LOW), Image.Resampling.BOX)
    low = to_tensor(before)
    model, real = (rs.load_model(name, device="cpu", dtype="fp32") for name in ("builtin", "builtin-real"))
    after = to_image(rs.upscale(model, low))
    pair, damaged = halves(before, after), damage(low)
    pictures = {
        "ResShift upscale 4x": pair,
        "ResShift restore": halves(to_image(damaged), to_image(rs.upscale(real, damaged))),
        "ResShift tiled 4K": grid(pair),
        "ResShift frames": frames(pair),
        "ResShift inpaint": hole(after),
        "ResShift as upscale model": halves(before, after).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "ResShift compare kappa": strips(low, real),
    }
    for name, picture in pictures.items():
        picture.save(ROOT / "example_workflows" / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    sys.exit(exit_status(main))
