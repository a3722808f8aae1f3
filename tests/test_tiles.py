"""Tiles cover every pixel, have one size, and their weights sum to one without a jump."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resshift_core.tiles import lay_axis, lay_tiles, reflect_index


@given(
    sides=st.tuples(st.integers(1, 900), st.integers(1, 900)), multiple=st.sampled_from([8, 16, 64]), tiles=st.integers(1, 4),
    share=st.floats(0, 0.5), unit=st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_tiles_cover_the_picture(sides, multiple, tiles, share, unit):
    padded = tuple(-(-side // multiple) * multiple for side in sides)
    tile = tiles * multiple
    axes = lay_tiles(padded, tile, int(tile * share), unit, multiple)
    assert axes[0].tile * axes[1].tile <= tile * tile
    for axis, length in zip(axes, padded):
        covered = torch.zeros(length, dtype=torch.bool)
        for start in axis.starts:
            assert start % unit == 0 and 0 <= start and start + axis.tile <= length
            covered[start : start + axis.tile] = True
        assert covered.all()
        assert axis.tile <= tile * 5 // 4 and axis.tile % multiple == 0
        overlaps = [a + axis.tile - b for a, b in zip(axis.starts, axis.starts[1:])]
        assert all(axis.overlap <= overlap < axis.tile for overlap in overlaps)


@pytest.mark.parametrize("length, tile, overlap", [(300, 128, 16), (130, 128, 32), (512, 64, 32), (200, 64, 0), (64, 64, 16)])
def test_weights_sum_to_one_and_are_smooth(length, tile, overlap):
    scale = 4
    axis = lay_tiles((-(-length // 64) * 64, 1), tile, overlap)[0]
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
    axis = lay_axis(256, 3, 32)
    assert (axis.weights(1, 1)[:8] == 0).all() and (axis.weights(0, 1)[-8:] == 0).all()
    assert (axis.weights(0, 1)[:8] == 1).all()  # but not at the picture's own border


def squares(side: int, tile: int, overlap: int, multiple: int) -> int:
    """Pixels along one side of as few tiles as a largest side allows, then as small as that number allows."""
    if side <= tile:
        return side
    count = -(-(side - overlap) // (tile - overlap))
    return count * (-(-(side + (count - 1) * overlap) // (count * multiple)) * multiple)


@given(sides=st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)))
def test_little_is_computed_twice(sides):
    """The built-in model's tiles (256, overlap 32): under 1.5 times the area, and never more than squares of the largest size."""
    padded = tuple(-(-side // 16) * 16 for side in sides)
    rows, columns = lay_tiles(padded, 256, 32, 1, 8)
    computed = len(rows.starts) * rows.tile * len(columns.starts) * columns.tile
    assert computed <= 1.5 * padded[0] * padded[1]
    assert computed <= squares(padded[0], 256, 32, 8) * squares(padded[1], 256, 32, 8)


@given(sides=st.tuples(st.integers(1, 40), st.integers(1, 40)), tile=st.sampled_from([128, 192, 256]))
def test_tiles_of_published_networks_do_not_get_small(sides, tile):
    """Their norms and windows look at the whole tile: many tiles of 64 pixels would be less work, and worse pictures."""
    for axis in lay_tiles(tuple(64 * side for side in sides), tile, 16, 1, 64):
        assert axis.tile >= min(axis.length, tile * 3 // 4)


def test_a_picture_of_512_pixels_takes_six_tiles():
    rows, columns = lay_tiles((512, 512), 256, 32, 1, 8)
    assert (rows.tile, columns.tile, len(rows.starts), len(columns.starts)) == (272, 192, 2, 3)


@given(length=st.integers(1, 40), padded=st.integers(1, 200))
def test_reflection_agrees_with_numpy(length, padded):
    np = pytest.importorskip("numpy")
    padded = max(length, padded)
    expected = np.pad(np.arange(length), (0, padded - length), mode="reflect" if length > 1 else "edge")
    assert reflect_index(0, padded, padded, length).tolist() == expected.tolist()


def test_beyond_the_padded_side_the_border_is_replicated():
    assert reflect_index(-2, 10, 8, 6).tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 4, 3, 3, 3]
