"""A model in the hands of ComfyUI's memory management: moved to the GPU for a run, and off when others need the room."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.model_patcher
import torch

from ..resshift_core.device import DTYPES, layout_for
from ..resshift_core.errors import InputError
from ..resshift_core.model import ResShiftModel


def choose_dtypes(word: str) -> tuple[torch.dtype, torch.dtype]:
    """(network's, autoencoder's) number format for a choice of the loader; "auto" follows the hardware and ComfyUI's flags."""
    if word in DTYPES:
        return DTYPES[word], DTYPES[word]
    if word != "auto":
        raise InputError(f"dtype is {word!r}; it must be one of auto, {', '.join(DTYPES)}.")
    device = mm.get_torch_device()
    supported = [torch.bfloat16, torch.float16, torch.float32]
    network = mm.unet_dtype(device=device, supported_dtypes=supported)
    network = mm.unet_manual_cast(network, device, supported) or network  # what the card computes in, not holds
    if network not in DTYPES.values():  # flags for 8 or 64 bit are meant for other networks
        network = torch.bfloat16 if mm.should_use_bf16(device) else torch.float32
    autoencoder = mm.vae_dtype(device, [network])
    return network, autoencoder


def image_format() -> dict:
    """dtype and device of an IMAGE that travels to the next node. ComfyUI of 2026 has a flag for float16 (--fp16-intermediates)."""
    dtype = mm.intermediate_dtype() if hasattr(mm, "intermediate_dtype") else torch.float32
    return {"dtype": dtype, "device": mm.intermediate_device()}


def _same(one: torch.device, other: torch.device) -> bool:
    """Whether two devices are one: "mps" is "mps:0"."""
    return one.type == other.type and (one.index or 0) == (other.index or 0)


class ManagedModel:
    """What travels over an RSHIFT_MODEL socket.

    Attributes:
        model: the ResShiftModel; its weights lie where ComfyUI has put them.
        device: where it runs.
    """

    def __init__(self, model: ResShiftModel):
        self.model = model
        self.device = mm.get_torch_device()
        model.reserved_bytes = int(mm.extra_reserved_memory())  # --reserve-vram, in bytes
        for part in (model.unet, model.autoencoder):
            part.to(memory_format=layout_for(self.device))  # the host moves weights as they lie
        # not CoreModelPatcher: loading layer by layer is for ComfyUI's own layers, and hangs on modules what cannot be copied
        patcher = comfy.model_patcher.ModelPatcher
        parts = ((model.unet, mm.unet_offload_device()), (model.autoencoder, mm.vae_offload_device()))
        self.patchers = [
            patcher(part, load_device=self.device, offload_device=offload)
            for part, offload in parts
            if next(part.parameters(), None) is not None  # the built-in model's autoencoder has no weights
        ]
        self.dtypes = [next(patcher.model.parameters()).dtype for patcher in self.patchers]
        self.patcher = self.patchers[0]  # by this name ComfyUI of 2026 knows a model, and drops old ones when memory is short

    def bytes_per_run(self, tile: int, tiles: int) -> int:
        """What a batch of tiles needs beside the weights."""
        return self.model.bytes_per_tile(tile, tile) * tiles

    def load(self, memory_required: int = 0) -> ResShiftModel:
        """The model with all weights on the device, and room for `memory_required` bytes beside them."""
        for patcher, dtype in zip(self.patchers, self.dtypes):  # other packs convert the network of an UPSCALE_MODEL
            if any(weight.dtype != dtype for weight in patcher.model.parameters()):
                patcher.model.to(dtype)
        mm.load_models_gpu(self.patchers, memory_required=memory_required, force_full_load=True)
        for patcher in self.patchers:
            if not all(_same(weight.device, self.device) for weight in patcher.model.parameters()):
                patcher.patch_model(device_to=self.device)  # --novram keeps whole networks back; ours need to be in one place
        return self.model

    def make_room(self) -> ResShiftModel:
        """Move every other model, and this one, off the device; then bring this one back."""
        mm.free_memory(1e30, self.device)
        mm.soft_empty_cache()
        return self.load()

    def on_cpu(self) -> ResShiftModel:
        """The model on the processor in float32, for pictures that the device cannot hold."""
        mm.free_memory(1e30, self.device)
        for patcher in self.patchers:
            patcher.detach()
        return self.model.copied("cpu", torch.float32)
