"""ResShift (Yue et al., NeurIPS 2023): image super-resolution by a short diffusion chain that shifts the residual.

    import resshift_core as rs
    model = rs.load_model("builtin")
    out = rs.upscale(model, images)      # (B, 3, H, W) in [0, 1] -> (B, 3, 4 H, 4 W)

Reading order: pipeline (upscale), sampler, schedule; unet and swin, vqgan; checkpoint, registry, downloads.
"""

from importlib import import_module

_CONTENTS = {
    "checkpoint": ("convert", "load_model", "save_model"),
    "downloads": ("download", "download_with_autoencoder"),
    "errors": ("Cancelled", "CheckpointError", "DownloadError", "InputError", "OutOfMemory", "ResShiftError"),
    "model": ("ModelConfig", "ResShiftModel"),
    "pipeline": ("StepEvent", "upscale"),
    "registry": ("add_models_dir", "list_models", "models_dir"),
    "schedule": ("ShiftSchedule",),
    "space_to_depth": ("SpaceToDepth", "SpaceToDepthConfig"),
    "unet": ("SwinUNet", "UNetConfig"),
    "version": ("__version__",),
    "vqgan": ("VQGAN", "VQGANConfig"),
}
_HOME = {name: module for module, names in _CONTENTS.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    """Import a name's module when the name is first used (PEP 562), so that `resshift --help` need not wait for torch."""
    if name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    elif name in _CONTENTS:
        return import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
