"""What a model is, told without reading its weights: for hosts that draw its curve before anything is loaded."""

from __future__ import annotations

import os

import torch
from safetensors import SafetensorError

from .checkpoint import CONFIG_KEY, own_config, published_config, resolve_path
from .checkpoint_file import open_safetensors
from .detection import PUBLISHED_VQGANS, published_unet, variant_from_name
from .errors import CheckpointError, brief
from .model import ModelConfig, ResShiftModel
from .registry import REGISTRY, VARIANTS


def peek_config(model: str | os.PathLike) -> ModelConfig:
    """The configuration of a registered model (also one that is not on this machine), or of a file.

    A file of `save_model` carries it; of a published network it follows from the word in the metadata or in the name.

    Raises:
        CheckpointError: there is no such file, or only its weights would tell.
    """
    entry = REGISTRY.get(str(model))
    if entry is not None and entry.variant:
        return _published(entry.variant)
    path = resolve_path(model, entry)
    metadata = _metadata(path)
    if CONFIG_KEY in metadata:
        return own_config(metadata, path.name)
    variant = metadata.get("variant") or variant_from_name(path.name)
    if variant not in VARIANTS:
        raise CheckpointError(f"What {path.name} is can only be told by loading it.")
    return _published(variant)


def is_whole(model: str | os.PathLike) -> bool:
    """Whether a registered model or a file contains its autoencoder, as `save_model` writes it: `load_model` takes no other."""
    return CONFIG_KEY in _metadata(resolve_path(model, REGISTRY.get(str(model))))


def _published(variant: str) -> ModelConfig:
    return published_config(published_unet(variant), PUBLISHED_VQGANS[VARIANTS[variant].autoencoder], variant)


def _metadata(path) -> dict[str, str]:
    """Of a .safetensors; other files have none."""
    if path.suffix.lower() != ".safetensors":
        return {}
    try:
        with open_safetensors(path) as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} is damaged or no .safetensors file ({brief(error)}). Get it again.") from error


def without_weights(config: ModelConfig) -> ResShiftModel:
    """The model's structure on torch's meta device: its schedule and its memory needs, but nothing that runs.

    Raises:
        CheckpointError: there is no such network.
    """
    try:
        with torch.device("meta"):
            return ResShiftModel(config)
    except Exception as error:  # numbers that are right one by one, and contradict each other
        raise CheckpointError(
            f"The model's configuration describes no network ({brief(error)}). Get the file again."
        ) from error
