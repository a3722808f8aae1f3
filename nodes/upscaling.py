"""The nodes that make pictures: ResShift Upscale, Tiled ResShift, ResShift Inpaint."""

from __future__ import annotations

import logging

import comfy.model_management as mm
import torch

from .. import resshift_core as rs
from ..resshift_core.alpha import resize_visible
from ..resshift_core.arguments import check_numbers, check_tile
from ..resshift_core.device import PROCESSOR, first_that_fits
from ..resshift_core.inputs import as_arguments
from ..resshift_core.resize import resize, target_size
from ..resshift_core.tiles import lay_side
from ..resshift_core.wrap import Torus, resize_around
from .comparison import compared
from .described import described
from .managed import ManagedModel, image_format
from .progress import Progress
from .told import show_text

log = logging.getLogger("resshift")

CHUNK_PIXELS = 2**24  # of results that are worked on together, beside the whole batch's result
CHUNK_FRAMES = 16
FACE = 512  # pixels of an aligned face
NO_HOLE = "The mask is black everywhere, so there is nothing to fill in: paint over what is to go (Open in MaskEditor)."
BLACK_MASK = (
    "The mask is black everywhere, so this is the plain enlargement: paint what the model is to work on (Open in MaskEditor), or "
    "take the mask away."
)


def show_and_log(node_id: str | None, note: str) -> None:
    """A sentence on the node and in the log."""
    log.warning(note)
    show_text(node_id, note)


def to_channels_first(image: torch.Tensor) -> torch.Tensor:
    """IMAGE (B, H, W, C) or (B, H, W) -> (B, C, H, W)."""
    return image.movedim(-1, 1) if image.ndim == 4 else image.unsqueeze(1)


def masks_of(mask: torch.Tensor, first: int, images: torch.Tensor) -> torch.Tensor:
    """Of a MASK, (B, H, W) or (H, W), those for the frames `images`, (N, C, h, w), which begin with number `first`.

    (1 or N, 1, h, w): of the pictures' size, the mask's last picture repeated where there are more frames.
    """
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    if len(mask) > 1:
        mask = mask[torch.arange(first, first + len(images)).clamp(max=len(mask) - 1)]
    return resize(mask.float().nan_to_num(0).to(images.device), tuple(images.shape[-2:])).clamp(0, 1)


def upscale_somehow(managed: ManagedModel, need: int, images: torch.Tensor, **settings) -> torch.Tensor:
    """`upscale`, with room for `need` bytes beside the weights; where these, or even small tiles, do not fit, with all other
    models moved away, and at last on the processor.
    """

    def run(prepare):
        return lambda: rs.upscale(prepare(), images, **settings)

    attempts = (
        (run(lambda: managed.load(need)), ""),
        (run(managed.make_room), "again without other models"),
        (run(managed.on_cpu), PROCESSOR),
    )
    return first_that_fits(attempts, managed.device)


def blank_result(model: rs.ResShiftModel, images: torch.Tensor, scale: float | None) -> torch.Tensor:
    """The IMAGE that is to be filled in for (B, C, H, W), black."""
    size = target_size(*images.shape[-2:], scale or model.scale)
    return torch.zeros(len(images), *size, images.shape[1], **image_format())


