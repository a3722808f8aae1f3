"""High-resolution crops: crop number n of a run depends on (seed, n) alone, so a resumed run goes on exactly."""

from __future__ import annotations

import copy
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from resshift_core.degradation import DegradationEstimator
from resshift_core.errors import brief

from .drawings import draw_hole, draw_page
from .frames import draw_frame
from .leaves import draw_leaves
from .scan import DataError, Picture, find_images, read_rgb

log = logging.getLogger("resshift.training")

START = "spawn" if sys.platform.startswith(("win", "darwin")) else "fork"  # how loader workers begin
MOST_WORKERS = {"fork": 12, "spawn": 4}  # those that begin anew load torch again, gigabytes of Windows' page file each
ATTEMPTS = 20  # other pictures tried when one cannot be read any more
TURNABLE = 1.5  # times as large as the crop: smaller squares would be soft when turned by any angle
TURNED = 2  # times as large as the crop: what is larger is shrunk before it is turned
PLACES = 3  # of which the busiest makes a crop, with variety
LEAF_RESCALE = 0.25  # least factor by which a photograph is shrunk that fills a shape


@dataclass(frozen=True)
class CropSettings:
    """What a crop may be."""

    size: int  # pixels of the high-resolution crop
    rescale_share: float = 1.0  # share of crops that are shrunk,
    min_rescale: float = 0.4  # by a factor drawn from [min_rescale, 1]
    variety: bool = False  # see Crops._varied
    leaves_share: float = 0.0  # share of what is not drawn that are `draw_leaves`
    frame_share: float = 0.0  # share of photographs and leaves with a frame, see `draw_frame`
    drawn_share: float = 0.0  # share of crops that are rendered text, line art or one colour
    fonts: tuple[str, ...] = ()  # font files for them
    turns: bool = True  # quarter turns beside mirror images
    holes: bool = False  # for inpainting: a mask with every crop


class PictureStore:
    """Decoded pictures: those that fit into `cache_mib` together are kept, the others are decoded for every use.

    What is kept is decoded at the first use, by the process that uses it; `fill` decodes it beforehand, so that loader
    workers share it.
    """

    def __init__(self, pictures: Sequence[Picture], cache_mib: float = 0):
        self.pictures = list(pictures)
        sizes = np.array([3 * picture.height * picture.width for picture in self.pictures], dtype=np.int64)
        self.keep = int((np.cumsum(sizes) <= cache_mib * 2**20).sum())  # the first so many
        self._kept: dict[int, torch.Tensor] = {}
        self._slab: torch.Tensor | None = None  # or in one piece, which the pickle of this object holds by reference
        self._places: dict[int, tuple[int, torch.Size]] = {}  # in it: first byte, shape
        self._sizes = sizes[: self.keep]

    def __len__(self) -> int:
        return len(self.pictures)

    def fill(self, shared: bool = False) -> None:
        """Decode what is kept; `shared`: into memory that processes started anew share, too (forked ones do anyway)."""
        if shared and self._slab is None and self.keep:
            self._slab = torch.empty(int(self._sizes.sum()), dtype=torch.uint8).share_memory_()
        starts = np.cumsum(self._sizes) - self._sizes
        for index, (start, size) in enumerate(zip(starts, self._sizes)):
            try:
                image = self[index]
            except Exception as error:
                log.warning("%s cannot be read any more (%s).", self.pictures[index].path, error)
                continue
            if self._slab is not None and index not in self._places and image.numel() == size:  # it may have changed
                self._slab[start : start + size] = image.flatten()
                self._places[index] = int(start), image.shape
                del self._kept[index]

    def __getitem__(self, index: int) -> torch.Tensor:
        """uint8 (3, H, W)."""
        if index in self._places:
            start, shape = self._places[index]
            return self._slab[start : start + shape.numel()].view(shape)
        if index in self._kept:
            return self._kept[index]
        image = read_rgb(self.pictures[index].path)
        if index < self.keep:
            self._kept[index] = image
        return image


def _shrink(patch: torch.Tensor, size: int) -> torch.Tensor:
    """A square in whole levels, which takes a third of the time that it takes in float32. uint8 in and out."""
    if patch.shape[-1] == size:
        return patch
    return F.interpolate(patch[None], size=(size, size), mode="bicubic", antialias=True)[0]


