"""A trained network made longer, shorter, wider, or aware of degradations. A grown one starts as what it was (Net2Net, Chen et al., ICLR 2016)."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import nn

import resshift_core as rs
from resshift_core.limits import RANGES
from resshift_core.unet import ResBlock, Trunk

from .settings import SettingsError, TrainSettings
from .trainer import zero_branches


def resize(model: rs.ResShiftModel, settings: TrainSettings) -> rs.ResShiftModel:
    """The model with the trunk and the width that the settings ask for; itself where they ask for none.

    Raises:
        SettingsError: this model cannot be resized so.
    """
    if settings.trunk_blocks is not None:
        model = resize_trunk(model, settings.trunk_blocks)
    if settings.width is not None and settings.width != model.config.unet.model_channels:
        model = widen(model, settings.width)
    return model


def resize_trunk(model: rs.ResShiftModel, blocks: int) -> rs.ResShiftModel:
    """A copy with `blocks` residual blocks in the trunk.

    A shorter one keeps blocks evenly spaced, the first and the last among them. A longer one gets new blocks at its end that
    add nothing yet.

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
        told = model.config.unet.degradation_channels
        new = nn.Sequential(*(ResBlock(width, width, told, norm) for _ in range(blocks - there)))
        zero_branches(new)
        residual += new.to(like.device, like.dtype)
    resized.unet.trunk = Trunk(convolution, *residual)
    return resized


def add_estimator(model: rs.ResShiftModel, channels: int) -> rs.ResShiftModel:
    """A copy whose trunk is told of degradations, by an embedding of so many channels, but makes nothing of it yet; the model
    itself where its trunk is told already.

    Raises:
        SettingsError: there is no trunk.
    """
    config = model.config.unet
    if config.degradation_channels:
        return model
    if not config.trunk_blocks:
        raise SettingsError("This model has no trunk that could be told of degradations.")
    if config.mask:
        raise SettingsError("This is an inpainting model, and around a hole nothing estimates degradations.")
    told = copy.copy(model)
    told.config = replace(model.config, unet=replace(config, degradation_channels=channels))
    like = next(model.unet.parameters())
    told.unet = rs.SwinUNet(told.config.unet).to(like.device, like.dtype)
    for block in told.unet.trunk[1:]:
        nn.init.zeros_(block.emb_layers[1].weight)
        nn.init.zeros_(block.emb_layers[1].bias)
    told.unet.load_state_dict({**told.unet.state_dict(), **model.unet.state_dict()})
    return told


def widen(model: rs.ResShiftModel, width: int) -> rs.ResShiftModel:
    """A copy with `width` channels, whose steps at t = 0 ... T - 1 return what those of `model` do.

    The new channels hold random features of what is there; the old ones do not look at them yet.

    Raises:
        SettingsError: fewer channels than there are, or the network has norms, attention or several levels.
    """
    old_config = model.config.unet
    there = old_config.model_channels
    if (
        old_config.norm != "none"
        or old_config.swin_depth
        or len(old_config.channel_mult) > 1
        or old_config.channel_mult[0] != 1
    ):
        raise SettingsError("--width is given, but only networks of one level without norms and attention can be widened.")
    most = RANGES["model_channels"][1]
    if width % 2:
        raise SettingsError(f"--width is {width}; it must be even.")
    if not there <= width <= most:
        raise SettingsError(f"--width is {width}; this model has {there} channels, so give {there} to {most}.")
    wide = copy.copy(model)
    wide.config = replace(model.config, unet=replace(old_config, model_channels=width))
    like = next(model.unet.parameters())
    wide.unet = rs.SwinUNet(wide.config.unet).to(like.device, like.dtype)
    names = {module: name for name, module in wide.unet.named_modules()}
    inside = (part for name, part in wide.unet.named_children() if name != "degradation")
    for new in (module for part in inside for module in part.modules() if isinstance(module, nn.Conv2d)):
        old = model.unet.get_submodule(names[new])
        outputs = _places(old.out_channels, new.out_channels, there, width)
        inputs = _places(old.in_channels, new.in_channels, there, width)
        opens = names[new] in ("trunk.0", "input_blocks.0.0") or names[new].endswith("in_layers.2")
        _embed(new, old, outputs, inputs, keep_new_rows=opens)
    with torch.no_grad():
        emb, old_emb = (nn.functional.silu(net.time_embed(_times(model, like))) for net in (wide.unet, model.unet))
    if old_config.degradation_channels:
        wide.unet.degradation.load_state_dict(model.unet.degradation.state_dict())
        wide.unet.degradation_embed.load_state_dict(model.unet.degradation_embed.state_dict())
        for new, old in zip(wide.unet.trunk[1:], model.unet.trunk[1:]):
            _embed_film(new.emb_layers[1], old.emb_layers[1], there, width)
    for new in (block for stage in wide.unet.stages() for block in stage if isinstance(block, ResBlock)):
        _refit_film(new.emb_layers[1], model.unet.get_submodule(names[new]).emb_layers[1], emb, old_emb, there, width)
    return wide


def _times(model: rs.ResShiftModel, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(model.config.steps, device=like.device, dtype=like.dtype)


def _places(count: int, wide_count: int, there: int, width: int) -> list[int]:
    """Where the `count` channels of a narrow convolution's side lie among the wide one's.

    Channels of the picture come first, and are as many as before; then one or two sets of the network's own channels.
    """
    sets = (wide_count - count) // (width - there)
    fixed = count - sets * there
    return [*range(fixed), *(fixed + i * width + channel for i in range(sets) for channel in range(there))]


@torch.no_grad()
def _embed(new: nn.Conv2d, old: nn.Conv2d, outputs: list[int], inputs: list[int], keep_new_rows: bool) -> None:
    """Put the old kernel into the new; old outputs do not see new inputs, and new outputs are random or nothing."""
    if not keep_new_rows:
        new.weight.zero_()
        new.bias.zero_()
    new.weight[outputs] = 0
    new.weight[torch.tensor(outputs)[:, None], torch.tensor(inputs)] = old.weight
    new.bias[outputs] = old.bias


@torch.no_grad()
def _embed_film(new: nn.Linear, old: nn.Linear, there: int, width: int) -> None:
    """What the old channels are told; the new ones are told nothing."""
    rows = [*range(there), *range(width, width + there)]  # scales, then shifts
    new.weight.zero_()
    new.bias.zero_()
    new.weight[rows], new.bias[rows] = old.weight, old.bias


@torch.no_grad()
def _refit_film(new: nn.Linear, old: nn.Linear, emb, old_emb, there: int, width: int) -> None:
    """The least weights that make of the wide network's time embeddings what `old` made of the narrow one's.

    emb, old_emb: (T, 4 width) and (T, 4 there), after the SiLU.
    """
    rows = [*range(there), *range(width, width + there)]  # scales, then shifts
    wanted = (old_emb.double() @ old.weight.double().T).cpu()
    new.weight.zero_()
    new.bias.zero_()
    # on the CPU: CUDA has no driver for fewer equations than unknowns that may be dependent
    new.weight[rows] = torch.linalg.lstsq(emb.double().cpu(), wanted, driver="gelsd").solution.T.to(new.weight)
    new.bias[rows] = old.bias
