"""Noise fields: the reference's values, also when a large one is drawn again in bands."""

import os
import subprocess
import sys
import threading

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
        assert torch.equal(field.block(draw, 0, 64), expected)


def test_a_draw_of_any_number_of_values_is_that_of_the_global_generator():
    field = NoiseField(7, 3, 3, 5, 7)
    for draw, expected in enumerate(reference(7, 3, 3, 5, 7)):
        assert torch.equal(field.block(draw, 0, 5), expected)


def in_the_way(monkeypatch, word, before):
    """Call `before` ahead of a function of torch or of the noise's module."""
    place = torch if hasattr(torch, word) else noise
    function = getattr(place, word)
    monkeypatch.setattr(place, word, lambda *a, **more: before() or function(*a, **more))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("free, idle, beside", [(1, False, True), (0, True, True), (0, False, False)])
def test_where_a_processor_is_free_another_thread_draws_the_same(monkeypatch, free, idle, beside, large, inference):
    monkeypatch.setattr(noise, "_processors", lambda: torch.get_num_threads() + free)
    monkeypatch.setattr(noise, "KEEP_BYTES", 0 if large else noise.KEEP_BYTES)
    working = set()
    with torch.inference_mode(inference):
        with monkeypatch.context() as patch:
            in_the_way(patch, "_skip" if large else "randn", lambda: working.add(threading.get_ident()))
            field = NoiseField(7, 3, 3, 64, 128, idle)
            field.states(2) if large else field.block(2, 0, 64)  # all is done then
        found = [field.block(draw, 8, 64, 16, 128).clone() for draw in (2, 0, 1, 0)]
    assert len(working) == 1 and (threading.get_ident() not in working) == beside
    expected = reference(7, 3, 3, 64, 128)
    assert all(torch.equal(values, expected[draw][:, 8:, 16:]) for values, draw in zip(found, (2, 0, 1, 0)))


def test_the_first_pass_ends_when_nobody_wants_the_field_any_more(monkeypatch):
    monkeypatch.setattr(noise, "KEEP_BYTES", 0)
    passed, goes_on = [], threading.Event()
    in_the_way(monkeypatch, "_skip", lambda: passed.append(goes_on.wait(60)))
    field = NoiseField(7, 40, 3, 64, 128, idle=True)
    last = field._states[-1]
    del field
    goes_on.set()
    assert last.result(60) == [] and len(passed) <= 1


@pytest.mark.parametrize("large", [False, True])
def test_what_goes_wrong_in_the_other_thread_is_told(monkeypatch, large):
    monkeypatch.setattr(noise, "KEEP_BYTES", 0 if large else noise.KEEP_BYTES)
    in_the_way(monkeypatch, "_skip" if large else "randn", lambda: (_ for _ in ()).throw(MemoryError("no room")))
    field = NoiseField(7, 3, 3, 64, 128, idle=True)
    with pytest.raises(MemoryError, match="no room"):
        field.block(1, 0, 8)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("granted", [0, 2])
def test_a_program_that_ends_draws_without_threads(monkeypatch, granted, large):
    monkeypatch.setattr(noise, "_processors", lambda: torch.get_num_threads() + 1)
    monkeypatch.setattr(noise.torch, "get_num_threads", lambda: 3)
    if large:
        monkeypatch.setattr(noise, "KEEP_BYTES", 0)
    submit, left = noise.ThreadPoolExecutor.submit, [None] * granted

    def refused(pool, function, *args):
        if not left:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        left.pop()
        return submit(pool, function, *args)

    monkeypatch.setattr(noise.ThreadPoolExecutor, "submit", refused)
    field = NoiseField(7, 3, 3, 64, 128)
    for draw, expected in enumerate(reference(7, 3, 3, 64, 128)):
        assert torch.equal(field.block(draw, 0, 64), expected)