def _detail(image: torch.Tensor, y: int, x: int, span: int, size: int) -> float:
    """Mean square of the steps between neighbours, in green, of about the pixels that a crop of `size` will have."""
    every = max(1, span // size)
    green = image[1, y : y + span : every, x : x + span : every].float()
    return float(green.diff(dim=0).square().mean() + green.diff(dim=1).square().mean())


def _relit(patch: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """With another contrast (one in three) and another gamma (one in five), 0 to 255."""
    if rng.random() < 0.35:
        mean = patch.mean((1, 2), keepdim=True)
        patch = ((patch - mean) * math.exp(rng.uniform(-0.3, 0.35)) + mean).clamp(0, 255)
    if rng.random() < 0.2:
        patch = 255 * (patch / 255) ** math.exp(rng.uniform(-0.3, 0.3))
    return patch


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

    def _stores(self) -> tuple[PictureStore, ...]:
        return (self.store,)

    def fill(self, shared: bool = False) -> None:
        """As `PictureStore.fill`."""
        for store in self._stores():
            store.fill(shared)

    def _images(self, rng: np.random.Generator) -> tuple[int, list[torch.Tensor]]:
        """(its number, a picture at random out of every store); one that cannot be read any more is named and another one taken."""
        for _ in range(ATTEMPTS):
            index = int(rng.choice(len(self.store), p=self.weights))
            images = []
            for store in self._stores():
                try:
                    images.append(store[index])
                except Exception as error:
                    path = store.pictures[index].path
                    log.warning("%s cannot be read any more (%s); another picture is used.", path, error)
                    break
            else:
                if self._usable(images):
                    return index, images
        raise DataError(f"{ATTEMPTS} pictures in a row cannot be read. Is the folder of the data still there?")

    def _usable(self, images: list[torch.Tensor]) -> bool:
        """Files may have changed since the check."""
        return min(images[0].shape[1:]) >= self.settings.size

    def _photo(self, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        if self.settings.variety:
            return {"hr": self._varied(rng)}
        _, (image,) = self._images(rng)
        size = self.settings.size
        shrinks = rng.random() < self.settings.rescale_share
        span = min(round(size / rng.uniform(self.settings.min_rescale, 1.0)) if shrinks else size, *image.shape[1:])
        y, x = (int(rng.integers(0, extent - span + 1)) for extent in image.shape[1:])
        return {"hr": _shrink(image[:, y : y + span, x : x + span], size).float()}

    def _place(self, rng: np.random.Generator, size: int, least: float) -> tuple[torch.Tensor, int, int, int]:
        """(picture, top, left, side) of a square somewhere, that is to be shrunk by any factor from `least` to 1: small factors
        as often as large ones.
        """
        _, (image,) = self._images(rng)
        span = min(round(size * least ** -rng.random()), *image.shape[1:])
        y, x = (int(rng.integers(0, extent - span + 1)) for extent in image.shape[1:])
        return image, y, x, span

    def _varied(self, rng: np.random.Generator) -> torch.Tensor:
        """A crop as different as one collection can make it: of three places the busiest (for three crops in four), any angle,
        another contrast. (3, size, size), 0 to 255.

        Backgrounds and skies are most of many photographs, and what a network learns there it has learnt soon.
        """
        size = self.settings.size
        count = PLACES if rng.random() < 0.75 else 1
        places = [self._place(rng, size, self.settings.min_rescale) for _ in range(count)]
        image, y, x, span = max(places, key=lambda place: _detail(*place, size))
        return _relit(_shrink(self._at_any_angle(image, y, x, span, rng), size).float(), rng)

    def _at_any_angle(self, image: torch.Tensor, y: int, x: int, span: int, rng: np.random.Generator) -> torch.Tensor:
        """The square, or every second time one turned around its middle; not where a corner would lie outside of the picture, nor
        where it will hardly be shrunk. A turned one has already been shrunk as far as its turning does not show.
        """
        wide = math.ceil(span * math.sqrt(2))
        top, left = y - (wide - span) // 2, x - (wide - span) // 2
        outside = min(top, left) < 0 or top + wide > image.shape[1] or left + wide > image.shape[2]
        if span < TURNABLE * self.settings.size or rng.random() > 0.5 or outside:
            return image[:, y : y + span, x : x + span]
        block = image[:, top : top + wide, left : left + wide]
        if span > TURNED * self.settings.size:
            wide = math.ceil(wide * TURNED * self.settings.size / span)
            block, span = _shrink(block, wide), TURNED * self.settings.size
        block = Image.fromarray(block.permute(1, 2, 0).contiguous().numpy())
        turned = np.array(block.rotate(float(rng.uniform(0, 90)), Image.Resampling.BICUBIC))
        edge = (wide - span) // 2
        return torch.from_numpy(turned[edge : edge + span, edge : edge + span]).permute(2, 0, 1)

    def _leaves(self, rng: np.random.Generator) -> torch.Tensor:
        def photo(side: int) -> torch.Tensor:
            image, y, x, span = self._place(rng, side, LEAF_RESCALE)
            return _relit(_shrink(image[:, y : y + span, x : x + span], side).float(), rng)

        return draw_leaves(self.settings.size, rng, photo).float()

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, number])
        drawn = rng.random() < self.settings.drawn_share
        if drawn:
            patches = {"hr": draw_page(self.settings.size, rng, self.settings.fonts).float()}
        elif self.settings.leaves_share and rng.random() < self.settings.leaves_share:
            patches = {"hr": self._leaves(rng)}
        else:
            patches = self._photo(rng)
        if self.settings.frame_share and not drawn and rng.random() < self.settings.frame_share:
            patches["hr"] = draw_frame(patches["hr"], rng)
        quarter = int(rng.integers(4)) if self.settings.turns else 0
        mirror = bool(rng.random() < 0.5)
        told = patches.pop("told", None)
        crop = {name: (_turn(patch, quarter, mirror) / 255).contiguous() for name, patch in patches.items()}
        if told is not None:
            crop["told"] = told
        if self.settings.holes:
            crop["hole"] = draw_hole(self.settings.size, self.settings.size, rng)
        return crop


class PairedCrops(Crops):
    """As Crops, from pairs of files: {"hr": (3, size, size), "lq": (3, size / scale, size / scale)}, never rescaled.

    estimator: of a model that is told of degradations. Crops then have "told", (10,): what it says of the whole low-resolution
        file, as it does when that file is upscaled. Of a crop, JPEG's grid anywhere in it, it would say something else.
    """

    def __init__(
        self,
        pictures,
        small: Sequence[Path],
        scale: int,
        settings: CropSettings,
        seed: int = 0,
        cache_mib: int = 0,
        estimator: DegradationEstimator | None = None,
    ):
        large_share = scale**2 / (scale**2 + 1)
        super().__init__(pictures, settings, seed, cache_mib * large_share)
        self.scale = scale
        partners = [
            Picture(str(path), "", picture.height // scale, picture.width // scale) for path, picture in zip(small, pictures)
        ]
        self.small = PictureStore(partners, cache_mib * (1 - large_share))
        self.estimator = None if estimator is None else copy.deepcopy(estimator).cpu().float()
        self._told: dict[int, torch.Tensor] = {}

    def _stores(self) -> tuple[PictureStore, ...]:
        return self.store, self.small

    def _usable(self, images: list[torch.Tensor]) -> bool:
        sizes = [tuple(side * self.scale for side in images[1].shape[1:]), tuple(images[0].shape[1:])]
        return super()._usable(images) and sizes[0] == sizes[1]

    @torch.no_grad()
    def _estimate(self, index: int, lq: torch.Tensor) -> torch.Tensor:
        if index not in self._told:
            self._told[index] = self.estimator.of_picture(lq / 255)[0]
        return self._told[index]

    def _photo(self, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        index, (image, lq) = self._images(rng)
        size = self.settings.size // self.scale
        y, x = (int(rng.integers(0, extent - size + 1)) for extent in lq.shape[1:])
        top, left, side = y * self.scale, x * self.scale, self.settings.size
        patches = {
            "hr": image[:, top : top + side, left : left + side].float(),
            "lq": lq[:, y : y + size, x : x + size].float(),
        }
        if self.estimator is not None:
            patches["told"] = self._estimate(index, lq)
        return patches


def match_pairs(pictures: Sequence[Picture], roots: Path | Sequence[Path], small_root: Path, scale: int) -> dict[str, Path]:
    """{path of a picture: its low-resolution partner}, by the same path below the folder, else by the same bare name.

    Of several `roots`, the first that the picture lies below counts most. A path counts, too, with its root's own name before it:
    of HR/train/1.png, train/1.png. A bare name counts where only one picture on either side has it.

    Raises:
        DataError: a picture has no partner, or the sizes of a pair do not belong together.
    """
    roots = [Path(roots)] if isinstance(roots, (str, os.PathLike)) else [Path(root) for root in roots]
    small = {_bare(path.relative_to(small_root)): path for path in find_images(small_root)}
    by_name = _only_ones((_bare(path.name), path) for path in small.values())
    own = _only_ones((_bare(Path(picture.path).name), picture.path) for picture in pictures)
    partners, wrong = {}, []
    for picture in pictures:
        path = Path(picture.path)
        stem = _bare(path.name)
        below = [(root, path.relative_to(root)) for root in roots if path.is_relative_to(root)]
        names = [_bare(name) for root, inner in below for name in (inner, root.name / inner)] or [stem]
        partner = next((small[name] for name in names if name in small), None) or (by_name.get(stem) if stem in own else None)
        if partner is None:
            wrong.append(f"{path.name} has no partner")
            continue
        try:
            height, width = read_rgb(partner).shape[1:]
        except Exception as error:  # Pillow raises a dozen kinds
            wrong.append(f"{partner} cannot be read ({brief(error)})")
            continue
        if (height * scale, width * scale) != (picture.height, picture.width):
            wrong.append(f"{path.name} is {picture.width}x{picture.height}, its partner {width}x{height}, not 1/{scale} of it")
        partners[picture.path] = partner
    if wrong:
        raise DataError(f"{len(wrong)} pairs do not fit: {'; '.join(wrong[:5])}. Put them right, or remove them.")
    return partners


def _bare(path: str | os.PathLike) -> str:
    """A path without its ending, the same whether a Mac wrote it (é as e and an accent) or another machine."""
    return unicodedata.normalize("NFC", Path(path).with_suffix("").as_posix())


def _only_ones(named: Iterable[tuple[str, object]]) -> dict:
    """{name: value} of the names that occur once."""
    named = list(named)
    counts = Counter(name for name, _ in named)
    return {name: value for name, value in named if counts[name] == 1}


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


def collate(samples: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):  # which reach all processes; the training ends its workers itself
        signal.signal(number, signal.SIG_IGN)


def load_batches(crops: Dataset, positions: Positions, workers: int, pin: bool = False) -> Iterator[tuple[list[int], dict]]:
    """(crop numbers, {"hr": (B, 3, size, size), ...}) of every iteration from `positions.first` on.

    workers: loader processes; 0 = in this process.
    """
    if workers and hasattr(crops, "fill"):
        crops.fill(shared=START == "spawn")  # workers share what is decoded before they start
    loader = DataLoader(
        crops, batch_sampler=positions, num_workers=workers, collate_fn=collate, pin_memory=pin,
        prefetch_factor=4 if workers else None, multiprocessing_context=START if workers else None, worker_init_fn=_start_worker,
    )  # fmt: skip
    return _with_workers(positions, loader)


_started: set[multiprocessing.Process] = set()  # loader workers of this process


def _with_workers(positions: Positions, loader: DataLoader) -> Iterator:
    others = set(multiprocessing.active_children())
    batches = iter(loader)
    _started.update(set(multiprocessing.active_children()) - others)
    yield from zip(positions, batches)


def end_workers() -> None:
    """At the end of a program, after everything is saved: one that still reads from a stalled drive ignores SIGTERM, by which
    Python ends its processes before it waits for them.
    """
    stuck = _started & set(multiprocessing.active_children())
    if stuck and hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler makes an error of every worker that is killed
    for worker in stuck:
        worker.kill()
    _started.clear()


def default_workers(device: torch.device, processes: int) -> int:
    """Loader processes that keep an accelerator busy, for each of `processes` on this machine; on the CPU the training itself
    needs the cores.
    """
    return 0 if device.type == "cpu" else max(1, min(MOST_WORKERS[START], (os.cpu_count() or 2) // processes - 1))
