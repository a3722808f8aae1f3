"""Progress bar, live preview and interruption, hung on `on_step`."""

from __future__ import annotations

import time

import comfy.model_management as mm
import comfy.utils
import torch
from comfy.cli_args import LatentPreviewMethod, args

from ..resshift_core.preview import Canvas

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
