"""`upscale`: pictures in, pictures out. What is done before and after the tiles of `tile_runs`: checks, wrap, alpha, colour, size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from .alpha import constant_around, fill_hidden_around, put_back
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
from .device import cpu_by_default, is_out_of_memory, without_autocast
from .errors import InputError, OutOfMemory, brief
from .heap import kept_memory
from .model import ResShiftModel
from .noise import Repeat
from .progress import StepEvent, moved, part_of_run
from .tile_runs import free_words, run_tiles
from .wrap import Torus, match_color_around, resize_around

ALPHA_MODEL = "builtin"
ALPHA_SHARE = {"pixel": 0.5, "latent": 0.03}  # about what alpha takes of a run's time, by the space of the colours' model
PERIOD = 480  # of noise="periodic", in low-resolution pixels: the distance of the tiles of ComfyUI's own upscaler


def _run(model, rgb, mask, settings: Settings, torus: Torus | None, on_step) -> torch.Tensor:
    """All pictures at the model's own scale: (B, 3, H, W) -> (B, 3, H * s, W * s) float32 on the device of `rgb`."""
    if torus is not None:
        rgb, mask = torus.extend(rgb), None if mask is None else torus.extend(mask)
        on_step = torus.without_margins(on_step)
        settings = replace(settings, repeat=torus.repeat(model.scale, model.config.autoencoder.factor))
    count, _, height, width = rgb.shape
    out = torch.zeros(count, 3, height * model.scale, width * model.scale, dtype=torch.float32, device=rgb.device)
    if count:
        run_tiles(model, rgb, mask, settings, out, on_step)
    return out if torus is None else torus.close(out, model.scale)


def _match_colors(out: torch.Tensor, rgb: torch.Tensor, mask: torch.Tensor | None, method: str, wrap: str) -> None:
    """Change the results in place, (B, 3, H * s, W * s), one after the other; rgb: (B, 3, H, W)."""
    for i in range(len(out)):
        part, reference = out[i : i + 1], rgb[i : i + 1].float()
        if method == "wavelet":
            reference = resize_around(reference, out.shape[-2:], wrap)
        if mask is not None:  # what lies under the hole must not show
            reference = torch.where(mask[i : i + 1] > 0, part, reference)
        match_color_around(part, reference, method, wrap)


def _checked_and_run(
    model, images, *, steps, kappa, p, seed, sampler, tile, overlap, tile_batch, mask, color_fix, noise, scale, size, wrap,
    on_step,
) -> torch.Tensor:  # fmt: skip
    """`upscale`, but for memory that is missing beside the tiles."""
    images = check_images(images)
    mask = check_mask(mask, images, model)
    check_words(sampler, color_fix, noise, wrap)
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
        opacity = images[:, 3:].float()
        if mask is not None:
            opacity = torch.maximum(opacity, mask)  # what is filled in is seen
        alpha, share = _upscaled_alpha(model, opacity, size, wrap, on_step)
        on_step = part_of_run(on_step, share, 1)
        rgb, hidden = fill_hidden_around(images, mask, torus)

    out = _run(model, rgb, mask, settings, torus, on_step)
    for picture, result in zip(rgb, out) if model.config.task == "sr" else ():
        if bool((picture == picture[:1]).all()):  # grey, whatever it is stored as
            result.copy_(result.mean(0, keepdim=True).expand_as(result))
    if color_fix != "none":
        _match_colors(out, rgb, mask, color_fix, wrap)
    if channels == 1:
        out, original = out.mean(1, keepdim=True), images
    if mask is not None:
        out = mask * out + (1 - mask) * original.float()
    out = resize_around(out, size, wrap).clamp_(0, 1)
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
        own = model.bundled == ALPHA_MODEL
        kind = model.dtype if model.dtype in (torch.bfloat16, torch.float16) else torch.float32
        faithful = model if own else load_model(ALPHA_MODEL, device=model.device, dtype=kind)
        faithful.reserved_bytes = model.reserved_bytes
        to_batch = moved(on_step, lambda i, *box: (edges[i], *box), len(alpha))
        results = _checked_and_run(
            faithful, torch.stack([alpha[i] for i in edges]), steps=None, kappa=None, p=None, seed=0, sampler="stochastic",
            tile="auto", overlap=None, tile_batch=None, mask=None, color_fix="none", noise="shared", scale=None, size=size,
            wrap=wrap, on_step=part_of_run(to_batch, 0, share),
        )  # fmt: skip
        for i, result in zip(edges, results):
            upscaled[i].copy_(result)
    torus = Torus.of(wrap, *alpha.shape[-2:], 1)
    for picture, result in zip(alpha[:, None], upscaled):
        constant = torus.cut(constant_around(torus.extend(picture)))
        exact = F.interpolate(constant, size=result.shape[-2:])[0] > 0
        result.copy_(torch.where(exact, F.interpolate(picture, size=result.shape[-2:])[0], result))
    return upscaled, share


def _too_large(images: torch.Tensor, size: tuple[int, int], reason: str) -> str:
    """For pictures whose result, or what is made of it, does not fit into memory: smaller tiles would not help."""
    (count, channels), (height, width) = images.shape[:2], size
    need = count * max(channels, 3) * height * width * 4 / 2**20
    return (
        f"Out of memory: the result, {count} x {channels} x {height} x {width} numbers, takes {need:.0f} MiB, and two to three "
        f"times that while it is made, on {images.device}, where {free_words(images.device)} ({reason}). Upscale fewer or smaller "
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
        seed: image i uses seed + i, or give a list of B seeds; their lowest 32 bits count. The same seed gives the same
            noise on every device, alone or in a batch, whatever the tile size.
        sampler: "stochastic", or "deterministic" (noise in x_T only).
        tile: low-resolution pixels; "auto" = the model's constant, None or 0 = the whole picture at once.
        overlap: low-resolution pixels that neighbouring tiles share; None = the model's own.
        tile_batch: tiles that go together; None = as many as free memory allows on an NVIDIA or AMD GPU, elsewhere 1.
        mask: (B, 1, H, W) in [0, 1], 1 = fill in, and make visible where there is alpha; inpainting models only.
        color_fix: "none", "wavelet" (low frequencies of the original) or "adain" (its mean and contrast).
        noise: "per_image"; "shared": all pictures of the batch use `seed` itself, for frames of a film; "periodic": shared,
            and repeating every 480 pixels, for hosts that cut tiles and do not say where they lie; not with `wrap`.
        scale: output size over input size, any number up to 64; None = the model's own.
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
    if on_step is not None and not callable(on_step):
        raise InputError(f"on_step is {on_step!r:.60}; it must be a function that takes a StepEvent, or None.")
    failed = None
    try:
        with without_autocast(model.device), kept_memory(model.device):
            return _checked_and_run(
                model, images, steps=steps, kappa=kappa, p=p, seed=seed, sampler=sampler, tile=tile, overlap=overlap,
                tile_batch=tile_batch, mask=mask, color_fix=color_fix, noise=noise, scale=scale, size=size, wrap=wrap, on_step=on_step,
            )  # fmt: skip
    except OutOfMemory:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failed = brief(error)
    # not above: the traceback would keep tensors alive
    raise OutOfMemory(_too_large(images, choose_size(size, scale, model, images), failed))
