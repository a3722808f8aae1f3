"""What the tests of training/ share: a folder of pictures, a tiny model file, and the command line that trains it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import resshift_core as rs

from . import standin

ROOT = Path(__file__).resolve().parent.parent


def make_pictures(folder: Path, count: int = 6, side: int = 72) -> Path:
    """Smooth coloured pictures with edges, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:side, :side] / side
    for n in range(count):
        rng = np.random.default_rng(n)
        waves = [0.5 + 0.3 * np.sin(2 * np.pi * (rng.uniform(1, 9) * x + rng.uniform(1, 9) * y)) for _ in range(3)]
        image = np.stack(waves, -1)
        image[side // 4 : side // 2, n : side // 2 + n] += 0.2
        Image.fromarray((255 * image.clip(0, 1)).astype(np.uint8)).save(folder / f"picture_{n}.png")
    return folder


def save_tiny_model(path: Path, **overrides) -> Path:
    """A space-to-depth model of a few thousand weights."""
    return rs.save_model(standin.small_model(model_channels=8, licence="Apache-2.0", **overrides), path)


def vq_model(**overrides) -> rs.ResShiftModel:
    """A small network of the published kind: VQGAN latent, x0 prediction, group norm, Swin layers."""
    unet = rs.UNetConfig(model_channels=32, channel_mult=(1, 1), num_res_blocks=1, swin_channels=32, image_size=16)
    vqgan = rs.VQGANConfig(ch=32, ch_mult=(1, 1, 1), num_res_blocks=(1, 1, 1), n_embed=64)
    return standin.standin_model(rs.ModelConfig(unet, vqgan, name="vq", **overrides))


def arguments(data: Path, output: Path, model: Path, *more) -> list[str]:
    """Of finetune.py: small batches, few pauses; `more` is added, or wins."""
    return [
        "--data", str(data), "--output", str(output), "--model", str(model), "--device", "cpu", "--crop", "32",
        "--batch-size", "4", "--iterations", "6", "--degradation", "bicubic", "--precision", "fp32", "--workers", "0",
        "--validation-count", "1", "--validation-crop", "64", "--log-every", "1", *(str(word) for word in more),
    ]  # fmt: skip


def command(*words) -> list[str]:
    """finetune.py as people start it."""
    return [sys.executable, str(Path("training", "finetune.py")), *(str(word) for word in words)]


def environment(**more) -> dict[str, str]:
    """One thread: the runs of these tests are tiny, and threads only get into each other's way."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return rs.load_model(path, device="cpu", dtype="fp32").unet.state_dict()
