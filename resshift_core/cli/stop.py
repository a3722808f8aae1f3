"""Ctrl-C and SIGTERM, remembered.

The exception that a signal raises comes out of whatever line the main thread is in, and libraries lose it: torch, asked by
safetensors for a storage's length, made "could not determine the shape" of a Ctrl-C. So who handles other errors asks here first.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_asked: list[type[KeyboardInterrupt]] = []  # of the signals that came since `stoppable` began


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): clean up as after Ctrl-C."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM (job schedulers, containers) end the run as Ctrl-C does, so that no half-written file stays; remember both.

    A SIGINT that is ignored (jobs that a shell puts in the background) stays ignored. Other threads than the main one cannot
    set handlers: there nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        _asked.append(Terminated if number == signal.SIGTERM else KeyboardInterrupt)
        raise _asked[-1]

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()


def raise_if_stopped() -> None:
    """Raise again what a signal has raised since `stoppable` began.

    Raises:
        KeyboardInterrupt: Ctrl-C. Terminated: SIGTERM.
    """
    if _asked:
        raise _asked[0]
