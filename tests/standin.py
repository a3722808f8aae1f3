"""Models for tests without any checkpoint: weights are regenerated from key names by reference/standin_weights.py."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import torch

from resshift_core import ModelConfig, ResShiftModel, SpaceToDepthConfig, SwinUNet, UNetConfig, VQGANConfig
from resshift_core.registry import VARIANTS

from .reference.standin_weights import is_buffer, state_dict_for

REFERENCE = Path(__file__).parent / "reference"
GOLDEN = REFERENCE / "golden"

# The published networks by the names of their manifests.
UNETS = {
    "unet_realsr_x4": UNetConfig(),
    "unet_realsr_x2": UNetConfig(lq_stages=1),
    "unet_inpaint": UNetConfig(lq_stages=2, mask=True),
    "unet_faceir": UNetConfig(lq_stages=3, in_channels=8, out_channels=8),
}
VQGANS = {
    "vq_f4": VQGANConfig(),
    "vq_f8_face": VQGANConfig(64, (1, 2, 4, 8), (1, 2, 3, 4), z_channels=8, embed_dim=8, n_embed=4096),
}
# variant -> manifests of its network and its autoencoder (the face autoencoder f4 has the shapes of the natural one)
PARTS = {
    "realsr_x4_s15": ("unet_realsr_x4", "vq_f4"),
    "realsr_x4_s4": ("unet_realsr_x4", "vq_f4"),
    "bicsr_x4_s4": ("unet_realsr_x4", "vq_f4"),
    "realsr_x2_s4": ("unet_realsr_x2", "vq_f4"),
    "inpaint_imagenet_s4": ("unet_inpaint", "vq_f4"),
    "inpaint_face_s4": ("unet_inpaint", "vq_f4"),
    "faceir_s4": ("unet_faceir", "vq_f8_face"),
    "sinsr_x4_s1": ("unet_realsr_x4", "vq_f4"),
}


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """{key: shape} of a published state dict, buffers left out."""
    shapes = json.loads((REFERENCE / "manifests" / f"{name}.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items() if not is_buffer(key)}


def standin_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """float32 tensors that depend on key and shape alone."""
    return {key: torch.from_numpy(value) for key, value in state_dict_for(shapes).items()}


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Give a module (on any device, meta included) its stand-in weights, on the CPU; returns it in inference mode."""
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    module.load_state_dict(standin_weights(shapes), strict=True, assign=True)
    return module.eval().requires_grad_(False)


def standin_unet(config: UNetConfig) -> SwinUNet:
    """A network with stand-in weights, float32 on the CPU."""
    with torch.device("meta"):
        unet = SwinUNet(config)
    return fill(unet)


def standin_model(config: ModelConfig) -> ResShiftModel:
    """A model with stand-in weights, float32 on the CPU, laid out as `load_model` lays it out."""
    with torch.device("meta"):
        model = ResShiftModel(config)
    fill(model.unet)
    if list(model.autoencoder.parameters()):
        fill(model.autoencoder)
    return model.to("cpu", torch.float32)


def published_config(variant: str) -> ModelConfig:
    """Full size: 119 M parameters of the network and 55 M (f4) or 77 M (f8) of the autoencoder."""
    unet, autoencoder = PARTS[variant]
    kind = VARIANTS[variant]
    return ModelConfig(
        UNETS[unet],
        VQGANS[autoencoder],
        steps=kind.steps,
        min_noise_level=kind.min_noise_level,
        default_steps=kind.default_steps or kind.steps,
        scale=kind.scale,
        task=kind.task,
        variant=variant,
        name=variant,
    )


def small_model(**overrides) -> ResShiftModel:
    """A space-to-depth x4 model that runs in milliseconds; `overrides` are fields of UNetConfig or ModelConfig.

    It has neither norms nor attention, so what a pixel becomes depends on its neighbourhood alone.
    """
    unet = {
        "in_channels": 48, "out_channels": 48, "model_channels": 16, "channel_mult": (1,), "num_res_blocks": 1,
        "swin_depth": 0, "norm": "none", "trunk_blocks": 1,
    }  # fmt: skip
    model = {"autoencoder": SpaceToDepthConfig(), "predict": "residual", "space": "pixel", "kappa": 0.1, "name": "small"}
    of_unet = {field.name for field in fields(UNetConfig)}
    for key, value in overrides.items():
        (unet if key in of_unet else model)[key] = value
    return standin_model(ModelConfig(UNetConfig(**unet), **model))


def narrow_model(variant: str) -> ResShiftModel:
    """A network of a published structure that runs in a moment."""
    config = published_config(variant)
    unet = replace(config.unet, model_channels=32, swin_channels=32, swin_depth=2, channel_mult=(1, 1, 1, 1))
    autoencoder = replace(config.autoencoder, ch=8, num_res_blocks=(1,) * len(config.autoencoder.ch_mult))
    return standin_model(replace(config, unet=unet, autoencoder=autoencoder))
