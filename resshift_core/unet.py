"""ResShift's network: a UNet whose attention is Swin layers. It takes x_t and the low-resolution picture, predicts x0.

Module and key names are those of the published checkpoints, so that their state dicts load strictly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .degradation import DESCRIPTION, DegradationEstimator
from .device import layout_for
from .normalization import NORMS
from .swin import SwinBlock, SwinLayer
from .winograd import Conv3x3

MOST_PREPARED = 1 << 22  # weights, of all steps, that have FiLM in them; beyond, it stays an operation of its own


@dataclass(frozen=True)
class UNetConfig:
    """Everything that fixes the network. The defaults are the published x4 network (118.59 M parameters).

    The fields after `image_size` are for models of our own; published checkpoints use their defaults.
    """

    in_channels: int = 3  # of the latent x_t
    out_channels: int = 3  # of the latent x0
    lq_channels: int = 3  # of the low-resolution picture (RGB)
    mask: bool = False  # inpainting: the mask is one more input channel beside the picture
    lq_stages: int = 0  # halvings from the picture's size to the latent's
    model_channels: int = 160
    channel_mult: tuple[int, ...] = (1, 2, 2, 4)  # width of each level, in model_channels
    num_res_blocks: int = 2  # per level on the way down; one more on the way up
    swin_depth: int = 2  # blocks of a Swin layer; 0 = no attention
    swin_channels: int = 192
    head_channels: int = 32
    window: int = 8
    mlp_ratio: float = 4.0
    image_size: int = 64  # nominal latent size; says which levels are too small to shift their windows
    norm: str = "group"  # a key of normalization.NORMS
    shift_mask: str = "resshift"  # or "swin"
    trunk_blocks: int = 0  # residual blocks on the low-resolution picture alone, computed once for all steps
    degradation_channels: int = 0  # of what the trunk's blocks are told of the whole picture's degradation; 0 = nothing

    @property
    def latent_multiple(self) -> int:
        """Height and width of the latent must be multiples of this."""
        levels = 2 ** (len(self.channel_mult) - 1)
        return levels * self.window if self.swin_depth else levels


class TimestepEmbedding(nn.Sequential):
    """Sinusoids of t (cosines, then sines; frequencies 10000^(-i / half)) through Linear, SiLU, Linear. (B,) -> (B, 4C)."""

    def __init__(self, channels: int):
        super().__init__(nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels))
        self.channels = channels

    def forward(self, t):
        half = self.channels // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angles = t.float()[:, None] * frequencies  # float32: t may be fractional
        embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
        return super().forward(embedding.to(self[0].weight.dtype))


def overwriting_silu(x):
    """SiLU of what nobody else holds: in place, unless a gradient will need it (autograd would copy it first)."""
    return F.silu(x, inplace=not x.requires_grad)


class OverwritingSiLU(nn.SiLU):
    def forward(self, x):
        return overwriting_silu(x)


def convolved_part(weight, part, first: int, bias=None):
    """What the channels `part` of a convolution's input, number `first` and those after it, add to its output of the same size.

    Apple's library reads a weight as if it were dense, wherever its numbers lie (macOS 15 and later, with torch 2.5 to 2.13).
    """
    taken = weight[:, first : first + part.shape[1]]
    if layout_for(part.device) is torch.contiguous_format:
        taken = taken.contiguous()
    return F.conv2d(part, taken, bias, padding=weight.shape[-1] // 2)


class ResBlock(nn.Module):
    """norm, SiLU, conv3x3; norm, FiLM by the time embedding, SiLU, conv3x3; plus the input.

    In the trunk an embedding of the picture's degradation takes the place of the time's; `emb_channels=0` leaves it out.
    """

    def __init__(self, channels: int, out_channels: int, emb_channels: int, norm: str):
        super().__init__()
        self.in_layers = nn.Sequential(
            NORMS[norm](channels),
            nn.SiLU() if norm == "none" else OverwritingSiLU(),  # without a norm it is shown the block's input
            Conv3x3(channels, out_channels),
        )
        if emb_channels:
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels))
        self.out_layers = nn.Sequential(
            NORMS[norm](out_channels),
            OverwritingSiLU(),
            nn.Identity(),  # the published key of the convolution is 3: training put a dropout of rate 0 here
            Conv3x3(out_channels, out_channels),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def film(self, emb) -> tuple[torch.Tensor, torch.Tensor]:
        """What the features are multiplied by, and what is then added, (B, C, 1, 1), of a time embedding (B, E)."""
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        return 1 + scale, shift

    def prepared(
        self, film, into_weights: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """(weight, bias) of the first convolution, and the FiLM that is left for its output.

        None is left of one that all pictures share, where no norm comes first: s (w * x + b) + t = (s w) * x + (s b + t).
        """
        conv = self.in_layers[2]
        if not into_weights or len(film[0]) > 1 or not isinstance(self.out_layers[0], nn.Identity):
            return conv.weight, conv.bias, film
        scale, shift = (part.float() for part in film)
        weight = conv.weight.float() * scale.reshape(-1, 1, 1, 1)
        bias = torch.addcmul(shift.flatten(), conv.bias.float(), scale.flatten())
        return weight.to(conv.weight.dtype), bias.to(conv.bias.dtype), None

    def forward(self, x, emb=None, prepared=None):
        """x: in blocks without a norm also a list of two tensors, whose channels follow one another. It is emptied, and they
        are overwritten: nobody else may hold them.
        prepared: what `prepared(film(emb))` returned, in place of emb.
        """
        weight, bias, film = prepared or self.prepared(None if emb is None else self.film(emb), into_weights=False)
        if isinstance(x, list):
            h, plain = self._of_two(x, weight, bias)
        else:
            norm, silu, conv = self.in_layers
            h, plain = conv(silu(norm(x)), weight, bias), None
        h = self.out_layers[0](h)
        if film is not None:
            h = torch.addcmul(film[1], h, film[0], out=None if torch.is_grad_enabled() else h)
        h = self.out_layers[1:](h)
        return h.add_(self.skip_connection(x) if plain is None else plain)

    def _of_two(self, pair, weight, bias):
        """(in_layers, skip_connection) of two tensors that are not joined: what is twice as large as all others leaves holes in
        the allocator's memory that nothing else fills."""
        x, skip = pair
        pair.clear()
        channels, through = x.shape[1], self.skip_connection
        if isinstance(through, nn.Conv2d):
            plain = convolved_part(through.weight, x, 0, through.bias).add_(convolved_part(through.weight, skip, channels))
        else:
            plain = torch.cat([x, skip], dim=1)
        h = convolved_part(weight, overwriting_silu(x), 0, bias)
        del x
        return h.add_(convolved_part(weight, overwriting_silu(skip), channels)), plain


