"""One photograph of 512x512 through the command line: wall time, peak memory, and the time in units of matrix products.

    python -m benchmarks.photo [--photo FILE] [--runs 3] [--model builtin]

The unit is one bf16 product of two 4096x4096 matrices on the same machine, timed between the runs, so that the figure can
be compared across machines. Memory is the peak resident size of the process above that of one that only imports the
libraries. POSIX only (the operating system's own accounting of child processes).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from benchmarks.arguments import positive

SAMPLE = Path(__file__).resolve().parent.parent / "docs" / "images" / "sample.png"
IMPORTS = "import resshift_core.cli, resshift_core as rs, PIL.Image, tqdm, numpy, einops; rs.upscale; rs.load_model"
PRODUCT = """
import time, torch
a = torch.randn(4096, 4096, dtype=torch.bfloat16)
a @ a
times = []
for _ in range(3):
    began = time.perf_counter()
    a @ a
    times.append(time.perf_counter() - began)
print(min(times))
"""


def run_and_account(command: list[str]) -> tuple[float, float]:
    """(wall seconds, peak resident MiB) of one finished child process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {process.returncode}")
    return seconds, usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def measure(photo: Path, runs: int, model: str) -> dict:
    """Interleaved runs of the product, the imports alone and the command; medians."""
    products, bare, whole = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "photo.png"
        with Image.open(photo) as image:
            image.convert("RGB").resize((512, 512), Image.Resampling.BICUBIC).save(small)
        upscale = [sys.executable, "-m", "resshift_core", "upscale", str(small), "--model", model, "--quiet", "--overwrite"]
        for _ in range(runs):
            out = subprocess.run([sys.executable, "-c", PRODUCT], capture_output=True, text=True, check=True)
            products.append(float(out.stdout))
            bare.append(run_and_account([sys.executable, "-c", IMPORTS]))
            whole.append(run_and_account([*upscale, "-o", str(Path(folder) / "out.png")]))
        with Image.open(Path(folder) / "out.png") as result:
            size = result.size
    seconds = statistics.median(s for s, _ in whole)
    return {
        "output": f"{size[0]}x{size[1]}",
        "seconds_whole_command": round(seconds, 2),
        "seconds_imports_alone": round(statistics.median(s for s, _ in bare), 2),
        "matrix_products": round(seconds / statistics.median(products), 1),
        "seconds_per_product": round(statistics.median(products), 3),
        "peak_mib_above_imports": round(max(m for _, m in whole) - statistics.median(m for _, m in bare)),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, default=SAMPLE)
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--model", default="builtin")
    args = parser.parse_args()
    if not hasattr(os, "wait4"):
        raise SystemExit("This system does not tell how much memory a finished program took: run it on Linux or macOS.")
    try:
        with Image.open(args.photo) as image:
            image.load()
    except OSError as error:
        raise SystemExit(f"{args.photo} cannot be read as a picture ({error}).") from error
    print(json.dumps(measure(args.photo, args.runs, args.model), indent=2))


if __name__ == "__main__":
    main()
