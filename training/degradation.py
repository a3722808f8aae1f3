"""Low-resolution pictures out of high-resolution ones, in batches on the device of the batch.

`bicubic`, `paper-b1` (the paper's Appendix B.1), `everyday` (B.1, and noise or JPEG alone), `realesrgan` (the two-stage
pipeline of Real-ESRGAN with the ranges that ResShift trains with) and `mixed` (half of each of the last two). What happens to
picture number n of a run depends on (seed, n) alone: not on the batch it is in, on how many processes share the work, or on
where a run was resumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from resshift_core.degradation import DESCRIPTION

from .canvas import MODES, Canvas, Noise, add_noise, blur, jpeg, resize
from .kernels import NO_BLUR, Kernel, KernelRange, draw_kernel, draw_sinc, make_kernels
from .upload import upload

DEGRADATIONS = ("realesrgan", "paper-b1", "everyday", "mixed", "bicubic")
SMALLEST = 4  # pixels: no side gets shorter on the way, but where it is

Degrade = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]  # (B, 3, H, W) in [0, 1], numbers -> (B, 3, H / s, W / s)


@dataclass(frozen=True)
class StageRange:
    """What one stage of the two-stage pipeline is drawn from."""

    kernel: KernelRange
    blur_share: float
    resize_shares: tuple[float, float, float]  # up, down, keep
    resize: tuple[float, float]  # factor of the stage's base size
    gaussian: tuple[float, float]  # standard deviation in 8-bit levels
    poisson: tuple[float, float]
    gaussian_share: float = 0.5
    grey_share: float = 0.4
    quality: tuple[int, int] = (30, 95)


FIRST = StageRange(KernelRange((7, 21), (0.2, 3.0)), 1.0, (0.2, 0.7, 0.1), (0.15, 1.5), (1, 30), (0.05, 3.0))
SECOND = StageRange(KernelRange((3, 15), (0.2, 1.5)), 0.8, (0.3, 0.4, 0.3), (0.3, 1.2), (1, 25), (0.05, 2.5))
SECOND_SHARE = 0.5
FINAL_SINC_SHARE, FINAL_SINC_SIZES = 0.8, (7, 21)


@dataclass(frozen=True)
class StagePlan:
    """One stage, drawn for one picture."""

    kernel: Kernel
    factor: float  # of the base size
    mode: str
    noise: Noise
    quality: int


@dataclass(frozen=True)
class Plan:
    """Everything drawn for one picture of the two-stage pipeline."""

    first: StagePlan
    second: StagePlan | None
    sinc: Kernel
    mode: str
    jpeg_first: bool
    quality: int


def draw_stage(rng: np.random.Generator, ranges: StageRange) -> StagePlan:
    kernel = draw_kernel(rng, ranges.kernel) if rng.random() < ranges.blur_share else NO_BLUR
    low, high = ranges.resize
    direction = rng.choice(3, p=ranges.resize_shares)
    factor = (rng.uniform(1, high), rng.uniform(low, 1), 1.0)[direction]
    mode = str(rng.choice(MODES))
    gaussian = rng.random() < ranges.gaussian_share
    strength = float(rng.uniform(*(ranges.gaussian if gaussian else ranges.poisson)))
    noise = Noise("gaussian" if gaussian else "poisson", strength, bool(rng.random() < ranges.grey_share))
    return StagePlan(kernel, float(factor), mode, noise, int(rng.integers(ranges.quality[0], ranges.quality[1] + 1)))


def draw_plan(rng: np.random.Generator) -> Plan:
    """All random numbers of one picture but its noise fields."""
    first = draw_stage(rng, FIRST)
    second = draw_stage(rng, SECOND) if rng.random() < SECOND_SHARE else None
    sinc = draw_sinc(rng, FINAL_SINC_SIZES, np.pi / 3) if rng.random() < FINAL_SINC_SHARE else NO_BLUR
    low, high = SECOND.quality
    return Plan(first, second, sinc, str(rng.choice(MODES)), bool(rng.random() < 0.5), int(rng.integers(low, high + 1)))


def draw_b1(rng: np.random.Generator) -> StagePlan:
    """Appendix B.1: 13x13 Gaussian (round with probability .6), a filter to shrink with, noise, JPEG 70-95."""
    sigma_x, sigma_y = (float(value) for value in rng.uniform(0.2, 0.8, 2))
    kind = "iso" if rng.random() < 0.6 else "aniso"
    kernel = Kernel(kind, 13, sigma_x, sigma_x if kind == "iso" else sigma_y, float(rng.uniform(-np.pi, np.pi)))
    mode = str(rng.choice(MODES))
    gaussian = rng.random() < 0.5
    noise = Noise("gaussian", float(rng.uniform(1, 15))) if gaussian else Noise("poisson", float(rng.uniform(0.05, 0.3)))
    return StagePlan(kernel, 1.0, mode, noise, int(rng.integers(70, 96)))


def draw_everyday(rng: np.random.Generator) -> tuple[StagePlan, bool]:
    """(plan, whether JPEG comes last). Seven in ten are B.1; the others have blur, stronger noise and JPEG each or not.

    B.1 alone always ends in JPEG: a network that has seen no other noise takes the noise of a picture never compressed for
    detail, and sharpens it.
    """
    plan = draw_b1(rng)
    if rng.random() < 0.7:
        return plan, True
    kernel = plan.kernel if rng.random() < 0.5 else NO_BLUR
    levels = float(rng.uniform(1, 25)) if rng.random() < 0.6 else 0.0
    noise = Noise("gaussian", levels, bool(rng.random() < 0.4))
    return StagePlan(kernel, 1.0, plan.mode, noise, int(rng.integers(40, 96))), bool(rng.random() < 0.5)


def describe(plan: StagePlan, compressed: bool) -> dict[str, float]:
    """What `resshift_core.degradation.DESCRIPTION` is of a picture that went through one stage."""
    kernel, noise = plan.kernel, plan.noise
    shot = noise.kind == "poisson"
    levels = noise.strength * math.sqrt(128) if shot else noise.strength
    noisy = noise.kind != "none" and levels > 0
    blur = 0.0 if kernel.kind == "none" else math.sqrt((kernel.sigma_x**2 + kernel.sigma_y**2) / 2)
    return {
        "damaged": 1.0,
        "compressed": float(compressed),
        "coarseness": (100 - plan.quality) / 70 if compressed else 0.0,
        "noise": math.log2(1 + levels) / 5 if noisy else 0.0,
        "shot": float(noisy and shot),
        "grey": float(noisy and noise.grey),
        "blur": blur,
        plan.mode: 1.0,
    }


def random_for(seed: int, number: int, purpose: int) -> np.random.Generator:
    """The generator of one picture of a run for one purpose; purposes do not share numbers."""
    return np.random.default_rng([seed, number, purpose])


def torch_seed(seed: int, number: int, purpose: int) -> int:
    """As `random_for`, for torch.Generator.manual_seed."""
    return int(np.random.SeedSequence([seed, number, purpose]).generate_state(1, np.uint64)[0] >> 1)


def _generators(seed: int, numbers: Sequence[int], device) -> list[torch.Generator]:
    return [torch.Generator(device).manual_seed(torch_seed(seed, number, 2)) for number in numbers]


def _small_size(images: torch.Tensor, scale: int) -> tuple[int, int]:
    return images.shape[-2] // scale, images.shape[-1] // scale


def bicubic(images: torch.Tensor, scale: int = 4) -> torch.Tensor:
    """Antialiased bicubic 1 / scale, clamped and rounded to 8 bit. (B, 3, H, W) in [0, 1] -> (B, 3, H / s, W / s)."""
    small = images
    if scale != 1:
        small = F.interpolate(images, size=_small_size(images, scale), mode="bicubic", antialias=True, align_corners=False)
    return small.clamp(0, 1).mul(255).round().div(255)


def _resized(side: int, factor: float) -> int:
    return max(min(SMALLEST, side), round(side * factor))


def _run_stage(
    canvas: Canvas, plans: Sequence[StagePlan], generators, base: Sequence[tuple[int, int]], antialias, codec, which=None
):  # fmt: skip
    """Blur, resize to factor * base, noise, JPEG (of those of `which`, a list of bools)."""
    canvas = blur(canvas, make_kernels([plan.kernel for plan in plans], canvas.pixels.device))
    heights, widths = zip(*([_resized(side, plan.factor) for side in size] for plan, size in zip(plans, base)))
    canvas = resize(canvas, heights, widths, [plan.mode for plan in plans], antialias)
    canvas = add_noise(canvas, [plan.noise for plan in plans], generators)
    return jpeg(canvas, [plan.quality for plan in plans], which, codec)


@torch.no_grad()
def paper_b1(images: torch.Tensor, numbers: Sequence[int], seed: int, scale: int = 4, codec: str = "auto") -> torch.Tensor:
    """The degradation of the paper's test sets. (B, 3, H, W) in [0, 1] -> (B, 3, H / s, W / s), 8-bit levels."""
    plans = [draw_b1(random_for(seed, number, 1)) for number in numbers]
    base = [_small_size(images, scale)] * len(plans)
    generators = _generators(seed, numbers, images.device)
    return _run_stage(Canvas.of(images), plans, generators, base, True, codec).pixels


