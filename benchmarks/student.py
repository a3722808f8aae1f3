"""A student beside its teacher: PSNR of the luminance, and the time in the network, picture by picture in turns.

    python -m benchmarks.student TEACHER STUDENT PICTURES [--degradation bicubic] [--limit 24] [--crop 0] [--rounds 1]

TEACHER and STUDENT are files or registry names; both run as `upscale` runs them unasked. Network time is what passes inside
`unet.condition` and `unet.forward` of such a run; its medians over pictures and rounds are compared, in float32 and in the
format that `load_model` picks, as wall time and as processor time (of all threads; on busy cores only that says something).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

import resshift_core as rs
from benchmarks.arguments import positive
from training.degradation import make_degradation
from training.metrics import luma, psnr, ssim
from training.program import exit_status
from training.scan import find_images, scan
from training.validation import Pair, make_pairs


class NetworkTime:
    """Seconds inside a model's network since `reset`: of the clock, and of the processor."""

    def __init__(self, model: rs.ResShiftModel):
        self.device = model.device
        self.reset()
        model.unet.condition = self._timed(model.unet.condition)
        model.unet.forward = self._timed(model.unet.forward)

    def reset(self) -> None:
        self.wall = self.processor = 0.0

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()

    def _timed(self, call):
        def timed(*args, **kwargs):
            wall, processor = self._now()
            result = call(*args, **kwargs)
            now = self._now()
            self.wall += now[0] - wall
            self.processor += now[1] - processor
            return result

        return timed


@dataclass
class Row:
    """One model in one number format, and what was measured of it."""

    model: rs.ResShiftModel
    scores: list[tuple[float, float]] = field(default_factory=list)  # PSNR in dB and SSIM of a picture
    wall: list[float] = field(default_factory=list)  # seconds in the network for a picture
    processor: list[float] = field(default_factory=list)

    def __post_init__(self):
        self.clock = NetworkTime(self.model)

    def run(self, pair: Pair, first_round: bool) -> None:
        self.clock.reset()
        result = rs.upscale(self.model, pair.lq).cpu().mul(255).round().div(255)  # as it is in a file
        self.wall.append(self.clock.wall)
        self.processor.append(self.clock.processor)
        if first_round:
            a, b = luma(result), luma(pair.truth)
            self.scores.append((psnr(a, b), ssim(a, b)))

    @property
    def psnr(self) -> float:
        return statistics.mean(score[0] for score in self.scores)

    @property
    def ssim(self) -> float:
        return statistics.mean(score[1] for score in self.scores)


def describe(name: str, teacher: Row, student: Row) -> str:
    """Two lines of the table; the ratios stand with the student."""
    lines = []
    for word, row in (("teacher", teacher), ("student", student)):
        wall, processor = statistics.median(row.wall), statistics.median(row.processor)
        shares = [now / statistics.median(whole) for now, whole in ((wall, teacher.wall), (processor, teacher.processor))]
        cells = (
            f"{word}, {name}", row.model.config.default_steps, f"{row.psnr:.2f}", f"{row.psnr - teacher.psnr:+.2f}",
            f"{row.ssim:.4f}", f"{wall:.3f}", f"{shares[0]:.1%}", f"{processor:.3f}", f"{shares[1]:.1%}",
        )  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def measure(teacher: str, student: str, pictures: Path, args: argparse.Namespace) -> str:
    """The table."""
    automatic = rs.load_model(teacher, device=args.device).dtype
    kinds = {"float32": "fp32", str(automatic).removeprefix("torch."): "auto"}
    rows = {
        name: [Row(rs.load_model(model, device=args.device, dtype=word)) for model in (teacher, student)]
        for name, word in kinds.items()
    }
    used = sorted(scan(find_images(pictures), 64).used, key=lambda picture: picture.path)[: args.limit or None]
    scale = rows["float32"][0].model.scale
    pairs = make_pairs(used, make_degradation(args.degradation, scale, 0), scale, args.crop or 10**6)
    for both in rows.values():  # warms up
        for row in both:
            rs.upscale(row.model, pairs[0].lq)
    for number in range(args.rounds):
        for pair in pairs:
            for both in rows.values():
                for row in both:
                    row.run(pair, number == 0)
    head = "| | steps | PSNR, dB | | SSIM | s in the network | | s of processor | |\n|---|" + "---:|" * 8
    return "\n".join([f"{len(pairs)} pictures", head, *(describe(name, *both) for name, both in rows.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("pictures", type=Path, help="folder of ground truth")
    parser.add_argument("--degradation", choices=["bicubic", "paper-b1", "realesrgan"], default="bicubic")
    parser.add_argument("--limit", type=int, default=0, help="pictures; 0 = all")
    parser.add_argument("--crop", type=int, default=0, help="pixels of the truth's middle; 0 = whole pictures")
    parser.add_argument("--rounds", type=positive, default=1)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    print(measure(args.teacher, args.student, args.pictures, args))


if __name__ == "__main__":
    sys.exit(exit_status(main))
