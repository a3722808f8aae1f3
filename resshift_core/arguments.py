"""The arguments of `upscale`: checked, filled in from the model, and refused in sentences."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .color import COLOR_FIXES
from .device import cpu_has_fp16
from .errors import InputError
from .model import ResShiftModel
from .noise import Repeat
from .numeric import finite as _number
from .numeric import whole as _whole
from .resize import target_size
from .sampler import SAMPLERS
from .schedule import ShiftSchedule
from .wrap import WRAPS

log = logging.getLogger("resshift")

NOISES = ("per_image", "shared", "periodic")
MAX_SCALE = 64
MAX_SIDE = 2**19  # pixels of a result's side
FAR_BEYOND_WHITE = 2.0  # an overshoot of resizing stays below
FAR_BELOW_BLACK = -0.5  # what sharpening and resizing overshoot by is less


@dataclass(frozen=True)
class Settings:
    """The arguments of `upscale` after checking, the same for all pictures of a call."""

    schedule: ShiftSchedule
    sampler: str
    seeds: tuple[int, ...]
    tile: int  # low-resolution pixels
    overlap: int
    tile_batch: int | None
    repeat: Repeat | None = None  # of the noise; None = it covers the padded picture


def check_words(sampler: str, color_fix: str, noise: str, wrap: str) -> None:
    for word, value, known in (
        ("sampler", sampler, SAMPLERS),
        ("color_fix", color_fix, COLOR_FIXES),
        ("noise", noise, NOISES),
        ("wrap", wrap, WRAPS),
    ):
        if not isinstance(value, str) or value not in known:
            raise InputError(f"{word} is {value!r}; known are {', '.join(known)}.")
    if noise == "periodic" and wrap != "none":
        raise InputError(
            f"noise='periodic' repeats every few hundred pixels, and with wrap={wrap!r} noise repeats with the picture. Leave out one."
        )


def check_number_format(model: ResShiftModel) -> None:
    """Models may be held in fp16 anywhere; not every torch computes with it on a processor. Nor may they be shapes alone."""
    if model.device.type == "meta":
        raise InputError("The model is on the device meta, which has shapes and no numbers. Try cpu or auto.")
    weights = (weight for part in (model.unet, model.autoencoder) for weight in part.parameters())
    if any(weight.dtype == torch.float16 and weight.device.type == "cpu" for weight in weights) and not cpu_has_fp16():
        raise InputError(
            f"The model is in fp16, which torch {torch.__version__} does not compute on a processor. "
            "Choose auto, fp32 or bf16 as its number format."
        )


def check_numbers(scale: float | None, tile_batch: int | None) -> tuple[float | None, int | None]:
    """Both as Python's numbers."""
    scale = None if scale is None else _number("scale", scale)
    if scale is not None and not 0 < scale <= MAX_SCALE:
        raise InputError(f"scale is {scale!r}; it must be a number above 0, at most {MAX_SCALE}.")
    tile_batch = None if tile_batch is None else _whole("tile_batch", tile_batch)
    if tile_batch is not None and tile_batch < 0:
        raise InputError(f"tile_batch is {tile_batch}; it must not be negative.")
    return scale, tile_batch


def choose_size(size: Sequence[int] | None, scale: float | None, model: ResShiftModel, images) -> tuple[int, int]:
    """(height, width) of the result."""
    if size is None:
        return target_size(*images.shape[-2:], model.scale if scale is None else scale)
    if scale is not None:
        raise InputError(f"size is {size!r} and scale {scale:g}; give one of them.")
    if isinstance(size, str) or not isinstance(size, Sequence) or len(size) != 2:
        raise InputError(f"size is {size!r}; it must be (height, width).")
    sides = tuple(_whole("size", side) for side in size)
    if not all(0 < side <= MAX_SIDE for side in sides):  # hosts ask for any size, of pictures of a few pixels, too
        raise InputError(f"size is {size!r}; sides must be above 0, at most {MAX_SIDE}.")
    return sides


def _check_tensor(name: str, value) -> None:
    if not isinstance(value, torch.Tensor):
        hint = " Use torch.from_numpy." if type(value).__module__ == "numpy" else ""
        raise InputError(f"{name} must be a torch.Tensor; this is {type(value).__name__}.{hint}")


