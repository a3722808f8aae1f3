"""What a run tells its caller while it works: how far it is, and what the picture looks like so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

from .errors import Cancelled


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
    boxes: tuple[tuple[int, int, int, int, int], ...] = ()  # of the B tiles: image, top, left, height, width in input pixels


@dataclass
class Progress:
    """Counts what is done, and turns it into events."""

    on_step: Callable | None
    images: int
    tiles: int
    steps: int
    tiles_done: int = 0

    def tell(self, phase: str, step: int, boxes: tuple, preview: Callable) -> None:
        """Raises Cancelled where the caller says so."""
        if self.on_step is None:
            return
        share = {"encode": 0.0, "step": step, "decode": self.steps + 1}[phase] / (self.steps + 1)
        event = StepEvent(
            phase, boxes[0][0], self.images, self.tiles_done, self.tiles, step, self.steps,
            min(1.0, (self.tiles_done + len(boxes) * share) / self.tiles), preview, boxes,
        )  # fmt: skip
        if _is_false(self.on_step(event)):
            raise Cancelled("The run was stopped.")


def _is_false(answer) -> bool:
    """Python's False, or numpy's, or torch's; not None, nor 0."""
    return answer is False or (str(getattr(answer, "dtype", "")).endswith("bool") and answer.ndim == 0 and not bool(answer))


def part_of_run(on_step: Callable | None, first: float, last: float) -> Callable | None:
    """`on_step` for a part of a run: what is told as 0 to 1 is passed on as `first` to `last`."""
    if on_step is None or (first, last) == (0, 1):
        return on_step
    return lambda event: on_step(replace(event, fraction=first + (last - first) * event.fraction))


def moved(on_step: Callable | None, move: Callable, images: int | None = None) -> Callable | None:
    """`on_step` told of the boxes (image, top, left, height, width) that `move` makes of a run's own, in a batch of `images`."""
    if on_step is None:
        return None

    def tell(event: StepEvent):
        boxes = tuple(move(*box) for box in event.boxes)
        return on_step(replace(event, image=boxes[0][0], images=images or event.images, boxes=boxes))

    return tell


def pixels_of_blocks(latent: torch.Tensor) -> torch.Tensor:
    """A space-to-depth latent, (B, 3 f^2, h, w) in [-1, 1], as a small picture in [0, 1]: every block's mean colour."""
    return (latent.float().unflatten(1, (3, -1)).mean(2) / 2 + 0.5).clamp(0, 1).cpu()


def pixels_by_fit(latent: torch.Tensor, y0: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
    """A latent as a small picture in [0, 1], (B, 3, h, w), without the decoder.

    Colours are an affine function of the latent's channels: the one that, by least squares, turns the latent of the
    low-resolution picture, `y0`, into that picture, `lq` (B, 3, H, W) in [-1, 1]. So any autoencoder gets a preview.
    """
    lq = F.interpolate(lq.float(), size=y0.shape[-2:], mode="area")
    columns, colours = (t.float().cpu().movedim(1, -1).flatten(0, 2) for t in (y0, lq))
    ones = torch.ones(len(columns), 1, dtype=torch.float32)
    ridge = 1e-3 * len(columns) * torch.eye(columns.shape[1] + 1, dtype=torch.float32)  # flat pictures leave the fit open
    known = torch.cat([columns, ones], dim=1)
    fit = torch.linalg.solve(known.T @ known + ridge, known.T @ colours)
    pixels = latent.float().cpu().movedim(1, -1) @ fit[:-1] + fit[-1]
    return (pixels.movedim(-1, 1) / 2 + 0.5).clamp(0, 1)