class Downsample(nn.Module):
    """conv3x3 with stride 2 under the key `op`."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.op(x)


class Upsample(nn.Module):
    """Nearest x2, then conv3x3 under the key `conv`."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x):
        return self.conv.of_doubled(x)


class Stage(nn.Sequential):
    """One entry of the network's block lists: hands the time embedding, or the constants, to the layers in it."""

    def forward(self, x, emb, constants=None):
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb, constants and constants[layer])
            else:
                x = layer(x, constants) if isinstance(layer, SwinLayer) else layer(x)
        return x


class Trunk(nn.Sequential):
    """A convolution and residual blocks on the low-resolution picture alone; emb: (B, E), what they are told of it.

    (1, E), the same for all, goes into the weights on a processor, unless there is something to learn. Graphics cards have nothing
    from that, and compute several pictures at a time, which would come out as by another rounding.
    """

    def forward(self, x, emb=None):
        opening, *blocks = self
        x = opening(x)
        into_weights = emb is not None and x.device.type == "cpu" and not torch.is_grad_enabled()
        for block in blocks:
            x = block(x, None, block.prepared(block.film(emb))) if into_weights else block(x, emb)
        return x


def _feature_extractor(config: UNetConfig) -> tuple[nn.Module, int]:
    """The low-resolution branch down to latent size, and the number of its output channels."""
    channels = config.lq_channels + config.mask
    if not config.lq_stages:
        return nn.Identity(), channels
    layers, width = [], 16
    for _ in range(config.lq_stages):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU(), Downsample(width, 2 * width)]
        channels = width = 2 * width
    return nn.Sequential(*layers), channels


