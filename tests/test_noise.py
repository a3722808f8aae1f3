"""Noise fields: the reference's values, also when a large one is drawn again in bands."""

import pytest
import torch

from resshift_core import noise
from resshift_core.noise import NoiseField


def reference(seed, draws, *shape):
    torch.manual_seed(seed)
    return [torch.randn(1, *shape)[0] for _ in range(draws)]


def test_values_and_order_are_those_of_the_global_generator():
    field = NoiseField(7, 3, 3, 64, 128)
    for draw, expected in enumerate(reference(7, 3, 3, 64, 128)):
        assert torch.equal(field.rows(draw, 0, 64), expected)


@pytest.mark.parametrize("height", [64, 100, 256])
def test_a_streamed_field_has_the_same_values(monkeypatch, height):
    monkeypatch.setattr(noise, "KEEP_BYTES", 0)
    field = NoiseField(123, 3, 5, height, 48)
    assert field._whole is None
    expected = reference(123, 3, 5, height, 48)
    for draw in (2, 0, 1):
        for first, last in ((0, height), (3, 17), (60, min(height, 70)), (height - 1, height)):
            assert torch.equal(field.rows(draw, first, last), expected[draw][:, first:last])


def test_a_streamed_field_keeps_little():
    field = NoiseField(0, 2, 48, 1024, 1024)  # 384 MiB of noise
    assert field._whole is None
    field.rows(0, 100, 164)
    kept = sum(rows.numel() * 4 for _, rows in field._rows.values())
    states = sum(state.numel() for draw in field._states for channel in draw for state in channel)
    assert kept + states < 32 * 2**20


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -1, 2**64 + 5])
def test_any_whole_number_is_a_seed(seed):
    same = NoiseField(seed % 2**64, 1, 1, 16, 16).rows(0, 0, 16)
    assert torch.equal(NoiseField(seed, 1, 1, 16, 16).rows(0, 0, 16), same)
    assert not torch.equal(NoiseField(seed + 1, 1, 1, 16, 16).rows(0, 0, 16), same)