@torch.no_grad()
def everyday(images: torch.Tensor, numbers: Sequence[int], seed: int, scale: int = 4, codec: str = "auto") -> torch.Tensor:
    """`draw_everyday` for each picture. (B, 3, H, W) in [0, 1] -> (B, 3, H / s, W / s), 8-bit levels."""
    plans, compressed = zip(*(draw_everyday(random_for(seed, number, 1)) for number in numbers))
    base = [_small_size(images, scale)] * len(plans)
    generators = _generators(seed, numbers, images.device)
    canvas = _run_stage(Canvas.of(images), plans, generators, base, True, codec, compressed)
    return canvas.pixels.clamp(0, 1).mul(255).round().div(255)


def _finish(canvas: Canvas, plans: Sequence[Plan], size: tuple[int, int], codec) -> torch.Tensor:
    """To the final size with the sinc filter, and JPEG before or after that. (B, 3, h, w), 8-bit levels."""
    qualities = [plan.quality for plan in plans]
    canvas = jpeg(canvas, qualities, [plan.jpeg_first for plan in plans], codec)
    count = len(plans)
    canvas = resize(canvas, (size[0],) * count, (size[1],) * count, [plan.mode for plan in plans], False)
    canvas = blur(canvas, make_kernels([plan.sinc for plan in plans], canvas.pixels.device)).clamp()
    canvas = jpeg(canvas, qualities, [not plan.jpeg_first for plan in plans], codec)
    return canvas.pixels.clamp(0, 1).mul(255).round().div(255)


