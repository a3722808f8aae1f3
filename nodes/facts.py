"""Facts of a model that the page draws: trained schedule, sizes, memory."""

from __future__ import annotations

from functools import lru_cache

from ..resshift_core.errors import InputError
from ..resshift_core.model import SMALLEST, ModelConfig
from ..resshift_core.peek import peek_config, without_weights
from .folders import locate, plain_name


def describe(value: str) -> dict:
    """For a choice of the loader's combo, without loading its weights.

    Raises:
        ResShiftError: there is no such model, or only its weights would tell.
    """
    found = locate(value)
    if found is None:
        raise InputError(f"There is no model called {plain_name(value)!r}.")
    return _of(peek_config(found))


@lru_cache(maxsize=64)
def _of(config: ModelConfig) -> dict:
    model = without_weights(config)  # takes a second for a published network
    return {
        "task": config.task,
        "scale": config.scale,
        "steps": config.default_steps,
        "trained_steps": config.steps,
        "kappa": config.kappa,
        "p": config.p,
        "sqrt_eta_1": model.schedule.sqrt_eta_1,
        "sqrt_eta_T": model.schedule.sqrt_eta_T,
        "tile": config.tile,
        "overlap": config.overlap,
        "multiple": config.multiple,
        "padding": config.padding,
        "smallest": SMALLEST,
        "tile_multiple": config.tile_multiple,
        "unit": config.unit,
        "bytes_per_pixel": model.bytes_per_tile(config.tile, config.tile) / config.tile**2,  # of a tile, in fp32
    }
