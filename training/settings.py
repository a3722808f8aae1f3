"""The settings of a training run: one typed table for the command line, for files, and for what a run writes down."""

from __future__ import annotations

import argparse
import json
import logging
import math
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import tyro
import yaml

import resshift_core as rs

from .losses import DETAIL_WINDOW, PSNR_LIMIT, SPECTRUM_WINDOW

log = logging.getLogger("resshift.training")


class SettingsError(ValueError):
    """A setting is unknown or out of range; the text names it and says what is allowed."""


@dataclass(frozen=True)
class TrainSettings:
    """None means: chosen for the model (see `resolve`); the choice is printed and written to OUTPUT/config.json."""

    not_here: typing.ClassVar[tuple[str, ...]] = ()  # settings that the program does not take

    # What and where
    data: Path  # folder of pictures, searched through; where it has a MANIFEST.csv, its split "train"
    output: Path  # folder for models, state, logs and pictures of this run
    model: str = "builtin"  # what to start from: a registry name or a file
    autoencoder: str | None = None  # its autoencoder, where the file does not hold one, or of --config's latent model
    variant: str | None = None  # which published kind it is, where the file leaves that open
    trunk_blocks: int | None = None  # residual blocks of its trunk; fewer: some are left out, more: new ones begin as nothing
    width: int | None = None  # its channels; more: new ones are not looked at yet (networks without norms and attention)
    config: Path | None = None  # JSON or YAML with `training` (a recipe) and, to train a new network from nothing, `model`
    preset: Literal["8gb", "12gb", "16gb", "24gb", "80gb"] | None = None  # settings that fit a GPU's memory
    device: str = "auto"  # cuda, cpu, or auto
    resume: Literal["never", "auto"] = "never"  # auto: go on from OUTPUT/state where there is one
    dry_run: bool = False  # check data, memory and speed, draw the contact sheet, and stop
    contact_sheet: bool = False  # write OUTPUT/contact_sheet.png: crops and what the degradation makes of them

    # The chain (given: the schedule is retrained)
    steps: int | None = None  # T
    kappa: float | None = None  # noise scale
    p: float | None = None  # exponent of the schedule
    min_noise_level: float | None = None  # kappa * sqrt(eta_1), at most; the paper's is 0.2 for T = 4 and 0.04 for T = 15
    predict: Literal["x0", "residual"] | None = None  # what the network returns
    last_step_share: float | None = None  # of samples trained at t = T, where the picture is made; the rest is uniform in t
    rollout_share: float | None = None  # of samples at t < T whose x_t is what the network's own chain arrives at

    # Optimisation
    iterations: int = 5000  # updates of the weights
    batch_size: int = 16  # crops per update, over all processes
    micro_batch: int | None = None  # crops at a time on a device; halved when memory does not suffice
    learning_rate: float | None = None
    schedule: Literal["cosine", "constant"] = "cosine"  # of the learning rate
    final_rate: float = 0.01  # of the learning rate, at the end of the cosine
    warmup_share: float = 0.02  # of the iterations
    optimizer: str = "adamw"  # any of timm's, e.g. bnbadamw8bit (8-bit Adam, needs bitsandbytes)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0  # largest gradient norm; 0 = none
    ema: float = 0.999  # reached as (1 + n) / (10 + n) grows
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"  # of the network, on a GPU of encoding, too; weights: float32
    checkpointing: bool = False  # recompute activations on the way back: less memory, a third more time
    compile: bool = False  # torch.compile
    seed: int = 0

    # Loss
    loss: Literal["mse", "psnr", "l1", "charbonnier"] | None = None  # of the predicted x0; psnr: mean decibels
    psnr_limit: float = PSNR_LIMIT  # decibels of a crop, for that loss; beyond, they count less and less
    eq8_weight: bool = False  # weight steps as the paper's eq. 8 (normalised to a mean of 1); published networks do not
    lpips: float = 0.0  # weight of LPIPS on the decoded picture (through the quantiser, straight-through)
    lpips_net: Literal["vgg", "alex", "squeeze"] = "vgg"
    spectrum: float = 0.0  # weight of the local amplitude spectra of the decoded picture
    adversarial: float = 0.0  # weight of a patch discriminator, for pixel-space models

    # Data
    degradation: Literal["realesrgan", "paper-b1", "everyday", "mixed", "bicubic", "paired"] | None = (
        None  # none: realesrgan; inpainting: bicubic
    )
    damaged_share: float = 1.0  # of crops that get it; the rest is plainly bicubic
    pairs: Path | None = None  # paired: folder of the low-resolution pictures, by the same names
    validation_pairs: Path | None = None  # the same for --validation, where they lie elsewhere
    crop: int | None = None  # pixels of the high-resolution crop
    rescale_share: float = 0.5  # of crops that are shrunk (not paired ones)
    min_rescale: float = 0.5  # by a factor drawn from [min_rescale, 1]
    variety: bool = False  # busy places first, any angle, other contrasts, small factors as often as large ones
    leaves_share: float = 0.0  # of what is not drawn: shapes that hide one another, filled with photographs and patterns
    frame_share: float = 0.0  # of what is not drawn, with black or other lines along some sides, as scans and films have them
    turns: bool = True  # quarter turns beside mirror images
    drawn_share: float = 0.0  # of crops that are rendered text, line art or one colour
    fonts: Path | None = None  # folder of font files for it
    workers: int | None = None  # loader processes
    cache_mib: int = 4096  # decoded pictures kept in memory, for every process of torchrun

    # Validation, logs, export
    validation: Path | None = None  # folder of held-out pictures; none: a twentieth of the data (2 to 16) is held out
    validation_count: int = 8  # pictures used
    validation_crop: int = 512  # pixels of their middle
    validate_every: int | None = None  # iterations
    save_every: int | None = None  # iterations
    log_every: int = 10  # iterations
    best_by: Literal["psnr", "ssim", "lpips"] = "psnr"
    licence: str | None = None  # written into the model; none: the parent's
    description: str = ""  # of the data, written into the model


