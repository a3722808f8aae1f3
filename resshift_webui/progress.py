"""What the host shows while we work: its bar, a line of text with the time left, the live preview. And its two stop buttons."""

from __future__ import annotations

import time

import torch
from modules import shared

from resshift_core.errors import Cancelled
from resshift_core.preview import Canvas
from resshift_core.progress import StepEvent

from . import host

TICKS = 1000  # of the bar
PAUSE = 0.3  # seconds between previews
PREVIEW = 512  # pixels of their longer side
FIELDS = ("job_no", "sampling_step", "sampling_steps", "textinfo")


class Progress:
    """`on_step` of a run inside a `with`, after which the host's fields are as they were.

    Args:
        images: (B, C, H, W), what is worked on.
        owns_bar: the bar is ours, as in Extras; else, as in hires fix, it belongs to the sampling around us.
    """

    def __init__(self, images: torch.Tensor, owns_bar: bool):
        self.owns_bar, self.started, self.shown = owns_bar, time.monotonic(), 0.0
        self.canvas = Canvas(images, PREVIEW) if host.shows_previews() else None
        self.saved: dict = {}

    def __enter__(self) -> Progress:
        state = shared.state
        self.saved = {name: getattr(state, name) for name in FIELDS if hasattr(state, name)}
        if self.owns_bar:  # a single picture counts as finished from its start: job 1 of 1
            state.job_no = max(0, getattr(state, "job_no", 0) - 1)
            state.sampling_steps, state.sampling_step = TICKS, 0
        return self

    def __exit__(self, *_):
        for name, value in self.saved.items():
            setattr(shared.state, name, value)

    def __call__(self, event: StepEvent) -> bool:
        """False where the user wants it to stop."""
        if host.interrupted():
            return False
        if self.owns_bar:
            shared.state.sampling_step = int(TICKS * event.fraction)
        shared.state.textinfo = self._text(event)
        self._show(event)
        return True

    def fetching(self, done: int, total: int | None) -> None:
        """Of a download.

        Raises:
            Cancelled: the user wants it to stop. What has come is kept, the next try goes on from there.
        """
        if host.interrupted():
            raise Cancelled("The download was stopped; the next one goes on from here.")
        of = f" of {total / 1e6:.0f}" if total else ""
        shared.state.textinfo = f"ResShift: downloading, {done / 1e6:.0f}{of} MB"
        if self.owns_bar and total:
            shared.state.sampling_step = int(TICKS * done / total)

    def begin(self) -> None:
        """The run starts now; what came before (loading, fetching) does not count for the time left."""
        self.started = time.monotonic()

    def _text(self, event: StepEvent) -> str:
        """Tile and step; the share done and the time left where the bar, which the host labels with them, is not ours."""
        tile = f"tile {min(event.tile + 1, event.tiles)} of {event.tiles}, " if event.tiles > 1 else ""
        text = f"ResShift: {tile}step {event.step} of {event.steps}"
        if self.owns_bar or event.fraction <= 0:
            return text
        seconds = round((time.monotonic() - self.started) * (1 - event.fraction) / event.fraction)
        return f"{text}, {event.fraction:.0%}, {seconds // 60}:{seconds % 60:02d} left"

    def _show(self, event: StepEvent) -> None:
        if self.canvas is None or time.monotonic() - self.shown < PAUSE:
            return
        self.shown = time.monotonic()
        self.canvas.paint(event)
        host.show_preview(self.canvas.image())
