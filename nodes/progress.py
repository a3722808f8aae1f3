"""Progress bar, live preview and interruption, hung on `on_step`."""

from __future__ import annotations

import time

import comfy.model_management as mm
import comfy.utils
import torch
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image

TOTAL = 1000  # ticks of the bar
PAUSE = 0.2  # seconds between previews
MAX_PREVIEW = 512  # pixels, where ComfyUI does not say


class Progress:
    """Called with every StepEvent of one or more runs of `upscale`; raises ComfyUI's interrupt when the user asks for it."""

    def __init__(self, frames: int):
        self.bar = comfy.utils.ProgressBar(TOTAL)
        self.frames, self.first, self.count = max(1, frames), 0, max(1, frames)
        self.canvas = None
        self.size = int(getattr(args, "preview_size", MAX_PREVIEW))
        self.shown = 0.0

    def begin(self, first: int, images: torch.Tensor) -> None:
        """The next run works on `images`, (B, C, H, W), the frames from number `first` on."""
        self.first, self.count = first, len(images)
        self.canvas = Canvas(images, self.size) if args.preview_method != LatentPreviewMethod.NoPreviews else None

    def __call__(self, event) -> bool:
        mm.throw_exception_if_processing_interrupted()
        share = (self.first + event.fraction * self.count) / self.frames
        self.bar.update_absolute(int(TOTAL * share), TOTAL, self._preview(event))
        return True

    def _preview(self, event):
        if self.canvas is None:
            return None
        last_step = event.phase == "decode"
        if not last_step and time.monotonic() - self.shown < PAUSE:
            return None
        self.shown = time.monotonic()
        self.canvas.paint(event)
        return ("JPEG", self.canvas.image(), self.size)


class Canvas:
    """The picture at preview size, on which tiles appear as they are made."""

    def __init__(self, images: torch.Tensor, size: int):
        height, width = images.shape[-2:]
        factor = min(1.0, size / max(height, width))
        self.images, self.shape = images, (max(1, round(height * factor)), max(1, round(width * factor)))
        self.index, self.pixels = -1, None

    def paint(self, event) -> None:
        """Put the tiles of an event into the picture it works on; a batch of tiles may reach into the next one."""
        shown = event.boxes[-1][0]
        if shown != self.index:
            self.index = shown
            self.pixels = _resized(_rgb(self.images[shown]).float().cpu(), self.shape)
        for tile, (image, *box) in zip(event.preview(), event.boxes):
            if image == shown:
                self._put(tile, *box)

    def _put(self, tile: torch.Tensor, top: int, left: int, height: int, width: int) -> None:
        rows, columns = (new / old for new, old in zip(self.shape, self.images.shape[-2:]))
        y, x = round(top * rows), round(left * columns)
        piece = _resized(tile, (max(1, round(height * rows)), max(1, round(width * columns))))
        target = self.pixels[:, y : y + piece.shape[1], x : x + piece.shape[2]]
        target.copy_(piece[:, : target.shape[1], : target.shape[2]])

    def image(self) -> Image.Image:
        pixels = (self.pixels.nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())


def _rgb(image: torch.Tensor) -> torch.Tensor:
    return image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)


def _resized(image: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """(3, H, W) to `shape`, bilinear."""
    return torch.nn.functional.interpolate(image[None], size=shape, mode="bilinear", antialias=True)[0]
