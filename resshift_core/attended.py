"""Calls that may block for long, made where they can be left."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Attended:
    """Makes calls one after another in a thread of its own; while one blocks, `meanwhile` is called again and again.

    What `meanwhile` raises passes through, and the call is left: its thread ends when it returns. Used as a context manager.
    """

    def __init__(self, meanwhile: Callable[[], None], every: float):
        self._meanwhile, self._every = meanwhile, every  # seconds
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._results: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def __enter__(self) -> Attended:
        return self

    def __exit__(self, *_) -> None:
        self._calls.put(None)

    def __call__(self, call: Callable[..., T], *args) -> T:
        """What `call(*args)` returns or raises."""
        self._calls.put((call, args))
        while True:
            try:
                value, error = self._results.get(timeout=self._every)
                break
            except queue.Empty:
                self._meanwhile()
        if error is not None:
            raise error
        return value

    def later(self, call: Callable[[], None]) -> None:
        """To be made as soon as the thread is free: what would block as long as a call that was left, such as closing its file."""
        self._calls.put((call, None))

    def _work(self) -> None:
        while (given := self._calls.get()) is not None:
            call, args = given
            try:
                done = call(*(args or ())), None
            except BaseException as error:
                done = None, error
            if args is not None:
                self._results.put(done)
            del given, call, args, done  # an answer that nobody waits for any more closes its connection
