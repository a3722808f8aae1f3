"""Pictures of one size through a model, tile by tile, in as much memory as there is.

The order of one tile is facts of the published inference: scale to [-1, 1], reflect-pad, upsample bicubically, encode,
run the chain, decode, crop. Memory beyond input and output does not grow with the picture.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import groupby

import torch

from .arguments import Settings
from .device import free_bytes, is_out_of_memory, release_memory
from .errors import InputError, OutOfMemory, brief
from .model import ResShiftModel
from .noise import NoiseField, RepeatedNoise
from .progress import Progress, pixels_by_fit, pixels_of_blocks
from .resize import bicubic, bicubic_blocks
from .sampler import sample
from .space_to_depth import SpaceToDepthConfig
from .tiles import lay_side, mirror_index, reflect_index

log = logging.getLogger("resshift")

CONTEXT = 2  # low-resolution pixels that bicubic upsampling looks at beyond a tile


class _Picture:
    """One picture of a batch: where its tiles lie, its noise, its output."""

    def __init__(self, index: int, rgb, mask, model: ResShiftModel, settings: Settings, out):
        config = model.config
        self.index, self.rgb, self.mask, self.out = index, rgb, mask, out
        height, width = rgb.shape[-2:]
        self.padded = config.padded(height), config.padded(width)
        self.axes = tuple(lay_side(config, side, settings.tile, settings.overlap) for side in (height, width))
        self.places = [(i, j) for i in range(len(self.axes[0].starts)) for j in range(len(self.axes[1].starts))]
        self.noise_size = config.noise_side(height), config.noise_side(width)
        self.mirrored = mirror_index if config.space == "pixel" else reflect_index
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
            result = result.mul_(down[:, None]).mul_(across)
        self.out[:, top:bottom, left:right] += result


class _Shared:
    """What the tiles of a run have in common: noise, what steps compute for all of them alike, and the model in float32."""

    def __init__(self, settings: Settings, channels: int, keep: int, idle: bool):
        self.settings, self.channels, self.keep, self.idle = settings, channels, keep, idle
        self.draws = (
            1 if settings.sampler == "deterministic" else settings.schedule.steps
        )  # the reference's last one is never used
        self._fields: dict[tuple, NoiseField | RepeatedNoise] = {}
        self._constants: dict[ResShiftModel, list[dict]] = {}
        self._float32: ResShiftModel | None = None

    def forget_noise(self) -> None:
        """After an error, which a field that could not be drawn would keep."""
        self._fields.clear()

    def noise(self, picture: _Picture) -> NoiseField | RepeatedNoise:
        """The noise field of a picture; pictures with the same seed and size have one."""
        seed, repeat = self.settings.seeds[picture.index], self.settings.repeat
        key = (seed, picture.noise_size)
        if key not in self._fields:
            while len(self._fields) >= self.keep:  # pictures come in order; the oldest are done
                self._fields.pop(next(iter(self._fields)))
            kind, more = (RepeatedNoise, (repeat,)) if repeat else (NoiseField, ())
            self._fields[key] = kind(seed, self.draws, self.channels, *picture.noise_size, *more, idle=self.idle)
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
    """Encode, sample and decode a batch of equal tiles. jobs: [(picture, place)] -> (B, 3, h * s, w * s) in [0, 1], and of which
    all numbers on the way were finite.
    """
    config, device, settings = model.config, model.device, shared.settings
    fields = [shared.noise(picture) for picture, _ in jobs]  # first, for small ones are drawn meanwhile
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
    y0 = _encoded(model, crops, lq)
    condition = _condition(model, jobs, lq, mask)
    boxes = [picture.latent_box(place, config) for picture, place in jobs]

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
    finite = torch.isfinite(x0.flatten(1).sum(1)) & torch.isfinite(image.flatten(1).sum(1))
    return image.clamp(-1, 1).add_(1).div_(2), finite


def _condition(model: ResShiftModel, jobs, lq, mask) -> torch.Tensor:
    """`SwinUNet.condition`. On a processor, where what is said of a picture goes into the weights, one picture after the other: its
    result does not depend on what else is in the batch.
    """
    if not model.config.unet.degradation_channels:
        return model.unet.condition(lq, mask)
    if lq.device.type != "cpu":
        return model.unet.condition(lq, mask, torch.cat([picture.degradation(model) for picture, _ in jobs]))
    parts, start = [], 0
    for picture, tiles in groupby(picture for picture, _ in jobs):
        rows = slice(start, start := start + len(list(tiles)))
        parts.append(model.unet.condition(lq[rows], None if mask is None else mask[rows], picture.degradation(model)))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _encoded(model: ResShiftModel, crops, lq) -> torch.Tensor:
    """y0, the latent of the bicubic enlargement; crops have a margin of CONTEXT around lq."""
    scale = model.scale
    if scale == 1:
        return model.autoencoder.encode(lq).float()
    if lq.device.type == "cpu" and model.config.autoencoder == SpaceToDepthConfig(scale):
        return bicubic_blocks(crops, scale)
    edge = CONTEXT * scale
    up = bicubic(crops, tuple(side * scale for side in crops.shape[-2:]))
    return model.autoencoder.encode(up[..., edge:-edge, edge:-edge].contiguous()).float()


def _preview(model: ResShiftModel, x0, y0, lq) -> torch.Tensor:
    """x0 as a small picture, (B, 3, h, w) in [0, 1], without the decoder."""
    return pixels_of_blocks(x0) if model.config.space == "pixel" else pixels_by_fit(x0, y0, lq)


def _run_tiles_safely(model, jobs, shared: _Shared, progress) -> torch.Tensor:
    """The result of `_run_tiles`; tiles that come out non-finite are done again in float32, the others stay."""
    result, finite = _run_tiles(model, jobs, shared, progress)
    if not bool(finite.all()) and model.computes_in_half:
        again = [i for i, fine in enumerate(finite.cpu().tolist()) if not fine]
        redone, finite = _run_tiles(shared.in_float32(model), [jobs[i] for i in again], shared, None)
        for i, picture in zip(again, redone):
            result[i] = picture
    if not bool(finite.all()):
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
    channels, elsewhere = model.config.autoencoder.latent_channels, model.device.type != "cpu"
    shared, done = _Shared(settings, channels, keep=batch, idle=elsewhere), 0
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
            shared.forget_noise()
            batch = len(part) // 2
            log.warning("Out of memory with %d tiles at a time; going on with %d.", len(part), batch)
            continue
        for (picture, place), result in zip(part, results):
            picture.place_result(place, result, model.scale)
        del results, result  # before the next tiles take their memory
        done += len(part)
        progress.tiles_done = done


def run_tiles(model, rgb, mask, settings: Settings, out, on_step) -> None:
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
    while True:
        current = replace(settings, tile=tile, overlap=overlap)
        pictures = [_Picture(i, rgb[i], None if mask is None else mask[i], model, current, out[i]) for i in range(len(rgb))]
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
                f"{free_words(model.device)} ({failed}). "
                "Close other programs, or run on the device cpu."
            )
        tile, overlap = _halved(model, used, overlap, smallest)
        log.warning("Out of memory with a tile of %d pixels; starting again with %d.", used, tile)


def _halved(model: ResShiftModel, tile: int, overlap: int, smallest: int) -> tuple[int, int]:
    """(tile, overlap) to go on with where a tile is too large."""
    tile = max(smallest, _multiple_below(tile // 2, model.config.multiple))
    return tile, min(overlap, tile // 2)


def free_words(device: torch.device) -> str:
    free = free_bytes(device)
    return f"{free / 2**20:.0f} MiB are free" if free is not None else "free memory is not known"


def _multiple_below(value: int, multiple: int) -> int:
    return max(multiple, value // multiple * multiple)
