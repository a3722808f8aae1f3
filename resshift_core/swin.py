"""The Swin layer of ResShift's UNet: attention inside 8x8 windows, every second time shifted by half a window.

It differs from the textbook layer in three ways that every published checkpoint was trained with: the norms are
GroupNorm over the image rather than LayerNorm over a token, the MLP is made of 1x1 convolutions, and the mask of the
shifted windows is the one described at `shift_mask`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .matmul import Linear
from .normalization import NORMS

MASKED = -100.0  # added to the score of two tokens that must not see each other


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # what is kept must serve training, too, also if an upscale asks for it first
def relative_position_index(window: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Row of the bias table for every (query, key) pair: (dy + w-1) * (2w-1) + (dx + w-1), query minus key.

    Returns int64 (w*w, w*w).
    """
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + window - 1
    dx = x[:, None] - x[None, :] + window - 1
    return (dy * (2 * window - 1) + dx).to(device)


def _apart(side: torch.Tensor) -> torch.Tensor:
    """(N,) region labels -> (N, N) float32, MASKED where two tokens lie in different regions, else 0."""
    return (side[:, None] != side[None, :]).float() * MASKED


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def window_masks(kind: str, window: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """What is added to the scores of the shifted windows, one entry for every kind of window: float32 (kinds, w*w, w*w).

    `window_kinds` says which window is of which kind.

    "swin": the textbook mask. The windows of the bottom row and of the right column hold two regions that were not
    neighbours before the roll; tokens of different regions do not see each other.

    "resshift": what the reference implementation computes, and its checkpoints were trained with. Only the *bottom row of
    windows* is masked, and in it the left half of the columns from the right half. Nothing is masked in the right column
    of windows, and top is never parted from bottom. With the textbook mask instead, outputs are off by 8-30 %.
    """
    half = window // 2
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    top, left = _apart((y < half).flatten().int()), _apart((x < half).flatten().int())
    nothing = torch.zeros_like(top)
    if kind == "resshift":
        return torch.stack([nothing, left]).to(device)
    if kind == "swin":
        return torch.stack([nothing, top, left, (top + left).clamp_(min=MASKED)]).to(device)
    raise ValueError(f"shift_mask is {kind!r}; known are 'resshift' and 'swin'")


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def window_kinds(kind: str, rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Which of `window_masks` each of rows * columns windows has, in row-major order: int64 (rows * columns,)."""
    kinds = torch.zeros(rows, columns, dtype=torch.int64)
    kinds[-1] = 1  # bottom row
    if kind == "swin":
        kinds[:, -1] += 2  # right column
    return kinds.flatten().to(device)


class WindowAttention(nn.Module):
    """Multi-head attention inside windows with a learned bias per relative position.

    (B * K, w*w, C) -> (B * K, w*w, C); `bias` is added to the scores, (K, heads, w*w, w*w): window i has entry i mod K. None:
    that of the relative positions alone (K = 1).
    """

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)

    def bias(self) -> torch.Tensor:
        """Of the relative positions, (1, heads, w*w, w*w); contiguous, for a GPU's fused kernels refuse other masks."""
        index = relative_position_index(self.window, self.relative_position_bias_table.device)
        return self.relative_position_bias_table[index].permute(2, 0, 1)[None].contiguous()

    def forward(self, x, bias=None):
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        bias = (self.bias() if bias is None else bias).to(q.dtype)
        if bias.shape[0] not in (1, x.shape[0]):
            bias = bias.repeat(x.shape[0] // bias.shape[0], 1, 1, 1)  # to every picture of the batch
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(rearrange(x, "b h n d -> b n (h d)"))


class ConvMlp(nn.Module):
    """Two 1x1 convolutions with an exact GELU between them, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with `shift` the windows are moved by half their size."""

    def __init__(self, channels, heads, window, mlp_ratio, norm, shift: bool, mask_kind: str):
        super().__init__()
        self.window, self.shift, self.mask_kind = window, window // 2 if shift else 0, mask_kind
        self.norm1 = NORMS[norm](channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = NORMS[norm](channels)
        self.mlp = ConvMlp(channels, int(channels * mlp_ratio))

    def biases(self) -> torch.Tensor:
        """What is added to the scores, one entry for every kind of window: (kinds, heads, w*w, w*w). The same for every step."""
        bias = self.attn.bias()
        return bias + window_masks(self.mask_kind, self.window, bias.device)[:, None].to(bias) if self.shift else bias

    def bias_of_windows(self, biases: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """One entry for every window of a picture, (rows * columns, heads, w*w, w*w), or one for all of them."""
        return biases[window_kinds(self.mask_kind, rows, columns, biases.device)] if self.shift else biases

    def forward(self, x, biases=None):
        """(B, C, H, W) -> (B, C, H, W), H and W multiples of the window. biases: what `biases()` returned."""
        rows, columns = x.shape[-2] // self.window, x.shape[-1] // self.window
        h = self.norm1(x)
        if self.shift:
            h = torch.roll(h, (-self.shift, -self.shift), (2, 3))
        h = rearrange(h, "b c (r wy) (s wx) -> (b r s) (wy wx) c", wy=self.window, wx=self.window)
        biases = self.biases().to(x.dtype) if biases is None else biases
        h = self.attn(h, self.bias_of_windows(biases, rows, columns))
        h = rearrange(h, "(b r s) (wy wx) c -> b c (r wy) (s wx)", r=rows, s=columns, wy=self.window)
        if self.shift:
            h = torch.roll(h, (self.shift, self.shift), (2, 3))
        x = x + h
        return x + self.mlp(self.norm2(x))


class Projection(nn.Module):
    """A 1x1 convolution under the key `proj`, as the published state dicts name it."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.proj = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x):
        return self.proj(x)


class SwinLayer(nn.Module):
    """Into `swin_channels` by a 1x1 convolution, `depth` blocks, and back. There is no skip around the layer.

    Every second block shifts, except where `shifts` is False: the lowest level of the network, whose nominal size is one
    window, never shifts, however large the picture is.
    """

    def __init__(self, channels, swin_channels, depth, heads, window, mlp_ratio, norm, shifts: bool, mask_kind: str):
        super().__init__()
        self.patch_embed = Projection(channels, swin_channels)
        self.blocks = nn.ModuleList(
            SwinBlock(swin_channels, heads, window, mlp_ratio, norm, shifts and i % 2 == 1, mask_kind) for i in range(depth)
        )
        self.patch_unembed = Projection(swin_channels, channels)

    def forward(self, x, constants=None):
        """constants: see SwinUNet.constants."""
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x, constants and constants[block])
        return self.patch_unembed(x)