# Presets fit the published x4 network (119 M parameters, crops of 256); the small built-in model needs none.
PRESETS = {
    "8gb": {"micro_batch": 1, "checkpointing": True},
    "12gb": {"micro_batch": 2, "checkpointing": True},
    "16gb": {"micro_batch": 4, "checkpointing": True},
    "24gb": {"micro_batch": 8, "checkpointing": True},
    "80gb": {"micro_batch": 32, "batch_size": 64},
}

PLACES = ("data", "output", "config", "preset", "resume", "dry_run", "contact_sheet")  # not part of a recipe
PUBLISHED = {"crop": 256, "learning_rate": 5e-5, "loss": "mse", "last_step_share": 0.0, "rollout_share": 0.0}
PIXEL = {"crop": 160, "learning_rate": 5e-4, "loss": "mse", "last_step_share": 0.5, "rollout_share": 1.0}


def refuse_foreign(settings: TrainSettings, why: str) -> None:
    """Programs that take these settings but for some.

    Raises:
        SettingsError: one of `not_here` was given.
    """
    for name in settings.not_here:
        if getattr(settings, name) != getattr(TrainSettings, name):
            raise SettingsError(f"--{name.replace('_', '-')} is of no use here: {why}.")


def read_config(path: Path) -> dict:
    """`model` and `training` of a JSON or YAML file.

    Raises:
        SettingsError: it cannot be read, or holds other words.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # editors of Windows put a mark at the beginning
        values = json.loads(text) if Path(path).suffix.lower() == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read as a configuration ({error}).") from error
    if not isinstance(values, dict) or set(values) - {"model", "training"}:
        words = sorted(map(str, values)) if isinstance(values, dict) else type(values).__name__
        raise SettingsError(f"{path} holds {words}; a configuration has 'model' and 'training' and nothing else.")
    for word, part in values.items():
        if not isinstance(part, dict) and part is not None:
            raise SettingsError(f"{path}: {word} is {part!r:.60}; it must be settings with their values.")
    return {word: part for word, part in values.items() if part is not None}


def typed(cls, values: dict, where: str) -> dict:
    """Values of a file as the dataclass wants them: paths, tuples, numbers.

    Raises:
        SettingsError: an unknown word, or a value of another kind.
    """
    hints = {name: hint for name, hint in typing.get_type_hints(cls).items() if typing.get_origin(hint) is not typing.ClassVar}
    unknown = sorted(map(str, set(values) - set(hints)))
    if unknown:
        raise SettingsError(f"{where} holds unknown settings: {', '.join(unknown)}. Known are: {', '.join(hints)}.")
    return {name: _convert(value, hints[name], f"{where}: {name}") for name, value in values.items()}


def _convert(value, hint, name: str):
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    kind = next(option for option in options if option is not type(None))
    if typing.get_origin(kind) is Literal:
        fits = isinstance(value, str) and value in typing.get_args(kind)
    elif typing.get_origin(kind) is tuple:
        value = tuple(_number(part) for part in value) if isinstance(value, (list, tuple)) else value
        fits = isinstance(value, tuple) and len(value) == len(typing.get_args(kind))
        fits = fits and all(isinstance(part, (int, float)) and not isinstance(part, bool) for part in value)
    elif kind is float:
        value = _number(value)
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = float(value) if fits else value
    elif kind is Path:
        fits = isinstance(value, (str, Path))
        value = Path(value) if fits else value
    else:
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        words = {Literal: "one of {}", tuple: "{1} numbers"}.get(typing.get_origin(kind), getattr(kind, "__name__", ""))
        words = words.format(", ".join(map(str, typing.get_args(kind))), len(typing.get_args(kind)))
        raise SettingsError(f"{name} is {value!r}; it must be {words}.")
    return value


def _number(value):
    """YAML reads 1e-3 as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def parse(argv=None, doc: str = "", cls: type[TrainSettings] = TrainSettings) -> TrainSettings:
    """Settings: defaults, then the file's preset and its `training`, then --preset, then what else the command line gives.

    cls: TrainSettings, or a dataclass that adds to it.

    Raises:
        SettingsError: a file's words or a value are wrong. SystemExit: the command line's are.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--preset", choices=list(PRESETS))
    first.add_argument("--model")
    known, _ = first.parse_known_args(argv)
    values = read_config(known.config) if known.config else {}
    if known.model is not None and "model" in values and not cls.not_here:  # other programs say so in their own words
        raise SettingsError(
            f"{known.config} has a 'model', which is trained from nothing, and --model is given as well. Leave out one of them."
        )
    training = typed(cls, values.get("training") or {}, str(known.config))
    base = cls(data=tyro.MISSING, output=tyro.MISSING, config=known.config)
    for preset, more in ((training.get("preset"), training), (known.preset, {})):
        base = replace(base, **{**PRESETS.get(preset, {}), **more})
    settings = tyro.cli(cls, default=base, args=argv, description=doc, config=(tyro.conf.FlagConversionOff,))
    check(settings)
    return settings


# what fits, which NaN does not, and how it is said
SHARE = (lambda value: 0 <= value <= 1), "lie between 0 and 1"
POSITIVE = (lambda value: 0 < value < math.inf), "be above 0"
NOT_NEGATIVE = (lambda value: 0 <= value < math.inf), "be 0 or a number above it"


def check_ranges(settings, names: Iterable[str], kind: tuple[Callable[[float], bool], str]) -> None:
    """Settings that are numbers, or None.

    Raises:
        SettingsError: the first value out of range.
    """
    fits, must = kind
    for name in names:
        value = getattr(settings, name)
        if value is not None and not fits(value):
            raise SettingsError(f"--{name.replace('_', '-')} is {value}; it must {must}.")


def check(settings: TrainSettings) -> None:
    """Ranges.

    Raises:
        SettingsError: the first value out of range.
    """
    shares = (
        "last_step_share", "rollout_share", "final_rate", "warmup_share", "damaged_share", "drawn_share", "leaves_share", "frame_share",
        "rescale_share", "ema",
    )  # fmt: skip
    positive = (
        "iterations", "batch_size", "micro_batch", "learning_rate", "crop", "validate_every", "save_every", "log_every", "psnr_limit",
    )  # fmt: skip
    check_ranges(settings, shares, SHARE)
    check_ranges(settings, positive, POSITIVE)
    check_ranges(
        settings, ("lpips", "spectrum", "adversarial", "clip", "weight_decay", "seed", "cache_mib", "workers"), NOT_NEGATIVE
    )
    if not 0 < settings.min_rescale <= 1:
        raise SettingsError(f"--min-rescale is {settings.min_rescale}; it must be above 0 and at most 1.")
    if settings.degradation == "paired" and settings.pairs is None:
        raise SettingsError("--degradation paired needs --pairs, the folder of the low-resolution pictures.")
    if settings.degradation != "paired" and settings.pairs is not None:
        raise SettingsError(
            f"--pairs is given, but --degradation is {settings.degradation or 'left out'}. Add --degradation paired."
        )
    if settings.validation_pairs is not None and (settings.pairs is None or settings.validation is None):
        raise SettingsError("--validation-pairs holds the partners of --validation, beside --pairs. Give all three.")
    if settings.seed >= 2**63:
        raise SettingsError(f"--seed is {settings.seed}; it must be below 2**63.")
    if settings.eq8_weight and settings.kappa == 0:
        raise SettingsError("--eq8-weight divides by kappa, and --kappa is 0. Leave out one of them.")
    if not all(0 <= beta < 1 for beta in settings.betas):
        raise SettingsError(f"--betas are {settings.betas}; they must lie between 0 and 1, below 1.")
    for name, least in (("validation_count", 1), ("validation_crop", 16)):
        if getattr(settings, name) < least:
            raise SettingsError(f"--{name.replace('_', '-')} is {getattr(settings, name)}; it must be at least {least}.")
    if settings.fonts is not None and not settings.fonts.is_dir():
        raise SettingsError(f"--fonts: there is no folder {settings.fonts}.")


def resolve(settings: TrainSettings, model: rs.ModelConfig) -> TrainSettings:
    """Fill in what was left open, for this model.

    Raises:
        SettingsError: the crop does not fit the network.
    """
    chosen = dict(PIXEL if model.space == "pixel" else PUBLISHED)
    multiple = crop_multiple(model)
    chosen["crop"] = -(-chosen["crop"] // multiple) * multiple
    chosen["predict"] = model.predict
    if model.default_steps == 1 and settings.steps in (None, 1):  # a one-step student runs at t = T alone
        chosen["last_step_share"] = 1.0
    chosen["validate_every"] = max(50, -(-settings.iterations // 10))
    chosen["save_every"] = max(50, min(1000, -(-settings.iterations // 10)))
    chosen["licence"] = model.licence
    chosen["degradation"] = "bicubic" if model.task == "inpaint" else "realesrgan"  # at scale 1, bicubic changes nothing
    open_ = {name: value for name, value in chosen.items() if getattr(settings, name) is None}
    settings = replace(settings, **open_)
    if settings.degradation == "paired":
        settings = _as_pairs_are(settings)
    _tell_unused(settings)
    if settings.crop % multiple:
        raise SettingsError(f"--crop is {settings.crop}; this network needs a multiple of {multiple} pixels.")
    smallest = max(SPECTRUM_WINDOW if settings.spectrum else 0, DETAIL_WINDOW if settings.adversarial else 0)
    if settings.crop < smallest:
        raise SettingsError(f"--crop is {settings.crop}; --spectrum and --adversarial need {smallest} pixels at least.")
    if settings.adversarial and model.space != "pixel":
        raise SettingsError("--adversarial is for pixel-space models such as the built-in one; use --lpips with this one.")
    return settings


def _as_pairs_are(settings: TrainSettings) -> TrainSettings:
    """The low-resolution side of a pair is given: nothing can be drawn into the other one, nor can it be changed."""
    words = ("variety", "leaves_share", "frame_share", "drawn_share", "damaged_share", "rescale_share", "min_rescale")
    unused = {name: getattr(TrainSettings, name) for name in words}
    given = [f"--{name.replace('_', '-')}" for name, none in unused.items() if getattr(settings, name) != none]
    if given:
        log.warning("Pairs are used as they are: %s %s of no use here.", ", ".join(given), "is" if len(given) == 1 else "are")
    return replace(settings, **unused)


def _tell_unused(settings: TrainSettings) -> None:
    """What is given has no effect beside what else is."""
    of_others = (
        ("fonts", not settings.drawn_share, "without --drawn-share, nothing is drawn"),
        ("damaged_share", settings.degradation == "bicubic", "--degradation bicubic damages nothing"),
        ("rescale_share", settings.variety, "with --variety, every crop is shrunk"),
    )
    for name, useless, why in of_others:
        if useless and getattr(settings, name) != getattr(TrainSettings, name):
            log.warning("--%s is of no use here: %s.", name.replace("_", "-"), why)


def crop_multiple(model: rs.ModelConfig) -> int:
    """High-resolution pixels that a crop's side must be a multiple of: the network's and the scale's."""
    return max(model.unet.latent_multiple * model.autoencoder.factor, model.scale)


def to_dict(settings: TrainSettings) -> dict:
    """The recipe in plain JSON types: everything but where files lie and how a run was started."""
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in asdict(settings).items()
        if name not in PLACES
    }


def tell_changes(before: dict, settings) -> dict:
    """Warn of what differs from the settings of the run so far, as `to_dict` gave them. -> those, with what they lack."""
    now = to_dict(settings)
    fresh = to_dict(type(settings)(settings.data, settings.output))  # a run may be older than a setting
    before = {name: before.get(name, fresh.get(name)) for name in now}
    changed = [f"{name} was {before[name]}, is {now[name]}" for name in now if before[name] != now[name]]
    if changed:
        log.warning("The settings differ from those of the run so far: %s.", "; ".join(changed))
    return before


def describe(settings: TrainSettings) -> str:
    """One line per setting, for the terminal."""
    return "\n".join(f"  {field.name:18} {getattr(settings, field.name)}" for field in fields(settings))
