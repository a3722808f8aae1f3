"""The VQGAN (Esser et al., 2021) whose latent space the published ResShift checkpoints work in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from . import matmul
from .device import layout_for
from .normalization import GroupNorm
from .unet import Upsample, overwriting_silu
from .winograd import Conv3x3

CODES_CHUNK = 1024  # latent vectors compared with the codebook at a time: 32 MiB of distances for 8192 codes,
CODES_CHUNK_CPU = 128  # where they are to stay in the cache
QUERIES_CHUNK = 1024  # rows of the middle attention's score matrix at a time,
QUERIES_CHUNK_CUDA = 4096  # where fused kernels make none, and want to fill the device: NVIDIA; most of AMD's cards have none


@dataclass(frozen=True)
class VQGANConfig:
    """Everything that fixes the autoencoder. The defaults are the published f4 one (55.3 M parameters)."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: tuple[int, ...] = (2, 2, 2)  # per level of the encoder; the decoder has one more
    z_channels: int = 3
    embed_dim: int = 3
    n_embed: int = 8192

    @property
    def factor(self) -> int:
        """Pixels per latent position along a side."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def latent_channels(self) -> int:
        return self.embed_dim


def _norm(channels):
    return GroupNorm(channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """norm, swish, conv3x3, twice, plus the input (through a 1x1 convolution where the width changes)."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = Conv3x3(channels, out_channels)
        self.norm2 = _norm(out_channels)
        self.conv2 = Conv3x3(out_channels, out_channels)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x):
        h = self.conv1(overwriting_silu(self.norm1(x)))
        h = self.conv2(overwriting_silu(self.norm2(h)))
        return h.add_(self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """x + proj_out(attention(norm(x))) with one head over all positions; the queries go in chunks, so memory is O(N)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        height, width = x.shape[-2:]
        h = self.norm(x)
        # (B, 1, N, C): fused kernels take four dimensions, the last one dense, which AMD's convolutions do not return
        q, k, v = (conv(h).flatten(2).transpose(1, 2).unsqueeze(1).contiguous() for conv in (self.q, self.k, self.v))
        if x.dtype in (torch.float32, torch.bfloat16) and matmul.faster(q, k, v):
            h = matmul.attention(q, k, v)
        else:
            chunk = QUERIES_CHUNK_CUDA if x.is_cuda and torch.version.hip is None else QUERIES_CHUNK
            h = torch.cat([F.scaled_dot_product_attention(part, k, v) for part in q.split(chunk, dim=2)], dim=2)
        h = h.squeeze(1).transpose(1, 2).unflatten(2, (height, width))
        return self.proj_out(h.contiguous(memory_format=layout_for(x.device))).add_(x)


class Downsample(nn.Module):
    """Zero-pad one pixel right and bottom, conv3x3 with stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """The residual blocks of one resolution under `block`, then possibly `downsample` or `upsample`."""

    def __init__(self, channels: int, out_channels: int, blocks: int):
        super().__init__()
        widths = [channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in zip(widths, widths[1:]))

    def forward(self, x):
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, z_channels, H / factor, W / factor)."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels = config.ch
        for i, (mult, blocks) in enumerate(zip(config.ch_mult, config.num_res_blocks)):
            level = Level(channels, config.ch * mult, blocks)
            channels = config.ch * mult
            if i != len(config.ch_mult) - 1:
                level.downsample = Downsample(channels)
            self.down.append(level)
        self.mid = Middle(channels)
        self.norm_out = _norm(channels)
        self.conv_out = nn.Conv2d(channels, config.z_channels, 3, padding=1)

    def forward(self, x):
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(overwriting_silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """(B, z_channels, h, w) -> (B, 3, h * factor, w * factor)."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        channels = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = Middle(channels)
        levels = []  # from the lowest resolution up; `up` is indexed from the highest
        for i, (mult, blocks) in reversed(list(enumerate(zip(config.ch_mult, config.num_res_blocks)))):
            level = Level(channels, config.ch * mult, blocks + 1)
            channels = config.ch * mult
            if i:
                level.upsample = Upsample(channels)
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(channels)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z):
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(overwriting_silu(self.norm_out(h)))


def _distances(vectors, book, norms, out=None):
    """|b|^2 - 2 v b, the squared distance but for |v|^2: vectors (N, C), book (K, C), norms (K,) -> (N, K)."""
    return torch.addmm(norms, vectors, book.T, alpha=-2, out=out)


def _distances_exactly(vectors, book, norms):
    """The same where hosts let products of matrices be in TF32. Channels are few; torch.cdist starts 256 threads for each number."""
    distances = norms
    for values, codes in zip(vectors.unsqueeze(2).unbind(1), book.unbind(1)):  # (N, 1), (K,)
        distances = torch.addcmul(distances, values, codes, value=-2)
    return distances


def _nearest_on_cpu(vectors, book, norms):
    """The number of the nearest code, (N, C) -> (N,). `min` takes two thirds of `argmin`'s time there."""
    distances = norms.new_empty(min(CODES_CHUNK_CPU, len(vectors)), len(book))  # filled again and again
    parts = vectors.split(CODES_CHUNK_CPU)
    return torch.cat([_distances(part, book, norms, distances[: len(part)]).min(1).indices for part in parts])


class Codebook(nn.Module):
    """The learned codes, and the nearest one to a latent vector. They stay as exact as they are when a model is converted:
    rounded to bf16, one vector in a hundred would get another code.
    """

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.n_embed, config.embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / config.n_embed, 1 / config.n_embed)

    def codes(self, z):
        """Index of the nearest code by squared distance in float32. (B, C, h, w) -> (B, h, w) int64."""
        book = self.embedding.weight.float()
        vectors = z.float().permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        norms = book.square().sum(1)
        if matmul.only_computing(vectors, self.embedding.weight):
            codes = _nearest_on_cpu(vectors, book, norms)
        else:
            measure = _distances_exactly if z.is_cuda else _distances
            codes = torch.cat([measure(part, book, norms).argmin(1) for part in vectors.split(CODES_CHUNK)])
        return codes.view(z.shape[0], *z.shape[2:])

    def _apply(self, fn, recurse=True):
        def move(tensor):
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype or tensor.dtype != torch.float32 else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def forward(self, z):
        """Every vector replaced by its nearest code; gradients pass straight through to z."""
        nearest = self.embedding(self.codes(z)).permute(0, 3, 1, 2).to(z.dtype, memory_format=layout_for(z.device))
        return z + (nearest - z).detach() if z.requires_grad else nearest


class VQGAN(nn.Module):
    """encode: (B, 3, H, W) in [-1, 1] -> latent, not quantised. decode: latent -> (B, 3, H, W), nominally in [-1, 1]."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def encode(self, image):
        return self.quant_conv(self.encoder(image.to(self.quant_conv.weight.dtype)))

    def decode(self, latent, quantize: bool = True):
        """`quantize=False` decodes the latent as it is; published pipelines always quantise."""
        z = self.quantize(latent) if quantize else latent
        return self.decoder(self.post_quant_conv(z.to(self.post_quant_conv.weight.dtype)))
