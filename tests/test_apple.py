"""What Apple's GPU does differently, as far as a processor can show it."""

import pytest
import torch
import torch.nn.functional as F

import resshift_core as rs
from resshift_core import device, model, normalization, unet, vqgan, winograd
from training.upload import upload

from . import standin
from .test_pipeline import picture


@pytest.fixture
def apples_convolutions(monkeypatch):
    """Call it, and those of torch 2.5 to 2.13 on macOS 15 run: they read weights as if they were dense, wherever their numbers lie.

    Planes of channels that do not lie one behind the other had wrong results, too, and are refused.
    """
    real = F.conv2d

    def conv2d(x, weight, *args, **words):
        assert x.is_contiguous()
        end = weight.storage_offset() + weight.numel()
        assert end <= weight.untyped_storage().nbytes() // weight.element_size(), "reads beyond the weight's memory"
        return real(x, weight.as_strided(weight.shape, torch.empty(weight.shape).stride()), *args, **words)

    for module in (device, model, normalization, unet, vqgan):
        monkeypatch.setattr(module, "layout_for", lambda device: torch.contiguous_format)
    monkeypatch.setattr(winograd.matmul, "only_computing", lambda *tensors: False)  # a processor's ways of computing
    return lambda: monkeypatch.setattr(F, "conv2d", conv2d)


@pytest.mark.parametrize("name", ["small", "realsr_x4_s4", "faceir_s4"])
def test_convolutions_get_what_they_can_read(apples_convolutions, name):
    network = standin.small_model() if name == "small" else standin.narrow_model(name)
    lq = picture(128, 128) if name == "faceir_s4" else picture(64, 64)
    expected = rs.upscale(network, lq, steps=2, color_fix="wavelet")
    apples_convolutions()
    assert torch.equal(rs.upscale(network, lq, steps=2, color_fix="wavelet"), expected)


@pytest.mark.parametrize(("place", "waits"), [("cuda", False), ("mps", True)])
def test_numbers_are_not_forgotten_on_their_way(place, waits, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking=False: asked.append(non_blocking))
    upload([1.0], torch.device(place))
    assert asked == [not waits]