def check_images(images) -> torch.Tensor:
    _check_tensor("images", images)
    if images.ndim != 4:
        raise InputError(f"images must be a (B, C, H, W) tensor; this is {tuple(images.shape)}.")
    if images.shape[1] not in (1, 3, 4):
        raise InputError(f"images has {images.shape[1]} channels; 1 (grey), 3 (RGB) or 4 (RGB and alpha) can be upscaled.")
    if min(images.shape[2:]) < 1:
        raise InputError(f"images is empty: its shape is {tuple(images.shape)}.")
    if not images.is_floating_point():
        raise InputError(f"images is {images.dtype}; it must be floating point in [0, 1] (divide 8-bit values by 255).")
    if not all(bool(torch.isfinite(image).all()) for image in images):  # one after the other: films are large
        log.warning("The picture holds values that are not finite: NaN is taken as 0, infinite ones as black or white.")
        images = torch.nan_to_num(images, nan=0.0, posinf=1.0, neginf=0.0)
    if len(images) and (images.amin() < 0 or images.amax() > 1):
        if images.amax() > FAR_BEYOND_WHITE:
            log.warning(
                "The picture has values up to %g; white is 1, and what lies above is cut off. Divide 8-bit values by 255.",
                images.amax().item(),
            )
        elif images.amin() < FAR_BELOW_BLACK:
            log.warning(
                "The picture has values down to %g; black is 0, and what lies below is cut off. Of values in [-1, 1], give x / 2 + 0.5.",
                images.amin().item(),
            )
        images = images.clamp(0, 1)
    return images


def check_mask(mask, images, model: ResShiftModel):
    if model.config.task != "inpaint":
        if mask is not None:
            raise InputError("mask is given, but this model does not fill holes. Load an inpainting model, or leave mask out.")
        return None
    if mask is None:
        raise InputError(
            "This is an inpainting model: give mask=, (B, 1, H, W) in [0, 1], 1 where the picture is to be filled in."
        )
    _check_tensor("mask", mask)
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2:] != images.shape[2:] or mask.shape[0] not in (1, len(images)):
        raise InputError(f"mask is {tuple(mask.shape)}; it must be (B, 1, H, W) of the picture, {tuple(images.shape)}.")
    return torch.nan_to_num(mask.to(images.device, torch.float32)).clamp(0, 1).expand(len(images), -1, -1, -1)


def check_tile(model: ResShiftModel, tile, overlap, size: tuple[int, int]) -> tuple[int, int]:
    """(tile, overlap) in low-resolution pixels; a tile is rounded up to what the model can take."""
    if isinstance(tile, str) and tile != "auto":
        raise InputError(f"tile is {tile!r}; give a number of pixels, 0 for the whole picture, or 'auto'.")
    tile = _whole("tile", tile) if tile is not None and not isinstance(tile, str) else tile
    overlap = _whole("overlap", overlap) if overlap is not None else None
    if not isinstance(tile, str) and tile is not None and tile < 0 or overlap is not None and overlap < 0:
        raise InputError(f"tile and overlap must not be negative; they are {tile} and {overlap}.")
    tile, used = laid_tile(model.config, tile, overlap, size)
    if overlap is not None and overlap > used and tile < max(size):  # of a single tile it means nothing
        log.warning("overlap %d is more than half of the tile of %d; %d is used.", overlap, tile, used)
    return tile, used


def laid_tile(config, tile: int | str | None, overlap: int | None, size: tuple[int, int]) -> tuple[int, int]:
    """(tile, overlap) in low-resolution pixels that a valid choice comes to for a picture of (height, width)."""
    multiple = config.multiple
    if tile == "auto":
        tile = config.tile
    if not tile:
        tile = max(size) + multiple  # the whole picture
    tile = -(-tile // multiple) * multiple
    return tile, min(config.overlap if overlap is None else overlap, tile // 2)


def check_seeds(seed: int | Sequence[int], count: int, noise: str) -> tuple[int, ...]:
    if hasattr(seed, "tolist"):  # numpy's and torch's numbers and arrays
        seed = seed.tolist()
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != count:
            raise InputError(f"seed is a list of {len(seed)} numbers for {count} pictures; give one for each.")
        return tuple(_whole("seed", number) for number in seed)
    return tuple(_whole("seed", seed) + (i if noise == "per_image" else 0) for i in range(count))


def choose_schedule(model: ResShiftModel, steps, kappa, p) -> ShiftSchedule:
    trained = model.schedule
    kappa = None if kappa is None else _number("kappa", kappa)
    chosen = trained.retime(
        model.config.default_steps if steps is None else _whole("steps", steps), kappa, None if p is None else _number("p", p)
    )
    if kappa is not None and trained.kappa > 0 and not 0.5 <= kappa / trained.kappa <= 1.5:
        expect = (
            "softer pictures, or grain on flat areas" if kappa > trained.kappa else "sharper pictures, or hardly another one"
        )
        log.warning("kappa %g is far from the %g that this model was trained with: expect %s.", kappa, trained.kappa, expect)
    if chosen.steps > 1 and model.config.default_steps == 1:
        log.warning("This model was distilled to run in one step; with %d steps its pictures are usually worse.", chosen.steps)
    return chosen
