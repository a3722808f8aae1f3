"""High-resolution crops: crop number n of a run depends on (seed, n) alone, so a resumed run goes on exactly."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from .drawings import draw_hole, draw_page
from .scan import DataError, Picture, find_images, read_rgb

log = logging.getLogger("resshift.training")

ATTEMPTS = 20  # other pictures tried when one cannot be read any more


@dataclass(frozen=True)
class CropSettings:
    """What a crop may be."""

    size: int  # pixels of the high-resolution crop
    rescale_share: float = 1.0  # share of crops that are shrunk,
    min_rescale: float = 0.4  # by a factor drawn from [min_rescale, 1]
    drawn_share: float = 0.0  # share of crops that are rendered text, line art or one colour
    fonts: tuple[str, ...] = ()  # font files for them
    turns: bool = True  # quarter turns beside mirror images
    holes: bool = False  # for inpainting: a mask with every crop


class PictureStore:
    """Decoded pictures: those that fit into `cache_mib` together are kept, the others are decoded for every use.

    What is kept is decoded at the first use, by the process that uses it; `fill` decodes it beforehand, so that forked
    loader workers share it.
    """

    def __init__(self, pictures: Sequence[Picture], cache_mib: int = 0):
        self.pictures = list(pictures)
        self._kept: dict[int, torch.Tensor] = {}
        sizes = np.array([3 * picture.height * picture.width for picture in self.pictures], dtype=np.int64)
        self.keep = int((np.cumsum(sizes) <= cache_mib * 2**20).sum())  # the first so many

    def __len__(self) -> int:
        return len(self.pictures)

    def fill(self) -> None:
        for index in range(self.keep):
            try:
                self[index]
            except Exception as error:
                log.warning("%s cannot be read any more (%s).", self.pictures[index].path, error)

    def __getitem__(self, index: int) -> torch.Tensor:
        """uint8 (3, H, W)."""
        if index in self._kept:
            return self._kept[index]
        image = read_rgb(self.pictures[index].path)
        if index < self.keep:
            self._kept[index] = image
        return image


def _shrink(patch: torch.Tensor, size: int) -> torch.Tensor:
    if patch.shape[-1] == size:
        return patch
    return F.interpolate(patch[None], size=(size, size), mode="bicubic", antialias=True)[0].clamp(0, 255)


def _turn(patch: torch.Tensor, quarter: int, mirror: bool) -> torch.Tensor:
    patch = torch.rot90(patch, quarter, (1, 2))
    return patch.flip(2) if mirror else patch


class Crops(Dataset):
    """crops[n]: {"hr": (3, size, size) float32 in [0, 1]}, n without end; with `holes` also "hole", (1, size, size).

    Larger pictures are drawn more often, by the square root of their area.
    """

    def __init__(self, pictures: Sequence[Picture], settings: CropSettings, seed: int = 0, cache_mib: int = 0):
        self.settings, self.seed = settings, seed
        self.store = PictureStore(pictures, cache_mib)
        areas = np.array([math.sqrt(picture.height * picture.width) for picture in pictures])
        self.weights = areas / areas.sum()

    def _image(self, rng: np.random.Generator) -> tuple[int, torch.Tensor]:
        """A picture at random; one that cannot be read any more is named and another one taken."""
        for _ in range(ATTEMPTS):
            index = int(rng.choice(len(self.store), p=self.weights))
            try:
                image = self.store[index]
            except Exception as error:
                log.warning("%s cannot be read any more (%s); another picture is used.", self.store.pictures[index].path, error)
                continue
            if min(image.shape[1:]) >= self.settings.size:
                return index, image
        raise DataError(f"{ATTEMPTS} pictures in a row cannot be read. Is the folder of the data still there?")

    def _photo(self, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        _, image = self._image(rng)
        size = self.settings.size
        shrinks = rng.random() < self.settings.rescale_share
        span = min(round(size / rng.uniform(self.settings.min_rescale, 1.0)) if shrinks else size, *image.shape[1:])
        y, x = (int(rng.integers(0, extent - span + 1)) for extent in image.shape[1:])
        return {"hr": _shrink(image[:, y : y + span, x : x + span].float(), size)}

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, number])
        if rng.random() < self.settings.drawn_share:
            patches = {"hr": draw_page(self.settings.size, rng, self.settings.fonts).float()}
        else:
            patches = self._photo(rng)
        quarter = int(rng.integers(4)) if self.settings.turns else 0
        mirror = bool(rng.random() < 0.5)
        crop = {name: (_turn(patch, quarter, mirror) / 255).contiguous() for name, patch in patches.items()}
        if self.settings.holes:
            crop["hole"] = draw_hole(self.settings.size, rng)
        return crop


class PairedCrops(Crops):
    """As Crops, from pairs of files: {"hr": (3, size, size), "lq": (3, size / scale, size / scale)}, never rescaled."""

    def __init__(self, pictures, small: Sequence[Path], scale: int, settings: CropSettings, seed: int = 0, cache_mib: int = 0):
        super().__init__(pictures, settings, seed, cache_mib)
        self.small, self.scale = [Path(path) for path in small], scale

    def _photo(self, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        index, image = self._image(rng)
        lq = read_rgb(self.small[index])
        size = self.settings.size // self.scale
        y, x = (int(rng.integers(0, extent - size + 1)) for extent in lq.shape[1:])
        top, left, side = y * self.scale, x * self.scale, self.settings.size
        return {
            "hr": image[:, top : top + side, left : left + side].float(),
            "lq": lq[:, y : y + size, x : x + size].float(),
        }


def match_pairs(pictures: Sequence[Picture], root: Path, small_root: Path, scale: int) -> dict[str, Path]:
    """{path of a picture: its low-resolution partner}, by the same path below the folder, else by the same bare name.

    Raises:
        DataError: a picture has no partner, or the sizes of a pair do not belong together.
    """
    small = {path.relative_to(small_root).with_suffix("").as_posix(): path for path in find_images(small_root)}
    by_name = {path.stem: path for path in small.values()}
    partners, wrong = {}, []
    for picture in pictures:
        path = Path(picture.path)
        name = path.relative_to(root).with_suffix("").as_posix() if path.is_relative_to(root) else path.stem
        partner = small.get(name) or by_name.get(path.stem)
        if partner is None:
            wrong.append(f"{path.name} has no partner")
            continue
        height, width = read_rgb(partner).shape[1:]
        if (height * scale, width * scale) != (picture.height, picture.width):
            wrong.append(f"{path.name} is {picture.width}x{picture.height}, its partner {width}x{height}, not 1/{scale} of it")
        partners[picture.path] = partner
    if wrong:
        raise DataError(f"{len(wrong)} pairs do not fit: {'; '.join(wrong[:5])}. Put them right, or remove them.")
    return partners


@dataclass(frozen=True)
class Positions:
    """Crop numbers of one process: its share of every batch from iteration `first` on, without end."""

    first: int
    batch: int  # of all processes together
    rank: int
    world: int

    def __iter__(self) -> Iterator[list[int]]:
        iteration, share = self.first, self.batch // self.world
        while True:
            start = iteration * self.batch + self.rank * share
            yield list(range(start, start + share))
            iteration += 1


def _collate(samples: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def load_batches(crops: Dataset, positions: Positions, workers: int, pin: bool = False) -> Iterator[tuple[list[int], dict]]:
    """(crop numbers, {"hr": (B, 3, size, size), ...}) of every iteration from `positions.first` on.

    workers: loader processes; 0 = in this process.
    """
    if workers and not sys.platform.startswith(("win", "darwin")) and hasattr(crops, "store"):
        crops.store.fill()  # forked workers share what is decoded before the fork
    context = "fork" if workers and not sys.platform.startswith(("win", "darwin")) else None
    loader = DataLoader(
        crops, batch_sampler=positions, num_workers=workers, collate_fn=_collate, pin_memory=pin,
        prefetch_factor=4 if workers else None, multiprocessing_context=context, worker_init_fn=_one_thread,
    )  # fmt: skip
    return zip(positions, loader)


def default_workers(device: torch.device, world: int) -> int:
    """Loader processes that keep an accelerator busy; on the CPU the training itself needs the cores."""
    return 0 if device.type == "cpu" else max(1, min(12, (os.cpu_count() or 2) // world - 1))
