"""A model that can run: network, autoencoder, the schedule it was trained with, and the settings that belong to it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields

import torch

from .device import layout_for
from .limits import check_model
from .schedule import ShiftSchedule
from .space_to_depth import SpaceToDepth, SpaceToDepthConfig
from .unet import SwinUNet, UNetConfig
from .vqgan import VQGAN, Codebook, VQGANConfig

AUTOENCODERS = {"vqgan": (VQGAN, VQGANConfig), "space_to_depth": (SpaceToDepth, SpaceToDepthConfig)}
SMALLEST = 8  # low-resolution pixels that smaller sides are padded to: less is all border
MOST_NUMBERS = 2**31 - 1  # of a tensor: torch 2.3 to 2.6 doubled larger ones wrongly on CUDA, without a word
MOST_NUMBERS_MPS = 2**30 - 1  # 4 GiB in float32: Apple's library ends the process where an array has more
NOISE_BLOCK = 16  # padded latents are multiples of this, so that large noise fields can be drawn in bands


@dataclass(frozen=True)
class ModelConfig:
    """Everything about a model but its weights; stored as JSON in the metadata of a saved file."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    autoencoder: VQGANConfig | SpaceToDepthConfig = field(default_factory=VQGANConfig)
    steps: int = 4  # T of training
    kappa: float = 2.0
    p: float = 0.3
    min_noise_level: float = 0.2
    sqrt_eta_T: float = 0.99
    default_steps: int = 4  # steps of a normal run: T, or 1 for a one-step student
    scale: int = 4
    task: str = "sr"  # "sr", "inpaint" or "face"
    predict: str = "x0"  # what the network returns: "x0", or "residual" = x0 minus `ResShiftModel.guess`
    residual_std: float = 0.0  # of e0 = y0 - x0 in [-1, 1], where the guess of "residual" uses x_t too; 0 = guess y0
    space: str = "latent"  # rule of the input normalisation, "latent" or "pixel"
    tile: int = 128  # default tile in low-resolution pixels; a constant, so that pictures do not depend on free memory
    overlap: int = 16  # of neighbouring tiles, in low-resolution pixels
    variant: str = ""  # the word for `load_model(variant=)` where it is a published kind
    name: str = ""
    licence: str = "unknown"

    @property
    def multiple(self) -> int:
        """Noise is drawn for sides that are multiples of this many low-resolution pixels, which the network can take, too."""
        return self.unit * math.lcm(self.unet.latent_multiple, NOISE_BLOCK)

    @property
    def padding(self) -> int:
        """Pictures are padded to multiples of this many low-resolution pixels: as the reference does, or no further than the
        network needs. Pixel-space models were trained on crops that end as pictures do.
        """
        return self.unit * self.unet.latent_multiple if self.space == "pixel" else self.multiple

    @property
    def tile_multiple(self) -> int:
        """Tiles are multiples of this many low-resolution pixels: the network's, and at least 8, which GPUs like."""
        return math.lcm(self.unit * self.unet.latent_multiple, 8)

    def padded(self, length: int) -> int:
        """What a side of a picture of so many pixels is padded to."""
        return -(-max(length, SMALLEST) // self.padding) * self.padding

    def noise_side(self, length: int) -> int:
        """Latent positions that noise is drawn for along a side of so many pixels."""
        return -(-length // self.multiple) * self.multiple * self.scale // self.autoencoder.factor

    @property
    def unit(self) -> int:
        """Low-resolution pixels per latent position, at least 1: where tiles may start."""
        return max(1, self.autoencoder.factor // self.scale)

    def schedule(self) -> ShiftSchedule:
        """The trained one."""
        return ShiftSchedule(self.steps, self.kappa, self.p, self.min_noise_level, self.sqrt_eta_T)

    def to_dict(self) -> dict:
        """Plain JSON types."""
        kind = next(word for word, (_, config) in AUTOENCODERS.items() if isinstance(self.autoencoder, config))
        values = asdict(self)
        values["autoencoder"]["kind"] = kind
        if not self.unet.degradation_channels:
            del values["unet"]["degradation_channels"]  # so that programs from before there was one read the file
        return values

    @classmethod
    def from_dict(cls, values: dict) -> ModelConfig:
        """Inverse of `to_dict`. Unknown words are errors: a newer file may mean something else by them.

        Raises:
            ValueError, TypeError, KeyError: the dictionary does not describe a model that could be run.
        """
        values = dict(values)
        unet = _dataclass_from(UNetConfig, values.pop("unet"))
        autoencoder = dict(values.pop("autoencoder"))
        kind = autoencoder.pop("kind", None)
        if kind not in AUTOENCODERS:
            raise ValueError(f"the autoencoder's kind is {kind!r}; it must be one of {', '.join(AUTOENCODERS)}")
        _, config = AUTOENCODERS[kind]
        made = _dataclass_from(cls, {**values, "unet": unet, "autoencoder": _dataclass_from(config, autoencoder)})
        check_model(made)
        return made


def _dataclass_from(cls, values: dict):
    known = {f.name for f in fields(cls)}
    unknown = set(values) - known
    if unknown:
        raise ValueError(f"unknown settings {', '.join(sorted(map(repr, unknown)))}")
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _copied(weight: torch.nn.Parameter, device, dtype: torch.dtype) -> torch.nn.Parameter:
    layout = layout_for(torch.device(device)) if weight.dim() == 4 else torch.preserve_format
    return torch.nn.Parameter(weight.detach().to(device, dtype, copy=True, memory_format=layout), weight.requires_grad)


PARTS = ("unet", "autoencoder")  # of a ResShiftModel, and the words before their weights' names


def stray_weights(names: Iterable[str]) -> list[str]:
    """Names that belong to no part."""
    return [name for name in names if not name.startswith(tuple(f"{part}." for part in PARTS))]


class ResShiftModel:
    """What `load_model` returns and `upscale` takes.

    Attributes:
        unet: SwinUNet, the raw network `unet(x, t, lq=lq, mask=mask)`.
        autoencoder: `encode((B, 3, H, W) in [-1, 1])` -> latent; `decode(latent, quantize=True)` -> (B, 3, H, W).
        config: ModelConfig.
        schedule: the trained ShiftSchedule.
        scale: output pixels per input pixel.
        metadata: strings that came with the file (licence, parent, training).
        device, dtype: where and in what format the network's weights are, whoever moved them there.
        bundled: its name, where it is one of those that come with this package, as loaded.
        reserved_bytes: free memory of a graphics card that tiles do not fill, however many could go together.
    """

    def __init__(self, config: ModelConfig, metadata: dict[str, str] | None = None):
        self.config = config
        self.schedule = config.schedule()
        self.unet = SwinUNet(config.unet)
        self.autoencoder = next(
            module(config.autoencoder) for module, kind in AUTOENCODERS.values() if isinstance(config.autoencoder, kind)
        )
        self.metadata = dict(metadata or {})
        self.bundled, self.reserved_bytes = "", 0
        self.eval()

    @property
    def scale(self) -> int:
        return self.config.scale

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @property
    def computes_in_half(self) -> bool:
        """Whether one of the networks is in a number format that may overflow; hosts may give them different ones."""
        weights = (next(module.parameters(), None) for module in (self.unet, self.autoencoder))
        return any(weight is not None and weight.dtype != torch.float32 for weight in weights)

    def eval(self) -> ResShiftModel:
        """Inference mode of both networks; no gradients."""
        for module in (self.unet, self.autoencoder):
            module.eval().requires_grad_(False)
        return self

    @torch.inference_mode(False)  # weights that were moved in it could not be moved, or learn, outside of it
    def to(self, device=None, dtype: torch.dtype | None = None) -> ResShiftModel:
        """Move and convert in place, and return self; a number format may come first, as torch has it. See `layout_for`."""
        if isinstance(device, torch.dtype):
            device, dtype = dtype, device
        layout = layout_for(self.device if device is None else torch.device(device))
        for module in (self.unet, self.autoencoder):
            module.to(device=device, dtype=dtype, memory_format=layout)
        return self

    def in_float32(self) -> ResShiftModel:
        """A copy in float32 on the same device, for a tile that overflowed."""
        return self.copied(self.device, torch.float32)

    def copied(self, device: str | torch.device, dtype: torch.dtype) -> ResShiftModel:
        """A copy elsewhere; on the way no second one lies where this one does."""
        twin = copy.copy(self)
        for part in ("unet", "autoencoder"):
            module = getattr(self, part)
            exact = {id(weight) for book in module.modules() if isinstance(book, Codebook) for weight in book.parameters()}
            weights = {
                id(weight): _copied(weight, device, weight.dtype if id(weight) in exact else dtype)
                for weight in module.parameters()
            }
            setattr(twin, part, copy.deepcopy(module, weights))  # which takes these for copies that it has made already
        return twin

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Weights under `unet.` and `autoencoder.`."""
        return {f"{part}.{key}": value for part in PARTS for key, value in getattr(self, part).state_dict().items()}

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Strict inverse of `state_dict`.

        Raises:
            RuntimeError: weights are missing, have another shape, or belong to no part.
        """
        if stray := stray_weights(state_dict):
            raise RuntimeError(f"{len(stray)} weights belong to no part of the model (first: {stray[0]})")
        for part in PARTS:
            own = {key[len(part) + 1 :]: value for key, value in state_dict.items() if key.startswith(part + ".")}
            getattr(self, part).load_state_dict(own, strict=True)

    def guess(self, x_t, y0, schedule: ShiftSchedule, t: int):
        """What the network's output is added to: 0, or y0 itself, or a linear guess from x_t and y0 (`residual_gain`)."""
        if self.config.predict == "x0":
            return torch.zeros_like(y0)
        gain = float(schedule.residual_gain(self.config.residual_std)[t - 1])
        return torch.lerp(y0, x_t, gain) if gain else y0

    def constants(self, schedule: ShiftSchedule) -> list[dict]:
        """What the steps t = 1..T of `schedule` compute for all pictures alike; see `SwinUNet.constants`."""
        return self.unet.constants(torch.tensor(schedule.tau, dtype=torch.float32, device=self.device))

    def denoise(self, x_t, y0, schedule: ShiftSchedule, t: int, condition, constants: dict | None = None):
        """The predicted x0 at step t = 1..T of `schedule`, float32 (B, C, h, w), from x_t as the chain has it.

        `condition` is what `unet.condition(lq, mask)` returned, `constants` the entry
        t - 1 of what `constants(schedule)` did.
        """
        tau = None if constants else torch.full((len(x_t),), float(schedule.tau[t - 1]), device=x_t.device)
        x = x_t * schedule.input_scale(t, self.config.space)
        x = x.to(condition.dtype, memory_format=layout_for(x.device))  # here: the caller's x lives until the network ends
        out = self.unet(x, tau, condition=condition, constants=constants)
        return self.guess(x_t, y0, schedule, t) + out

    @property
    def _has_vqgan(self) -> bool:
        return isinstance(self.config.autoencoder, VQGANConfig)

    def bytes_per_tile(self, tile_height: int, tile_width: int) -> int:
        """Working memory that one tile needs beyond the weights, in bytes: an upper estimate from the widest layers."""
        element = torch.finfo(self.dtype).bits // 8
        pixels = tile_height * tile_width
        unet = self.config.unet
        latent_area = pixels * self.scale**2 // self.config.autoencoder.factor**2
        skips = 3 * (unet.num_res_blocks + 1)  # activations kept for the way up, and what a block holds at once
        bytes_unet = latent_area * unet.model_channels * (skips + 4) * element
        bytes_latents = latent_area * self.config.autoencoder.latent_channels * 6 * 4  # float32 x_t, x0, y0, noise
        bytes_pixels = pixels * self.scale**2 * (7 * self.config.autoencoder.ch * element if self._has_vqgan else 3 * 4 * 4)
        return max(bytes_unet, bytes_pixels) + bytes_latents

    def most_tiles(self, tile_height: int, tile_width: int) -> int:
        """Tiles that may go together, however much memory there is: no tensor may have more numbers than kernels count.

        0 where not even one may; the processor's count further.
        """
        autoencoder = self.config.autoencoder
        widest = autoencoder.ch * autoencoder.ch_mult[min(1, len(autoencoder.ch_mult) - 1)] if self._has_vqgan else 16
        numbers = max(
            tile_height * tile_width * self.scale**2 * widest,  # what the decoder has doubled for the last time
            tile_height * tile_width * self.scale**2 // autoencoder.factor**2 * self.config.unet.model_channels * 4,
        )
        most = (MOST_NUMBERS_MPS if self.device.type == "mps" else MOST_NUMBERS) // numbers
        return max(1, most) if self.device.type == "cpu" else most

    def __repr__(self) -> str:
        millions = sum(p.numel() for m in (self.unet, self.autoencoder) for p in m.parameters()) / 1e6
        return (
            f"ResShiftModel({self.config.name or self.config.variant or 'custom'}, x{self.scale}, "
            f"{self.config.default_steps} steps, {millions:.1f} M parameters, {self.dtype}, {self.device})"
        )
