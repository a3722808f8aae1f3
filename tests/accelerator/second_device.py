"""The second device of card.cpp in this process. RESSHIFT_CARD names the built library, RESSHIFT_CARD_MIB its memory."""

import os
import types

import torch

torch.ops.load_library(os.environ["RESSHIFT_CARD"])
CARD = torch.ops.resshift_card
CARD.start()
TOTAL = int(os.environ.get("RESSHIFT_CARD_MIB", "8192")) << 20
CARD.set_limit(TOTAL)


def memory_stats(device=None) -> dict[str, int]:
    """In torch's names. Nothing is cached: what is free can be had by others."""
    used, peak = CARD.used(), CARD.peak()
    names = ("active_bytes", "allocated_bytes", "reserved_bytes")
    return {f"{name}.all.{when}": value for name in names for when, value in (("current", used), ("peak", peak))}


def nothing(*_, **__):
    return None


FUNCTIONS = {
    "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
    "set_device": nothing, "synchronize": nothing, "empty_cache": nothing, "manual_seed": nothing, "manual_seed_all": nothing,
    "get_rng_state": lambda device=None: torch.get_rng_state(), "set_rng_state": nothing, "_is_in_bad_fork": lambda: False,
    "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16], "memory_stats": memory_stats,
    "memory_allocated": lambda device=None: CARD.used(), "memory_reserved": lambda device=None: CARD.used(),
    "max_memory_allocated": lambda device=None: CARD.peak(), "reset_peak_memory_stats": lambda device=None: CARD.reset_peak(),
    "mem_get_info": lambda device=None: (TOTAL - CARD.used(), TOTAL), "get_device_name": lambda device=None: "the host's memory",
    "get_device_properties": lambda device=None: types.SimpleNamespace(total_memory=TOTAL, name="the host's memory"),
}  # fmt: skip


def register(name: str) -> None:
    """`name` is what torch calls the device: "privateuseone", or what it is renamed to."""
    backend = types.ModuleType(f"torch.{name}")
    backend.__dict__.update(FUNCTIONS)
    if name != "privateuseone":
        torch.utils.rename_privateuse1_backend(name)
    torch._register_device_module(name, backend)
    torch.utils.generate_methods_for_privateuse1_backend()
    torch.version.cuda = None  # as in torch for such a device: hosts take any torch with it for one that computes on NVIDIA's
