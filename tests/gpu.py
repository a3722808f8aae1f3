"""The device of the tests marked `cuda`, and its memory.

It is what `device="auto"` finds. RESSHIFT_TEST_DEVICE names another one: "npu" (Ascend's, or the second device of `accelerator`),
"cpu" to try the tests themselves.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from resshift_core.device import resolve_device

MIB = 1 << 20


@functools.cache
def find() -> torch.device | None:
    """None: there is no GPU."""
    named = os.environ.get("RESSHIFT_TEST_DEVICE")
    if named == "npu":
        importlib.import_module("torch_npu")
    if named:
        return resolve_device(named)
    found = resolve_device("auto")
    return None if found.type == "cpu" else found


def _backend(device: torch.device):
    return getattr(torch, device.type)


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        _backend(device).synchronize()


def used(device: torch.device) -> int:
    """Bytes of all tensors there."""
    if device.type == "cpu":
        pytest.skip("nobody counts the tensors of a processor")
    synchronize(device)
    return torch.mps.current_allocated_memory() if device.type == "mps" else _backend(device).memory_allocated()


@contextmanager
def peak(device: torch.device) -> Iterator[list[int]]:
    """Gives a list; afterwards it holds the most bytes that tensors took beyond those that were there."""
    before, told = used(device), []
    if not hasattr(_backend(device), "reset_peak_memory_stats"):
        pytest.skip(f"torch does not tell the peak of {device.type}")
    _backend(device).reset_peak_memory_stats()
    yield told
    synchronize(device)
    told.append(_backend(device).max_memory_allocated() - before)


@contextmanager
def only(mib: int, device: torch.device) -> Iterator[None]:
    """So much can be taken beyond what is there."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + mib * MIB) / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    elif hasattr(torch.ops, "resshift_card") and device.type == "npu":
        card = torch.ops.resshift_card
        card.set_limit(card.used() + mib * MIB)
        try:
            yield
        finally:
            card.set_limit(1 << 40)
    else:
        pytest.skip(f"the memory of {device.type} cannot be limited")
