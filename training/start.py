"""What a run starts from: a model that the core loads, or a new one of a configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

import resshift_core as rs
from resshift_core.checkpoint import load_autoencoder, resolve_path
from resshift_core.checkpoint_file import sha256_of
from resshift_core.limits import MAX_TEXT, check_model

from .settings import SettingsError, TrainSettings, read_config
from .trainer import zero_init


@dataclass
class Start:
    """The model in float32 on the training device, and where it came from."""

    model: rs.ResShiftModel
    parent: str  # name of the model it came from, "" = none
    parent_sha256: str

    def __post_init__(self):
        self.as_loaded = self.model.config

    def apply(self, settings: TrainSettings) -> None:
        """Give the model what the settings ask for: the chain, what it predicts, its name (the output folder's), its licence.

        Raises:
            SettingsError: no file could hold these settings.
        """
        config = self.model.config
        words = ("steps", "kappa", "p", "min_noise_level")
        given = {name: getattr(settings, name) for name in words if getattr(settings, name) is not None}
        if "steps" in given:
            given["default_steps"] = given["steps"]
        folder = settings.output.resolve().name or "model"
        name = "".join(letter if letter.isprintable() else "_" for letter in folder)[:MAX_TEXT]
        config = replace(config, **given, predict=settings.predict, name=name, licence=settings.licence)
        try:
            check_model(config)
        except ValueError as error:
            raise SettingsError(f"The model would have settings that no file may have: {error}.") from error
        self.model.config = config
        self.model.schedule = config.schedule()


def new_model(values: dict, autoencoder: str | None = None) -> rs.ResShiftModel:
    """A model of the configuration `values`, initialised so that it predicts nothing at first.

    autoencoder: file of the trained VQGAN, where the model has one: only the network is trained here.

    Raises:
        SettingsError: the configuration describes no model, or the VQGAN is missing or another one. rs.CheckpointError: the
            VQGAN cannot be loaded.
    """
    try:
        model = rs.ResShiftModel(rs.ModelConfig.from_dict(values))
    except (ValueError, TypeError, KeyError) as error:
        raise SettingsError(f"The configuration's model cannot be built ({error!r}).") from error
    if model.config.unet.degradation_channels:
        raise SettingsError(
            "The configuration asks for an estimator of degradations, which a new model has yet to be given: leave out "
            "degradation_channels, train, and start training/train_estimator.py with --model."
        )
    zero_init(model.unet)
    if isinstance(model.config.autoencoder, rs.VQGANConfig):
        _fill_autoencoder(model, autoencoder)
    return model


def _fill_autoencoder(model: rs.ResShiftModel, file: str | None) -> None:
    if file is None:
        raise SettingsError(
            "The configuration's model works on the latents of a VQGAN, which must be trained beforehand: name its file with "
            "--autoencoder (training/train_autoencoder.py makes one)."
        )
    config, state = load_autoencoder(file)
    if config != model.config.autoencoder:
        raise SettingsError(f"{file} holds {config}, but the configuration asks for {model.config.autoencoder}.")
    model.autoencoder.load_state_dict(state)


def load_start(settings: TrainSettings, device: torch.device) -> Start:
    """--config's new model, or --model, which a --config without a model leaves as what to start from.

    Raises:
        SettingsError: --config's model cannot be built. rs.CheckpointError, rs.InputError: --model cannot be loaded.
    """
    values = {} if settings.config is None else read_config(settings.config)
    if "model" in values:
        return Start(new_model(values["model"], settings.autoencoder).to(device, torch.float32), "", "")
    model = rs.load_model(
        settings.model, autoencoder=settings.autoencoder, variant=settings.variant, device=str(device), dtype="fp32"
    )
    return Start(model, model.config.name or Path(settings.model).name, sha256_of(resolve_path(settings.model)))
