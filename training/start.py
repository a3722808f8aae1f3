"""What a run starts from: a model that the core loads, or a new one of a configuration."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch

import resshift_core as rs
from resshift_core.checkpoint import load_autoencoder, resolve_path
from resshift_core.limits import RANGES
from resshift_core.unet import ResBlock

from .settings import SettingsError, TrainSettings, read_config
from .state import sha256_of
from .trainer import zero_branches, zero_init


@dataclass
class Start:
    """The model in float32 on the training device, and where it came from."""

    model: rs.ResShiftModel
    parent: str  # name of the model it came from, "" = none
    parent_sha256: str

    def retrain_schedule(self, settings: TrainSettings) -> None:
        """Give the model the chain that the settings ask for, its new name and licence."""
        config = self.model.config
        given = {name: getattr(settings, name) for name in ("steps", "kappa", "p") if getattr(settings, name) is not None}
        if "steps" in given:
            given["default_steps"] = given["steps"]
        name = settings.output.name if self.parent else config.name or settings.output.name
        config = replace(config, **given, predict=settings.predict, name=name, licence=settings.licence)
        self.model.config = config
        self.model.schedule = rs.ShiftSchedule(config.steps, config.kappa, config.p, config.min_noise_level, config.sqrt_eta_T)


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
    config, state = load_autoencoder(resolve_path(file))
    if config != model.config.autoencoder:
        raise SettingsError(f"{file} holds {config}, but the configuration asks for {model.config.autoencoder}.")
    model.autoencoder.load_state_dict(state)


def resize_trunk(model: rs.ResShiftModel, blocks: int) -> rs.ResShiftModel:
    """A copy with `blocks` residual blocks in the trunk.

    A shorter one keeps blocks evenly spaced, the first and the last among them. A longer one gets new blocks at its end that
    add nothing yet, so the model starts as what it was (Net2Net, Chen et al., ICLR 2016).

    Raises:
        SettingsError: there is no trunk, or `blocks` is out of range.
    """
    there = model.config.unet.trunk_blocks
    if not there:
        raise SettingsError("--trunk-blocks is given, but this model has no trunk; the length of one cannot be changed.")
    most = RANGES["trunk_blocks"][1]
    if not 1 <= blocks <= most:
        raise SettingsError(f"--trunk-blocks is {blocks}; this model's trunk has {there}, so give 1 to {most}.")
    resized = copy.copy(model)
    resized.config = replace(model.config, unet=replace(model.config.unet, trunk_blocks=blocks))
    resized.unet = copy.deepcopy(model.unet)
    resized.unet.config = resized.config.unet
    convolution, *residual = resized.unet.trunk
    if blocks <= there:
        residual = [residual[i] for i in np.linspace(0, there - 1, blocks).round().astype(int)]
    else:
        like = next(model.unet.parameters())
        width, norm = model.config.unet.model_channels, model.config.unet.norm
        new = torch.nn.Sequential(*(ResBlock(width, width, 0, norm) for _ in range(blocks - there)))
        zero_branches(new)
        residual += new.to(like.device, like.dtype)
    resized.unet.trunk = torch.nn.Sequential(convolution, *residual)
    return resized


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
    return Start(model, model.config.name or settings.model, sha256_of(resolve_path(settings.model)))
