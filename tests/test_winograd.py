"""Minimal filtering against torch's own convolution in float64, which it must not be told from by more than rounding."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resshift_core import winograd
from resshift_core.winograd import DOUBLED, PLAIN, Conv3x3, Limits, convolve


@pytest.fixture(autouse=True)
def without_avx512(monkeypatch):
    monkeypatch.setattr(winograd, "limits", lambda: Limits(128, 64, 256))


def layer(channels: int, out_channels: int) -> Conv3x3:
    torch.manual_seed(channels + out_channels)
    return Conv3x3(channels, out_channels).requires_grad_(False).to(memory_format=torch.channels_last)


def truth(conv: Conv3x3, x: torch.Tensor) -> torch.Tensor:
    bias = None if conv.bias is None else conv.bias.double()
    return F.conv2d(x.double(), conv.weight.double(), bias, padding=1)


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


SHAPES = [
    (1, 8, 8, 4, 4),
    (1, 1, 1, 1, 1),
    (2, 3, 5, 2, 7),
    (1, 5, 3, 9, 1),
    (3, 16, 24, 13, 6),
    (1, 16, 16, 8, 1030),  # wider than a strip has tiles
    (1, 160, 160, 40, 33),
]


@pytest.mark.parametrize("batch, channels, out_channels, height, width", SHAPES)
@pytest.mark.parametrize("strip_tiles", [1, 3, 7, 256])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_plain_and_doubled_agree_with_the_direct_sum(
    batch, channels, out_channels, height, width, strip_tiles, layout, monkeypatch
):
    monkeypatch.setattr(winograd, "limits", lambda: Limits(128, 64, strip_tiles))
    conv = layer(channels, out_channels).to(memory_format=layout)
    x = torch.randn(batch, channels, height, width).contiguous(memory_format=layout)
    before = x.clone()
    got = convolve(x, conv.weight, conv.bias, PLAIN)
    assert got.shape == (batch, out_channels, height, width) and error(got, truth(conv, x)) < 3e-5
    double = F.interpolate(x, scale_factor=2.0, mode="nearest")
    got = convolve(x, conv.weight, conv.bias, DOUBLED)
    assert got.shape == (batch, out_channels, 2 * height, 2 * width) and error(got, truth(conv, double)) < 3e-5
    without = convolve(x, conv.weight, None, PLAIN)
    assert error(without + conv.bias.view(1, -1, 1, 1), truth(conv, x)) < 3e-5
    assert torch.equal(x, before)


def test_a_crop_and_a_slice_of_a_larger_tensor_are_read_as_they_lie():
    conv = layer(8, 8)
    x = torch.randn(2, 8, 20, 20).contiguous(memory_format=torch.channels_last)[:, :, 3:17:2, 1:18]
    assert error(convolve(x, conv.weight, conv.bias, PLAIN), truth(conv, x)) < 3e-5


def test_weights_of_every_point_are_those_of_the_paper():
    """Section 4.3: G w G^T, here for one weight after the other."""
    conv = layer(3, 2)
    weights_of = winograd.transformed_weights(conv.weight, PLAIN)
    G = torch.tensor(PLAIN.G, dtype=torch.float64)
    for i in range(6):
        u = weights_of(i)
        for c in range(3):
            for k in range(2):
                expected = (G @ conv.weight[k, c].double() @ G.T)[i]
                assert torch.allclose(u[:, k, c].double(), expected, atol=1e-6)


def spy(monkeypatch) -> list:
    calls = []
    monkeypatch.setattr(winograd, "convolve", lambda *args: calls.append(args[0].shape) or convolve(*args))
    return calls


def test_wide_float32_layers_on_a_processor_take_it(monkeypatch):
    calls = spy(monkeypatch)
    conv, x = layer(128, 128), torch.randn(1, 128, 32, 32)
    assert error(conv(x), truth(conv, x)) < 3e-5
    assert error(conv.of_doubled(x), truth(conv, F.interpolate(x, scale_factor=2.0, mode="nearest"))) < 3e-5
    assert len(calls) == 2
    small = torch.randn(1, 128, 16, 16)  # large enough only when doubled
    conv(small)
    assert len(calls) == 2
    conv.of_doubled(small)
    assert len(calls) == 3


@pytest.mark.parametrize(
    "channels, out_channels, side, dtype",
    [(64, 128, 32, torch.float32), (128, 64, 32, torch.float32), (128, 128, 31, torch.float32), (128, 128, 32, torch.bfloat16)],
)
def test_others_take_torchs(channels, out_channels, side, dtype, monkeypatch):
    calls = spy(monkeypatch)
    conv, x = layer(channels, out_channels).to(dtype), torch.randn(2, channels, side, side, dtype=dtype)
    assert torch.equal(conv(x), nn.Conv2d.forward(conv, x)) and not calls


def test_layers_that_learn_take_torchs_and_learn(monkeypatch):
    calls = spy(monkeypatch)
    conv, x = layer(128, 128).requires_grad_(True), torch.randn(1, 128, 32, 32, requires_grad=True)
    (conv(x).square().sum() + conv.of_doubled(x).square().sum()).backward()
    assert not calls and conv.weight.grad.norm() > 0 and x.grad.norm() > 0
    with torch.no_grad():
        conv(x)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "channels, out_channels, side, taken", [(256, 256, 64, True), (255, 256, 64, False), (256, 256, 63, False)]
)
def test_with_avx512_only_larger_layers_take_it(channels, out_channels, side, taken, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    winograd.limits.cache_clear()
    try:
        assert layer(channels, out_channels).filters(torch.empty(1, channels, side, side)) == taken
    finally:
        winograd.limits.cache_clear()


def test_autocast_decides_about_precision(monkeypatch):
    calls = spy(monkeypatch)
    conv, x = layer(128, 128), torch.randn(1, 128, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    assert not calls


def test_not_a_number_stays_in_its_tiles_and_is_not_lost():
    """A tile that is not finite is how the pipeline notices an overflow (design: it is done again in float32)."""
    conv, x = layer(128, 128), torch.randn(1, 128, 32, 32)
    clean = conv(x)
    x[0, 5, 9, 9] = torch.nan
    got = conv(x)
    assert got[:, :, 8:11, 8:11].isnan().all()
    assert torch.equal(got[:, :, 16:], clean[:, :, 16:]) and torch.equal(got[:, :, :, 16:], clean[:, :, :, 16:])


def test_another_default_number_format():
    conv, x = layer(128, 128), torch.rand(1, 128, 20, 20).contiguous(memory_format=torch.channels_last)
    before = torch.get_default_dtype()
    winograd._G_squared.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        out = conv(x)
    finally:
        torch.set_default_dtype(before)
    assert out.dtype == torch.float32 and error(out, truth(conv, x)) < 1e-5
