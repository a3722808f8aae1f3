"""One picture through one model: what upscaler, accordion and API have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from PIL import Image

import resshift_core as rs
from resshift_core.arguments import laid_tile
from resshift_core.device import PROCESSOR, first_that_fits
from resshift_core.image_io import Picture, pixels_of, to_image
from resshift_core.resize import target_size
from resshift_core.sheet import compare_sheet

from . import host, loaded
from .entries import Entry
from .progress import Progress
from .session import SESSION, Made
from .settings import Settings, draw_seed


@dataclass(frozen=True)
class Result:
    image: Image.Image
    made: Made
    sheet: Image.Image | None = None


def upscale_image(
    image: Image.Image | Picture,
    entry: Entry,
    settings: Settings,
    *,
    size: tuple[int, int] | None = None,
    scale: float = 0.0,
    owns_bar: bool = False,
) -> Result | None:
    """One diffusion pass, whatever the factor; None where the user stopped it.

    Args:
        image: any mode; RGBA, LA and L come back as they were, palettes as RGB or RGBA. Or one that `read_picture` has read.
        size: exact (width, height) of the result, else `scale` decides; 0 = the model's own.
        owns_bar: see Progress.

    Raises:
        rs.ResShiftError: the model cannot be loaded or run; a sentence.
    """  # fmt: skip
    if settings.is_random:
        settings = replace(settings, seed=draw_seed())
    picture = image if isinstance(image, Picture) else pixels_of(image)
    images = picture.tensor()
    height, width = images.shape[-2:]
    wanted = target_size(height, width, scale or entry.scale) if size is None else (size[1], size[0])
    try:
        with Progress(images, owns_bar) as progress:
            out, model = _upscaled_somehow(entry.source, images, progress, size=wanted, **settings.as_arguments())
            made = Made(entry.name, _as_used(model, settings, tuple(images.shape[-2:])))
    except rs.Cancelled:
        SESSION.stopped = True
        return None
    result = to_image(out[0], picture.mode)
    return Result(result, made, _sheet(picture, result, made) if settings.compare else None)


def _upscaled_somehow(source: str, images: torch.Tensor, progress: Progress, **words) -> tuple[torch.Tensor, rs.ResShiftModel]:
    """(result, model): on the host's device, or, where the weights or even small tiles do not fit there, on the processor."""

    def run(place):
        with place as model, host.without_manual_cast():
            progress.begin()
            return rs.upscale(model, images, on_step=progress, **words), model

    attempts = (
        (lambda: run(loaded.on_device(source, progress.fetching)), ""),
        (lambda: run(loaded.on_processor(source)), PROCESSOR),
    )
    return first_that_fits(attempts, host.device())


def _as_used(model: rs.ResShiftModel, settings: Settings, size: tuple[int, int]) -> Settings:
    """The settings with zeros replaced by what they meant for this model and a picture of (height, width)."""
    config = model.config
    tile, overlap = laid_tile(config, settings.tile or "auto", settings.overlap or None, size)
    return replace(
        settings,
        steps=settings.steps or config.default_steps,
        kappa=settings.kappa or config.kappa,
        p=settings.p or config.p,
        tile=tile,
        overlap=overlap,
    )


def _sheet(picture: Picture, result: Image.Image, made: Made) -> Image.Image:
    scale = result.width / picture.size[0]
    return compare_sheet(picture, result, f"{made.model}, x{scale:.3g}, {made.settings.steps} steps")
