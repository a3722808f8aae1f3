"""What people read: sentences and a progress bar on standard error. Standard output is for data."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CONTROLS = {code: "?" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}

BREAKS = {ord("\n"): "?", ord("\t"): "?"}  # in a line of its own: a file's name must not look like another message


def harmless(text: str) -> str:
    """Names of files and what is in them come from strangers: their control characters must not steer the terminal."""
    return text.translate(CONTROLS)


class OutputError(Exception):
    """Standard output takes no more. `is_closed`: it is a pipe that nobody reads any more, which is no fault."""

    def __init__(self, error: OSError):
        super().__init__(f"Standard output could not be written ({error.strerror or error}).")
        self.is_closed = isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL)


def write_out(data: str | bytes) -> None:
    """All of it to standard output, at once: a line of text without its end, or a file.

    Raises:
        OutputError: as where the disk is full.
    """
    stream, whole = (sys.stdout.buffer, data) if isinstance(data, bytes) else (sys.stdout, data + "\n")
    try:
        stream.write(whole)  # one write: processes of one run may share the stream
        stream.flush()
    except OSError as error:
        raise OutputError(error) from error


class Console:
    """Prints beside a progress bar, if there is one.

    Args:
        quiet: only errors and warnings.
        prefix: before every line, to tell processes apart.
    """

    def __init__(self, quiet: bool = False, prefix: str = ""):
        self.quiet, self.prefix = quiet, prefix
        self._bar = None

    def say(self, text: str) -> None:
        """A line that `--quiet` leaves out."""
        if not self.quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """A line that is always shown."""
        self._print(f"warning: {text}")

    def error(self, text: str) -> None:
        """A line that is always shown."""
        self._print(f"error: {text}")

    def _print(self, text: str) -> None:
        line = self.prefix + harmless(text).translate(BREAKS)
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    @property
    def has_bar(self) -> bool:
        """Whether there is a terminal to draw a bar on, and somebody wants it."""
        return not self.quiet and sys.stderr.isatty()

    @contextmanager
    def progress(self, total: float, unit: str = "") -> Iterator[Progress]:
        """A bar for `total` of anything during the block: on a terminal only, with the time that is left.

        Args:
            total: 0 = no bar.
            unit: of the amounts, which are then shown in thousands; "" = percent alone.
        """
        if total and self.has_bar:
            self._bar = _bar(total, unit)
        try:
            yield Progress(self._bar)
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None


def _bar(total: float, unit: str):
    try:
        from tqdm import tqdm
    except ImportError:  # run from a folder, where no pip has brought it
        return None
    amounts = " {n_fmt}/{total_fmt}, {rate_fmt}" if unit else ""
    return tqdm(
        total=total,
        unit=unit,
        unit_scale=bool(unit),
        file=sys.stderr,
        leave=False,
        dynamic_ncols=True,
        smoothing=0.05,  # nearly the mean: pictures differ
        bar_format="{desc}{percentage:3.0f}%|{bar}|" + amounts + " {elapsed}, {remaining} left",
    )


class Progress:
    """Moves a bar, or does nothing where there is none."""

    def __init__(self, bar=None):
        self._bar = bar

    def describe(self, text: str) -> None:
        """Name what is being worked on, to the left of the bar."""
        if self._bar is not None:
            self._bar.set_description_str(f"{harmless(text)} ", refresh=False)

    def advance(self, amount: float) -> None:
        if self._bar is not None:
            self._bar.update(amount)

    def shrink(self, amount: float) -> None:
        """Take work out of the total that turned out not to be there."""
        if self._bar is not None:
            self._bar.total = max(0, self._bar.total - amount)
            self._bar.refresh()


class _Sentences(logging.Handler):
    """The core's log messages as lines on the console, each text once."""

    def __init__(self, console: Console):
        super().__init__()
        self.console, self._shown = console, set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text in self._shown:
            return
        self._shown.add(text)
        if record.levelno >= logging.WARNING:
            self.console.warn(text)
        else:
            self.console.say(text)


@contextmanager
def core_messages(console: Console) -> Iterator[None]:
    """Show what the logger "resshift" says during the block on `console`."""
    log = logging.getLogger("resshift")
    handlers, level, propagate = log.handlers[:], log.level, log.propagate
    log.handlers = [_Sentences(console)]
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)


def human_seconds(seconds: float) -> str:
    """ "0.8 s", "12 s", "3 min 5 s", "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def human_bytes(count: int | None) -> str:
    """ "24.1 MB" in powers of 1000, as file managers and download pages count; "?" for None."""
    if count is None:
        return "?"
    amount, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.0f} {units[0]}" if units[0] == "bytes" else f"{amount:.1f} {units[0]}"
