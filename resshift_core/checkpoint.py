"""Models from files and into files: `load_model`, `save_model`, `convert`.

Reading is `checkpoint_file`, recognising is `detection`; here the parts become a model. No code in a file ever runs.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import torch

from .checkpoint_file import is_file, read_file, save_weights
from .detection import (
    autoencoder_of,
    check_state,
    describe,
    find_variant,
    fitting_variants,
    is_autoencoder,
    is_unet,
    unet_of,
)
from .device import cpu_by_default, is_out_of_memory, release_memory, resolve_device, resolve_dtype
from .errors import CheckpointError, InputError, NotHere, OutOfMemory, brief
from .limits import check_model
from .model import PARTS, ModelConfig, ResShiftModel, stray_weights
from .pins import check_pin
from .registry import REGISTRY, VARIANTS, Entry, find_file, find_in, kind_not_model, models_dir, search_dirs
from .unet import UNetConfig
from .vqgan import VQGANConfig

log = logging.getLogger("resshift")

CONFIG_KEY = "resshift_config"  # of the metadata: ModelConfig as JSON
LONGEST_CONFIG = 65536  # letters; ours have 1,000


def _without(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def resolve_path(model: str | os.PathLike, entry: Entry | None = None) -> Path:
    """A registry name or a path -> the file on this machine.

    Raises:
        CheckpointError: a registered model that is not here yet, with the ways to get it; or no such file.
    """
    entry = entry or REGISTRY.get(str(model))
    if is_file(model):
        return Path(model).expanduser()
    if entry is not None:
        path = entry.find()
        if path is None and entry.bundled:
            raise CheckpointError(f"The weights of {entry.name} are missing from this installation. Install it again.")
        if path is None:
            raise NotHere(
                f"{entry.name} ({entry.file}, {entry.licence}) is not on this machine. Run `resshift download {entry.name}`, "
                f"or put the file from {entry.url} into {models_dir()}.",
                entry.name,
            )
        return path
    name = os.path.basename(str(model))
    found = find_file(name, exact=True) if name == str(model) else None
    if found is not None:
        return found
    if kind := kind_not_model(str(model)):
        raise CheckpointError(kind)
    folders = ", ".join(str(folder) for folder in search_dirs())
    raise CheckpointError(f"There is no model file {model!s}, nor a model of that name in {folders}. See `resshift models`.")


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    check_pin(path)
    return read_file(path)


# ---------------------------------------------------------------------------------------------------- loading


def load_autoencoder(path: str | os.PathLike) -> tuple[VQGANConfig, dict[str, torch.Tensor]]:
    """(configuration, weights) of an autoencoder file, or of the autoencoder in a file of `save_model`.

    Raises:
        CheckpointError: the file is not a VQGAN.
    """
    path = resolve_path(path)
    state, _ = _read(path)
    if not is_autoencoder(state):
        inner = _without("autoencoder.", state)
        if not is_autoencoder(inner):
            raise CheckpointError(
                f"{path.name} is not an autoencoder but {describe(state)}. Published autoencoders are called autoencoder_vq_f4.pth."
            )
        state = inner
    return autoencoder_of(state, path.name), state


def _build(config: ModelConfig, metadata: dict[str, str]) -> ResShiftModel:
    """A model without memory for its weights; `_fill` gives them."""
    with torch.device("meta"):
        return ResShiftModel(config, metadata)


def check_parts(model: ResShiftModel, state: dict[str, torch.Tensor], name: str) -> None:
    """Strict comparison of a whole model's weights with its structure.

    Raises:
        CheckpointError: weights are missing, unknown, of another shape, or belong to no part.
    """
    if stray := stray_weights(state):
        raise CheckpointError(f"{name} holds {len(stray)} weights that no part of a model uses (first: {stray[0]}).")
    for part in PARTS:
        check_state(getattr(model, part), _without(f"{part}.", state), name)


def _fill(model: ResShiftModel, state: dict[str, torch.Tensor], name: str) -> ResShiftModel:
    """Give a model built on the meta device its weights, after a strict check."""
    check_parts(model, state, name)
    for part in PARTS:
        getattr(model, part).load_state_dict(_without(f"{part}.", state), strict=True, assign=True)
    return model.eval()


def published_config(unet: UNetConfig, autoencoder: VQGANConfig, variant: str, entry: Entry | None = None) -> ModelConfig:
    """The model that a published network and its autoencoder make; `entry` names it more exactly than its kind does."""
    kind = VARIANTS[variant]
    entry = entry or next((entry for entry in REGISTRY.values() if entry.variant == variant), None)
    return ModelConfig(
        unet,
        autoencoder,
        steps=kind.steps,
        kappa=kind.kappa,
        p=kind.p,
        min_noise_level=kind.min_noise_level,
        sqrt_eta_T=kind.sqrt_eta_T,
        default_steps=kind.default_steps or kind.steps,
        scale=kind.scale,
        task=kind.task,
        tile={4: 128, 2: 128, 1: 512 if kind.task == "face" else 256}[kind.scale],
        overlap={4: 16, 2: 32, 1: 64}[kind.scale],
        variant=variant,
        name=variant,
        licence=entry.licence if entry else "unknown",
    )


def own_config(metadata: dict[str, str], name: str) -> ModelConfig:
    """The configuration that a file of `save_model` carries.

    Raises:
        CheckpointError: it is damaged, of a newer version, or describes what no network can be.
    """
    try:
        if len(metadata[CONFIG_KEY]) > LONGEST_CONFIG:
            raise ValueError(f"it has {len(metadata[CONFIG_KEY])} letters")
        return ModelConfig.from_dict(json.loads(metadata[CONFIG_KEY]))
    except Exception as error:  # JSON of any kind, numbers of any size
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{name} carries a configuration that this version cannot read ({brief(error)}). Update ResShift, or get the file again."
    )


def as_variant(config: ModelConfig, path: Path, variant: str | None) -> ModelConfig:
    """The configuration that a file of `save_model` carries, as the kind that was asked for.

    Raises:
        InputError: the model is of no published kind.
        CheckpointError: its shapes contradict that kind.
    """
    if not variant or variant == config.variant:
        return config
    if not config.variant:
        raise InputError(
            f"{path.name} carries a configuration of its own; variant={variant!r} cannot change it. Leave the variant out."
        )
    find_variant(config.unet, path, variant, {"variant": config.variant})  # warns, or refuses
    return replace(published_config(config.unet, config.autoencoder, variant), licence=config.licence)


def refuse_variant(path: Path, variant: str | None) -> None:
    """An autoencoder serves several kinds, and is of none."""
    if variant:
        raise InputError(f"{path.name} is an autoencoder, of which there are no variants. Leave the variant {variant} out.")


def _load_own(path: Path, state: dict, metadata: dict[str, str], variant: str | None) -> ResShiftModel:
    """A file that `save_model` wrote: configuration in the metadata, both networks' weights."""
    config = as_variant(own_config(metadata, path.name), path, variant)
    try:
        model = _build(config, metadata)
    except Exception as error:  # numbers that are right one by one, and make no network
        raise _unreadable(path.name, error) from error
    return _fill(model, state, path.name)


