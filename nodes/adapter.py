"""A ResShift model in the clothes of a spandrel descriptor, for core's Upscale Image (using Model) and other packs."""

from __future__ import annotations

from types import SimpleNamespace

import comfy.model_management as mm
import torch

from .. import resshift_core as rs
from ..resshift_core.inputs import as_arguments
from .described import described
from .managed import ManagedModel
from .upscaling import upscale_somehow


class UpscaleModel:
    """Callable on (B, C, h, w) in [0, 1]; hosts read `scale`, `model` and `to()`, some of them the rest.

    Hosts cut tiles and do not say where a tile lies: the noise repeats with the distance of core's tiles, and only x_T
    has any, so a tile's result depends on its pixels alone.
    """

    input_channels = output_channels = 3
    supports_half = supports_bfloat16 = False  # hosts are to hand over float32; the networks run in their own format
    purpose = "SR"
    tiling = "supported"
    tags: tuple[str, ...] = ()
    architecture = SimpleNamespace(id="ResShift", name="ResShift")
    size_requirements = SimpleNamespace(minimum=0, multiple_of=1, square=False)  # padding is ours

    def __init__(self, managed: ManagedModel, settings: dict):
        self.managed, self.settings = managed, settings
        self.scale = managed.model.scale
        self.model = managed.model.unet  # hosts count its bytes
        self.patcher = managed.patcher  # and newer ones ask for it to be loaded
        self.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        return self.managed.model.device

    def to(self, *args, **kwargs) -> UpscaleModel:
        """Nothing: ComfyUI's memory management moves the weights, to the device for every call and off it when needed."""
        return self

    cpu = cuda = eval = train = half = float = bfloat16 = requires_grad_ = to

    def parameters(self):
        """The network's weights."""
        return self.model.parameters()

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, 3, h * scale, w * scale) float32 on the device of `image`."""
        rgb = image[:, :3] if image.shape[1] >= 3 else image[:, :1].expand(-1, 3, -1, -1)
        config = self.managed.model.config
        need = self.managed.bytes_per_run(min(config.tile, max(rgb.shape[-2:]) + config.multiple), 1)
        return upscale_somehow(self.managed, need, rgb.float(), on_step=_stop_when_asked, **self.settings)


def _stop_when_asked(event) -> None:
    mm.throw_exception_if_processing_interrupted()


@described
class ResShiftToUpscaleModel:
    """See inputs.ADAPTER."""

    def run(self, model, seed, unique_id=None, **widgets):
        if model.model.config.task == "inpaint":
            raise rs.InputError("An inpainting model needs a mask, which upscale nodes do not have. Use ResShift Inpaint.")
        settings = as_arguments(**widgets, seed=seed, sampler="deterministic", noise="periodic")
        return (UpscaleModel(model, settings),)
