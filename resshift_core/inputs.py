"""What a person can set of a run, once for all hosts: ids, ranges, defaults, words and explanations.

Nodes, the WebUI's accordion and settings, locales and help pages are made from it. 0 means "as trained" for steps, kappa and p,
"the model's own" for scale, and "auto" for tile, overlap and tile_batch; `as_arguments` says so to `upscale`.
"""

from __future__ import annotations

from dataclasses import dataclass

SEED_MAX = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class Input:
    """One socket or widget. `choices` is a tuple of words, or the name of a list that is made when it is asked for."""

    id: str
    kind: str  # "INT", "FLOAT", "COMBO", or the type of a socket
    name: str  # what the node shows, in English
    tooltip: str
    default: int | float | str | None = None
    minimum: int | float | None = None
    maximum: int | float | None = None
    step: int | float | None = None  # ComfyUI rounds to the place of its first digit: a step of 0.25 would make 2.25 2.3
    choices: tuple[str, ...] | str = ()
    required: bool = True
    extra: tuple[tuple[str, object], ...] = ()  # further options of the front end

    @property
    def is_socket(self) -> bool:
        return self.kind not in ("INT", "FLOAT", "COMBO")

    def declaration(self, choices: list[str]) -> tuple:
        """The (type, options) pair of INPUT_TYPES."""
        options: dict[str, object] = {"tooltip": self.tooltip, **dict(self.extra)}
        for word, value in (("default", self.default), ("min", self.minimum), ("max", self.maximum), ("step", self.step)):
            if value is not None:
                options[word] = value
        return (choices if self.kind == "COMBO" else self.kind), options


SEED = Input(
    "seed", "INT", "seed",
    "Start of the random numbers: the same seed gives the same picture. Picture i of a batch, counted from 0, uses "
    "seed + i, unless noise is shared.",
    0, 0, SEED_MAX,
)  # fmt: skip
STEPS = Input(
    "steps", "INT", "steps",
    "How many times the network runs; time grows with it. 0 = as trained. Measured on builtin: from 1 to 15 steps "
    "PSNR changes by less than 0.2 dB. With builtin-real, from 2 steps on, more of them give slightly more texture and a "
    "slightly less faithful picture.",
    0, 0, 1000,
)  # fmt: skip
KAPPA = Input(
    "kappa", "FLOAT", "kappa",
    "Strength of the noise in the chain. 0 = as trained, the only value that a model knows. Measured on builtin, "
    "from a quarter to three times that: less gives slightly more texture, more gives slightly softer pictures that differ "
    "more from seed to seed; PSNR changes by less than 0.1 dB. With builtin-real, less gives clearly more texture, more gives "
    "a softer picture.",
    0.0, 0.0, 100.0, 0.005, extra=(("round", 0.0001),),
)  # fmt: skip
P = Input(
    "p", "FLOAT", "p",
    "Shape of the schedule. 0 = as trained. Larger values spend more of the steps near the end of the chain, where little "
    "noise is left. Measured on builtin: from 0.1 to 3 PSNR changes by less than 0.1 dB. With builtin-real it "
    "changes by less than 0.1 dB.",
    0.0, 0.0, 100.0, 0.05, extra=(("round", 0.0001),),
)  # fmt: skip
SAMPLER = Input(
    "sampler", "COMBO", "sampler",
    "stochastic: fresh noise at every step, as published. deterministic: noise at the start only.",
    "stochastic", choices=("stochastic", "deterministic"),
)  # fmt: skip
SCALE = Input(
    "scale", "FLOAT", "scale",
    "Size of the result over size of the picture. 0 = the model's own (4 for the built-in models), else any number up "
    "to 8; the model's result is resized to it.",
    0.0, 0.0, 8.0, 0.05, extra=(("round", 0.0001),),
)  # fmt: skip
COLOR_FIX = Input(
    "color_fix", "COMBO", "colour fix",
    "Takes colours back from the original. wavelet: its low frequencies. adain: its mean and contrast per channel.",
    "none", choices=("none", "wavelet", "adain"),
)  # fmt: skip
NOISE = Input(
    "noise", "COMBO", "noise",
    "per_image: every picture of a batch gets its own noise. shared: all get the same, so that the frames of a film stay "
    "steady.",
    "per_image", choices=("per_image", "shared"),
)  # fmt: skip
TILE = Input(
    "tile", "INT", "tile",
    "Side of a tile in pixels of the input. 0 = the model's own. Smaller tiles need less memory and more time.",
    0, 0, 8192, 16,
)  # fmt: skip
OVERLAP = Input(
    "overlap", "INT", "overlap",
    "How many input pixels neighbouring tiles share; they are blended there. 0 = the model's own; at most half of the "
    "tile.",
    0, 0, 4096, 8,
)  # fmt: skip
TILE_BATCH = Input(
    "tile_batch", "INT", "tiles per batch",
    "Tiles that go through the network together. 0 = as many as fit into free memory on an NVIDIA or AMD GPU, "
    "elsewhere 1.",
    0, 0, 256,
)  # fmt: skip
WRAP = Input(
    "wrap", "COMBO", "wrap-around",
    "For seamless textures: the picture continues at its opposite side, across x (left and right), y (top and bottom) or "
    "both, and the result tiles without a seam.",
    "none", choices=("none", "x", "y", "both"),
)  # fmt: skip


def as_arguments(steps=0, kappa=0.0, p=0.0, scale=0.0, tile=0, overlap=0, tile_batch=0, **words) -> dict:
    """The table's zeros as the arguments of `upscale` that mean the same; other words pass through."""
    settings = {"steps": steps, "kappa": kappa, "p": p, "scale": scale, "overlap": overlap, "tile_batch": tile_batch}
    return {**{word: value or None for word, value in settings.items()}, "tile": tile or "auto", **words}
