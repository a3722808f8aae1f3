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

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import resshift_core as rs  # noqa: E402
from training.metrics import texture  # noqa: E402

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def squares(folder: Path, count: int, side: int) -> torch.Tensor:
    """(count, 3, side, side) in [0, 1] from the middle of the folder's pictures, halved first to lose their compression."""
    out = []
    for path in sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES):
        picture = Image.open(path).convert("RGB")
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
        if min(picture.size) >= side:
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            out.append(np.asarray(picture.crop((left, top, left + side, top + side))))
        if len(out) == count:
            break
    return torch.from_numpy(np.stack(out)).movedim(-1, 1).float() / 255


def luma(images: torch.Tensor) -> torch.Tensor:
    return (images * torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1)).sum(1, keepdim=True) + 16


def mean_texture(images: torch.Tensor, truth: torch.Tensor, scale: int) -> float:
    return sum(texture(a[None], b[None], scale) for a, b in zip(images, truth)) / len(truth)


def measure(model, truth: torch.Tensor, lq: torch.Tensor, **settings) -> tuple[float, float, float]:
    first, second = (rs.upscale(model, lq, seed=seed, **settings) for seed in (1, 1001))
    error = (luma(first) - luma(truth))[..., 4:-4, 4:-4].square().mean((1, 2, 3))
    psnr = (10 * torch.log10(255**2 / error)).mean()
    return float(psnr), mean_texture(first, truth, model.scale), float((first - second).std() / math.sqrt(2) * 255)


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
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--side", type=int, default=96, help="of the low-resolution squares")
    args = parser.parse_args()
    model = rs.load_model(args.model)
    truth = squares(args.folder, args.pictures, args.side * model.scale)
    lq = F.interpolate(truth, size=(args.side, args.side), mode="bicubic", antialias=True).clamp(0, 1)
    lq = (lq * 255).round() / 255
    plain = F.interpolate(lq, scale_factor=model.scale, mode="bicubic").clamp(0, 1)
    error = (luma(plain) - luma(truth))[..., 4:-4, 4:-4].square().mean((1, 2, 3))
    mean = float((10 * torch.log10(255**2 / error)).mean())
    print(f"{'bicubic':20s} {mean:7.2f} {mean_texture(plain, truth, model.scale):8.3f}")
    print(f"{'setting':20s} {'PSNR-Y':>7s} {'texture':>8s} {'spread':>7s}")
    for name, settings in cases(model):
        psnr, sharp, spread = measure(model, truth, lq, **settings)
        print(f"{name:20s} {psnr:7.2f} {sharp:8.3f} {spread:7.2f}", flush=True)


if __name__ == "__main__":
    main()
