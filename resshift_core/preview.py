"""A small picture of the run so far, for hosts that show one."""

from __future__ import annotations

import torch
from PIL import Image

from .progress import StepEvent
from .resize import interpolated


class Canvas:
    """The picture at preview size, on which tiles appear as they are made."""

    def __init__(self, images: torch.Tensor, size: int):
        height, width = images.shape[-2:]
        factor = min(1.0, size / max(height, width))
        self.images, self.shape = images, (max(1, round(height * factor)), max(1, round(width * factor)))
        self.index, self.pixels = -1, None

    def paint(self, event: StepEvent) -> None:
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
        piece, y, x = piece[:, max(0, -y) :, max(0, -x) :], max(0, y), max(0, x)
        target = self.pixels[:, y : y + piece.shape[1], x : x + piece.shape[2]]
        target.copy_(piece[:, : target.shape[1], : target.shape[2]])

    def image(self) -> Image.Image:
        pixels = (self.pixels.nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())


def _rgb(image: torch.Tensor) -> torch.Tensor:
    return image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)


def _resized(image: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """(3, H, W) to `shape`, bilinear."""
    return interpolated(image[None], shape, "bilinear", antialias=True)[0]