@torch.no_grad()
def realesrgan(images: torch.Tensor, numbers: Sequence[int], seed: int, scale: int = 4, codec: str = "auto") -> torch.Tensor:
    """The two-stage pipeline. (B, 3, H, W) in [0, 1] -> (B, 3, H / s, W / s), 8-bit levels.

    The second stage's sizes are relative to the final size, as in Real-ESRGAN. Resizing has no antialiasing: that is how
    the published networks were trained.
    """
    plans = [draw_plan(random_for(seed, number, 1)) for number in numbers]
    generators = _generators(seed, numbers, images.device)
    size = _small_size(images, scale)
    full = [tuple(images.shape[-2:])] * len(plans)
    canvas = _run_stage(Canvas.of(images), [plan.first for plan in plans], generators, full, False, codec)
    small = images.new_empty(len(plans), images.shape[1], *size)
    for twice in (True, False):
        which = [i for i, plan in enumerate(plans) if (plan.second is not None) == twice]
        if not which:
            continue
        part, chosen = canvas.select(which), [plans[i] for i in which]
        if twice:
            own = [generators[i] for i in which]
            part = _run_stage(part, [plan.second for plan in chosen], own, [size] * len(which), False, codec)
        small[upload(which, images.device)] = _finish(part, chosen, size, codec)
    return small


def _share_out(images: torch.Tensor, numbers: Sequence[int], which: Sequence[bool], scale: int, chosen: Degrade, rest: Degrade):
    """Picture i through `chosen` where which[i], else through `rest`."""
    small = images.new_empty(len(numbers), images.shape[1], *_small_size(images, scale))
    for degrade, wanted in ((chosen, True), (rest, False)):
        taken = [i for i, word in enumerate(which) if word == wanted]
        if taken:
            places = upload(taken, images.device)
            small[places] = degrade(images[places], [numbers[i] for i in taken])
    return small


@torch.no_grad()
def mixed(images: torch.Tensor, numbers: Sequence[int], seed: int, scale: int = 4, codec: str = "auto") -> torch.Tensor:
    """Each picture through `realesrgan` or `everyday`. (B, 3, H, W) in [0, 1] -> (B, 3, H / s, W / s), 8-bit levels.

    Real-ESRGAN's pictures always end in JPEG: a network that has seen no others takes the noise of a picture never compressed
    for texture, and draws it out.
    """
    heavy = [random_for(seed, number, 6).random() < 0.5 for number in numbers]
    either = [partial(pipeline, seed=seed, scale=scale, codec=codec) for pipeline in (realesrgan, everyday)]
    return _share_out(images, numbers, heavy, scale, *either)


PIPELINES = {"paper-b1": paper_b1, "everyday": everyday, "realesrgan": realesrgan, "mixed": mixed}


def _is_damaged(seed: int, number: int, share: float) -> bool:
    return random_for(seed, number, 3).random() < share


def descriptions(kind: str, numbers: Sequence[int], seed: int, share: float) -> torch.Tensor:
    """What `make_degradation` does to the pictures of these numbers, (B, 10) in the order of DESCRIPTION.

    Raises:
        ValueError: a kind of more than one stage, whose results have no such description.
    """
    if kind not in ("paper-b1", "everyday", "bicubic"):
        raise ValueError(f"what {kind!r} does to a picture cannot be described in a few numbers")
    rows = []
    for number in numbers:
        row: dict[str, float] = {}
        if kind != "bicubic" and _is_damaged(seed, number, share):
            rng = random_for(seed, number, 1)
            row = describe(draw_b1(rng), True) if kind == "paper-b1" else describe(*draw_everyday(rng))
        rows.append([row.get(name, 0.0) for name in DESCRIPTION])
    return torch.tensor(rows, dtype=torch.float32)


def make_degradation(kind: str, scale: int, seed: int, share: float = 1.0) -> Degrade:
    """degrade(images, numbers). `share` of the pictures get the pipeline, the others are plainly bicubic.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in DEGRADATIONS:
        raise ValueError(f"degradation is {kind!r}; known are {', '.join(DEGRADATIONS)}.")

    def degrade(images: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        if kind == "bicubic":
            return bicubic(images, scale)
        damaged = [_is_damaged(seed, number, share) for number in numbers]
        pipeline = partial(PIPELINES[kind], seed=seed, scale=scale)
        return _share_out(images, numbers, damaged, scale, pipeline, lambda clean, _: bicubic(clean, scale))

    return degrade
