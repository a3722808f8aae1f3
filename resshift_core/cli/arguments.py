"""Arguments that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from ..device import DTYPES
from ..registry import VARIANTS


def whole(minimum: int, most: float = math.inf) -> Callable[[str], int]:
    """A type for argparse: a whole number from `minimum` to `most`."""
    limits = f"of at least {minimum}" if math.isinf(most) else f"from {minimum} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if not minimum <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {limits}")
        return value

    return parse


def number(text: str) -> float:
    """A type for argparse: a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def tile(text: str) -> int | str:
    """A type for argparse: a number of pixels, 0 or "auto"."""
    return text if text == "auto" else whole(0)(text)


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model, --autoencoder, --variant, --device, --dtype: the arguments of `load_model`."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", default="builtin", metavar="NAME|FILE", help="a name of `resshift models`, or a file (default: builtin)"
    )
    group.add_argument("--autoencoder", metavar="NAME|FILE", help="of a published model; default: the one that belongs to it")
    group.add_argument(
        "--variant",
        choices=tuple(VARIANTS),
        metavar="WORD",
        help=f"what a file is, where it cannot be told: {', '.join(VARIANTS)}",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, xpu, mps ... (default: auto)")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", *DTYPES),
        help="number format (default: auto, bf16 or fp16 where the device is fast in it)",
    )


def add_chain(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """--steps, --kappa, --p: the settings that lay a new schedule. Returns their group, for more of the chain's."""
    group = parser.add_argument_group("chain (left out: as the model was trained)")
    group.add_argument(
        "--steps",
        type=whole(1),
        metavar="N",
        help="evaluations of the network; more = more texture, fewer = closer to the input",
    )
    group.add_argument("--kappa", type=number, metavar="K", help="strength of the noise; a knob around the trained value")
    group.add_argument(
        "--p", type=number, metavar="P", help="exponent of the schedule; larger = more of the steps where little noise is left"
    )
    return group