@pytest.mark.parametrize("threads", [1, 4, 9])
@pytest.mark.parametrize("height", [64, 128, 150, 300])
def test_a_streamed_field_has_the_same_values(monkeypatch, height, threads):
    monkeypatch.setattr(noise, "KEEP_BYTES", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    field = NoiseField(123, 3, 5, height, 48)
    assert field._whole is None
    expected = reference(123, 3, 5, height, 48)
    for draw in (2, 0, 1):
        for first, last in ((0, height), (3, 17), (height - 40, height), (height - 1, height)):
            assert torch.equal(field.block(draw, first, last), expected[draw][:, first:last])


def test_tiles_of_a_streamed_field_have_the_same_values(monkeypatch):
    monkeypatch.setattr(noise, "KEEP_BYTES", 0)
    monkeypatch.setattr(noise, "ROW_BYTES", 0)
    monkeypatch.setattr(noise, "BLOCK_BYTES", 2 * 5 * 4 * 20 * 40)  # 40 columns of 20 rows
    field, expected = NoiseField(5, 2, 5, 100, 160), reference(5, 2, 5, 100, 160)
    for first in (0, 20, 75):
        for left, right in ((0, 32), (8, 40), (30, 62), (0, 160), (100, 160), (40, 48)):
            for draw in (0, 1):
                found = field.block(draw, first, first + 20, left, right)
                assert torch.equal(found, expected[draw][:, first : first + 20, left:right])


@pytest.mark.parametrize("columns, times", [(159, 2), (160, 1)])
def test_rows_are_drawn_once_for_the_tiles_that_fit(monkeypatch, columns, times):
    monkeypatch.setattr(noise, "KEEP_BYTES", 0)
    monkeypatch.setattr(noise, "ROW_BYTES", 2 * 5 * 4 * 20 * columns)  # all of 160 columns, or the blocks of the next line
    monkeypatch.setattr(noise, "BLOCK_BYTES", 2 * 5 * 4 * 20 * 96)
    drawn, field = [], NoiseField(5, 2, 5, 100, 160)
    expected = reference(5, 2, 5, 100, 160)
    redraw = field._redraw
    monkeypatch.setattr(field, "_redraw", lambda out, *place: drawn.append(place) or redraw(out, *place))
    for left in (32, 0, 64, 96, 128) if times == 1 else (0, 32, 64, 96, 128):
        for draw in (0, 1):
            assert torch.equal(field.block(draw, 3, 23, left, left + 32), expected[draw][:, 3:23, left : left + 32])
    assert [place[0] for place in drawn] == [0, 1] * times


@pytest.mark.parametrize("width", [1024, 4096])
def test_a_streamed_field_keeps_little(width):
    field = NoiseField(0, 2, 48, 256, width)  # 96, 384 MiB of noise
    assert field._whole is None
    for draw in (0, 1):
        field.block(draw, 0, 256, 0, 256)
    kept = sum(values.numel() * 4 for _, values in field._blocks.values())
    states = sum(state.numel() for draw in (0, 1) for channel in field.states(draw) for state in channel)
    assert kept + states < 140 * 2**20


def test_many_steps_keep_one_block(monkeypatch):
    """A block of each of 1000 draws of a tile of 256 pixels would be 12 GB."""
    monkeypatch.setattr(noise, "KEEP_BYTES", 0)
    monkeypatch.setattr(noise, "ROW_BYTES", 0)
    monkeypatch.setattr(noise, "BLOCK_BYTES", 9 * 5 * 4 * 20 * 32)  # of nine draws
    field, expected = NoiseField(5, 10, 5, 60, 160), reference(5, 10, 5, 60, 160)
    for first, last in ((50, 60), (0, 20), (20, 40)):  # what of a lower row was kept is not kept on
        for left in (0, 32, 128):
            for draw in (*range(10), 3, 0):
                found = field.block(draw, first, last, left, left + 32)
                assert torch.equal(found, expected[draw][:, first:last, left : left + 32])
        assert len(field._blocks) == (10 if first == 50 else 1)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="nothing here says what a process takes")
def test_the_states_of_many_steps_take_no_more(monkeypatch):
    """Then they lie further apart, and more rows are passed over."""
    monkeypatch.setattr(noise, "KEEP_BYTES", 0)
    monkeypatch.setattr(noise, "BAND_ROWS", 16)
    monkeypatch.setattr(noise, "STATES_BYTES", 40 * noise.STATE_BYTES)
    field, expected = NoiseField(5, 7, 3, 150, 32), reference(5, 7, 3, 150, 32)
    assert field.band_rows == 80 and sum(len(channel) for draw in range(7) for channel in field.states(draw)) == 7 * 3 * 2
    assert len(field.states(0)[0][0]) == noise.STATE_BYTES
    for draw in (6, 0, 3):
        for first, last in ((0, 150), (70, 90), (79, 80), (80, 150), (149, 150)):
            assert torch.equal(field.block(draw, first, last), expected[draw][:, first:last])


def test_states_lie_close_together():
    """Each channel's scratch left a hole into which the next one's states went, so that the one after needed new memory."""
    script = """
import torch
from resshift_core.noise import NoiseField

def taken():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) / 1024

torch.randn(1000)
before = taken()
field = NoiseField(0, 8, 48, 512, 2048)
states = sum(state.numel() for draw in range(8) for channel in field.states(draw) for state in channel) / 2**20
print(taken() - before, states)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    grown, states = map(float, done.stdout.split())
    assert grown < states + 24, (grown, states)


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -1, 2**64 + 5])
def test_any_whole_number_is_a_seed(seed):
    same = NoiseField(seed % 2**64, 1, 1, 16, 16).block(0, 0, 16)
    assert torch.equal(NoiseField(seed, 1, 1, 16, 16).block(0, 0, 16), same)
    assert not torch.equal(NoiseField(seed + 1, 1, 1, 16, 16).block(0, 0, 16), same)
