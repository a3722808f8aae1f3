"""`upscale`: pictures in, pictures out. Padding, tiles, the chain on batches of tiles, blending, colour, alpha.

The order of one tile is facts of the published inference: scale to [-1, 1], reflect-pad, upsample bicubically, encode,
run the chain, decode, crop. Memory beyond input and output does not grow with the picture.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from .alpha import constant_around, fill_hidden, put_back
from .arguments import (
    Settings,
    check_images,
    check_mask,
    check_number_format,
    check_numbers,
    check_seeds,
    check_tile,
    check_words,
    choose_schedule,
    choose_size,
)  # fmt: skip
from .checkpoint import load_model
from .device import cpu_by_default, free_bytes, is_out_of_memory, release_memory, without_autocast
from .errors import InputError, OutOfMemory, brief
from .model import ResShiftModel
from .noise import NoiseField, Repeat, RepeatedNoise
from .progress import Progress, StepEvent, part_of_run, pixels_by_fit, pixels_of_blocks
from .resize import bicubic, target_size
from .sampler import sample
from .tiles import lay_axis, mirror_index, reflect_index
from .wrap import Torus, match_color_around, resize_around

__all__ = ["Progress", "StepEvent", "target_size", "upscale"]

log = logging.getLogger("resshift")

CONTEXT = 2  # low-resolution pixels that bicubic upsampling looks at beyond a tile
ALPHA_MODEL = "builtin"
ALPHA_SHARE = {"pixel": 0.5, "latent": 0.03}  # about what alpha takes of a run's time, by the space of the colours' model
PERIOD = 480  # of noise="periodic", in low-resolution pixels: the distance of the tiles of ComfyUI's own upscaler


class _Picture:
    """One picture of a batch: where its tiles lie, its noise, its output."""

    def __init__(self, index: int, rgb, mask, model: ResShiftModel, settings: Settings, draws: int, out):
        config = model.config
        self.index, self.rgb, self.mask, self.out = index, rgb, mask, out
        height, width = rgb.shape[-2:]
        self.padded = config.padded(height), config.padded(width)
        self.axes = tuple(
            lay_axis(padded, settings.tile, settings.overlap, config.unit, config.tile_multiple) for padded in self.padded
        )
        self.places = [(i, j) for i in range(len(self.axes[0].starts)) for j in range(len(self.axes[1].starts))]
        self.noise_size = config.noise_side(height), config.noise_side(width)
        self.mirrored = mirror_index if config.space == "pixel" else reflect_index
        self.draws = draws
        self._degradation: torch.Tensor | None = None

    def degradation(self, model: ResShiftModel) -> torch.Tensor:
        """What the network's estimator says of the whole picture, (1, 10): the same for every tile."""
        if self._degradation is None:
            self._degradation = model.unet.degradation.of_picture(self.rgb)
        return self._degradation

    def crop(self, place: tuple[int, int], margin: int, source=None) -> torch.Tensor:
        """Low-resolution pixels of one tile and `margin` around it, mirrored beyond the picture. (C, h, w)."""
        source = self.rgb if source is None else source
        rows, columns = (
            self.mirrored(axis.starts[i] - margin, axis.starts[i] + axis.tile + margin, padded, length)
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

    def box(self, place: tuple[int, int]) -> tuple[int, int, int, int, int]:
        """(picture, top, left, height, width) of a tile in low-resolution pixels; it may reach beyond the picture."""
        (rows, columns), (i, j) = self.axes, place
        return self.index, rows.starts[i], columns.starts[j], rows.tile, columns.tile

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


class _Shared:
    """What the tiles of a run have in common: noise, what steps compute for all of them alike, and the model in float32."""

    def __init__(self, settings: Settings, channels: int, draws: int, keep: int):
        self.settings, self.channels, self.draws, self.keep = settings, channels, draws, keep
        self._fields: dict[tuple, NoiseField | RepeatedNoise] = {}
        self._constants: dict[ResShiftModel, list[dict]] = {}
        self._float32: ResShiftModel | None = None

    def noise(self, picture: _Picture) -> NoiseField | RepeatedNoise:
        """The noise field of a picture; pictures with the same seed and size have one."""
        seed, repeat = self.settings.seeds[picture.index], self.settings.repeat
        key = (seed, picture.noise_size)
        if key not in self._fields:
            while len(self._fields) >= self.keep:  # pictures come in order; the oldest are done
                self._fields.pop(next(iter(self._fields)))
            kind, more = (RepeatedNoise, (repeat,)) if repeat else (NoiseField, ())
            self._fields[key] = kind(seed, self.draws, self.channels, *picture.noise_size, *more)
        return self._fields[key]

    def constants(self, model: ResShiftModel) -> list[dict]:
        """`ResShiftModel.constants` of the run's schedule."""
        if model not in self._constants:
            self._constants[model] = model.constants(self.settings.schedule)
        return self._constants[model]

    def in_float32(self, model: ResShiftModel) -> ResShiftModel:
        """For tiles that overflowed; logged once a run."""
        if self._float32 is None:
            log.warning("A tile overflowed in %s; it is done again in float32.", model.dtype)
            self._float32 = model.in_float32()
        return self._float32


def _run_tiles(model: ResShiftModel, jobs, shared: _Shared, progress: Progress | None):
    """Encode, sample and decode a batch of equal tiles. jobs: [(picture, place)] -> (B, 3, h * s, w * s) in [0, 1]."""
    config, device, scale, settings = model.config, model.device, model.scale, shared.settings
    crops = torch.stack([picture.crop(place, CONTEXT) for picture, place in jobs]).to(device) * 2 - 1
    mask = None
    if config.task == "inpaint":
        hole = torch.stack([picture.crop(place, 0, picture.mask) for picture, place in jobs]).to(device) > 0
        inner = crops[..., CONTEXT:-CONTEXT, CONTEXT:-CONTEXT]
        crops[..., CONTEXT:-CONTEXT, CONTEXT:-CONTEXT] = torch.where(hole, -1.0, inner)
        mask = hole.float() * 2 - 1
    lq = crops[..., CONTEXT:-CONTEXT, CONTEXT:-CONTEXT].contiguous()
    places = tuple(picture.box(place) for picture, place in jobs)

    def tell(phase, step, x0):
        if progress is not None:
            progress.tell(phase, step, places, lambda: _preview(model, x0, y0, lq))

    if progress is not None:
        progress.tell("encode", 0, places, lambda: (lq.float() / 2 + 0.5).clamp(0, 1).cpu())
    y0 = model.autoencoder.encode(_enlarged(crops, lq, scale)).float()
    told = None
    if model.config.unet.degradation_channels:
        told = torch.cat([picture.degradation(model) for picture, _ in jobs])
    condition = model.unet.condition(lq, mask, told)
    boxes = [picture.latent_box(place, config) for picture, place in jobs]
    fields = [shared.noise(picture) for picture, _ in jobs]

    def draw(number):
        if len(jobs) == 1:
            return fields[0].block(number, *boxes[0])[None].to(device)
        drawn = torch.empty(y0.shape, dtype=torch.float32)
        for slot, field, box in zip(drawn, fields, boxes):
            slot.copy_(field.block(number, *box))  # at once: a field may overwrite it for the next tile
        return drawn.to(device)

    constants = shared.constants(model)

    def denoise(x_t, t):
        return model.denoise(x_t, y0, settings.schedule, t, condition, constants[t - 1])

    x0 = sample(
        denoise, y0, settings.schedule, draw, sampler=settings.sampler,
        on_step=lambda step, t, x0, x: tell("step", step, x0),
    )  # fmt: skip
    image = model.autoencoder.decode(x0).float()
    tell("decode", settings.schedule.steps, x0)
    # the picture alone would not tell: a codebook has a valid code for everything
    finite = torch.isfinite(y0).all() & torch.isfinite(x0).all() & torch.isfinite(image).all()
    return (image.clamp(-1, 1) + 1) / 2 if bool(finite) else None


def _enlarged(crops, lq, scale: int) -> torch.Tensor:
    """Bicubic; crops have a margin of CONTEXT around lq."""
    if scale == 1:
        return lq
    edge = CONTEXT * scale
    up = bicubic(crops, tuple(side * scale for side in crops.shape[-2:]))
    return up[..., edge:-edge, edge:-edge].contiguous()


def _preview(model: ResShiftModel, x0, y0, lq) -> torch.Tensor:
    """x0 as a small picture, (B, 3, h, w) in [0, 1], without the decoder."""
    return pixels_of_blocks(x0) if model.config.space == "pixel" else pixels_by_fit(x0, y0, lq)


def _run_tiles_safely(model, jobs, shared: _Shared, progress) -> torch.Tensor:
    """As `_run_tiles`; a batch that comes out non-finite is done again in float32."""
    result = _run_tiles(model, jobs, shared, progress)
    if result is None and model.computes_in_half:
        result = _run_tiles(shared.in_float32(model), jobs, shared, None)
    if result is None:
        raise InputError("The model returns numbers that are not finite, in float32 too. Its weights are probably damaged.")
    return result


def _tile_batch(model: ResShiftModel, height: int, width: int, asked: int | None) -> int:
    """Tiles that go together: as asked, else what fits into free memory on an accelerator, else 1."""
    most = max(1, model.most_tiles(height, width))
    if asked:
        return min(asked, most)
    free = free_bytes(model.device) if model.device.type == "cuda" else None
    if free is None:
        return 1
    usable = min(int(0.7 * free), free - model.reserved_bytes)
    return max(1, min(64, most, usable // max(1, model.bytes_per_tile(height, width))))


def _run_pictures(model: ResShiftModel, pictures: list[_Picture], settings: Settings, progress: Progress) -> None:
    """All tiles of equal-sized pictures, in batches; on out-of-memory the batch is halved.

    Raises:
        the device's out-of-memory error, when a batch of one tile does not fit.
    """
    jobs = [(picture, place) for picture in pictures for place in picture.places]
    rows, columns = pictures[0].axes
    batch = _tile_batch(model, rows.tile, columns.tile, settings.tile_batch)
    shared, done = _Shared(settings, model.config.autoencoder.latent_channels, pictures[0].draws, keep=batch), 0
    while done < len(jobs):
        part, failed = jobs[done : done + batch], None
        try:
            results = _run_tiles_safely(model, part, shared, progress)
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
        del results, result  # before the next tiles take their memory
        done += len(part)
        progress.tiles_done = done


def _run_with_smaller_tiles(model, rgb, mask, settings: Settings, out, on_step) -> None:
    """Fill `out`, (B, 3, H * s, W * s); when one tile does not fit into memory, start again with tiles of half the size.

    Raises:
        OutOfMemory: the smallest tile does not fit either.
    """
    smallest = max(model.config.multiple, min(settings.tile, 64))
    tile, overlap = settings.tile, settings.overlap
    sides = [model.config.padded(side) for side in rgb.shape[-2:]]
    while (used := min(tile, max(sides))) > smallest and not model.most_tiles(*(min(used, side) for side in sides)):
        tile, overlap = _halved(model, used, overlap, smallest)
        log.warning("A tile of %d pixels makes larger tensors than %s can count; %d is used.", used, model.device, tile)
    draws = 1 if settings.sampler == "deterministic" else settings.schedule.steps  # the reference's last draw is never used
    while True:
        current = replace(settings, tile=tile, overlap=overlap)
        pictures = [
            _Picture(i, rgb[i], None if mask is None else mask[i], model, current, draws, out[i]) for i in range(len(rgb))
        ]
        tiles = sum(len(picture.places) for picture in pictures)
        progress = Progress(on_step, len(pictures), tiles, settings.schedule.steps)
        failed = None
        try:
            _run_pictures(model, pictures, current, progress)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failed = brief(error)
        if failed is None:
            return
        release_memory(model.device)
        out.zero_()
        used = min(tile, max(pictures[0].padded))
        if used <= smallest:
            need = model.bytes_per_tile(*(axis.tile for axis in pictures[0].axes)) / 2**20
            raise OutOfMemory(
                f"Out of memory: a tile of {used} pixels needs about {need:.0f} MiB on {model.device}, "
                f"{_free_words(model.device)} ({failed}). "
                "Close other programs, or run on the device cpu."
            )
        tile, overlap = _halved(model, used, overlap, smallest)
        log.warning("Out of memory with a tile of %d pixels; starting again with %d.", used, tile)


def _halved(model: ResShiftModel, tile: int, overlap: int, smallest: int) -> tuple[int, int]:
    """(tile, overlap) to go on with where a tile is too large."""
    tile = max(smallest, _multiple_below(tile // 2, model.config.multiple))
    return tile, min(overlap, tile // 4)


def _free_words(device: torch.device) -> str:
    free = free_bytes(device)
    return f"{free / 2**20:.0f} MiB are free" if free is not None else "free memory is not known"


def _multiple_below(value: int, multiple: int) -> int:
    return max(multiple, value // multiple * multiple)


def _run(model, rgb, mask, settings: Settings, torus: Torus | None, on_step) -> torch.Tensor:
    """All pictures at the model's own scale: (B, 3, H, W) -> (B, 3, H * s, W * s) float32 on the device of `rgb`."""
    if torus is not None:
        rgb, mask = torus.extend(rgb), None if mask is None else torus.extend(mask)
        on_step = torus.without_margins(on_step)
        settings = replace(settings, repeat=torus.repeat(model.scale, model.config.autoencoder.factor))
    count, _, height, width = rgb.shape
    out = torch.zeros(count, 3, height * model.scale, width * model.scale, dtype=torch.float32, device=rgb.device)
    if count:
        _run_with_smaller_tiles(model, rgb, mask, settings, out, on_step)
    return out if torus is None else torus.close(out, model.scale)


def _checked_and_run(
    model, images, steps, kappa, p, seed, sampler, tile, overlap, tile_batch, mask, color_fix, noise, scale, size, wrap, on_step
) -> torch.Tensor:
    """`upscale`, but for memory that is missing beside the tiles."""
    images = check_images(images)
    mask = check_mask(mask, images, model)
    check_words(sampler, color_fix, wrap)
    check_number_format(model)
    scale, tile_batch = check_numbers(scale, tile_batch)
    count, channels, height, width = images.shape
    torus = Torus.of(wrap, height, width, model.config.multiple) if wrap != "none" else None
    tile, overlap = check_tile(model, tile, overlap, torus.size if torus else (height, width))
    schedule = choose_schedule(model, steps, kappa, p)
    period = PERIOD * model.scale // model.config.autoencoder.factor
    settings = Settings(
        schedule, sampler, check_seeds(seed, count, noise), tile, overlap, tile_batch or None,
        Repeat(period, period) if noise == "periodic" else None,
    )  # fmt: skip
    size = choose_size(size, scale, model, images)
    original = images[:, :3] if channels != 1 else images.expand(-1, 3, -1, -1)
    rgb, hidden, alpha = original, [], None
    if channels == 4:
        alpha, share = _upscaled_alpha(model, images[:, 3:].float(), size, wrap, on_step)
        on_step = part_of_run(on_step, share, 1)
        rgb, hidden = _without_hidden_colors(images, torus)

    out = _run(model, rgb, mask, settings, torus, on_step)
    for picture, result in zip(rgb, out) if model.config.task == "sr" else ():
        if bool((picture == picture[:1]).all()):  # grey, whatever it is stored as
            result.copy_(result.mean(0, keepdim=True).expand_as(result))
    if color_fix != "none":
        for i in range(count):
            part, reference = out[i : i + 1], rgb[i : i + 1].float()
            if color_fix == "wavelet":
                reference = resize_around(reference, out.shape[-2:], wrap)
            if mask is not None:  # what lies under the hole must not show
                reference = torch.where(mask[i : i + 1] > 0, part, reference)
            match_color_around(part, reference, color_fix, wrap)
    if mask is not None:
        out = mask * out + (1 - mask) * original.float()
    out = resize_around(out, size, wrap).clamp_(0, 1)
    if channels == 1:
        return out.mean(1, keepdim=True)
    if alpha is not None:
        put_back(out, alpha, hidden)
        return torch.cat([out, alpha], dim=1)
    return out


def _upscaled_alpha(model: ResShiftModel, alpha, size: tuple[int, int], wrap: str, on_step) -> tuple[torch.Tensor, float]:
    """((B, 1, H, W) in [0, 1] as (B, 1, *size), the share of the run's time that it took).

    Where it has edges, by the built-in model: resized, they would be soft around crisp colours. By none else, for others give
    soft shadows edges. What is constant stays exactly so.
    """
    upscaled = resize_around(alpha, size, wrap)
    if size[0] <= alpha.shape[-2] or size[1] <= alpha.shape[-1]:
        return upscaled, 0.0
    edges = [i for i, picture in enumerate(alpha) if bool((picture != picture[0, 0, 0]).any())]
    share = ALPHA_SHARE[model.config.space] if edges else 0.0
    if share:
        own = model.config.name == ALPHA_MODEL
        kind = model.dtype if model.dtype in (torch.bfloat16, torch.float16) else torch.float32
        faithful = model if own else load_model(ALPHA_MODEL, device=model.device, dtype=kind)
        faithful.reserved_bytes = model.reserved_bytes

        def tell(event):  # of the batch that the caller knows
            boxes = tuple((edges[i], *box) for i, *box in event.boxes)
            return on_step(replace(event, image=edges[event.image], images=len(alpha), boxes=boxes))

        results = _checked_and_run(
            faithful, torch.stack([alpha[i] for i in edges]), steps=None, kappa=None, p=None, seed=0, sampler="stochastic",
            tile="auto", overlap=None, tile_batch=None, mask=None, color_fix="none", noise="shared", scale=None, size=size,
            wrap=wrap, on_step=part_of_run(None if on_step is None else tell, 0, share),
        )  # fmt: skip
        for i, result in zip(edges, results):
            upscaled[i].copy_(result)
    torus = Torus.of(wrap, *alpha.shape[-2:], 1)
    for picture, result in zip(alpha[:, None], upscaled):
        constant = torus.cut(constant_around(torus.extend(picture)))
        exact = F.interpolate(constant, size=result.shape[-2:])[0] > 0
        result.copy_(torch.where(exact, F.interpolate(picture, size=result.shape[-2:])[0], result))
    return upscaled, share


def _without_hidden_colors(images: torch.Tensor, torus: Torus | None):
    """`fill_hidden`, with the other side of a picture that wraps in sight."""
    if torus is None:
        return fill_hidden(images)
    filled, hidden = fill_hidden(torus.extend(images))
    return torus.cut(filled), hidden


def _too_large(images: torch.Tensor, size: tuple[int, int], reason: str) -> str:
    """For pictures whose result, or what is made of it, does not fit into memory: smaller tiles would not help."""
    (count, channels), (height, width) = images.shape[:2], size
    need = count * max(channels, 3) * height * width * 4 / 2**20
    return (
        f"Out of memory: the result, {count} x {channels} x {height} x {width} numbers, takes {need:.0f} MiB, and two to three "
        f"times that while it is made, on {images.device}, where {_free_words(images.device)} ({reason}). Upscale fewer or smaller "
        "pictures at a time, or close other programs."
    )


@cpu_by_default
@torch.no_grad()  # not inference_mode: callers go on with the result, in place or in a network that learns
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
    size: Sequence[int] | None = None,
    wrap: str = "none",
    on_step: Callable[[StepEvent], bool | None] | None = None,
) -> torch.Tensor:
    """Upscale (or restore, or fill in) a batch of pictures with a ResShift chain.

    Args:
        images: (B, C, H, W) floating point in [0, 1]; C = 3, or 1 (grey), or 4 (alpha last, upscaled by the
            built-in model, whatever `model` is; a colour that fills what is wholly transparent is not shown to the chain).
        steps, kappa, p: None = as trained. Others lay a new schedule between the trained end points
            (`ShiftSchedule.retime`).
        seed: image i uses seed + i, or give a list of B seeds. The same seed gives the same noise on every device, alone
            or in a batch, whatever the tile size.
        sampler: "stochastic", or "deterministic" (noise in x_T only).
        tile, overlap: low-resolution pixels; "auto" = the model's constant, None or 0 = the whole picture at once.
        tile_batch: tiles that go together; None = as many as free memory allows on an accelerator, 1 on a CPU.
        mask: (B, 1, H, W) in [0, 1], 1 = fill in; inpainting models only.
        color_fix: "none", "wavelet" (low frequencies of the original) or "adain" (its mean and contrast).
        noise: "per_image"; "shared": all pictures of the batch use `seed` itself, for frames of a film; "periodic": shared,
            and repeating every 480 pixels, for hosts that cut tiles and do not say where they lie.
        scale: output size over input size, any number; None = the model's own.
        size: exact (height, width) of the result, instead of `scale`.
        wrap: "none", or the directions in which the picture continues at its opposite side: "x", "y", "both".
        on_step: called with a StepEvent; returning False raises Cancelled, an exception of its own passes through.

    Returns:
        (B, C, round(H * scale), round(W * scale)), or (B, C, *size), float32 in [0, 1] on the device of `images`.

    Raises:
        InputError: an argument is out of range. OutOfMemory: not even one small tile, or the result itself, fits. Cancelled:
            see on_step.
    """
    if not hasattr(model, "autoencoder"):  # not its class: a host's pack and an installed package each have their own
        raise InputError(f"model is {model!r:.60}; it must be what load_model returns.")
    failed = None
    try:
        with without_autocast(model.device):
            return _checked_and_run(
                model, images, steps, kappa, p, seed, sampler, tile, overlap, tile_batch, mask, color_fix, noise, scale, size,
                wrap, on_step,
            )  # fmt: skip
    except OutOfMemory:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failed = brief(error)
    # not above: the traceback would keep tensors alive
    raise OutOfMemory(_too_large(images, choose_size(size, scale, model, images), failed))
