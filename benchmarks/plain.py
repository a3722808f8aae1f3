"""The published network written plainly, as a baseline: float32, eager, nothing kept from call to call.

Scores of every attention are materialised, masks and biases are made anew at every call, the distances of all latent vectors to all
8192 codes stand in memory at once, convolutions are torch's. The mathematics, the weights and the pipeline around it are the same.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F
from einops import rearrange

import resshift_core as rs
from resshift_core import heap, matmul, swin, vqgan, winograd


def make_plain(model: rs.ResShiftModel) -> rs.ResShiftModel:
    """A float32 copy of a model, row-major, with the plain methods in place of ours. See `without_kept_memory`, too."""
    plain = replace_methods(model, METHODS)
    for module in (plain.unet, plain.autoencoder):
        module.to(memory_format=torch.contiguous_format)
    return plain


def instead(owner, name: str, other, run: Callable) -> Callable:
    """`run` with another function in place of one of ours."""

    def replaced():
        with mock.patch.object(owner, name, other):
            return run()

    return replaced


def without_kept_memory(run: Callable) -> Callable:
    """`run` with the C library's own rules for what is freed."""
    return instead(heap, "_library", lambda: None, run)


def replace_methods(model: rs.ResShiftModel, methods: dict) -> rs.ResShiftModel:
    """A float32 copy of a model with other methods: {class of a layer: (name, function)}, as in METHODS."""
    twin = model.in_float32()
    for module in (twin.unet, twin.autoencoder):
        for layer in module.modules():
            if type(layer) in methods:
                name, method = methods[type(layer)]
                setattr(layer, name, types.MethodType(method, layer))
    return twin


def _window_attention(self, x, bias):
    q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
    scores = (scores.unflatten(0, (-1, bias.shape[0])) + bias).flatten(0, 1)
    return self.proj(rearrange(scores.softmax(-1) @ v, "b h n d -> b n (h d)"))


def _linear(self, x):
    return F.linear(x, self.weight, self.bias)


def _new_bias(self, biases, rows, columns):
    table = self.attn.relative_position_bias_table
    bias = table[swin.relative_position_index.__wrapped__(self.window).to(table.device)].permute(2, 0, 1)[None]
    if self.shift:
        kinds = swin.window_kinds.__wrapped__(self.mask_kind, rows, columns, table.device)
        bias = bias + swin.window_masks.__wrapped__(self.mask_kind, self.window).to(bias)[kinds][:, None]
    return bias


def _middle_attention(self, x):
    height, width = x.shape[-2:]
    h = self.norm(x)
    q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
    weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1)
    return x + self.proj_out((weights @ v).transpose(1, 2).unflatten(2, (height, width)))


def _codes(self, z):
    book, vectors = self.embedding.weight, z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
    distances = vectors.square().sum(1, keepdim=True) + book.square().sum(1) - 2 * vectors @ book.T
    return distances.argmin(1).view(z.shape[0], *z.shape[2:])


def _never(self, x, factor=1):
    return False


METHODS = {
    matmul.Linear: ("forward", _linear),
    swin.WindowAttention: ("forward", _window_attention),
    swin.SwinBlock: ("bias_of_windows", _new_bias),
    vqgan.AttnBlock: ("forward", _middle_attention),
    vqgan.Codebook: ("codes", _codes),
    winograd.Conv3x3: ("filters", _never),
}
