"""What the settings in a model file may be.

They come from strangers: one number that no network has could take all memory, or all day, before anything else is checked.
The limits lie far beyond every published model.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, fields

from .normalization import NORMS
from .schedule import MAX_STEPS

MAX_LEVELS = 8  # of a UNet or an autoencoder
MAX_TEXT = 200  # letters of a name or a licence
MAX_LAYERS = 2048  # of a network: levels times blocks times layers of a block; the published ones have 36
MAX_MULTIPLE = 2048  # low-resolution pixels to which the smallest picture is padded

RANGES = {  # field -> (least, most), of every number in it
    "in_channels": (1, 4096), "out_channels": (1, 4096), "lq_channels": (3, 3), "lq_stages": (0, 8),
    "model_channels": (2, 8192), "channel_mult": (1, 64), "num_res_blocks": (0, 64), "swin_depth": (0, 64),
    "swin_channels": (1, 8192), "head_channels": (1, 8192), "window": (1, 32), "mlp_ratio": (1e-3, 64.0),
    "image_size": (1, 65536), "trunk_blocks": (0, 256), "degradation_channels": (0, 8192), "ch": (1, 8192), "ch_mult": (1, 64), "z_channels": (1, 4096),
    "embed_dim": (1, 4096), "n_embed": (1, 2**24), "factor": (1, 64), "steps": (1, MAX_STEPS), "kappa": (0.0, 1e4),
    "p": (1e-6, 1e4), "min_noise_level": (1e-9, 1e4), "sqrt_eta_T": (1e-9, 1.0), "default_steps": (1, MAX_STEPS),
    "scale": (1, 64), "residual_std": (0.0, 1e4), "tile": (1, 65536), "overlap": (0, 65536),
}  # fmt: skip
CHOICES = {
    "norm": tuple(NORMS), "shift_mask": ("resshift", "swin"), "task": ("sr", "inpaint", "face"), "predict": ("x0", "residual"),
    "space": ("latent", "pixel"),
}  # fmt: skip


def check_settings(config) -> None:
    """Kind and range of every setting of a configuration, which is a dataclass with defaults.

    Raises:
        ValueError: the first one that is out of range, with its value; no sentence yet.
    """
    for field in fields(config):
        if field.default is not MISSING:
            _check(field.name, getattr(config, field.name), field.default)
    if hasattr(config, "ch_mult") and not 0 < len(config.ch_mult) == len(config.num_res_blocks):
        told = f"they have {len(config.ch_mult)} and {len(config.num_res_blocks)}"
        raise ValueError(f"ch_mult and num_res_blocks need one number per level; {told}")


def _check(name: str, value, default) -> None:
    """One setting, which must be of the kind of its default."""
    if isinstance(default, tuple):
        if not isinstance(value, tuple) or not 1 <= len(value) <= MAX_LEVELS:
            raise ValueError(f"{name} is {value!r:.60}, not 1 to {MAX_LEVELS} numbers")
        for number in value:
            _check_number(name, number, whole=True)
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r:.60}, not true or false")
    elif isinstance(default, (int, float)):
        _check_number(name, value, whole=isinstance(default, int))
    elif not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable() or set(value) & set("<>"):
        raise ValueError(f"{name} is {value!r:.60}, not a text of at most {MAX_TEXT} letters")
    elif value not in CHOICES.get(name, (value,)):
        raise ValueError(f"{name} is {value!r:.60}, not one of {', '.join(CHOICES[name])}")


def _check_number(name: str, value, whole: bool) -> None:
    least, most = RANGES[name]
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not right or not least <= value <= most:
        raise ValueError(f"{name} is {value!r:.60}, not a {'whole ' if whole else ''}number from {least:g} to {most:g}")


def check_model(config) -> None:
    """As `check_settings` for a ModelConfig and its parts, and whether these belong together.

    Raises:
        ValueError: as `check_settings`; or two numbers contradict each other.
    """
    unet, autoencoder = config.unet, config.autoencoder
    for part in (unet, autoencoder, config):
        check_settings(part)
    config.schedule()  # whose numbers have a range of their own, too
    latent = autoencoder.latent_channels
    if (unet.in_channels, unet.out_channels) != (latent, latent):
        raise ValueError(
            f"the network takes {unet.in_channels} and returns {unet.out_channels} latent channels, the autoencoder has {latent}"
        )
    if config.scale * 2**unet.lq_stages != autoencoder.factor:
        raise ValueError(
            f"scale {config.scale} with {unet.lq_stages} halvings of the picture is not the autoencoder's factor {autoencoder.factor}"
        )
    if unet.mask != (config.task == "inpaint"):
        raise ValueError(f"task is {config.task!r}, but the network {'takes a' if unet.mask else 'has no'} mask")
    if unet.model_channels % 2:
        raise ValueError(f"model_channels is {unet.model_channels}; the embedding of t takes an even number")
    if unet.degradation_channels and not unet.trunk_blocks:
        raise ValueError("the network is told of degradations, but has no trunk to tell")
    if unet.degradation_channels and unet.mask:
        raise ValueError("the network is told of degradations, which nothing estimates around a hole")
    if config.task == "inpaint" and config.scale != 1:
        raise ValueError(f"the scale is {config.scale}, and a hole is filled in at scale 1")
    layers = len(unet.channel_mult) * (unet.num_res_blocks + 1) * (unet.swin_depth + 1)
    if layers > MAX_LAYERS:
        raise ValueError(f"the network would have about {layers} layers")
    if config.multiple > MAX_MULTIPLE:
        raise ValueError(f"pictures would be padded to multiples of {config.multiple} pixels")
