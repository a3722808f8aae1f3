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
from collections.abc import Callable, Iterator
from functools import cache

import torch

# mallopt's numbers. Bytes free at the end of the heap that are given back; those left there, and the room in a thread's heap, which is
# 64 MiB, without which the next one is not given back; the size from which a block lies alone
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
# during a run; larger blocks are few, and holes of their size would be lost
KEPT = {MMAP_THRESHOLD: 64 << 20, TOP_PAD: 64 << 20, TRIM_THRESHOLD: 1 << 30}
# what the library itself comes to, once a block of 32 MiB was freed
USUAL = {MMAP_THRESHOLD: 32 << 20, TOP_PAD: 128 << 10, TRIM_THRESHOLD: 64 << 20}
# by the user, and so it stays
CHOSEN = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")

_lock = threading.Lock()
_runs = 0


@cache
def _mallopt() -> Callable[[int, int], int] | None:
    """The C library's function, or None where it is not GNU's, or the user has set it up."""
    if sys.platform != "linux" or any(name in os.environ for name in CHOSEN):
        return None
    try:
        library = ctypes.CDLL(None)
        return library.mallopt if hasattr(library, "gnu_get_libc_version") else None
    except (OSError, AttributeError):
        return None


def _set(values: dict[int, int]) -> None:
    for number, value in values.items():
        # glibc before 2.35 refuses more than 32 MiB for blocks
        if not _mallopt()(number, value):
            _mallopt()(number, USUAL[number])


@contextlib.contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """While a network computes on the processor, the process keeps what is freed. Runs may lie within each other or side by side."""
    global _runs
    if device.type != "cpu" or _mallopt() is None:
        yield
        return
    with _lock:
        _runs += 1
        if _runs == 1:
            _set(KEPT)
    try:
        yield
    finally:
        with _lock:
            _runs -= 1
            if not _runs:
                _set(USUAL)
        with contextlib.suppress(RuntimeError, MemoryError):  # the end of the heap is looked at when such a block is freed
            torch.empty(1 << 20, dtype=torch.uint8, device="cpu")