class SwinUNet(nn.Module):
    """f(x_t, t, y0): the prediction of x0 (or of x0 - y0, as the model's configuration says) in latent space.

    `forward(x, t, lq, mask)`:
        x: (B, in_channels, h, w), x_t already multiplied by `ShiftSchedule.input_scale`.
        t: (B,), step index from 0, may be fractional; not looked at where `constants` are given.
        lq: (B, 3, H, W) in [-1, 1], the low-resolution picture before any upsampling; H = h * 2^lq_stages.
        mask: (B, 1, H, W), -1 = keep, +1 = fill in; inpainting networks only.
        condition: what `condition(lq, mask)` returned, given in place of lq and mask; it is the same for every step.
        constants: the entry for this t of what `constants` returned, the same for every picture.
        degradation: as `condition` takes it.
    Returns (B, out_channels, h, w). h and w must be multiples of `config.latent_multiple`.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        width, emb_channels = config.model_channels, 4 * config.model_channels
        self.time_embed = TimestepEmbedding(width)
        self.feature_extractor, lq_features = _feature_extractor(config)
        if config.trunk_blocks:
            told = config.degradation_channels
            self.trunk = Trunk(
                nn.Conv2d(lq_features, width, 3, padding=1),
                *(ResBlock(width, width, told, config.norm) for _ in range(config.trunk_blocks)),
            )
            if told:
                self.degradation = DegradationEstimator()
                self.degradation_embed = nn.Sequential(nn.Linear(len(DESCRIPTION), told), nn.SiLU(), nn.Linear(told, told))
            lq_features = width

        def res(channels, out_channels):
            return ResBlock(channels, out_channels, emb_channels, config.norm)

        def swin(channels, level):
            if not config.swin_depth:
                return []
            heads = config.swin_channels // config.head_channels
            shifts = config.image_size // 2**level > config.window
            return [
                SwinLayer(
                    channels, config.swin_channels, config.swin_depth, heads, config.window, config.mlp_ratio,
                    config.norm, shifts, config.shift_mask,
                )
            ]  # fmt: skip

        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(config.in_channels + lq_features, width, 3, padding=1))])
        channels, skips = width, [width]
        last = len(config.channel_mult) - 1
        for level, mult in enumerate(config.channel_mult):
            for i in range(config.num_res_blocks):
                self.input_blocks.append(Stage(res(channels, mult * width), *(swin(mult * width, level) if i == 0 else [])))
                channels = mult * width
                skips.append(channels)
            if level != last:
                self.input_blocks.append(Stage(Downsample(channels, channels)))
                skips.append(channels)

        self.middle_block = Stage(res(channels, channels), *swin(channels, last), res(channels, channels))

        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            for i in range(config.num_res_blocks + 1):
                layers = [res(channels + skips.pop(), config.channel_mult[level] * width)]
                channels = config.channel_mult[level] * width
                if i == 0:
                    layers += swin(channels, level)
                if level and i == config.num_res_blocks:
                    layers.append(Upsample(channels))
                self.output_blocks.append(Stage(*layers))

        self.out = nn.Sequential(
            NORMS[config.norm](channels), nn.SiLU(), nn.Conv2d(channels, config.out_channels, 3, padding=1)
        )

    def stages(self):
        """What every step computes, from the first block to the last."""
        return *self.input_blocks, self.middle_block, *self.output_blocks

    def condition(self, lq, mask=None, degradation=None):
        """The part of the network that sees the low-resolution picture alone, up to what it adds to the first features.

        (B, 3, H, W) -> (B, model_channels, h, w). degradation: (B, 10), what `self.degradation` says of the pictures that lq are
        parts of, or (1, 10), the same for all; None = estimated from lq.
        """
        if mask is not None:
            lq = torch.cat([lq, mask], dim=1)
        features = self.feature_extractor(lq.to(self.out[2].weight.dtype))
        if self.config.trunk_blocks:
            features = self.trunk(features, self.told(lq[:, :3], degradation))
        opening = self.input_blocks[0][0]
        return convolved_part(opening.weight, features, self.config.in_channels, opening.bias)

    def told(self, lq, degradation):
        """The embedding of what happened to the picture, (B, degradation_channels), or None."""
        if not self.config.degradation_channels:
            return None
        if degradation is None:
            degradation = self.degradation(lq)
        return self.degradation_embed(degradation.to(self.out[2].weight.dtype))

    def constants(self, t) -> list[dict[nn.Module, torch.Tensor | tuple]]:
        """What the steps t, (T,), compute from t and the weights alone, for each step: FiLM vectors, or the weights that have them
        in them (`ResBlock.prepared`), and biases of the windows.

        These are a quarter of the operations of a step of the published networks, and small ones: a GPU waits for their launch.
        """
        emb, dtype = self.time_embed(t), self.out[2].weight.dtype
        biases = {module: module.biases().to(dtype) for module in self.modules() if isinstance(module, SwinBlock)}
        timed = [block for stage in self.stages() for block in stage if isinstance(block, ResBlock)]
        films = [zip(*(part.split(1) for part in module.film(emb))) for module in timed]
        few = len(t) * sum(block.in_layers[2].weight.numel() for block in timed) <= MOST_PREPARED
        return [{**biases, **{block: block.prepared(film, few) for block, film in zip(timed, step)}} for step in zip(*films)]

    def forward(self, x, t, lq=None, mask=None, condition=None, constants=None, degradation=None):
        emb = self.time_embed(t) if constants is None else None
        if condition is None:
            condition = self.condition(lq, mask, degradation)
        x = x.to(condition.dtype, memory_format=layout_for(x.device))
        h = convolved_part(self.input_blocks[0][0].weight, x, 0).add_(condition)
        del x
        skips = [h]
        for stage in self.input_blocks[1:]:
            h = stage(h, emb, constants)
            skips.append(h)
        h = self.middle_block(h, emb, constants)
        for stage in self.output_blocks:
            # a line of its own: the old h goes before the stage begins
            h = [h, skips.pop()] if self.config.norm == "none" else torch.cat([h, skips.pop()], dim=1)
            h = stage(h, emb, constants)
        return self.out(h)
