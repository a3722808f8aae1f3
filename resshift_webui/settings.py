"""A person's settings of a run: one typed object for the accordion, the Settings page, the API and saved text."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from resshift_core.errors import InputError
from resshift_core.inputs import (
    COLOR_FIX,
    KAPPA,
    OVERLAP,
    SAMPLER,
    SCALE,
    SEED,
    STEPS,
    TILE,
    TILE_BATCH,
    Input,
    P,
    as_arguments,
)  # fmt: skip

RANDOM = -1  # as a seed: another one every time
PREFIX = "ResShift "  # of the words in a picture's text

COMPARE = Input(
    "compare", "BOOLEAN", "before/after sheet", "Also make a sheet that shows bicubic enlargement beside the result.", False
)  # fmt: skip
_SEED = replace(
    SEED, minimum=RANDOM, tooltip="Start of the random numbers: the same seed gives the same picture. -1 = another one every time."
)  # fmt: skip
CHAIN = (STEPS, KAPPA, P, SAMPLER, _SEED, TILE, OVERLAP, COLOR_FIX)  # what the picture depends on
INPUTS: dict[str, Input] = {item.id: item for item in (*CHAIN, TILE_BATCH, COMPARE)}


@dataclass(frozen=True)
class Settings:
    """Fields are the ids of `INPUTS`; 0 means "as trained", "the model's own" or "auto", as in the nodes."""

    steps: int = 0
    kappa: float = 0.0
    p: float = 0.0
    sampler: str = "stochastic"
    seed: int = 0
    tile: int = 0
    overlap: int = 0
    tile_batch: int = 0
    color_fix: str = "none"
    compare: bool = False

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Settings:
        """From controls, options or a request; what is missing or None keeps its default, other words are left alone.

        Raises:
            InputError: a value of another kind or out of range; a sentence.
        """
        given = {word: value for word, value in values.items() if word in INPUTS and value is not None}
        return cls(**{word: checked(INPUTS[word], value) for word, value in given.items()})

    def as_text(self) -> dict[str, object]:
        """Words for the PNG's text, of all that the picture depends on: {"ResShift steps": 4, ...}."""
        values = asdict(self)
        return {PREFIX + item.name: values[item.id] for item in CHAIN}

    def as_arguments(self) -> dict:
        """Keyword arguments of `upscale`; the seed must have been drawn."""
        values = asdict(self)
        return as_arguments(**{item.id: values[item.id] for item in (*CHAIN, TILE_BATCH)})

    @property
    def is_random(self) -> bool:
        return self.seed == RANDOM


def draw_seed() -> int:
    """One that every browser's numbers hold exactly."""
    return random.randrange(2**32)


def checked(item: Input, value):
    """A value as the table wants it.

    Raises:
        InputError: it is of another kind or out of range.
    """
    if item.kind == "COMBO":
        if value not in item.choices:
            raise InputError(f"{item.id} is {value!r}; known are {', '.join(item.choices)}.")
        return value
    if item.kind == "BOOLEAN":
        if not isinstance(value, bool):
            raise InputError(f"{item.id} is {value!r}; it must be true or false.")
        return value
    return _number(item, value)


def _number(item: Input, value):
    try:
        number = math.nan if isinstance(value, bool) else int(value) if isinstance(value, int) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    fits = (isinstance(number, int) or math.isfinite(number)) and item.minimum <= number <= item.maximum
    if not fits or (item.kind == "INT" and number != int(number)):
        kind = "a whole number" if item.kind == "INT" else "a number"
        raise InputError(f"{item.id} is {value!r}; it must be {kind} from {item.minimum} to {item.maximum}.")
    return int(number) if item.kind == "INT" else float(number)


def check_scale(value) -> float:
    """A factor, 0 = the model's own.

    Raises:
        InputError: it is no number, or out of range.
    """
    return checked(SCALE, value)
