"""Products of float32 matrices on processors where torch's own are slow.

torch multiplies float32 matrices by MKL, which uses half the width of the registers of AMD's processors with AVX512 (Zen 4 and later). Its
convolutions, and its products in half precision, are oneDNN's, which uses all of it. The operator that torch.compile takes for linear
layers on a processor is oneDNN's product of float32 matrices: 1.7 to 2.2 times as fast there. It is not part of torch's documented
interface, so it is tried out before it is used; elsewhere, and where it is missing, torch's own way is taken.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

SCORES = 4 << 20  # of attention, worked on at a time: few enough for the outer cache, enough for fast products
MIN_CHANNELS = 128  # of both matrices; below, calling the operator costs as much as it saves


class Linear(nn.Linear):
    """(..., C) -> (..., K)."""

    def forward(self, x):
        if x.dtype == self.weight.dtype == torch.float32 and faster(x, self.weight):
            return product(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


def product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """a b^T + bias by oneDNN: (..., N, C), (K, C) and (K,) -> (..., N, K), float32 or bfloat16. Only where `faster` says so.

    oneDNN keeps half a mebibyte for each combination of sizes, of the last thousand.
    """
    return _onednn()(a, b, bias, "none", [], "")


def faster(*tensors: torch.Tensor) -> bool:
    """Whether `product` of the first and the last of these tensors is to be used."""
    if not only_computing(*tensors) or not torch.backends.mkldnn.enabled:
        return False
    (*_, channels), (*_, out_channels, fitting) = tensors[0].shape, tensors[-1].shape
    return min(channels, out_channels) >= MIN_CHANNELS and channels == fitting and _onednn() is not None


def only_computing(*tensors: torch.Tensor) -> bool:
    """Whether torch does nothing but compute with tensors of a processor: it neither learns, nor compiles, nor chooses formats."""
    return (
        not _compiling()  # first: what follows cannot be compiled everywhere
        and not torch.jit.is_tracing()
        and all(type(tensor) in (torch.Tensor, nn.Parameter) and tensor.device.type == "cpu" for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and getattr(forward_ad, "_current_level", -1) < 0  # derivatives forward, which tensors do not tell
        and not _autocasting()
    )


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(C)) v, (B, 1, N, C) each, by `product`; scores and softmax in float32, of some queries at a time."""
    positions, channels = k.shape[-2:]
    rows = max(64, 1 << (SCORES // positions).bit_length() >> 1)  # a power of two: oneDNN keeps what it makes for a number of rows
    out = torch.empty_like(q)
    for queries, keys, values, result in zip(q[:, 0], k[:, 0].float(), v[:, 0].mT.contiguous(), out[:, 0]):
        for part, place in zip(queries.split(rows), result.split(rows)):
            scores = product(part.float() * channels**-0.5, keys)
            weights = torch.softmax(scores, -1, out=scores)
            place.copy_(product(weights.to(values.dtype), values))
    return out


@cache
def _onednn() -> Callable | None:
    """The operator, or None where it is not faster, missing or not what it was."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512" or not _made_by_amd():
        return None
    a, b = (torch.arange(1.0, 13, device="cpu").view(3, 4) * sign for sign in (1, -0.5))
    bias = torch.arange(3.0, device="cpu")
    try:
        operator = torch.ops.mkldnn._linear_pointwise
        same = torch.allclose(operator(a, b, bias, "none", [], ""), a @ b.mT + bias)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return operator if same else None


def _made_by_amd() -> bool:
    try:
        told = Path("/proc/cpuinfo").read_bytes()
    except OSError:
        told = os.environ.get("PROCESSOR_IDENTIFIER", "").encode()  # Windows
    return b"AuthenticAMD" in told


def _compiling() -> bool:
    if hasattr(torch.compiler, "is_compiling"):
        return torch.compiler.is_compiling()
    return "torch._dynamo" in sys.modules and torch._dynamo.is_compiling()  # torch 2.1, where importing it takes long


def _autocasting() -> bool:
    if hasattr(torch.amp, "is_autocast_available"):
        return torch.is_autocast_enabled("cpu")
    return torch.is_autocast_cpu_enabled()  # torch before 2.4
