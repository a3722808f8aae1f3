"""What a x4 model does to clean and damaged pictures, text, colours, flat areas and seeds: the tables of its model card.

    python -m benchmarks.fidelity PICTURES [--models builtin OTHER.safetensors] [--side 256] [--limit 24]

PICTURES are truths, e.g. Kodak's: a square out of their middle is shrunk, damaged, upscaled again. PSNR is of the luminance,
above that of bicubic interpolation, in dB. Text pages are drawn here (Pillow's own font).
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import resshift_core as rs
from benchmarks.text_pages import make_page
from training.degradation import bicubic, make_degradation
from training.metrics import luma, psnr
from training.program import exit_status
from training.scan import find_images, read_rgb, scan
from training.validation import middle

PAGES = 4
SMALLEST = 64  # pixels of a side
FLAT = (0.0, 0.1, 0.35, 0.5, 0.8, 1.0)  # grey levels, and with them colours


def with_noise(levels: float) -> Callable:
    """Gaussian noise with a standard deviation in 8-bit levels, on the cleanly shrunk picture."""

    def damage(truth: torch.Tensor, number: int) -> torch.Tensor:
        small = bicubic(truth)
        noise = torch.randn(small.shape, generator=torch.Generator().manual_seed(number)) * levels / 255
        return (small + noise).clamp(0, 1).mul(255).round() / 255

    return damage


def with_jpeg(quality: int) -> Callable:
    """Pillow's JPEG of the cleanly shrunk picture."""

    def damage(truth: torch.Tensor, number: int) -> torch.Tensor:
        levels = bicubic(truth)[0].mul(255).round().byte().permute(1, 2, 0).numpy()
        stored = io.BytesIO()
        Image.fromarray(levels).save(stored, "JPEG", quality=quality)
        return to_tensor(Image.open(stored))

    return damage


def plainly(truth: torch.Tensor, number: int) -> torch.Tensor:
    return bicubic(truth)


def by_paper_b1(truth: torch.Tensor, number: int) -> torch.Tensor:
    return make_degradation("paper-b1", 4, 0)(truth, [number])


DAMAGES = {
    "clean": plainly,
    "B.1": by_paper_b1,
    "noise 8": with_noise(8),
    "noise 25": with_noise(25),
    "JPEG 70": with_jpeg(70),
    "JPEG 30": with_jpeg(30),
}


def to_tensor(image: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def enlarge(small: torch.Tensor) -> torch.Tensor:
    return F.interpolate(small, scale_factor=4, mode="bicubic").clamp(0, 1)


def gain(model: rs.ResShiftModel, truth: torch.Tensor, small: torch.Tensor, seed: int = 0) -> tuple[float, torch.Tensor]:
    """(dB above bicubic interpolation, the result)."""
    result = rs.upscale(model, small, seed=seed)
    return psnr(luma(result), luma(truth)) - psnr(luma(enlarge(small)), luma(truth)), result


def edge_error(image: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean absolute error of the luminance at the truth's edges (its steepest tenth), in 8-bit levels."""
    y, wanted = luma(image)[0, 0], luma(truth)[0, 0]
    steepness = wanted.diff(dim=0)[:, 1:].abs() + wanted.diff(dim=1)[1:].abs()
    edges = steepness >= steepness.flatten().quantile(0.9)
    return float((y - wanted)[1:, 1:].abs()[edges].mean() * 255)


def measure(model: rs.ResShiftModel, truths: list[torch.Tensor]) -> dict[str, float]:
    """Everything about one model, by the names that the table shows."""
    found: dict[str, float] = {}
    colour, seeds = [], []
    for word, damage in DAMAGES.items():
        gains = []
        for number, truth in enumerate(truths):
            small = damage(truth, number)
            value, result = gain(model, truth, small)
            gains.append(value)
            if word == "clean":
                colour.append(float((result.mean((2, 3)) - small.mean((2, 3))).abs().max()) * 255)
                if number < 6:
                    seeds.append(psnr(result, rs.upscale(model, small, seed=1)))
        found[f"gain, {word}"] = sum(gains) / len(gains)
    found["largest shift of a colour's mean, levels"] = max(colour)
    found["least PSNR between two seeds"] = min(seeds)
    colours = [(a, b, a) for a, b in zip(FLAT, FLAT[1:] + FLAT[:1])] + [(a, a, a) for a in FLAT]
    flat = [rs.upscale(model, torch.tensor(rgb).view(1, 3, 1, 1).expand(1, 3, 48, 48).contiguous()) for rgb in colours]
    found["largest standard deviation on flat colours, levels"] = max(float(image.std((2, 3)).max()) * 255 for image in flat)
    for word in ("clean", "B.1", "JPEG 70"):
        gains, better = [], []
        for number in range(PAGES):
            truth = to_tensor(make_page(number, seed=77))[..., :512, :512]
            small = DAMAGES[word](truth, number)
            value, result = gain(model, truth, small)
            gains.append(value)
            better.append(edge_error(result, truth) / edge_error(enlarge(small), truth))
        found[f"gain on text, {word}"] = sum(gains) / PAGES
        found[f"error at edges of text over bicubic's, {word}"] = sum(better) / PAGES
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--models", nargs="+", default=["builtin"])
    parser.add_argument("--side", type=int, default=256, help="of the square out of the middle, pixels")
    parser.add_argument("--limit", type=int, default=24, help="pictures")
    args = parser.parse_args()
    paths = scan(find_images(args.pictures)[: args.limit], SMALLEST).paths
    truths = [middle(read_rgb(path), args.side, 4)[None].float() / 255 for path in paths]
    columns = [measure(rs.load_model(name), truths) for name in args.models]
    names = [Path(name).stem for name in args.models]
    print(f"| {len(truths)} pictures, {args.side} px | {' | '.join(names)} |")
    print("|---" + "|---:" * len(names) + "|")
    for word in columns[0]:
        print(
            f"| {word} | "
            + " | ".join(f"{column[word]:+.2f}" if "gain" in word else f"{column[word]:.2f}" for column in columns)
            + " |"
        )


if __name__ == "__main__":
    sys.exit(exit_status(main))
