"""What steps, kappa, p and the colour fix do to a model's pictures: numbers for the tooltips.

    python tools/measure_settings.py FOLDER [--model builtin] [--pictures 8] [--side 96]

Cuts a square out of the middle of every picture, shrinks it by bicubic with antialiasing, upscales it again and prints a
table: PSNR on luma; texture (energy at frequencies that the small picture cannot hold, over the original's); spread (standard
deviation over two seeds, 8-bit levels).
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import resshift_core as rs  # noqa: E402
from benchmarks.arguments import positive  # noqa: E402
from training.degradation import bicubic  # noqa: E402
from training.metrics import luma, psnr, texture  # noqa: E402
from training.program import exit_status  # noqa: E402
from training.scan import find_images, read_rgb, scan  # noqa: E402
from training.validation import middle  # noqa: E402


def squares(folder: Path, count: int, side: int) -> torch.Tensor:
    """(count, 3, side, side) in [0, 1] from the middle of the folder's pictures, halved first to lose their compression.

    Raises:
        DataError: none is large enough.
    """
    paths = scan(find_images(folder), 2 * side).paths[:count]
    halves = [F.avg_pool2d(read_rgb(path)[None].float(), 2)[0] for path in paths]
    return torch.stack([middle(half, side, 1) for half in halves]).round() / 255


def mean_psnr(images: torch.Tensor, truth: torch.Tensor) -> float:
    """dB of the luminance, without four pixels at every side."""
    pairs = zip(luma(images)[..., 4:-4, 4:-4], luma(truth)[..., 4:-4, 4:-4])
    return sum(psnr(a[None], b[None]) for a, b in pairs) / len(truth)


def mean_texture(images: torch.Tensor, truth: torch.Tensor, scale: int) -> float:
    return sum(texture(a[None], b[None], scale) for a, b in zip(images, truth)) / len(truth)


def measure(model, truth: torch.Tensor, lq: torch.Tensor, **settings) -> tuple[float, float, float]:
    first, second = (rs.upscale(model, lq, seed=seed, **settings) for seed in (1, 1001))
    spread = float((first - second).std() / math.sqrt(2) * 255)
    return mean_psnr(first, truth), mean_texture(first, truth, model.scale), spread


def cases(model) -> list[tuple[str, dict]]:
    trained = model.schedule
    found = [("as trained", {}), ("deterministic", {"sampler": "deterministic"})]
    found += [(f"steps {n}", {"steps": n}) for n in (1, 2, 3, 6, 8, 15)]
    found += [(f"kappa x{f}", {"kappa": f * trained.kappa}) for f in (0.25, 0.5, 0.75, 1.25, 1.5, 2.0, 3.0)]
    found += [(f"p {p}", {"p": p}) for p in (0.1, 0.2, 0.5, 1.0, 3.0)]
    return found + [(f"colour fix {word}", {"color_fix": word}) for word in ("wavelet", "adain")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--pictures", type=positive, default=8)
    parser.add_argument("--side", type=int, default=96, help="of the low-resolution squares")
    args = parser.parse_args()
    model = rs.load_model(args.model)
    truth = squares(args.folder, args.pictures, args.side * model.scale)
    lq = bicubic(truth, model.scale)
    plain = F.interpolate(lq, scale_factor=model.scale, mode="bicubic").clamp(0, 1)
    print(f"{'bicubic':20s} {mean_psnr(plain, truth):7.2f} {mean_texture(plain, truth, model.scale):8.3f}")
    print(f"{'setting':20s} {'PSNR-Y':>7s} {'texture':>8s} {'spread':>7s}")
    for name, settings in cases(model):
        mean, sharp, spread = measure(model, truth, lq, **settings)
        print(f"{name:20s} {mean:7.2f} {sharp:8.3f} {spread:7.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(exit_status(main))
