"""What a state dict is: which architecture, in which configuration, and which published kind.

Shapes fix the networks. What they cannot tell (steps, scale, task) comes from `variant=`, then from the file's own
metadata, then from the registry by sha256, then from the file's name; if it is still open, the error lists the choices.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from pathlib import Path

import torch

from .checkpoint_file import sha256_of
from .errors import CheckpointError, InputError, VariantOpen, brief
from .limits import MAX_LEVELS, check_settings
from .registry import REGISTRY, VARIANTS, Entry
from .unet import SwinUNet, UNetConfig
from .vqgan import VQGAN, VQGANConfig

log = logging.getLogger("resshift")

State = dict[str, torch.Tensor]

PUBLISHED_VQGANS = {
    "vq_f4": VQGANConfig(),
    "vq_f4_face": VQGANConfig(),
    "vq_f8_face": VQGANConfig(64, (1, 2, 4, 8), (1, 2, 3, 4), z_channels=8, embed_dim=8, n_embed=4096),
}


def published_unet(variant: str) -> UNetConfig:
    """The published network of that kind: the latent's channels and size follow from its autoencoder."""
    kind = VARIANTS[variant]
    autoencoder = PUBLISHED_VQGANS[kind.autoencoder]
    return UNetConfig(
        in_channels=autoencoder.latent_channels,
        out_channels=autoencoder.latent_channels,
        mask=kind.task == "inpaint",
        lq_stages=int(math.log2(autoencoder.factor // kind.scale)),
    )


def is_unet(state: State) -> bool:
    return "input_blocks.0.0.weight" in state


def is_autoencoder(state: State) -> bool:
    return "encoder.conv_in.weight" in state and "quantize.embedding.weight" in state


def describe(state: State) -> str:
    """What weights are, for a sentence that says what they are not."""
    if is_unet(state):
        return "a diffusion network"
    if is_autoencoder(state):
        return "an autoencoder"
    if "unet.input_blocks.0.0.weight" in state:
        return "a whole model, network and autoencoder in one"
    return f"something else: its weights are called {', '.join(sorted(state)[:3])} ..."


def _indices(state: State, pattern: str) -> list[int]:
    found = {int(match.group(1)) for key in state if (match := re.match(pattern, key))}
    return sorted(found)


def _detect_levels(state: State) -> dict:
    """Widths of the levels and residual blocks per level, from the way down."""
    width = state["time_embed.0.weight"].shape[1]
    mult, blocks = [], [0]
    for i in _indices(state, r"input_blocks\.(\d+)\.")[1:]:
        if f"input_blocks.{i}.0.op.weight" in state:
            blocks.append(0)
        else:
            channels = state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0]
            if blocks[-1] == 0:
                mult.append(channels // width)
            blocks[-1] += 1
    return {"model_channels": width, "channel_mult": tuple(mult), "num_res_blocks": blocks[0]}


def _detect_inputs(state: State) -> dict:
    """Channels of the latent and of the low-resolution branch."""
    width, channels = state["input_blocks.0.0.weight"].shape[:2]
    out_channels = state["out.2.weight"].shape[0]
    stages = _indices(state, r"feature_extractor\.(\d+)\.op\.")
    trunk = _indices(state, r"trunk\.(\d+)\.")
    in_channels, picture = out_channels, channels - out_channels
    if stages:
        picture = state["feature_extractor.0.weight"].shape[1]
        in_channels = channels - state[f"feature_extractor.{stages[-1]}.op.weight"].shape[0]
    elif trunk:
        picture = state["trunk.0.weight"].shape[1]
    if trunk:
        in_channels = channels - width
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "mask": picture == 4,
        "lq_stages": len(stages),
        "trunk_blocks": max(0, len(trunk) - 1),
        "degradation_channels": len(state.get("degradation_embed.0.bias", ())),
    }


def _detect_swin(state: State) -> dict:
    """The Swin layers, which are all alike."""
    layer = "input_blocks.1.1."
    if layer + "patch_embed.proj.weight" not in state:
        return {"swin_depth": 0}
    channels = state[layer + "patch_embed.proj.weight"].shape[0]
    entries, heads = state[layer + "blocks.0.attn.relative_position_bias_table"].shape
    hidden = state[layer + "blocks.0.mlp.fc1.weight"].shape[0]
    ratio = hidden / channels
    return {
        "swin_channels": channels,
        "swin_depth": len(_indices(state, r"input_blocks\.1\.1\.blocks\.(\d+)\.")),
        "head_channels": channels // heads,
        "window": (math.isqrt(entries) + 1) // 2,
        # the layer truncates channels * ratio, and a quotient may be rounded down: 56 * (488 / 56) < 488
        "mlp_ratio": ratio if int(channels * ratio) == hidden else math.nextafter(ratio, math.inf),
    }


def detect_unet(state: State) -> UNetConfig:
    """The network's configuration from its tensor shapes.

    Not deducible: the nominal size (64 is assumed, as published), the kind of mask of shifted windows ("resshift").

    Raises:
        KeyError, IndexError, ValueError, ZeroDivisionError: the keys or shapes are not those of this architecture.
    """
    norm = "none"
    if "out.0.weight" in state:
        norm = "group" if "out.0.bias" in state else "position"
    return UNetConfig(norm=norm, **_detect_levels(state), **_detect_inputs(state), **_detect_swin(state))


def detect_autoencoder(state: State) -> VQGANConfig:
    """The VQGAN's configuration from its tensor shapes; nothing is left open.

    Raises:
        KeyError, ValueError, ZeroDivisionError: the keys or shapes are not those of a VQGAN.
    """
    ch = state["encoder.conv_in.weight"].shape[0]
    levels = _indices(state, r"encoder\.down\.(\d+)\.")
    if len(levels) > MAX_LEVELS:  # each is searched for among all keys
        raise ValueError(f"{len(levels)} levels")
    blocks = tuple(len(_indices(state, rf"encoder\.down\.{i}\.block\.(\d+)\.")) for i in levels)
    mult = tuple(state[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] // ch for i in levels)
    n_embed, embed_dim = state["quantize.embedding.weight"].shape
    return VQGANConfig(ch, mult, blocks, state["encoder.conv_out.weight"].shape[0], embed_dim, n_embed)


def _detected(detect: Callable, build: Callable, state: State, name: str, what: str):
    """(configuration, module on the meta device), or a sentence."""
    try:
        config = detect(state)
        check_settings(config)
        with torch.device("meta"):
            return config, build(config)
    except Exception as error:
        missing = isinstance(error, KeyError)
        reason = f"the weight {brief(error.args[0])} is missing" if missing else f"its shapes make no sense ({brief(error)})"
        raise CheckpointError(f"{name} looks like {what}, but {reason}. Get the original file.") from error


def unet_of(state: State, name: str) -> UNetConfig:
    """The configuration of a network, after a strict comparison of all keys and shapes.

    Raises:
        CheckpointError: they are not those of a ResShift network.
    """
    config, module = _detected(detect_unet, SwinUNet, state, name, "a ResShift network")
    check_state(module, state, name)
    return config


def autoencoder_of(state: State, name: str) -> VQGANConfig:
    """As `unet_of`, for a VQGAN."""
    config, module = _detected(detect_autoencoder, VQGAN, state, name, "a VQGAN")
    check_state(module, state, name)
    return config


def check_state(module: torch.nn.Module, state: State, name: str) -> None:
    """Strict comparison of keys, shapes and number formats.

    Raises:
        CheckpointError: with the first weight of each kind of difference.
    """
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    missing, unknown = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    wrong = [key for key in wanted if key in state and tuple(state[key].shape) != wanted[key]]
    parts = []
    if missing:
        parts.append(f"{len(missing)} weights are missing (first: {missing[0]})")
    if unknown:
        parts.append(f"{len(unknown)} are unknown (first: {unknown[0]})")
    if wrong:
        key = wrong[0]
        parts.append(f"{len(wrong)} have a wrong shape (first: {key} {tuple(state[key].shape)}, not {wanted[key]})")
    if parts:
        raise CheckpointError(f"{name} does not fit its architecture: {'; '.join(parts)}. Get the original file.")
    bad = [key for key, value in state.items() if not value.is_floating_point()]
    if bad:
        raise CheckpointError(
            f"{name}: the weight {bad[0]} is {state[bad[0]].dtype}, not floating point. Get the file before it was quantised."
        )


def check_entry(state: State, entry: Entry, name: str) -> None:
    """Refuse weights that are not exactly the network that the registry's entry describes.

    Raises:
        CheckpointError: another architecture, or other keys or shapes.
    """
    autoencoder = entry.task == "autoencoder"
    if not (is_autoencoder if autoencoder else is_unet)(state):
        wanted = "an autoencoder" if autoencoder else "a diffusion network"
        raise CheckpointError(f"{name} should be {wanted}, but is {describe(state)}.")
    with torch.device("meta"):
        module = VQGAN(PUBLISHED_VQGANS[entry.name]) if autoencoder else SwinUNet(published_unet(entry.variant))
    check_state(module, state, name)


# ----------------------------------------------------------------------------------------------- published kinds


def variant_from_name(name: str) -> str:
    """The kind that a file's name tells, or "". Published names, and what people make of them, carry it:
    `resshift_realsrx4_s4_v3 (1).pth`, `ResShift-RealSR-x4-s15.safetensors`, `SinSR.pth`."""
    stem = re.sub(r"[-\s.]+", "_", name.lower())
    for entry in REGISTRY.values():
        if entry.variant and Path(entry.file).stem.lower() in stem:
            return entry.variant
    if "sinsr" in stem:
        return "sinsr_x4_s1"
    for variant in VARIANTS:
        task, *_, steps = variant.split("_")
        if task in stem.replace("inpainting", "inpaint") and re.search(rf"(?<![a-z]){steps}(?![0-9])", stem):
            if _fits_name(variant, stem):
                return variant
    return ""


def _fits_name(variant: str, stem: str) -> bool:
    """Of what to fill in, a name must say what is in the pictures: faces and photographs need different autoencoders."""
    if VARIANTS[variant].task == "inpaint":
        face = _has_word("face", stem) or "ffhq" in stem or "celeba" in stem
        return ("face" in variant, "imagenet" in variant) == (face, "imagenet" in stem)
    return all((word in variant) == _has_word(word, stem) for word in ("face", "x2"))


def _has_word(word: str, stem: str) -> bool:
    """Not as a part of another one, such as "surface" or "x2blur"; but "faces", "faceir" and "realsrx2" have it."""
    return re.search(rf"(?<!sur){word}(s|ir)?(?![a-z0-9])", stem) is not None


def _variant_from_hash(path: Path) -> str:
    """The kind of a published file by its contents, or "". Hashing half a gigabyte takes a second: only where it can help."""
    known = [entry for entry in REGISTRY.values() if entry.sha256 and entry.variant]
    try:
        digest = sha256_of(path) if path.stat().st_size in {entry.size for entry in known} else ""
    except OSError:  # it has been read already; whoever took it away since costs a hint
        return ""
    return next((entry.variant for entry in known if entry.sha256 == digest), "")


def fitting_variants(unet: UNetConfig) -> list[str]:
    """The kinds that a network of this configuration may be."""

    def fits(variant: str) -> bool:
        published = published_unet(variant)
        return (unet.lq_stages, unet.mask) == (published.lq_stages, published.mask)

    return [variant for variant in VARIANTS if fits(variant)]


def _check_asked(asked: str, candidates: list[str], unet: UNetConfig, path: Path, metadata: dict[str, str]) -> str:
    if asked not in VARIANTS:
        raise InputError(f"variant is {asked!r}; known are {', '.join(VARIANTS)}.")
    if asked not in candidates:
        raise CheckpointError(
            f"{path.name} is not a {asked} model: its low-resolution branch has {unet.lq_stages} stages and "
            f"{'a' if unet.mask else 'no'} mask. It may be: {', '.join(candidates) or 'none that is known'}."
        )
    stored = metadata.get("variant") or variant_from_name(path.name)
    if stored and stored != asked:
        log.warning("%s says that it is %s; it is used as %s, as asked.", path.name, brief(stored, 60), asked)
    return asked


def find_variant(unet: UNetConfig, path: Path, asked: str | None, metadata: dict[str, str]) -> str:
    """The word of `VARIANTS` that a published network goes by, in the order of the module's docstring.

    Raises:
        VariantOpen: nothing says it.
        CheckpointError: the shapes contradict the word that was asked for.
        InputError: the word that was asked for is unknown.
    """
    candidates = fitting_variants(unet)
    if asked:
        return _check_asked(asked, candidates, unet, path, metadata)
    if metadata.get("variant") in candidates:
        return metadata["variant"]
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise CheckpointError(
            f"{path.name} is a network of this family, but of no published kind, and carries no configuration."
        )
    for word in (_variant_from_hash(path), variant_from_name(path.name)):
        if word in candidates:
            return word
    raise VariantOpen(
        f"{path.name}: Its weights fit several models that differ in what weights do not tell. Say which one it is with variant= "
        f"(--variant on the command line): {', '.join(candidates)}."
    )
