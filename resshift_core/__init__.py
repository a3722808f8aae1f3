"""ResShift (Yue et al., NeurIPS 2023): image super-resolution by a short diffusion chain that shifts the residual.

    import resshift_core as rs
    model = rs.load_model("builtin")
    out = rs.upscale(model, images)      # (B, 3, H, W) in [0, 1] -> (B, 3, 4 H, 4 W)

Reading order: pipeline (upscale), sampler, schedule; unet and swin, vqgan; checkpoint, registry, download.
"""

from .checkpoint import convert, load_model, save_model
from .errors import Cancelled, CheckpointError, DownloadError, InputError, OutOfMemory, ResShiftError
from .model import ModelConfig, ResShiftModel
from .pipeline import StepEvent, upscale
from .registry import add_models_dir, list_models, models_dir
from .schedule import ShiftSchedule
from .space_to_depth import SpaceToDepth, SpaceToDepthConfig
from .unet import SwinUNet, UNetConfig
from .version import __version__
from .vqgan import VQGAN, VQGANConfig

__all__ = [
    "CheckpointError",
    "Cancelled",
    "DownloadError",
    "InputError",
    "ModelConfig",
    "OutOfMemory",
    "ResShiftError",
    "ResShiftModel",
    "ShiftSchedule",
    "SpaceToDepth",
    "SpaceToDepthConfig",
    "StepEvent",
    "SwinUNet",
    "UNetConfig",
    "VQGAN",
    "VQGANConfig",
    "__version__",
    "add_models_dir",
    "convert",
    "list_models",
    "load_model",
    "models_dir",
    "save_model",
    "upscale",
]
