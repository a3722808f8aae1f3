"""What can be said of a model file without running it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..checkpoint import CONFIG_KEY, PARTS, resolve_path
from ..checkpoint_file import read_file, sha256_of
from ..detection import autoencoder_of, check_state, describe, find_variant, is_autoencoder, is_unet, unet_of
from ..errors import CheckpointError
from ..model import ModelConfig, ResShiftModel
from ..registry import REGISTRY, VARIANTS
from ..schedule import ShiftSchedule


@dataclass(frozen=True)
class ModelFile:
    """The facts of `resshift info`."""

    file: str
    kind: str  # "model", "network" or "autoencoder"
    variant: str  # the word for `--variant`; "" where there is none, or it stays open
    open_question: str  # why the variant stays open, else ""
    registered_as: tuple[str, ...]  # names of the registry with the same hash
    parameters: int
    dtypes: dict[str, int]  # parameters in each number format
    bytes: int
    sha256: str
    config: dict  # of the model, or of the one network
    metadata: dict[str, str]


def describe_file(asked: str, variant: str | None = None) -> ModelFile:
    """Read and recognise a file (or a registry name's file); everything is compared with its architecture.

    Raises:
        CheckpointError: it is missing, damaged, or no model of this family.
        InputError: `variant` is unknown.
    """
    path = resolve_path(asked)
    state, metadata = read_file(path)
    kind, word, question, config = _recognised(path, state, metadata, variant)
    digest = sha256_of(path)
    dtypes: Counter = Counter()
    for value in state.values():
        dtypes[str(value.dtype).removeprefix("torch.")] += value.numel()
    return ModelFile(
        str(path), kind, word, question,
        tuple(entry.name for entry in REGISTRY.values() if entry.sha256 == digest),
        sum(dtypes.values()), dict(dtypes), path.stat().st_size, digest, config,
        {key: value for key, value in metadata.items() if key != CONFIG_KEY},
    )  # fmt: skip


def _recognised(path: Path, state, metadata, variant: str | None) -> tuple[str, str, str, dict]:
    """(kind, variant, why the variant is open, configuration)."""
    if CONFIG_KEY in metadata:
        config = own_config(path, metadata)
        _check_own(config, state, path.name)
        return "model", config.variant, "", config.to_dict()
    if is_autoencoder(state):
        return "autoencoder", "", "", asdict(autoencoder_of(state, path.name))
    if not is_unet(state):
        raise CheckpointError(f"{path.name} is not a ResShift model but {describe(state)}.")
    unet = unet_of(state, path.name)
    try:
        return "network", find_variant(unet, path, variant, metadata), "", asdict(unet)
    except CheckpointError as error:
        if variant:
            raise
        return "network", "", str(error), asdict(unet)


def own_config(path: Path, metadata: dict[str, str]) -> ModelConfig:
    """The configuration in a file of `save_model`.

    Raises:
        CheckpointError: this version cannot read it.
    """
    try:
        return ModelConfig.from_dict(json.loads(metadata[CONFIG_KEY]))
    except Exception as error:  # whatever somebody wrote there
        raise CheckpointError(
            f"{path.name} carries a configuration that this version cannot read ({error}). Update ResShift, or get the file again."
        ) from error


def _check_own(config: ModelConfig, state, name: str) -> None:
    with torch.device("meta"):
        model = ResShiftModel(config)
    for part in PARTS:
        own = {key[len(part) + 1 :]: value for key, value in state.items() if key.startswith(f"{part}.")}
        check_state(getattr(model, part), own, name)


def trained_schedule(asked: str, variant: str | None = None) -> tuple[ShiftSchedule, int]:
    """(schedule of training, steps of a normal run) of a registry name, a variant or a file; weights are not looked at.

    Raises:
        CheckpointError: the file is missing or damaged, or what it is stays open.
    """
    entry = REGISTRY.get(asked)
    word = (entry.variant if entry else "") or (asked if asked in VARIANTS else "")
    if not word:
        path = resolve_path(asked)
        state, metadata = read_file(path)
        if CONFIG_KEY in metadata:
            config = own_config(path, metadata)
            return _schedule(config), config.default_steps
        if not is_unet(state):
            raise CheckpointError(f"{path.name} has no schedule: it is {describe(state)}.")
        word = find_variant(unet_of(state, path.name), path, variant, metadata)
    kind = VARIANTS[word]
    return _schedule(kind), kind.default_steps or kind.steps


def _schedule(kind) -> ShiftSchedule:
    return ShiftSchedule(kind.steps, kind.kappa, kind.p, kind.min_noise_level, kind.sqrt_eta_T)
