"""3x3 convolutions with a quarter of the multiplications, for wide float32 layers on a processor.

Minimal filtering, F(4x4, 3x3) of Lavin and Gray (CVPR 2016, arXiv 1509.09308, section 4): a tile of 4x4 outputs Y of one channel is

    Y = A^T [sum over channels of (G w G^T) * (B^T d B)] A,

with d the 6x6 inputs that it reads, w the 3x3 weights and * the product of elements: 36 multiplications in place of 144. The sum over
channels is a product of matrices for each of the 36 points; what is before and after it is additions. Where the input is a picture
doubled by nearest neighbours, d has but 4x4 values and 25 of the points are not zero.

In float32 the result differs from the direct sum by a few millionths of its norm. Half precision would lose bits in the additions, so
it takes the direct way, as do layers that learn, narrow layers and other devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from . import matmul


class Limits(NamedTuple):
    """Where filtering is faster, as measured."""

    channels: int  # below, the additions cost more than the multiplications saved
    tiles: int  # of a picture; with fewer, transforming the weights does
    strip: int  # tiles worked on at a time: few enough for the outer cache, enough for fast products


@cache
def limits() -> Limits:
    """With AVX512, multiplications take half as long, and additions, which wait for the cache, as long as elsewhere."""
    return Limits(256, 256, 512) if torch.backends.cpu.get_cpu_capability() == "AVX512" else Limits(128, 64, 256)


class Conv3x3(nn.Conv2d):
    """A convolution of 3x3, stride 1, one zero around: (B, C, H, W) -> (B, K, H, W)."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, x, weight=None, bias=None):
        """weight, bias: others of the same shapes, in place of its own."""
        weight, bias = (self.weight, self.bias) if weight is None else (weight, bias)
        if self.filters(x):
            return convolve(x, weight, bias, PLAIN)
        return F.conv2d(x, weight, bias, padding=1)

    def of_doubled(self, x):
        """The same of x made twice as large by nearest neighbours: (B, C, H, W) -> (B, K, 2 H, 2 W)."""
        if self.filters(x, 2):
            return convolve(x, self.weight, self.bias, DOUBLED)
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))

    def filters(self, x: torch.Tensor, factor: int = 1) -> bool:
        """Whether minimal filtering gives the same, sooner; factor: how many times larger the output is along a side."""
        return (
            matmul.only_computing(x, self.weight)  # for one thing, strips depend on the size
            and x.dtype == self.weight.dtype == torch.float32
            and min(self.weight.shape[:2]) >= limits().channels
            and x.shape[-2] * x.shape[-1] * factor**2 >= 16 * limits().tiles
        )


@dataclass(frozen=True)
class Filtering:
    """How 4 outputs in a row come from the `window` inputs that they read, and 3 weights."""

    window: int
    stride: int  # inputs between the windows of neighbouring tiles
    G: tuple[tuple[float, float, float], ...]  # one line per point
    transform_input: Callable  # window inputs -> one value per point, with three scratch tensors
    transform_output: Callable  # one value per point -> 4 outputs, with two scratch tensors; overwrites its input

    @property
    def points(self) -> int:
        return len(self.G)


def _input(d: Sequence, out: Sequence, a, b, c) -> None:
    """out = B^T d, without the products that lines of B^T share."""
    torch.sub(d[4], d[2], out=a)
    torch.sub(d[3], d[1], out=b)
    torch.add(a, b, alpha=2, out=out[3])
    torch.sub(a, b, alpha=2, out=out[4])
    torch.sub(d[0], d[2], out=c)
    torch.add(a, c, alpha=4, out=out[0])
    torch.sub(d[5], d[3], out=c)
    torch.sub(c, b, alpha=4, out=out[5])
    torch.sub(d[4], d[2], alpha=4, out=a)
    torch.sub(d[3], d[1], alpha=4, out=b)
    torch.add(a, b, out=out[1])
    torch.sub(a, b, out=out[2])


