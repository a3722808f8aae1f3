"""Numbers as callers give them: Python's, numpy's or torch's, refused in sentences where they are something else."""

from __future__ import annotations

import math

from .errors import InputError


def whole(name: str, value) -> int:
    """A whole number.

    Raises:
        InputError: it is something else; `name` is that of the argument.
    """
    try:
        number = int(value)
        if number == value and not isinstance(value, bool):
            return number
    except (TypeError, ValueError, OverflowError, RuntimeError):  # words, NaN, infinity; RuntimeError: torch's, of several
        pass
    raise InputError(f"{name} is {value!r:.60}; it must be a whole number.")


def finite(name: str, value) -> float:
    """A number that is not NaN nor infinite.

    Raises:
        InputError: it is something else; `name` is that of the argument.
    """
    try:
        number = float(value)
        if math.isfinite(number) and not isinstance(value, (bool, str, bytes)):
            return number
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: torch's, of several numbers
        pass
    raise InputError(f"{name} is {value!r:.60}; it must be a number.")
