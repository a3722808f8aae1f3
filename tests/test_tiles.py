"""Tiles cover every pixel, have one size, and their weights sum to one without a jump."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resshift_core.tiles import lay_axis, mirror_index, reflect_index


def test_no_more_than_half_of_a_tile_overlaps_the_next():
    assert lay_axis(300, 64, 33) == lay_axis(300, 64, 64) == lay_axis(300, 64, 100) == lay_axis(300, 64, 32)


@settings(deadline=None)  # processors may be shared
@given(
    length=st.integers(1, 900), multiple=st.sampled_from([8, 16, 64]), tiles=st.integers(1, 4), share=st.floats(0, 0.5),
    unit=st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_tiles_cover_the_picture(length, multiple, tiles, share, unit):
    padded = -(-length // multiple) * multiple
    tile = tiles * multiple
    axis = lay_axis(padded, tile, int(tile * share), unit, multiple)
    covered = torch.zeros(padded, dtype=torch.bool)
    for start in axis.starts:
        assert start % unit == 0 and 0 <= start and start + axis.tile <= padded
        covered[start : start + axis.tile] = True
    assert covered.all()
    assert axis.tile <= tile and axis.tile % multiple == 0
    overlaps = [a + axis.tile - b for a, b in zip(axis.starts, axis.starts[1:])]
    assert all(axis.overlap <= overlap < axis.tile for overlap in overlaps)


@pytest.mark.parametrize("length, tile, overlap", [(300, 128, 16), (130, 128, 32), (512, 64, 32), (200, 64, 0), (64, 64, 16)])
def test_weights_sum_to_one_and_are_smooth(length, tile, overlap):
    scale = 4
    axis = lay_axis(-(-length // 64) * 64, tile, overlap, 1)
    total = torch.zeros(axis.length * scale)
    for i, start in enumerate(axis.starts):
        weights = axis.weights(i, scale)
        assert (weights >= 0).all()
        if overlap:
            assert weights.diff().abs().max() < 3.2 / (overlap * scale / 2)
        total[start * scale : (start + axis.tile) * scale] += weights
    torch.testing.assert_close(total, torch.ones_like(total))


def test_the_rim_of_a_tile_counts_nothing():
    """The outer quarter of an overlap lacks context on one side: the neighbour's pixels stand there alone."""
    axis = lay_axis(256, 128, 32, 1)
    assert (axis.weights(1, 1)[:8] == 0).all() and (axis.weights(0, 1)[-8:] == 0).all()
    assert (axis.weights(0, 1)[:8] == 1).all()  # but not at the picture's own border


@settings(deadline=None)  # processors may be shared
@given(length=st.integers(1, 20_000))
def test_little_is_computed_twice(length):
    """The built-in model's tiles (256, overlap 32): under 1.3 times the side, so under 1.7 times the area, whatever its size."""
    padded = -(-length // 16) * 16
    axis = lay_axis(padded, 256, 32, 1, 8)
    assert len(axis.starts) * axis.tile <= 1.3 * padded


@settings(deadline=None)  # processors may be shared
@given(length=st.integers(1, 40), padded=st.integers(1, 200))
def test_reflection_agrees_with_numpy(length, padded):
    padded = max(length, padded)
    expected = np.pad(np.arange(length), (0, padded - length), mode="reflect" if length > 1 else "edge")
    assert reflect_index(0, padded, padded, length).tolist() == expected.tolist()


@settings(deadline=None)  # processors may be shared
@given(length=st.integers(1, 40), padded=st.integers(1, 200))
def test_mirroring_agrees_with_numpy(length, padded):
    padded = max(length, padded)
    expected = np.pad(np.arange(length), (0, padded - length), mode="symmetric")
    assert mirror_index(0, padded, padded, length).tolist() == expected.tolist()


def test_beyond_the_padded_side_the_border_is_replicated():
    assert reflect_index(-2, 10, 8, 6).tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 4, 3, 3, 3]
