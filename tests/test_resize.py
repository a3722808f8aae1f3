"""Bicubic enlargement as a convolution, against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import resshift_core as rs
from resshift_core import tile_runs
from resshift_core.resize import _bicubic_weights, bicubic_blocks

from .standin import small_model


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_blocks_are_those_of_the_enlarged_picture(scale):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 11, 14) * 2 - 1
    large = F.interpolate(images.double(), scale_factor=scale, mode="bicubic", align_corners=False)
    inner = large[..., 2 * scale : -2 * scale, 2 * scale : -2 * scale]
    found = bicubic_blocks(images, scale)
    assert found.shape == (2, 3 * scale**2, 7, 10) and found.is_contiguous()
    torch.testing.assert_close(found, F.pixel_unshuffle(inner, scale).float(), atol=1e-6, rtol=0)


def test_weights_that_are_kept_serve_networks_that_learn():
    _bicubic_weights.cache_clear()
    with torch.inference_mode():
        bicubic_blocks(torch.rand(1, 3, 8, 8), 4)
    images = torch.rand(1, 3, 8, 8, requires_grad=True)
    bicubic_blocks(images, 4).sum().backward()
    assert images.grad is not None


def test_the_built_in_model_s_latent_is_made_so(monkeypatch):
    """And the picture is the same either way."""
    model, images, used = rs.load_model("builtin", device="cpu", dtype="fp32"), torch.rand(1, 3, 20, 28), []
    blocks = tile_runs.bicubic_blocks
    monkeypatch.setattr(tile_runs, "bicubic_blocks", lambda *given: used.append(1) or blocks(*given))
    found = rs.upscale(model, images)
    assert used
    monkeypatch.setattr(tile_runs, "bicubic_blocks", lambda crops, scale: F.pixel_unshuffle(plain(crops, scale), scale))
    torch.testing.assert_close(found, rs.upscale(model, images), atol=1e-5, rtol=0)


def plain(crops, scale):
    large = F.interpolate(crops, scale_factor=scale, mode="bicubic", align_corners=False)
    return large[..., 2 * scale : -2 * scale, 2 * scale : -2 * scale].contiguous()


@pytest.mark.parametrize("overrides", [{"scale": 2, "lq_stages": 1}, {"scale": 1, "lq_stages": 2}])
def test_other_scales_go_the_general_way(monkeypatch, overrides):
    monkeypatch.setattr(tile_runs, "bicubic_blocks", lambda *_: pytest.fail("the latent has other blocks"))
    model = small_model(**overrides)
    assert rs.upscale(model, torch.rand(1, 3, 16, 16)).shape[-1] == 16 * model.scale
