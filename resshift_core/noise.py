"""The chain's noise: one CPU generator per picture, drawn for the whole picture, sliced for tiles.

The order is the reference's: x_T first, then one draw per step. The same seed therefore gives the same noise on every
device, alone or in a batch, whatever the tile size.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator
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
    Where a processor is free, another thread draws, or makes that pass, while the network computes what it needs no noise for.

    Args:
        seed: whole number, of which torch's generator takes the lowest 32 bits.
        width: a multiple of 16 if the field is large.
        idle: the network computes elsewhere, so that this machine's processors are free.
    """

    def __init__(self, seed: int, draws: int, channels: int, height: int, width: int, idle: bool = False):
        self.seed, self.draws = int(seed) % 2**64, draws
        self.shape = (channels, height, width)
        self.generator = torch.Generator()
        self.generator.manual_seed(self.seed if self.seed < 2**63 else self.seed - 2**64)
        self._whole: list[torch.Tensor | Future] | None = None  # of every draw
        self._states: list[list[list[torch.Tensor]] | Future] | None = None  # of every draw, channel and band
        self._beside = idle or _processors() > torch.get_num_threads()
        self._unwanted = threading.Event()
        weakref.finalize(self, self._unwanted.set)
        self._blocks: dict[int, tuple[tuple[int, tuple, int, int], torch.Tensor]] = {}  # (draw, runs, left, right), values
        if draws * channels * height * width * 4 <= KEEP_BYTES or width % BLOCK:
            generator, shape = self.generator, self.shape
            self._whole = self._of_every_draw(
                lambda: torch.randn(shape, dtype=torch.float32, generator=generator, device="cpu")
            )
        else:
            bands = draws * channels * height * STATE_BYTES / BAND_ROWS / STATES_BYTES
            self.band_rows = BAND_ROWS * max(1, math.ceil(bands))
            states = _States(self.generator, self.shape, self.band_rows, self._unwanted)
            self._states = self._of_every_draw(states.of_next_draw)

    def _of_every_draw(self, work: Callable) -> list:
        """What `work` returns at its first call, its second, ..., one for every draw, or what will be that."""
        if not self._beside:
            return [work() for _ in range(self.draws)]
        pool = ThreadPoolExecutor(1, "noise")
        done: list = []
        try:
            done += (pool.submit(work) for _ in range(self.draws))
        except RuntimeError:  # no more threads: there are too many, or the program is ending
            done = [future.result() for future in done]
            done += (work() for _ in range(self.draws - len(done)))
        pool.shutdown(wait=False)
        return done

    def _all_of(self, draw: int) -> torch.Tensor:
        return _finished(self._whole[draw])

    def states(self, draw: int) -> list[list[torch.Tensor]]:
        """The generator's, of a field that is not stored, at every band of every channel of one draw."""
        return _finished(self._states[draw])

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
        """Fill out, (channels, rows, columns). Bands are shared out among torch's threads: filling with normals takes one."""
        states, bands = self.states(draw), self._bands_of(runs)
        threads = min(torch.get_num_threads(), len(bands))
        shared = iter(bands)  # whichever thread is free takes the next

        def fill(_: int) -> None:
            self._redraw_bands(out, shared, states, left)

        if threads > 1:
            try:
                with ThreadPoolExecutor(threads, "noise") as pool:
                    list(pool.map(fill, range(threads)))
                return
            except RuntimeError:  # no more threads: there are too many, or the program is ending
                shared = iter(bands)
        fill(0)

    def _bands_of(self, runs: tuple[tuple[int, int], ...]) -> list[tuple[int, int, int, int]]:
        """(channel, first row, last row, its place in a block of these runs) of every band, or what the runs have of it."""
        bands = []
        for channel in range(self.shape[0]):
            top = 0
            for first, last in runs:
                while first < last:
                    end = min(last, (first // self.band_rows + 1) * self.band_rows)
                    bands.append((channel, first, end, top))
                    top += end - first
                    first = end
        return bands

    @torch.inference_mode()  # of this thread; `out` may belong to one
    def _redraw_bands(self, out: torch.Tensor, bands: Iterator, states, left: int) -> None:
        width, columns = self.shape[2], slice(left, left + out.shape[2])
        whole_rows = out.shape[2] == width
        generator = torch.Generator()
        # filled again and again: fresh memory takes longer than the numbers
        values = torch.empty(BAND_ROWS, width, dtype=torch.float32)
        for channel, first, last, top in bands:
            band, skipped = divmod(first, self.band_rows)
            generator.set_state(states[channel][band])
            _skip(generator, values, skipped)
            for row in range(first, last, BAND_ROWS):
                rows = min(BAND_ROWS, last - row)
                drawn = out[channel, top : top + rows] if whole_rows else values[:rows]
                drawn.normal_(generator=generator)
                if not whole_rows:
                    out[channel, top : top + rows] = drawn[:, columns]
                top += rows


class _States:
    """The first pass over a large field: the generator's states at every band of rows."""

    def __init__(self, generator: torch.Generator, shape: tuple[int, int, int], band_rows: int, unwanted: threading.Event):
        self.generator, self.shape, self.band_rows, self.unwanted = generator, shape, band_rows, unwanted
        # one for all: the states would settle in the holes that those before leave
        self.scratch = torch.empty(BAND_ROWS, shape[2], dtype=torch.float32)

    @torch.inference_mode()  # of the thread; what it fills may belong to one
    def of_next_draw(self) -> list[list[torch.Tensor]]:
        """Of every channel; leaves the generator at the draw's end. Nothing, where nobody wants the field any more."""
        channels, height, _ = self.shape
        states: list[list[torch.Tensor]] = []
        for _ in range(channels):
            states.append([])
            for row in range(0, height, self.band_rows):
                if self.unwanted.is_set():
                    return []
                states[-1].append(self.generator.get_state())
                _skip(self.generator, self.scratch, min(self.band_rows, height - row))
        return states


def _finished(result):
    return result.result() if isinstance(result, Future) else result


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

    def __init__(
        self, seed: int, draws: int, channels: int, height: int, width: int, repeat: Repeat, idle: bool = False
    ):  # fmt: skip
        self.repeat, self.width = repeat, width
        self.periods = repeat.height or height, repeat.width or width
        stored = -(-self.periods[1] // BLOCK) * BLOCK  # large fields must be; the surplus is not read
        self.field = NoiseField(seed, draws, channels, self.periods[0], stored, idle)

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
