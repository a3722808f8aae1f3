"""Stands in for Microsoft's package, which hosts import for --directml: its device is the second device here."""

import torch
from second_device import register

register("privateuseone")


def is_available() -> bool:
    return True


def device_count() -> int:
    return 1


def default_device() -> int:
    return 0


def device(index: int | None = None) -> torch.device:
    return torch.device("privateuseone", 0)


def device_name(index: int) -> str:
    return "the host's memory"
