"""What can be said of a model file without running it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from ..checkpoint import CONFIG_KEY, as_variant, check_parts, own_config, refuse_variant, resolve_path
from ..checkpoint_file import read_file, sha256_of
from ..detection import autoencoder_of, describe, find_variant, is_autoencoder, is_unet, unet_of
from ..errors import CheckpointError
from ..model import ModelConfig
from ..peek import peek_config, without_weights
from ..registry import REGISTRY, VARIANTS, Variant
from ..schedule import ShiftSchedule


@dataclass(frozen=True)
class ModelFile:
    """The facts of `resshift info`."""

    file: str
    kind: str  # "model", "network" or "autoencoder"
    variant: str  # the word for `--variant`; "" where there is none, or it stays open
    open_question: str  # why the variant stays open, else ""
    registered_as: tuple[str, ...]  # names of the registry with the same hash, or of the package's own file
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
        InputError: `variant` is unknown, or the file is of none.
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
        tuple(entry.name for entry in REGISTRY.values() if entry.sha256 == digest or entry.bundled and entry.find() == path),
        sum(dtypes.values()), dict(dtypes), path.stat().st_size, digest, config,
        {key: value for key, value in metadata.items() if key != CONFIG_KEY},
    )  # fmt: skip


def _recognised(path: Path, state, metadata, variant: str | None) -> tuple[str, str, str, dict]:
    """(kind, variant, why the variant is open, configuration)."""
    if CONFIG_KEY in metadata:
        config = as_variant(own_config(metadata, path.name), path, variant)
        check_parts(without_weights(config), state, path.name)
        return "model", config.variant, "", config.to_dict()
    if is_autoencoder(state):
        refuse_variant(path, variant)
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


def trained_schedule(asked: str) -> tuple[ShiftSchedule, int]:
    """(schedule of training, steps of a normal run) of a registry name, a variant or a file.

    Raises:
        CheckpointError: the file is missing or damaged, or what it is stays open.
    """
    if asked not in VARIANTS or asked in REGISTRY:
        try:
            config = peek_config(asked)
            return _schedule(config), config.default_steps
        except CheckpointError:  # the weights may tell, or the reason more exactly
            facts = describe_file(asked)
        if not facts.variant:
            raise CheckpointError(facts.open_question or f"{asked} has no schedule: it is an {facts.kind}.")
        asked = facts.variant
    kind = VARIANTS[asked]
    return _schedule(kind), kind.default_steps or kind.steps


def _schedule(kind: ModelConfig | Variant) -> ShiftSchedule:
    return ShiftSchedule(kind.steps, kind.kappa, kind.p, kind.min_noise_level, kind.sqrt_eta_T)