def _output(m: Sequence, out: Sequence, a, b) -> None:
    """out = A^T m."""
    torch.add(m[1], m[2], out=a)
    torch.sub(m[1], m[2], out=b)
    torch.add(m[3], m[4], out=m[1])
    torch.sub(m[3], m[4], out=m[2])
    torch.add(b, m[2], alpha=2, out=out[1])
    torch.add(b, m[2], alpha=8, out=b)
    torch.add(b, m[5], out=out[3])
    torch.add(a, m[1], alpha=4, out=out[2])
    torch.add(a, m[1], out=a)
    torch.add(a, m[0], out=out[0])


def _input_of_doubled(d: Sequence, out: Sequence, a, b, c) -> None:
    """B^T of (d0, d1, d1, d2, d2, d3): its point 2 is zero, its points 3 and 4 are multiples of d2 - d1.

    Those come out as d2 - d1, twice; DOUBLED.G has their sum and their difference.
    """
    torch.sub(d[2], d[1], out=a)
    out[2].copy_(a)
    out[3].copy_(a)
    torch.sub(d[2], d[1], alpha=4, out=out[1])
    torch.sub(d[0], d[1], out=b)
    torch.add(a, b, alpha=4, out=out[0])
    torch.sub(d[3], d[2], out=b)
    torch.sub(b, a, alpha=4, out=out[4])


def _output_of_doubled(m: Sequence, out: Sequence, a, b) -> None:
    """A^T of (m0, m1, 0, (m2 + m3) / 2, (m2 - m3) / 2, m4)."""
    torch.add(m[0], m[1], out=a)
    torch.add(a, m[2], out=out[0])
    torch.add(m[1], m[3], alpha=2, out=out[1])
    torch.add(m[1], m[2], alpha=4, out=out[2])
    torch.add(m[1], m[3], alpha=8, out=a)
    torch.add(a, m[4], out=out[3])


_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_G_DOUBLED = (
    _G[0],
    tuple(2 * g for g in _G[1]),
    tuple(3 * g - h for g, h in zip(_G[3], _G[4])),
    tuple(3 * g + h for g, h in zip(_G[3], _G[4])),
    _G[5],
)
PLAIN = Filtering(6, 4, _G, _input, _output)
DOUBLED = Filtering(4, 2, _G_DOUBLED, _input_of_doubled, _output_of_doubled)


@cache
def _G_squared(G: tuple) -> torch.Tensor:
    g = torch.tensor(G, dtype=torch.float64, device="cpu")
    return torch.kron(g, g).float()  # (points^2, 9)


def transformed_weights(weight: torch.Tensor, how: Filtering) -> Callable:
    """G w G^T of weights (K, C, 3, 3), a line of points at a time: a function of its index that returns (points, K, C).

    What it returned before is overwritten.
    """
    flat = weight.permute(2, 3, 0, 1).reshape(9, -1)
    lines = _G_squared(how.G).split(how.points)
    u = flat.new_empty(how.points, flat.shape[1])
    return lambda i: torch.mm(lines[i], flat, out=u).view(-1, *weight.shape[:2])


