"""Many small pictures through one process: `python -m tests.fuzz.long_run --count 2000` prints what memory and files did."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from PIL import Image

import resshift_core as rs
from resshift_core.cli import main as command_line
from resshift_core.cli.report import Report

from .. import standin

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


def make_pictures(folder: Path, count: int) -> None:
    """Of 16 sizes, in several modes and formats."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        pixels = rng.integers(0, 256, (12 + i % 4 * 8, 12 + i // 4 % 4 * 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert(("RGB", "L", "RGBA", "RGB", "P")[i % 5])
        image.save(folder / f"{i:05}.{('png', 'webp', 'png', 'jpg', 'png')[i % 5]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--window", type=int, default=200, help="pictures at both ends that are compared")
    args = parser.parse_args()
    args.window = min(args.window, max(1, args.count // 2))
    torch.set_num_threads(1)
    memory, handles, times = [], [], []
    add = Report.add

    def added(report, ticket, record):
        add(report, ticket, record)
        assert record.status == "done", record.error
        memory.append(resident_mib())
        handles.append(len(os.listdir("/proc/self/fd")))
        times.append(time.process_time())

    Report.add = added
    with tempfile.TemporaryDirectory() as name:
        make_pictures(Path(name) / "in", args.count)
        model = rs.save_model(standin.small_model(), Path(name) / "model.safetensors")
        words = ["upscale", f"{name}/in", "-o", f"{name}/out", "--model", str(model), "--device", "cpu", "--quiet"]
        status = command_line(words)
        made = len(os.listdir(Path(name) / "out"))
    window = args.window
    first, last = mean(memory[:window]), mean(memory[-window:])
    # The least of a window: another picture may be open, being read, when one is counted.
    kept = min(handles[:window]), min(handles[-window:])
    half = len(times) // 2
    print(json.dumps({
        "pictures": made, "exit_status": status, "first_mib": round(first, 1), "last_mib": round(last, 1),
        "memory_grown_percent": round(100 * (last / first - 1), 2), "handles_grown": kept[1] - kept[0],
        "first_half_seconds": round(times[half] - times[0], 1), "second_half_seconds": round(times[-1] - times[half], 1),
    }, indent=2))  # fmt: skip
    return int(status != 0 or made != args.count)


if __name__ == "__main__":
    sys.exit(main())