def _check_pair(unet: UNetConfig, autoencoder: VQGANConfig, word: str, name: str) -> None:
    """Refuse an autoencoder of another latent than the network works in."""
    wanted = VARIANTS[word].scale * 2**unet.lq_stages
    if (autoencoder.latent_channels, autoencoder.factor) != (unet.out_channels, wanted):
        raise CheckpointError(
            f"{name} works in {unet.out_channels} latent channels at 1/{wanted} of the picture's size; the autoencoder has "
            f"{autoencoder.latent_channels} at 1/{autoencoder.factor}. {word} belongs with {VARIANTS[word].autoencoder}."
        )


def _autoencoder_for(path: Path, name: str) -> str | Path:
    """The autoencoder `name` of the registry: from the search folders, else from beside the network's file."""
    beside = find_in(path.parent, REGISTRY[name].file) if REGISTRY[name].find() is None else None
    return name if beside is None else beside


def _load_published(path: Path, state: dict, metadata: dict, autoencoder, variant: str | None, entry) -> ResShiftModel:
    unet = unet_of(state, path.name)
    word = find_variant(unet, path, variant or (entry.variant if entry is not None else None), metadata)
    vq_config, vq_state = load_autoencoder(autoencoder or _autoencoder_for(path, VARIANTS[word].autoencoder))
    _check_pair(unet, vq_config, word, path.name)
    joined = {f"unet.{key}": value for key, value in state.items()}
    joined.update({f"autoencoder.{key}": value for key, value in vq_state.items()})
    same = entry is not None and entry.variant == word
    config = published_config(unet, vq_config, word, entry if same else None)
    return _fill(_build(replace(config, name=entry.name) if same else config, metadata), joined, path.name)


