"""Colour transfer: exact on colour shifts, in bands as on the whole picture."""

import pytest
import torch

import resshift_core as rs
from resshift_core import color
from resshift_core.color import low_frequency, match_color


def textured(height=96, width=80, seed=0):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 0.4 + 0.3


@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_a_colour_cast_is_removed(method):
    reference = textured()
    shifted = reference + torch.tensor([0.1, -0.05, 0.2]).view(1, 3, 1, 1)
    torch.testing.assert_close(match_color(shifted.clone(), reference, method), reference, atol=1e-5, rtol=0)


def test_wavelet_keeps_the_results_detail_and_the_references_colour():
    result, reference = textured(seed=1), torch.full((1, 3, 96, 80), 0.5)
    out = match_color(result.clone(), reference, "wavelet")
    torch.testing.assert_close(out, result - low_frequency(result) + 0.5, atol=1e-5, rtol=0)


def test_bands_of_rows_change_nothing(monkeypatch):
    result, reference = textured(300, 50, 2), textured(300, 50, 3)
    whole = match_color(result.clone(), reference, "wavelet")
    monkeypatch.setattr(color, "BAND_ROWS", 70)
    torch.testing.assert_close(match_color(result.clone(), reference, "wavelet"), whole, atol=1e-6, rtol=0)


def test_adain_takes_mean_and_contrast():
    result, reference = textured(seed=4), textured(seed=5) * 0.5 + 0.2
    out = match_color(result, reference, "adain")
    torch.testing.assert_close(out.mean((2, 3)), reference.mean((2, 3)), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std((2, 3)), reference.std((2, 3)), atol=1e-3, rtol=0)


def test_a_flat_picture_stays_finite():
    flat = torch.full((1, 3, 20, 20), 0.4)
    for method in ("wavelet", "adain"):
        torch.testing.assert_close(match_color(flat.clone(), flat, method), flat, atol=1e-5, rtol=0)


def test_none_and_unknown():
    result = textured()
    assert torch.equal(match_color(result.clone(), result, "none"), result)
    with pytest.raises(rs.InputError, match="color_fix is 'lab'; known are none, wavelet, adain"):
        match_color(result, result, "lab")


def test_adain_leaves_paper_white():
    """A sharper picture of lines has more contrast than its enlargement; taking that away would make white paper grey."""
    small = torch.ones(1, 3, 32, 32)
    small[..., 16] = 0.4
    large = torch.ones(1, 3, 128, 128)
    large[..., 65:67] = 0.0  # the line, thinner and darker, and as much ink when shrunk
    out = match_color(large, small, "adain")
    assert out[..., :60].min() > 0.995


def test_adain_of_a_single_pixel():
    """Its contrast is 0, not a division of nothing by nothing."""
    reference = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
    assert torch.allclose(match_color(torch.rand(1, 3, 1, 1), reference, "adain"), reference)
