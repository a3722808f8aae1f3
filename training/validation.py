"""Held-out pictures through `resshift_core.upscale`, which is what users run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import resshift_core as rs

from .degradation import Degrade, random_for
from .drawings import draw_hole
from .metrics import lpips_distance, lpips_is_here, psnr, ssim
from .scan import Picture, read_rgb

NUMBERS_FROM = 10**9  # of held-out pictures, so that no crop of a run shares their random numbers
SHOWN = 4  # pictures in a grid
SHOWN_PX = 256


@dataclass(frozen=True)
class Pair:
    """One held-out picture: (1, 3, H, W) and (1, 3, H / s, W / s) in [0, 1]; for inpainting with a hole, (1, 1, H, W)."""

    truth: torch.Tensor
    lq: torch.Tensor
    hole: torch.Tensor | None = None


def hold_out(pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
    """(to train on, held out): a twentieth, 2 to 16, chosen by content; of fewer than 4 pictures none."""
    if len(pictures) < 4:
        return list(pictures), []
    count = min(16, max(2, len(pictures) // 20))
    held = {picture.digest for picture in sorted(pictures, key=lambda picture: picture.digest)[:count]}
    return [p for p in pictures if p.digest not in held], [p for p in pictures if p.digest in held]


def middle(image: torch.Tensor, side: int, multiple: int) -> torch.Tensor:
    """The middle of (3, H, W), at most `side` pixels, both lengths multiples of `multiple`."""
    height, width = (min(side, extent) // multiple * multiple for extent in image.shape[1:])
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    top, left = top // multiple * multiple, left // multiple * multiple  # so that a given pair is cut at whole pixels
    return image[:, top : top + height, left : left + width]


def pair_of(number: int, truth: torch.Tensor, lq: torch.Tensor, holes: bool) -> Pair:
    """Held-out picture `number`; `holes`: with a hole of its own, in which `lq` is black."""
    if not holes:
        return Pair(truth, lq)
    hole = draw_hole(*lq.shape[-2:], random_for(0, NUMBERS_FROM + number, 5))[None]
    return Pair(truth, lq * (1 - hole), hole)


def make_pairs(pictures: Sequence[Picture], degrade: Degrade, scale: int, side: int, holes: bool = False) -> list[Pair]:
    """Truths and their degraded versions, the same in every run of the same seed."""
    pairs = []
    for i, picture in enumerate(pictures):
        truth = middle(read_rgb(picture.path), side, scale)[None].float() / 255
        pairs.append(pair_of(i, truth, degrade(truth, [NUMBERS_FROM + i]), holes))
    return pairs


def given_pairs(pictures: Sequence[Picture], small: Sequence, scale: int, side: int, holes: bool = False) -> list[Pair]:
    """As `make_pairs`, from files that belong together."""
    pairs = []
    for i, (picture, path) in enumerate(zip(pictures, small)):
        truth = middle(read_rgb(picture.path), side, scale)[None].float() / 255
        pairs.append(pair_of(i, truth, middle(read_rgb(path), side // scale, 1)[None].float() / 255, holes))
    return pairs


@dataclass(frozen=True)
class Validation:
    """Means over the held-out pictures, and a grid of those that lost most: input, result, truth side by side."""

    scores: dict[str, float]
    grid: torch.Tensor  # (3, H, W) in [0, 1]


def _tile(image: torch.Tensor) -> torch.Tensor:
    """(1, 3, H, W) -> (3, SHOWN_PX, SHOWN_PX), cut or filled with white."""
    image = middle(image[0], SHOWN_PX, 1)
    down, across = SHOWN_PX - image.shape[1], SHOWN_PX - image.shape[2]
    return F.pad(image, (across // 2, across - across // 2, down // 2, down - down // 2), value=1.0)


def _enlarged(pair: Pair) -> torch.Tensor:
    """What the network is given, in the size of the truth, its pixels left visible."""
    return F.interpolate(pair.lq, size=tuple(pair.truth.shape[-2:]), mode="nearest")


class Validator:
    """Runs a model on the same pairs again and again."""

    def __init__(self, pairs: Sequence[Pair], want_lpips: bool = False):
        self.pairs, self.lpips = list(pairs), None
        lost = [float((_enlarged(pair) - pair.truth).square().mean()) for pair in self.pairs]
        self.shown = sorted(range(len(lost)), key=lambda i: -lost[i])[:SHOWN]
        if want_lpips or lpips_is_here():
            from .losses import make_lpips

            self.lpips = make_lpips("alex")

    def __call__(self, model: rs.ResShiftModel) -> Validation:
        scores, rows = [], {}
        for number, pair in enumerate(self.pairs):
            result = rs.upscale(model, pair.lq, seed=0, mask=pair.hole)
            score = {"psnr": psnr(result, pair.truth), "ssim": ssim(result, pair.truth)}
            if self.lpips is not None:
                score["lpips"] = lpips_distance(self.lpips, result, pair.truth)
            scores.append(score)
            if number in self.shown:
                rows[number] = torch.cat([_tile(_enlarged(pair)), _tile(result), _tile(pair.truth)], 2)
        means = {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}
        return Validation(means, torch.cat([rows[number] for number in self.shown], 1))
