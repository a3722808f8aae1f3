"""Ctrl-C and SIGTERM between two steps: a step is finished first, so that no half of an update is saved."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

PATIENCE = 5.0  # seconds: a signal that long after the first ends the run wherever it is (torchrun sends every one twice)
HALF_STEP = "Stopped in the middle of a step, which is not saved; --resume auto goes on from the last state."


class Interrupts:
    """The signals of a run, while it is a context. They are noted, for `asked` between two steps; only in `breakable` they raise
    KeyboardInterrupt: in the middle of a queue's or a file's code it leaves locks behind for which the run then waits for ever.

    Args:
        together: several processes, which must stop after the same step: nothing is broken off.
    """

    def __init__(self, together: bool):
        self.number: int | None = None  # of the first signal
        self.half = False  # a step was broken off: what there is now is no state to go on from
        self._together, self._breakable = together, False
        self._first = 0.0
        self._before: dict = {}

    @property
    def asked(self) -> bool:
        """A signal has come."""
        return self.number is not None

    @property
    def status(self) -> int:
        """The exit status that belongs to the signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.number or signal.SIGINT)

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGTERM]
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell's & told us to ignore it
                numbers.append(signal.SIGINT)
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        now = time.monotonic()
        if self.number is None:
            self.number, self._first = number, now
        if self._breakable or now - self._first > PATIENCE:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def breakable(self) -> Iterator[None]:
        """Long work that changes nothing: a signal, also one that came before, raises KeyboardInterrupt."""
        self._breakable = not self._together
        try:
            if self._breakable and self.asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._breakable = False

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """An update of the weights, which leaves `half` where an impatient signal (or an error) breaks it off."""
        self.half = True
        yield
        self.half = False

    def passing(self, batches: Iterator) -> Iterator:
        """What a DataLoader gives; that a signal to all processes ended its workers, too, is no error."""
        try:
            yield from batches
        except RuntimeError:
            if self.asked:
                raise KeyboardInterrupt from None
            raise


class Stopped(Exception):
    """A signal ended the run; its state is saved."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status