def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, how: Filtering) -> torch.Tensor:
    """(B, C, H, W) and (K, C, 3, 3) -> (B, K, H, W), twice as high and wide for DOUBLED; channels last."""
    batch, channels, height, width = x.shape
    out_height, out_width = height * 4 // how.stride, width * 4 // how.stride
    down, across = -(-out_height // 4), -(-out_width // 4)  # tiles
    rows = max(1, min(down, limits().strip // across))
    strip = Strip(x, rows, across, len(weight), how)
    weights_of = transformed_weights(weight, how)
    if batch * down > 2 * rows:  # four times the layer's own weights, for as long as this takes
        weights_of = [weights_of(i).clone() for i in range(how.points)].__getitem__
    out = x.new_empty(batch, 4 * down, 4 * across, len(weight))
    for picture, result in zip(x.permute(0, 2, 3, 1), out):
        for first in range(0, down, rows):
            first = min(first, down - rows)  # the last strip may do some rows again
            strip.convolve(picture, first, weights_of, bias, result[4 * first : 4 * (first + rows)])
    return out[:, :out_height, :out_width].permute(0, 3, 1, 2)


class Strip:
    """Some whole rows of tiles, and the buffers in which they are worked on; these stay in the outer cache."""

    def __init__(self, like: torch.Tensor, rows: int, across: int, out_channels: int, how: Filtering):
        self.how, self.rows, self.across = how, rows, across
        channels, points, stride = like.shape[1], how.points, how.stride
        columns = stride * across + 2
        self.window = like.new_zeros(stride * rows + 2, columns, channels)  # of the picture, with a zero on every side

        half_input, full_input = (points, rows, columns, channels), (points, points, rows, across, channels)
        half_output, products = (4, points, rows, across, out_channels), (points, points, rows, across, out_channels)
        scratch_down, scratch_across = (3, *half_input[1:]), (3, *full_input[1:])
        scratch_output = (2, *products[1:])
        # the products are made when B^T d is no longer needed, and transformed when B^T d B is not
        one = _Buffer(like, max(_size(half_input) + max(_size(scratch_down), _size(scratch_across)), _size(products)))
        two = _Buffer(like, max(_size(full_input), _size(half_output) + _size(scratch_output)))

        half, full = one.take(half_input), two.take(full_input)
        self.input_down = _windows(self.window, 0, rows, how), half.unbind(), *one.take(scratch_down, _size(half_input))
        self.input_across = _windows(half, 2, across, how), full.unbind(1), *one.take(scratch_across, _size(half_input))
        self.products, half = one.take(products), two.take(half_output)
        self.factors = [(a.flatten(1, 2), b.flatten(1, 2)) for a, b in zip(full, self.products)]
        scratch = two.take(scratch_output, _size(half_output))
        self.output_down = self.products.unbind(), half.unbind(), *scratch
        self.output_across, self.scratch_across = half.unbind(1), scratch[:, :4].unbind()

    def convolve(self, picture: torch.Tensor, first: int, weights_of: Callable, bias, result: torch.Tensor) -> None:
        """(H, W, C) from the row of tiles `first` on -> (4 rows, 4 across, K), written into `result`."""
        self._take(picture, self.how.stride * first - 1)
        self.how.transform_input(*self.input_down)
        self.how.transform_input(*self.input_across)
        for i, (inputs, products) in enumerate(self.factors):
            _multiply(inputs, weights_of(i), products)
        if bias is not None:
            self.products[1, 1].add_(bias)  # A^T has ones at point 1 for all four outputs
        self.how.transform_output(*self.output_down)
        tiles = result.view(self.rows, 4, self.across, 4, -1).permute(3, 1, 0, 2, 4)
        self.how.transform_output(self.output_across, tiles.unbind(), *self.scratch_across)

    def _take(self, picture: torch.Tensor, top: int) -> None:
        """Rows of the picture from `top` on; zeros where there are none."""
        low, high = max(top, 0), min(top + len(self.window), len(picture))
        self.window[: low - top].zero_()
        self.window[high - top :].zero_()
        self.window[low - top : high - top, 1 : picture.shape[1] + 1].copy_(picture[low:high])


def _multiply(inputs: torch.Tensor, weights: torch.Tensor, out: torch.Tensor) -> None:
    """(points, N, C) and (points, K, C) -> (points, N, K)."""
    if matmul.faster(inputs, weights):
        for a, b, result in zip(inputs, weights, out):
            result.copy_(matmul.product(a, b))
    else:
        torch.bmm(inputs, weights.mT, out=out)


def _windows(x: torch.Tensor, axis: int, count: int, how: Filtering) -> list[torch.Tensor]:
    """Along an axis: the first inputs of all windows, their second inputs, and so on."""
    every = (slice(None),) * axis + (slice(None, None, how.stride),)
    return [x.narrow(axis, i, how.stride * (count - 1) + 1)[every] for i in range(how.window)]


class _Buffer:
    """Memory that several tensors share, one after the other."""

    def __init__(self, like: torch.Tensor, size: int):
        self.flat = like.new_empty(size)

    def take(self, shape: Sequence[int], skip: int = 0) -> torch.Tensor:
        return self.flat[skip : skip + _size(shape)].view(shape)


def _size(shape: Sequence[int]) -> int:
    return math.prod(shape)