def upscale_frames(managed: ManagedModel, image: torch.Tensor, mask: torch.Tensor | None, **settings) -> torch.Tensor:
    """A batch of any length, a few frames at a time into one result: (B, H, W, C) -> (B, H * s, W * s, C).

    mask: MASK, for inpainting models.
    """
    check_numbers(settings.get("scale"), settings.get("tile_batch"))
    model, images = managed.model, to_channels_first(image)
    count, _, height, width = images.shape
    out = blank_result(model, images, settings.get("scale"))
    size = out.shape[1:3]
    per_frame = max(height * width * model.scale**2, size[0] * size[1])
    chunk = max(1, min(CHUNK_FRAMES, CHUNK_PIXELS // per_frame))
    seed, progress = settings.pop("seed"), Progress(count)
    laid = Torus.of(settings.get("wrap", "none"), height, width, model.config.multiple).size
    tile, overlap = check_tile(model, settings["tile"], settings.get("overlap"), laid)
    settings.update(tile=tile, overlap=overlap)  # what they come to: nothing is told again for every few frames
    sides = [lay_side(model.config, side, tile, overlap) for side in laid]
    tiles = min(settings["tile_batch"] or 1, min(chunk, count) * len(sides[0].starts) * len(sides[1].starts))
    need = managed.bytes_per_run(max(side.tile for side in sides), tiles)
    for first in range(0, count, chunk):
        part = images[first : first + chunk]
        progress.begin(first, part)
        part_mask = None if mask is None else masks_of(mask, first, part)
        own = seed + first if settings.get("noise") == "per_image" else seed
        result = upscale_somehow(managed, need, part, mask=part_mask, seed=own, on_step=progress, **settings)
        out[first : first + chunk] = result.movedim(1, -1)
    return out


def marks_something(mask: torch.Tensor) -> bool:
    """Whether a MASK has a place that is not black."""
    return bool((mask > 0).any())


def run_without_hole(image: torch.Tensor, node_id: str | None) -> dict:
    """The picture as it is, and a sentence on the node."""
    show_and_log(node_id, NO_HOLE)
    result = image.float().nan_to_num(0).clamp(0, 1).to(**image_format())
    return {"ui": compared(image, result), "result": (result,)}


def only_inside(mask: torch.Tensor, image: torch.Tensor, result: torch.Tensor, wrap: str) -> torch.Tensor:
    """The result where the mask is white, plain bicubic enlargement elsewhere, frame by frame, in place. (B, H, W, C)."""
    images, size = to_channels_first(image), tuple(result.shape[1:3])
    for i in range(len(result)):
        mm.throw_exception_if_processing_interrupted()
        frame = images[i : i + 1]
        plain = resize_visible(frame.float().nan_to_num(0).clamp(0, 1), size, wrap)[0].movedim(0, -1).to(result.device)
        weight = resize_around(masks_of(mask, i, frame), size, wrap)[0, 0, :, :, None].to(result.device)
        result[i] = plain.lerp_(result[i].float(), weight)
    return result


def note_about_faces(model: rs.ResShiftModel, image: torch.Tensor) -> str:
    """A sentence where a face model gets what is not an aligned face, else nothing."""
    height, width = image.shape[1:3]
    if "face" not in f"{model.config.task} {model.config.variant}" or model.config.task == "inpaint":
        return ""
    if (height, width) == (FACE, FACE):
        return ""
    return (
        f"This model restores aligned faces of {FACE} x {FACE} pixels; this picture is {width} x {height}. "
        "Cut out and align the face first, or use a model for photographs."
    )


def run_node(model: ManagedModel, image: torch.Tensor, mask: torch.Tensor | None, node_id: str | None, **settings) -> dict:
    """What all three nodes do. Returns ComfyUI's {"ui", "result"}."""
    note = note_about_faces(model.model, image)
    if note:
        show_and_log(node_id, note)
    if mask is not None and not mask.numel():
        mask = None
    fills = model.model.config.task == "inpaint"
    if fills and mask is None:
        name = model.model.config.name or "This model"
        raise rs.InputError(f"{name} fills what a mask marks. Connect a mask, white where the picture is to be filled in.")
    limited = mask is not None and not fills  # the model works on a part of the picture
    if limited and not marks_something(mask):
        show_and_log(node_id, BLACK_MASK)
        result = blank_result(model.model, to_channels_first(image), settings.get("scale"))
    else:
        result = upscale_frames(model, image, mask if fills else None, **settings)
    if limited:
        result = only_inside(mask, image, result, settings.get("wrap", "none"))
    return {"ui": compared(image, result), "result": (result,)}


@described
class ResShiftUpscaleImage:
    """See inputs.UPSCALE."""

    def run(self, model, image, mask=None, unique_id=None, **widgets):
        return run_node(model, image, mask, unique_id, **as_arguments(**widgets))


@described
class TiledResShiftUpscaleImage:
    """See inputs.TILED."""

    def run(self, model, image, mask=None, unique_id=None, **widgets):
        return run_node(model, image, mask, unique_id, **as_arguments(**widgets))


@described
class ResShiftInpaint:
    """See inputs.INPAINT."""

    def check_lazy_status(self, mask, **_):
        """Inputs to wait for: a mask that marks nothing costs no model, which may be a download of 700 MB."""
        return ["model"] if marks_something(mask) else []

    def run(self, model, image, mask, unique_id=None, **widgets):
        if model is not None and model.model.config.task != "inpaint":
            raise rs.InputError(
                f"{model.model.config.name or 'This model'} does not fill holes. Load an inpainting model, such as "
                "inpaint_imagenet_s4, or use ResShift Upscale."
            )
        if not marks_something(mask):
            return run_without_hole(image, unique_id)
        return run_node(model, image, mask, unique_id, **as_arguments(**widgets))