@torch.inference_mode(False)  # Forge calls us in it, and elsewhere outside of it
@cpu_by_default
def load_model(
    model: str | os.PathLike = "builtin",
    *,
    autoencoder: str | os.PathLike | None = None,
    variant: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> ResShiftModel:
    """Load a model by name or file.

    Args:
        model: "builtin", another name of `list_models()`, or a path to .safetensors, .pth, .pt or .ckpt.
        autoencoder: file or registry name; None = the one that belongs to the model.
        variant: which published kind a file is, where its shapes leave it open; wins over the file's own metadata.
        device: "auto" (CUDA, XPU, MPS, else CPU), or anything torch knows.
        dtype: "auto" (bf16 where the hardware has it, else fp16 on CUDA, else fp32), "fp32", "bf16", "fp16", or a
            torch.dtype.

    Raises:
        CheckpointError: the file is missing, damaged, foreign, unsafe, or leaves its kind open.
        InputError: device, dtype or variant is unknown.
        OutOfMemory: the weights do not fit on the device.
    """
    if not isinstance(model, (str, os.PathLike)):
        raise InputError(f"model is {model!r:.60}; it must be a name or a path.")
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    if variant and variant not in VARIANTS:
        raise InputError(f"variant is {variant!r}; known are {', '.join(VARIANTS)}.")
    entry = REGISTRY.get(str(model)) if not is_file(model) else None
    path = resolve_path(model, entry)
    state, metadata = _read(path)
    if CONFIG_KEY in metadata:
        loaded = _load_own(path, state, metadata, variant)
        if autoencoder is not None:
            log.warning("%s contains its autoencoder; %s is not used.", path.name, autoencoder)
    elif is_unet(state):
        loaded = _load_published(path, state, metadata, autoencoder, variant, entry)
    elif is_autoencoder(state):
        raise CheckpointError(f"{path.name} is an autoencoder. Choose a diffusion model, and give this file as autoencoder=.")
    elif is_unet(_without("unet.", state)):
        raise CheckpointError(f"{path.name} has lost its metadata, which held its configuration. Get the original file.")
    else:
        raise CheckpointError(f"{path.name} is not a ResShift model but {describe(state)}. Choose another file.")
    if entry is not None and not loaded.config.name:
        loaded.config = replace(loaded.config, name=entry.name)
    loaded.bundled = entry.name if entry is not None and entry.bundled else ""
    try:
        return loaded.to(where, kind)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = brief(error)
    need = sum(weight.numel() for weight in loaded.state_dict().values()) * kind.itemsize / 2**20
    del loaded
    release_memory(where)
    raise OutOfMemory(
        f"Out of memory: the weights of {path.name} take {need:.0f} MiB, which {where} does not have left ({reason}). "
        "Close other programs, or run on the device cpu."
    )


# ---------------------------------------------------------------------------------------------------- saving


def save_model(model: ResShiftModel, path: str | os.PathLike, metadata: dict[str, str] | None = None) -> Path:
    """One .safetensors with UNet, autoencoder and configuration, in the dtype the model has now.

    `load_model` of the result needs neither `autoencoder=` nor `variant=`. `metadata` adds strings to those the model came
    with; its "licence" becomes the model's.

    Raises:
        InputError: the name does not end in .safetensors, or the configuration holds what `load_model` would refuse.
        CheckpointError: the folder cannot be written.
    """
    if not isinstance(getattr(model, "config", None), ModelConfig):
        raise InputError(f"model is {model!r:.60}; it must be what load_model returns.")
    config = replace(model.config, licence=str(metadata["licence"])) if "licence" in (metadata or {}) else model.config
    try:
        check_model(config)
    except ValueError as error:
        raise InputError(f"The model cannot be saved, for nobody could load it: {error}.") from error
    stored = {
        **model.metadata,
        **(metadata or {}),
        "format": "pt",
        "licence": config.licence,
        CONFIG_KEY: json.dumps(config.to_dict()),
    }
    return save_weights(model.state_dict(), {key: str(value) for key, value in stored.items()}, path)


def _told_variant(unet: UNetConfig, source: Path, asked: str | None, metadata: dict[str, str]) -> dict[str, str]:
    """The metadata that a converted network gets: its kind and licence where they can be told."""
    try:
        word = find_variant(unet, source, asked, metadata)
    except CheckpointError as error:
        if asked:
            raise
        again = " The converted file will ask again." if fitting_variants(unet) else ""
        log.warning("%s%s", error, again)
        return metadata
    licence = next((entry.licence for entry in REGISTRY.values() if entry.variant == word), None)
    return {**({"licence": licence} if licence else {}), **metadata, "variant": word}


def convert(source: str | os.PathLike, target: str | os.PathLike, variant: str | None = None) -> Path:
    """Rewrite a network, an autoencoder or a saved model as .safetensors with canonical keys and the stored dtype.

    A published network keeps its own file (its autoencoder stays apart) and gets its variant written into the metadata
    where it can be told.

    Raises:
        CheckpointError, InputError: as `read_file` and `save_weights`; the source is nothing that `load_model` knows.
    """
    if Path(target).suffix.lower() != ".safetensors":
        raise InputError(f"{Path(target).name} must end in .safetensors.")
    source = resolve_path(source)
    state, metadata = _read(source)
    if CONFIG_KEY in metadata:
        config = _load_own(source, state, metadata, variant).config
        metadata[CONFIG_KEY] = json.dumps(config.to_dict())
    elif is_unet(state):
        metadata = _told_variant(unet_of(state, source.name), source, variant, metadata)
    elif is_autoencoder(state):
        refuse_variant(source, variant)
        autoencoder_of(state, source.name)
    else:
        raise CheckpointError(f"{source.name} is not a ResShift model but {describe(state)}. It was not converted.")
    return save_weights(state, {**metadata, "format": "pt"}, target)
