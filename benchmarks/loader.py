"""How many crops per second the loader gives, and how many the degradations take, against what training needs.

    python -m benchmarks.loader --data PICTURES [--workers 0 2 4] [--crop 160] [--batch-size 16] [--device auto] [--seconds 5]

Prints one line per measurement: crops/s with decoded pictures kept in memory and without, for every number of workers;
then crops/s through every degradation on the device.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from resshift_core.device import resolve_device
from training.data import Crops, CropSettings, Positions, load_batches
from training.degradation import DEGRADATIONS, make_degradation
from training.program import exit_status
from training.scan import find_images, scan


def loader_rate(crops: Crops, batch: int, workers: int, seconds: float) -> float:
    """Crops per second with a filled cache, after the first batches, which start the workers."""
    crops.store.fill()
    batches = load_batches(crops, Positions(0, batch, 0, 1), workers)
    for _ in range(4):
        next(batches)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        numbers, _ = next(batches)
        count += len(numbers)
    return count / (time.perf_counter() - began)


def degradation_rate(kind: str, images: torch.Tensor, seconds: float) -> float:
    """High-resolution crops per second."""
    degrade, count = make_degradation(kind, 4, 0), 0
    degrade(images, range(len(images)))
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        degrade(images, range(count, count + len(images)))
        count += len(images)
        if images.is_cuda:
            torch.cuda.synchronize()
    return count / (time.perf_counter() - began)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--crop", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=5)
    args = parser.parse_args(argv)
    device = resolve_device(args.device)
    pictures = scan(find_images(args.data, "train"), args.crop).used
    for mib in (4096, 0):
        for workers in args.workers:
            crops = Crops(pictures, CropSettings(args.crop), cache_mib=mib)
            rate = loader_rate(crops, args.batch_size, workers, args.seconds)
            print(
                f"loader, {workers} workers, {'kept in memory' if mib else 'decoded for every use'}: {rate:.0f} crops/s",
                flush=True,
            )
    source = Crops(pictures, CropSettings(args.crop), cache_mib=4096)
    images = torch.stack([source[n]["hr"] for n in range(args.batch_size)]).to(device)
    for kind in DEGRADATIONS:
        print(f"{kind} on {device}: {degradation_rate(kind, images, args.seconds):.0f} crops/s", flush=True)


if __name__ == "__main__":
    sys.exit(exit_status(main))
