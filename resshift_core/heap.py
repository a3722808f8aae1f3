"""Memory that a run frees and takes again, kept by the process meanwhile.

The GNU C library gives large blocks back to the system as they are freed, and the system clears each page anew when it is next written
to. The activations of a network are such blocks, layer after layer: that took up to a third of a run on a processor. Other C
libraries have rules of their own and are left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from functools import cache

import torch

# mallopt's numbers. Bytes free at the end of the heap that are given back; those left there, and the room in a thread's heap, which is
# 64 MiB, without which the next one is not given back; the size from which a block lies alone
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
# during a run; larger blocks are few, and holes of their size would be lost
KEPT = {MMAP_THRESHOLD: 64 << 20, TOP_PAD: 64 << 20, TRIM_THRESHOLD: 1 << 30}
# the most that the library itself comes to, when a block of nearly 32 MiB was freed; it cannot be asked what it had
USUAL = {MMAP_THRESHOLD: 32 << 20, TOP_PAD: 128 << 10, TRIM_THRESHOLD: 64 << 20}
# by the user, and so it stays
CHOSEN = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")

_lock = threading.Lock()
_running: dict[object, int] = {}  # runs, and their threads
_threads: set[int] = set()  # those of all runs since the library was told to keep


@cache
def _library() -> ctypes.CDLL | None:
    """The C library, or None where it is not GNU's, or the user has set it up."""
    if sys.platform != "linux" or any(name in os.environ for name in CHOSEN):
        return None
    try:
        library = ctypes.CDLL(None)
        known = all(hasattr(library, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim"))
    except OSError:
        return None
    return library if known else None


def _set(values: dict[int, int]) -> None:
    for number, value in values.items():
        # glibc before 2.35 refuses more than 32 MiB for blocks
        if not _library().mallopt(number, value):
            _library().mallopt(number, USUAL[number])


def _begin(run: object) -> None:
    with _lock:
        _running[run] = threading.get_ident()
        _threads.add(_running[run])
        if len(_running) == 1:
            _set(KEPT)


def _end(run: object) -> None:
    with _lock:
        if _running.pop(run, None) is None or _running:
            return
        _set(USUAL)
        several = len(_threads) > 1
        _threads.clear()
    if several:  # each has a heap of its own
        _library().malloc_trim(0)
    else:
        with contextlib.suppress(RuntimeError, MemoryError):  # the end of the heap is looked at when such a block is freed
            torch.empty(1 << 20, dtype=torch.uint8, device="cpu")


def _forget() -> None:
    """In a process that another one's thread has forked while it computed: that run is not here."""
    global _lock
    _lock = threading.Lock()
    if _running:
        _running.clear()
        _threads.clear()
        _set(USUAL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """While a network computes on the processor, the process keeps what is freed. Runs may lie within each other or side by side."""
    if device.type != "cpu" or _library() is None:
        yield
        return
    run = object()
    try:
        _begin(run)
        yield
    finally:
        _end(run)
