"""The chain's noise: one CPU generator per picture, drawn for the whole picture, sliced for tiles.

The order is the reference's: x_T first, then one draw per step. The same seed therefore gives the same noise on every
device, alone or in a batch, whatever the tile size.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

KEEP_BYTES = 64 * 2**20  # pictures whose noise is smaller than this keep all of it
BAND_ROWS = 128  # distance of the saved generator states otherwise,
STATES_BYTES = 64 * 2**20  # or a multiple of it, where so many steps are drawn that the states would take more
STATE_BYTES = 5056
ROW_BYTES = 176 * 2**20  # a row of tiles whose noise is not larger has all of it drawn at once: five tiles of `builtin`
BLOCK_BYTES = 136 * 2**20  # of others, so much is kept drawn, from the tile asked for on: three tiles
BLOCK = 16  # torch fills normals in blocks of 16: a draw split at multiples of 16 gives the values of the whole draw


class NoiseField:
    """N(0, 1) noise of `draws` draws of shape (channels, height, width), readable by blocks.

    Values equal `torch.manual_seed(seed)` followed by `draws` calls of `torch.randn(1, channels, height, width)`. A large
    field is not stored: a first pass saves generator states every 128 rows or more, and rows are drawn again when asked for.

    Args:
        seed: whole number, of which torch's generator takes the lowest 32 bits.
        width: a multiple of 16 if the field is large.
    """

    def __init__(self, seed: int, draws: int, channels: int, height: int, width: int):
        self.seed, self.draws = int(seed) % 2**64, draws
        self.shape = (channels, height, width)
        self.generator = torch.Generator()
        self.generator.manual_seed(self.seed if self.seed < 2**63 else self.seed - 2**64)
        self._whole: list[torch.Tensor | Future] | None = None
        self._states = None
        self._blocks: dict[int, tuple[tuple[int, tuple, int, int], torch.Tensor]] = {}  # (draw, runs, left, right), values
        if draws * channels * height * width * 4 <= KEEP_BYTES or width % BLOCK:
            self._whole = self._draw_all()
        else:
            bands = draws * channels * height * STATE_BYTES / BAND_ROWS / STATES_BYTES
            self.band_rows = BAND_ROWS * max(1, math.ceil(bands))
            # one for all: the states would settle in the holes that those before leave
            scratch = torch.empty(BAND_ROWS, width, dtype=torch.float32)
            self._states = [[self._channel_states(scratch) for _ in range(channels)] for _ in range(draws)]

    def _draw_all(self) -> list[torch.Tensor | Future]:
        """Every draw. Where a processor is free, another thread makes them while the network computes what it needs none for."""

        def draw() -> torch.Tensor:
            return torch.randn(self.shape, dtype=torch.float32, generator=self.generator, device="cpu")

        if _processors() <= torch.get_num_threads():
            return [draw() for _ in range(self.draws)]
        pool = ThreadPoolExecutor(1, "noise")
        drawn: list[torch.Tensor | Future] = []
        try:
            drawn += (pool.submit(draw) for _ in range(self.draws))
        except RuntimeError:  # no more threads: there are too many, or the program is ending
            drawn = [future.result() for future in drawn]
            drawn += (draw() for _ in range(self.draws - len(drawn)))
        pool.shutdown(wait=False)
        return drawn

    def _all_of(self, draw: int) -> torch.Tensor:
        drawn = self._whole[draw]
        return drawn.result() if isinstance(drawn, Future) else drawn

    def _channel_states(self, scratch: torch.Tensor) -> list[torch.Tensor]:
        """Generator states at every band of one channel; leaves the generator at the channel's end."""
        height, states = self.shape[1], []
        for row in range(0, height, self.band_rows):
            states.append(self.generator.get_state())
            _skip(self.generator, scratch, min(self.band_rows, height - row))
        return states

    def block(self, draw: int, first: int, last: int, left: int = 0, right: int | None = None) -> torch.Tensor:
        """float32 (channels, last - first, right - left) of one draw, valid until the next call.

        Rows drawn once serve the tiles to the right, too, where those of all draws are not too much to keep.
        """
        right = self.shape[2] if right is None else right
        if self._whole is not None:
            return self._all_of(draw)[:, first:last, left:right]
        return self.runs(draw, ((first, last),), left, right)

    def runs(self, draw: int, runs: tuple[tuple[int, int], ...], left: int, right: int) -> torch.Tensor:
        """As `block`, of several runs of rows, (first, last), one below the other."""
        if self._whole is not None:
            return torch.cat([self._all_of(draw)[:, first:last, left:right] for first, last in runs], dim=1)
        rows, width = sum(last - first for first, last in runs), self.shape[2]
        bytes_per_column = 4 * self.draws * self.shape[0] * rows
        whole = width * bytes_per_column <= ROW_BYTES
        columns = width if whole else min(width, max(right - left, BLOCK_BYTES // bytes_per_column))
        place = draw
        if not whole and columns * bytes_per_column > BLOCK_BYTES:  # as of many steps: one block is kept, not one of each
            place, self._blocks = 0, {0: self._blocks[0]} if 0 in self._blocks else {}
        (drawn, known, start, end), values = self._blocks.get(place, ((0, (), 0, 0), None))
        if (drawn, known) != (draw, runs) or not start <= left <= right <= end:
            shape = (self.shape[0], rows, columns)
            self._blocks.pop(place, None)
            if values is None or values.shape != shape:  # used again if possible: taking it anew tears holes into the heap
                values = None  # the old one goes before the new one comes
                values = torch.empty(shape, dtype=torch.float32)
            start = 0 if whole else left
            end = min(width, start + columns)
            self._redraw(values[:, :, : end - start], draw, runs, start)
            self._blocks[place] = (draw, runs, start, end), values
        return values[:, :, left - start : right - start]

    def _redraw(self, out: torch.Tensor, draw: int, runs: tuple[tuple[int, int], ...], left: int) -> None:
        """Fill out, (channels, rows, columns). Channels are shared out among torch's threads: filling with normals takes one."""
        channels = self.shape[0]
        threads = min(torch.get_num_threads(), channels)

        @torch.inference_mode()  # of this thread; `out` may belong to one
        def fill(part: int) -> None:
            self._redraw_channels(out, range(part, channels, threads), draw, runs, left)

        if threads > 1:
            try:
                with ThreadPoolExecutor(threads, "noise") as pool:
                    list(pool.map(fill, range(threads)))
                return
            except RuntimeError:  # no more threads: there are too many, or the program is ending
                pass
        for part in range(threads):
            fill(part)

    def _redraw_channels(self, out: torch.Tensor, channels: range, draw: int, runs, left: int) -> None:
        width, columns = self.shape[2], slice(left, left + out.shape[2])
        whole_rows = out.shape[2] == width
        generator = torch.Generator()
        # filled again and again: fresh memory takes longer than the numbers
        values = torch.empty(BAND_ROWS, width, dtype=torch.float32)
        for channel in channels:
            top = 0
            for first, last in runs:
                band, skipped = divmod(first, self.band_rows)
                generator.set_state(self._states[draw][channel][band])
                _skip(generator, values, skipped)
                for row in range(first, last, BAND_ROWS):
                    rows = min(BAND_ROWS, last - row)
                    drawn = out[channel, top : top + rows] if whole_rows else values[:rows]
                    drawn.normal_(generator=generator)
                    if not whole_rows:
                        out[channel, top : top + rows] = drawn[:, columns]
                    top += rows


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _skip(generator: torch.Generator, scratch: torch.Tensor, rows: int) -> None:
    """Pass over the normals of so many rows, whose width is that of `scratch`, a multiple of 16; it is overwritten.

    A normal takes one 32-bit word, a whole number of 64 bits takes two: in less than half of the time.
    """
    for row in range(0, rows, len(scratch)):
        scratch[: rows - row].view(torch.int64).random_(generator=generator)


@dataclass(frozen=True)
class Repeat:
    """Noise with a period, in latent positions; None = that direction does not repeat. Position `top`, `left` is its first."""

    height: int | None = None
    width: int | None = None
    top: int = 0
    left: int = 0


class RepeatedNoise:
    """A NoiseField of one period, read around and around: the same interface, `height` by `width` positions."""

    def __init__(self, seed: int, draws: int, channels: int, height: int, width: int, repeat: Repeat):
        self.repeat, self.width = repeat, width
        self.periods = repeat.height or height, repeat.width or width
        stored = -(-self.periods[1] // BLOCK) * BLOCK  # large fields must be; the surplus is not read
        self.field = NoiseField(seed, draws, channels, self.periods[0], stored)

    def block(self, draw: int, first: int, last: int, left: int = 0, right: int | None = None) -> torch.Tensor:
        """float32 (channels, last - first, right - left) of one draw, valid until the next call."""
        right = self.width if right is None else right
        rows = _around(first - self.repeat.top, last - self.repeat.top, self.periods[0])
        columns = _around(left - self.repeat.left, right - self.repeat.left, self.periods[1])
        if len(columns) == 1:
            return self.field.runs(draw, rows, *columns[0])
        out = torch.empty(self.field.shape[0], last - first, right - left, dtype=torch.float32)
        done = 0
        for start, end in columns:  # each is copied before the next may overwrite it
            out[:, :, done : done + end - start] = self.field.runs(draw, rows, start, end)
            done += end - start
        return out


def _around(first: int, last: int, period: int) -> tuple[tuple[int, int], ...]:
    """The runs within 0..period that [first, last) goes through, round and round."""
    runs = []
    while first < last:
        start = first % period
        count = min(last - first, period - start)
        runs.append((start, start + count))
        first += count
    return tuple(runs)
