"""`upscale`: pictures in, pictures out. Padding, tiles, the chain on batches of tiles, blending, colour, alpha.

The order of one tile is facts of the published inference: scale to [-1, 1], reflect-pad, upsample bicubically, encode,
run the chain, decode, crop. Memory beyond input and output does not grow with the picture.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from .color import COLOR_FIXES, match_color
from .device import free_bytes, is_out_of_memory, release_memory
from .errors import Cancelled, InputError, OutOfMemory
from .model import ResShiftModel
from .noise import NoiseField
from .sampler import SAMPLERS, sample
from .schedule import ShiftSchedule
from .tiles import Axis, lay_axis, reflect_index

log = logging.getLogger("resshift")

CONTEXT = 2  # low-resolution pixels that bicubic upsampling looks at beyond a tile
NOISES = ("per_image", "shared")
MAX_SCALE = 64


@dataclass(frozen=True)
class StepEvent:
    """What `on_step` is told: after every step of every batch of tiles, and around encoding and decoding."""

    phase: str  # "encode", "step" or "decode"
    image: int  # index of the (first) picture being worked on
    images: int
    tile: int  # tiles finished so far, over all pictures
    tiles: int
    step: int  # steps finished of this batch of tiles
    steps: int
    fraction: float  # of the whole run, in [0, 1]
    preview: Callable[[], torch.Tensor] = field(repr=False)  # -> (B, 3, h, w) in [0, 1]: x0 as cheap RGB at latent size


@dataclass(frozen=True)
class Settings:
    """The arguments of `upscale` after checking, the same for all pictures of a call."""

    schedule: ShiftSchedule
    sampler: str
    seeds: tuple[int, ...]
    tile: int  # low-resolution pixels
    overlap: int
    tile_batch: int | None


@dataclass
class _Progress:
    """Counts what is done, and turns it into events."""

    on_step: Callable | None
    images: int
    tiles: int
    steps: int
    tiles_done: int = 0

    def tell(self, phase: str, image: int, count: int, step: int, preview: Callable) -> None:
        if self.on_step is None:
            return
        share = {"encode": 0.0, "step": step, "decode": self.steps + 1}[phase] / (self.steps + 1)
        event = StepEvent(
            phase, image, self.images, self.tiles_done, self.tiles, step, self.steps,
            min(1.0, (self.tiles_done + count * share) / self.tiles), preview,
        )  # fmt: skip
        if self.on_step(event) is False:
            raise Cancelled("The run was stopped.")


def target_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Output height and width for a low-resolution picture: round(H * s), round(W * s), at least 1."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def cheap_rgb(latent: torch.Tensor, channels_are_pixels: bool) -> torch.Tensor:
    """A latent as a small picture in [0, 1], (B, 3, h, w): for previews, without the decoder."""
    latent = latent.float()
    if channels_are_pixels:  # space to depth: (3 colours) x (f*f pixels), averaged per block
        latent = latent.unflatten(1, (3, -1)).mean(2)
    return (latent[:, :3] / 2 + 0.5).clamp(0, 1).cpu()


class _Picture:
    """One picture of a batch: where its tiles lie, its noise, its output."""

    def __init__(self, index: int, rgb, mask, model: ResShiftModel, settings: Settings, draws: int, out):
        config = model.config
        self.index, self.rgb, self.mask, self.out = index, rgb, mask, out
        height, width = rgb.shape[-2:]
        multiple = config.multiple
        self.padded = tuple(-(-side // multiple) * multiple for side in (height, width))
        self.axes: tuple[Axis, Axis] = tuple(
            lay_axis(padded, settings.tile, settings.overlap, config.unit) for padded in self.padded
        )
        self.places = [(i, j) for i in range(len(self.axes[0].starts)) for j in range(len(self.axes[1].starts))]
        self.latent_padded = tuple(side * config.scale // config.autoencoder.factor for side in self.padded)
        self.draws = draws

    def crop(self, place: tuple[int, int], margin: int, source=None) -> torch.Tensor:
        """Low-resolution pixels of one tile and `margin` around it, reflected beyond the picture. (C, h, w)."""
        source = self.rgb if source is None else source
        rows, columns = (
            reflect_index(axis.starts[i] - margin, axis.starts[i] + axis.tile + margin, padded, length)
            for axis, i, padded, length in zip(self.axes, place, self.padded, source.shape[-2:])
        )
        top, bottom = int(rows.min()), int(rows.max()) + 1  # index a small block, not the whole picture
        left, right = int(columns.min()), int(columns.max()) + 1
        block = source[:, top:bottom, left:right]
        rows, columns = (rows - top).to(source.device), (columns - left).to(source.device)
        return block.index_select(1, rows).index_select(2, columns).float()

    def latent_box(self, place: tuple[int, int], config) -> tuple[int, int, int, int]:
        """(first row, last row, first column, last column) of a tile in the padded latent."""
        box = []
        for axis, i in zip(self.axes, place):
            start = axis.starts[i] * config.scale // config.autoencoder.factor
            box += [start, start + axis.tile * config.scale // config.autoencoder.factor]
        return tuple(box)

    def place_result(self, place: tuple[int, int], result: torch.Tensor, scale: int) -> None:
        """Add one decoded tile, (3, h, w) in [0, 1], to the output with its blending weights."""
        (rows, columns), (i, j) = self.axes, place
        top, left = rows.starts[i] * scale, columns.starts[j] * scale
        bottom = min(self.out.shape[-2], top + rows.tile * scale)
        right = min(self.out.shape[-1], left + columns.tile * scale)
        result = result[:, : bottom - top, : right - left].to(self.out)
        if len(self.places) > 1:
            down = rows.weights(i, scale)[: bottom - top].to(self.out)
            across = columns.weights(j, scale)[: right - left].to(self.out)
            result = result * down[:, None] * across
        self.out[:, top:bottom, left:right] += result


class _Noise:
    """The noise fields of the pictures at work; pictures with the same seed and size share one field."""

    def __init__(self, channels: int, draws: int):
        self.channels, self.draws = channels, draws
        self._fields: dict[tuple, NoiseField] = {}

    def of(self, picture: _Picture, seed: int) -> NoiseField:
        key = (seed, picture.latent_padded)
        if key not in self._fields:
            while len(self._fields) >= 16:  # pictures come in order; the oldest are done
                self._fields.pop(next(iter(self._fields)))
            self._fields[key] = NoiseField(seed, self.draws, self.channels, *picture.latent_padded)
        return self._fields[key]


def _run_tiles(model: ResShiftModel, jobs, settings: Settings, noise: _Noise, progress: _Progress | None):
    """Encode, sample and decode a batch of equal tiles. jobs: [(picture, place)] -> (B, 3, h * s, w * s) in [0, 1]."""
    config, device, scale = model.config, model.device, model.scale
    crops = torch.stack([picture.crop(place, CONTEXT) for picture, place in jobs]).to(device) * 2 - 1
    mask = None
    if config.task == "inpaint":
        hole = torch.stack([picture.crop(place, 0, picture.mask) for picture, place in jobs]).to(device) > 0
        inner = crops[..., CONTEXT:-CONTEXT, CONTEXT:-CONTEXT]
        crops[..., CONTEXT:-CONTEXT, CONTEXT:-CONTEXT] = torch.where(hole, -1.0, inner)
        mask = hole.float() * 2 - 1
    lq = crops[..., CONTEXT:-CONTEXT, CONTEXT:-CONTEXT].contiguous()
    up = lq
    if scale != 1:
        edge = CONTEXT * scale
        up = F.interpolate(crops, scale_factor=scale, mode="bicubic", align_corners=False)
        up = up[..., edge:-edge, edge:-edge].contiguous()
    first = jobs[0][0].index

    def tell(phase, step, latent):
        if progress is not None:
            pixels = config.space == "pixel"
            progress.tell(phase, first, len(jobs), step, lambda: cheap_rgb(latent, pixels))

    tell("encode", 0, lq)
    y0 = model.autoencoder.encode(up).float()
    condition = model.unet.condition(lq, mask)
    boxes = [picture.latent_box(place, config) for picture, place in jobs]
    fields = [noise.of(picture, settings.seeds[picture.index]) for picture, _ in jobs]

    def draw(number):
        slices = [f.rows(number, box[0], box[1])[:, :, box[2] : box[3]] for f, box in zip(fields, boxes)]
        return torch.stack(slices).to(device)

    def denoise(x, tau):
        out = model.unet(x, torch.full((len(jobs),), tau, device=device), condition=condition).float()
        return out + y0 if config.predict == "residual" else out

    x0 = sample(
        denoise, y0, settings.schedule, draw, sampler=settings.sampler, space=config.space,
        on_step=lambda step, t, x0, x: tell("step", step, x0),
    )  # fmt: skip
    image = model.autoencoder.decode(x0).float()
    tell("decode", settings.schedule.steps, x0)
    return (image.clamp(-1, 1) + 1) / 2 if bool(torch.isfinite(image).all()) else None


def _run_tiles_safely(model, jobs, settings, noise, progress, redo: dict) -> torch.Tensor:
    """As `_run_tiles`; a batch that comes out non-finite is done again in float32, and logged once a run."""
    result = _run_tiles(model, jobs, settings, noise, progress)
    if result is not None:
        return result
    if model.dtype != torch.float32:
        if "model" not in redo:
            log.warning("A tile overflowed in %s; it is done again in float32.", model.dtype)
            redo["model"] = model.in_float32()
        result = _run_tiles(redo["model"], jobs, settings, noise, None)
    if result is None:
        raise InputError("The model returns numbers that are not finite, in float32 too. Its weights are probably damaged.")
    return result


def _tile_batch(model: ResShiftModel, height: int, width: int, asked: int | None) -> int:
    """Tiles that go together: as asked, else what fits into free memory on an accelerator, else 1."""
    if asked:
        return asked
    free = free_bytes(model.device) if model.device.type == "cuda" else None
    if free is None:
        return 1
    return max(1, min(64, int(0.7 * free) // max(1, model.bytes_per_tile(height, width))))


def _run_pictures(model: ResShiftModel, pictures: list[_Picture], settings: Settings, progress: _Progress) -> None:
    """All tiles of equal-sized pictures, in batches; on out-of-memory the batch is halved.

    Raises:
        the device's out-of-memory error, when a batch of one tile does not fit.
    """
    noise = _Noise(model.config.autoencoder.latent_channels, pictures[0].draws)
    jobs = [(picture, place) for picture in pictures for place in picture.places]
    rows, columns = pictures[0].axes
    batch = _tile_batch(model, rows.tile, columns.tile, settings.tile_batch)
    done, redo = 0, {}
    while done < len(jobs):
        part, failed = jobs[done : done + batch], None
        try:
            results = _run_tiles_safely(model, part, settings, noise, progress, redo)
        except Exception as error:
            if not is_out_of_memory(error) or len(part) == 1:
                raise
            failed = str(error)
        if failed is not None:  # outside the except block: the traceback would keep the tensors alive
            release_memory(model.device)
            batch = len(part) // 2
            log.warning("Out of memory with %d tiles at a time; going on with %d.", len(part), batch)
            continue
        for (picture, place), result in zip(part, results):
            picture.place_result(place, result, model.scale)
        done += len(part)
        progress.tiles_done = done


def _run_with_smaller_tiles(model, rgb, mask, settings: Settings, out, on_step) -> None:
    """Fill `out`, (B, 3, H * s, W * s); when one tile does not fit into memory, start again with tiles of half the size.

    Raises:
        OutOfMemory: the smallest tile does not fit either.
    """
    smallest = max(model.config.multiple, min(settings.tile, 64))
    tile, overlap, draws = settings.tile, settings.overlap, settings.schedule.steps + 1
    if settings.sampler == "deterministic":
        draws = 1
    while True:
        current = Settings(settings.schedule, settings.sampler, settings.seeds, tile, overlap, settings.tile_batch)
        pictures = [
            _Picture(i, rgb[i], None if mask is None else mask[i], model, current, draws, out[i]) for i in range(len(rgb))
        ]
        tiles = sum(len(picture.places) for picture in pictures)
        progress = _Progress(on_step, len(pictures), tiles, settings.schedule.steps)
        failed = None
        try:
            _run_pictures(model, pictures, current, progress)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failed = str(error).splitlines()[0] if str(error) else type(error).__name__
        if failed is None:
            return
        release_memory(model.device)
        out.zero_()
        used = min(tile, max(pictures[0].padded))
        if used <= smallest:
            need = model.bytes_per_tile(*(axis.tile for axis in pictures[0].axes)) / 2**20
            free = free_bytes(model.device)
            have = f"{free / 2**20:.0f} MiB are free" if free is not None else "free memory is not known"
            raise OutOfMemory(
                f"Out of memory: a tile of {used} pixels needs about {need:.0f} MiB on {model.device}, {have} ({failed}). "
                "Close other programs, or run with device='cpu'."
            )
        tile = max(smallest, _multiple_below(used // 2, model.config.multiple))
        overlap = min(overlap, tile // 4)
        log.warning("Out of memory with a tile of %d pixels; starting again with %d.", used, tile)


def _multiple_below(value: int, multiple: int) -> int:
    return max(multiple, value // multiple * multiple)


# ---------------------------------------------------------------------------------------------------- arguments


def _check_images(images) -> torch.Tensor:
    if not isinstance(images, torch.Tensor) or images.ndim != 4:
        shape = tuple(images.shape) if hasattr(images, "shape") else type(images).__name__
        raise InputError(f"images must be a (B, C, H, W) tensor; this is {shape}.")
    if images.shape[1] not in (1, 3, 4):
        raise InputError(f"images has {images.shape[1]} channels; 1 (grey), 3 (RGB) or 4 (RGB and alpha) can be upscaled.")
    if min(images.shape[2:]) < 1:
        raise InputError(f"images is empty: its shape is {tuple(images.shape)}.")
    if not images.is_floating_point():
        raise InputError(f"images is {images.dtype}; it must be floating point in [0, 1] (divide 8-bit values by 255).")
    if not bool(torch.isfinite(images).all()):
        log.warning("The picture holds values that are not finite; they are taken as 0.")
        images = torch.nan_to_num(images, nan=0.0, posinf=1.0, neginf=0.0)
    return images.clamp(0, 1)


def _check_mask(mask, images, model: ResShiftModel):
    if model.config.task != "inpaint":
        if mask is not None:
            raise InputError("mask is given, but this model does not fill holes. Load an inpainting model, or leave mask out.")
        return None
    if mask is None:
        raise InputError(
            "This is an inpainting model: give mask=, (B, 1, H, W) in [0, 1], 1 where the picture is to be filled in."
        )
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2:] != images.shape[2:] or mask.shape[0] not in (1, len(images)):
        raise InputError(f"mask is {tuple(mask.shape)}; it must be (B, 1, H, W) of the picture, {tuple(images.shape)}.")
    return torch.nan_to_num(mask.float()).clamp(0, 1).expand(len(images), -1, -1, -1)


def _check_tile(model: ResShiftModel, tile, overlap, size: tuple[int, int]) -> tuple[int, int]:
    """(tile, overlap) in low-resolution pixels; a tile is rounded up to what the model can take."""
    multiple = model.config.multiple
    if isinstance(tile, str) and tile != "auto":
        raise InputError(f"tile is {tile!r}; give a number of pixels, 0 for the whole picture, or 'auto'.")
    if not isinstance(tile, str) and tile is not None and tile < 0 or overlap is not None and overlap < 0:
        raise InputError(f"tile and overlap must not be negative; they are {tile} and {overlap}.")
    if tile == "auto":
        tile = model.config.tile
    if not tile:
        tile = max(size) + multiple  # the whole picture
    tile = -(-int(tile) // multiple) * multiple
    if overlap is None:
        overlap = min(model.config.overlap, tile // 4)
    if overlap > tile // 2:
        log.warning("overlap %d is more than half of the tile of %d; %d is used.", overlap, tile, tile // 2)
    return tile, min(int(overlap), tile // 2)


def _check_seeds(seed: int | Sequence[int], count: int, noise: str) -> tuple[int, ...]:
    if noise not in NOISES:
        raise InputError(f"noise is {noise!r}; known are {', '.join(NOISES)}.")
    if isinstance(seed, Sequence):
        if len(seed) != count:
            raise InputError(f"seed is a list of {len(seed)} numbers for {count} pictures; give one for each.")
        return tuple(int(number) for number in seed)
    return tuple(int(seed) + (i if noise == "per_image" else 0) for i in range(count))


def _schedule(model: ResShiftModel, steps, kappa, p) -> ShiftSchedule:
    trained = model.schedule
    if kappa is not None and trained.kappa > 0 and not 0.5 <= kappa / trained.kappa <= 1.5:
        log.warning(
            "kappa %g is far from the %g that this model was trained with: expect left-over noise or lost texture.",
            kappa, trained.kappa,
        )  # fmt: skip
    return trained.retime(steps or model.config.default_steps, kappa, p)


def _resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic, antialiased when shrinking; float32, clamped to [0, 1]."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images.float()
    shrinks = size[0] < images.shape[-2] or size[1] < images.shape[-1]
    return F.interpolate(images.float(), size=size, mode="bicubic", antialias=shrinks, align_corners=False).clamp_(0, 1)


@torch.inference_mode()
def upscale(
    model: ResShiftModel,
    images: torch.Tensor,
    *,
    steps: int | None = None,
    kappa: float | None = None,
    p: float | None = None,
    seed: int | Sequence[int] = 0,
    sampler: str = "stochastic",
    tile: int | str | None = "auto",
    overlap: int | None = None,
    tile_batch: int | None = None,
    mask: torch.Tensor | None = None,
    color_fix: str = "none",
    noise: str = "per_image",
    scale: float | None = None,
    on_step: Callable[[StepEvent], bool | None] | None = None,
) -> torch.Tensor:
    """Upscale (or restore, or fill in) a batch of pictures with a ResShift chain.

    Args:
        images: (B, C, H, W) floating point in [0, 1]; C = 3, or 1 (grey), or 4 (alpha last, resized beside the chain).
        steps, kappa, p: None = as trained. Others lay a new schedule between the trained end points
            (`ShiftSchedule.retime`).
        seed: image i uses seed + i, or give a list of B seeds. The same seed gives the same noise on every device, alone
            or in a batch, whatever the tile size.
        sampler: "stochastic", or "deterministic" (noise in x_T only).
        tile, overlap: low-resolution pixels; "auto" = the model's constant, None or 0 = the whole picture at once.
        tile_batch: tiles that go together; None = as many as free memory allows on an accelerator, 1 on a CPU.
        mask: (B, 1, H, W) in [0, 1], 1 = fill in; inpainting models only.
        color_fix: "none", "wavelet" (low frequencies of the original) or "adain" (its mean and contrast).
        noise: "per_image", or "shared": all pictures of the batch use `seed` itself, for frames of a film.
        scale: output size over input size, any number; None = the model's own.
        on_step: called with a StepEvent; returning False raises Cancelled, an exception of its own passes through.

    Returns:
        (B, C, round(H * scale), round(W * scale)) float32 in [0, 1] on the device of `images`.

    Raises:
        InputError: an argument is out of range. OutOfMemory: not even one small tile fits. Cancelled: see on_step.
    """
    images = _check_images(images)
    mask = _check_mask(mask, images, model)
    for word, value, known in (("sampler", sampler, SAMPLERS), ("color_fix", color_fix, COLOR_FIXES)):
        if value not in known:
            raise InputError(f"{word} is {value!r}; known are {', '.join(known)}.")
    if scale is not None and not (math.isfinite(scale) and 0 < scale <= MAX_SCALE):
        raise InputError(f"scale is {scale!r}; it must be a number above 0, at most {MAX_SCALE}.")
    if tile_batch is not None and tile_batch < 0:
        raise InputError(f"tile_batch is {tile_batch}; it must not be negative.")
    count, channels, height, width = images.shape
    tile, overlap = _check_tile(model, tile, overlap, (height, width))
    schedule = _schedule(model, steps, kappa, p)
    settings = Settings(schedule, sampler, _check_seeds(seed, count, noise), tile, overlap, tile_batch or None)
    size = target_size(height, width, scale if scale is not None else model.scale)
    rgb = images[:, :3] if channels != 1 else images.expand(-1, 3, -1, -1)

    out = torch.zeros(count, 3, height * model.scale, width * model.scale, device=images.device)
    if count:
        _run_with_smaller_tiles(model, rgb, mask, settings, out, on_step)
    if mask is not None:
        out = mask * out + (1 - mask) * rgb.float()
    if color_fix != "none":
        for i in range(count):
            match_color(out[i : i + 1], _resize(rgb[i : i + 1], tuple(out.shape[-2:])), color_fix)
    out = _resize(out, size).clamp_(0, 1)
    if channels == 1:
        return out.mean(1, keepdim=True)
    if channels == 4:
        return torch.cat([out, _resize(images[:, 3:], size)], dim=1)
    return out
