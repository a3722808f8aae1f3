"""Data and settings of training: the check before the start, crops, pairs, loader workers, files of settings."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resshift_core as rs
from training import distributed, frames, leaves
from training.data import START, Crops, CropSettings, PairedCrops, Positions, default_workers, load_batches, match_pairs
from training.dataset import _held_out, degradation_of, prepare_data, scan_validation
from training.degradation import make_degradation
from training.distributed import Processes
from training.drawings import draw_hole, draw_page, usable_fonts
from training.frames import draw_frame
from training.leaves import draw_leaves
from training.program import exit_status
from training.scan import DataError, Picture, find_images, inspect, read_rgb, scan
from training.settings import PRESETS, SettingsError, parse, read_config, resolve, to_dict, typed
from training.settings import TrainSettings as Settings
from training.trainer import make_scheduler
from training.validation import given_pairs, hold_out, make_pairs, middle

from . import standin
from .linked_folder import link_folder
from .training_run import ROOT, make_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures")


def pictures(folder) -> list[Picture]:
    return [inspect(path) for path in find_images(folder)]


# ---------------------------------------------------------------------------------------------------- the check


def test_everything_odd_is_named(tmp_path):
    data = make_pictures(tmp_path / "data" / "deep" / "folder", 2)
    Image.new("RGB", (20, 90), "red").save(data / "narrow.png")
    Image.fromarray(np.tile(np.arange(72, dtype=np.uint8), (72, 1))).save(data / "grey.jpg")
    (data / "text.webp").write_text("no picture")
    (data / "cut.png").write_bytes((data / "picture_0.png").read_bytes()[:300])
    with Image.open(data / "picture_1.png") as image:
        image.save(data / "same_pixels.bmp")
    (data / "notes.txt").write_text("not looked at")
    found = scan(find_images(tmp_path / "data"), 64, tmp_path / "scan.json")
    assert [Path(p.path).name for p in found.used] == ["grey.jpg", "picture_0.png", "picture_1.png"]
    named = {
        kind: [Path(line.split(" (")[0]).name for line in getattr(found, kind)]
        for kind in ("unreadable", "tiny", "duplicate", "grey")
    }
    assert named == {
        "unreadable": ["cut.png", "text.webp"], "tiny": ["narrow.png"], "duplicate": ["same_pixels.bmp"], "grey": ["grey.jpg"],
    }  # fmt: skip
    for name in ("cut.png", "text.webp", "narrow.png", "same_pixels.bmp", "grey.jpg"):
        assert name in found.report()


def test_the_check_is_not_repeated_for_files_that_did_not_change(folder, tmp_path, monkeypatch):
    memory = tmp_path / "scan.json"
    first = scan(find_images(folder), 32, memory)
    monkeypatch.setattr("training.scan.read_rgb", lambda path: pytest.fail(f"{path} was decoded again"))
    assert scan(find_images(folder), 32, memory) == first


def test_a_check_that_was_broken_off_goes_on(folder, tmp_path, monkeypatch):
    from training import scan as module

    memory, done, decode = tmp_path / "scan.json", [], module.read_rgb

    def slow(path):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(path)
        return decode(path)

    monkeypatch.setattr(module, "read_rgb", slow)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        scan(find_images(folder), 32, memory)
    assert len(json.loads(memory.read_text())["pictures"]) == 4
    monkeypatch.setattr(module, "read_rgb", lambda path: done.append(path) or decode(path))
    assert len(scan(find_images(folder), 32, memory).used) == 6
    assert sorted(done) == find_images(folder)  # each once


def test_a_long_check_remembers_on_the_way(folder, tmp_path, monkeypatch):
    from training import scan as module

    counts, remember = [], module._remember
    monkeypatch.setattr(module, "REMEMBER_EVERY", -1.0)  # Windows' clock moves every 16 ms
    monkeypatch.setattr(
        module, "_remember", lambda memory, found, **more: counts.append(len(found)) or remember(memory, found, **more)
    )
    scan(find_images(folder), 32, tmp_path / "scan.json")
    assert counts == [1, 2, 3, 4, 5, 6, 6]
    scan(find_images(folder), 32, tmp_path / "scan.json")
    assert counts[7:] == [6] * 7  # a later check forgets nothing that it has not come to


def test_a_damaged_memory_of_the_check_is_made_anew(folder, tmp_path):
    (tmp_path / "scan.json").write_text("{")
    assert len(scan(find_images(folder), 32, tmp_path / "scan.json").used) == 6


def test_the_split_of_a_manifest(folder, tmp_path):
    (tmp_path / "MANIFEST.csv").write_text("file,split\na.png,train\nb.png,val\nc.png,train\n")
    assert [path.name for path in find_images(tmp_path, "train")] == ["a.png", "c.png"]
    assert [path.name for path in find_images(tmp_path, "val")] == ["b.png"]


def test_pictures_are_upright_and_opaque(tmp_path):
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    image.save(tmp_path / "clear.png")
    assert bool((read_rgb(tmp_path / "clear.png") == 255).all())
    turned = Image.new("RGB", (4, 2), "blue")
    exif = turned.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_rgb(tmp_path / "turned.jpg").shape == (3, 4, 2)


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_sixteen_bits_of_grey_are_not_clipped_to_white(tmp_path, ending):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / f"ramp.{ending}")
    pixels = read_rgb(tmp_path / f"ramp.{ending}")
    assert torch.equal(pixels, torch.from_numpy((ramp / 257).round().astype(np.uint8)).expand(3, -1, -1))


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_tiffs_that_lie_on_their_side(tmp_path, mode):
    """Given a path, Pillow maps the file into memory by the size that it has upright, and mixes the rows up."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).convert(mode)
    image.save(tmp_path / "lying.tif", compression="raw", tiffinfo={0x112: 6})
    upright = np.asarray(image.convert("RGB"))[::-1].transpose(1, 0, 2)
    assert np.array_equal(read_rgb(tmp_path / "lying.tif").permute(1, 2, 0).numpy(), upright)


def test_nothing_to_train_on_is_an_error(folder):
    with pytest.raises(DataError, match="None of 6 files can be used for crops of 500 pixels"):
        scan(find_images(folder), 500)


# ---------------------------------------------------------------------------------------------------- crops


def test_a_crop_depends_on_its_number_alone(folder):
    settings = CropSettings(32, drawn_share=0.3)
    one, other = (Crops(pictures(folder), settings, seed=4, cache_mib=mib) for mib in (0, 100))
    for n in (0, 7, 10**9):
        assert torch.equal(one[n]["hr"], other[n]["hr"])
    assert not torch.equal(one[0]["hr"], Crops(pictures(folder), settings, seed=5)[0]["hr"])


def test_large_pictures_are_drawn_more_often_by_the_root_of_their_area():
    found = [Picture(f"{width}.png", "", 90, width) for width in (40, 160, 360)]
    assert Crops(found, CropSettings(32)).weights == pytest.approx([2 / 12, 4 / 12, 6 / 12])


def test_a_crop_is_a_piece_of_a_picture(folder):
    crops = Crops(pictures(folder)[:1], CropSettings(32, rescale_share=0.0, turns=False), seed=0)
    image = read_rgb(find_images(folder)[0]).float() / 255
    places = image.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4)  # (rows, columns, 3, 32, 32)
    for n in range(5):
        crop = crops[n]["hr"]
        assert any(bool((places == view).flatten(2).all(2).any()) for view in (crop, crop.flip(2)))


@pytest.fixture(scope="module")
def half_busy(tmp_path_factory):
    """On the left one grey, on the right noise."""
    values = np.full((400, 800, 3), 120, np.uint8)
    values[:, 400:] = np.random.default_rng(0).integers(40, 200, (400, 400, 3))
    folder = tmp_path_factory.mktemp("half")
    Image.fromarray(values).save(folder / "half.png")
    return pictures(folder)


class TestVariety:
    def test_busy_places_are_preferred(self, half_busy):
        def busy(variety: bool) -> int:
            crops = Crops(half_busy, CropSettings(32, min_rescale=0.5, variety=variety), cache_mib=10)
            return sum(float(crops[n]["hr"].std()) > 0.02 for n in range(60))

        assert busy(False) < 45 < busy(True) < 60  # the quiet ones are not lost

    def test_nothing_from_outside_of_the_picture_is_turned_in(self, tmp_path):
        Image.new("RGB", (400, 300), (200, 100, 50)).save(tmp_path / "plain.png")
        crops = Crops(pictures(tmp_path), CropSettings(64, min_rescale=0.2, variety=True), cache_mib=10)
        for n in range(40):
            assert float(crops[n]["hr"].flatten(1).std(1).max()) < 1e-3

    def test_some_are_turned_by_any_angle(self, tmp_path):
        """Of stripes along one axis, quarter turns give stripes along the axes only."""
        stripes = np.broadcast_to((np.arange(1200) // 40 % 2 * 255)[:, None, None], (1200, 1200, 3)).astype(np.uint8)
        Image.fromarray(stripes).save(tmp_path / "stripes.png")
        crops = Crops(pictures(tmp_path), CropSettings(64, min_rescale=0.2, variety=True), cache_mib=10)
        oblique = [min(float(crops[n]["hr"].diff(dim=axis).abs().max()) for axis in (1, 2)) > 0.1 for n in range(40)]
        assert 5 < sum(oblique) < 25

    def test_small_factors_are_as_frequent_as_large_ones(self, half_busy):
        crops = Crops(half_busy, CropSettings(40), cache_mib=10)
        rng = np.random.default_rng(0)
        spans = np.array([crops._place(rng, 40, 0.1)[-1] for _ in range(400)])
        assert spans.min() >= 40 and spans.max() <= 400 and 110 < np.median(spans) < 145  # 40 * sqrt(10) = 126

    def test_contrast_stays_in_range(self, half_busy):
        crops = Crops(half_busy, CropSettings(32, variety=True), cache_mib=10)
        values = torch.stack([crops[n]["hr"] for n in range(40)])
        assert 0 <= float(values.min()) and float(values.max()) <= 1
        assert len({round(float(value.max()), 2) for value in values if value.std() > 0.02}) > 4


class TestFrames:
    def test_lines_along_sides(self):
        """The middle is the picture's, some side is of another colour, and all of it lies between the two."""
        patch, rng, dark, sides = torch.full((3, 96, 96), 128.0), np.random.default_rng(0), 0, []
        for _ in range(200):
            framed = draw_frame(patch, rng)
            assert framed.shape == patch.shape and 0 <= float(framed.min()) and float(framed.max()) <= 255
            assert torch.equal(framed[:, 40:56, 40:56], patch[:, 40:56, 40:56])
            changed = (framed - patch).abs().amax(0)
            middle = slice(40, 56)
            sides.append(
                [
                    float(row.max()) > 0
                    for row in (changed[0, middle], changed[-1, middle], changed[middle, 0], changed[middle, -1])
                ]
            )
            dark += float(framed.mean()) < 128
        counts = np.array(sides).sum(1)
        assert counts.min() >= 1 and set(counts) == {1, 2, 3, 4} and np.array(sides).mean(0).min() > 0.4
        assert 105 < dark < 150  # black ones, and the darker half of those of any colour

    def test_most_are_narrow(self):
        """Half of them take no more than sqrt(0.5 * 24) = 3.5 pixels."""
        rng, widths = np.random.default_rng(0), []
        for _ in range(400):
            left = frames._left(64, 9, rng)
            widths.append(float((1 - left).sum(0).mean()))
        assert 2.8 < np.median(widths) < 4.3 and max(widths) < 28

    def test_drawings_have_none(self, folder):
        """And what has none is what it was before there were frames."""
        crops = [
            Crops(pictures(folder), CropSettings(32, frame_share=share, drawn_share=0.5), cache_mib=10) for share in (0.0, 1.0)
        ]
        pairs = [[crop[n]["hr"] for crop in crops] for n in range(24)]
        drawn = [np.random.default_rng([0, n]).random() < 0.5 for n in range(24)]
        assert all(torch.equal(*pair) for pair, page in zip(pairs, drawn) if page) and 4 < sum(drawn) < 20
        assert not any(torch.equal(*pair) for pair, page in zip(pairs, drawn) if not page)


class TestLeaves:
    def photo(self, side):
        return torch.full((3, side, side), 128.0)

    def test_they_depend_on_their_numbers_alone(self, folder):
        settings = CropSettings(64, leaves_share=1.0)
        one, other = (Crops(pictures(folder), settings, seed=4, cache_mib=mib) for mib in (0, 100))
        assert torch.equal(one[3]["hr"], other[3]["hr"]) and not torch.equal(one[3]["hr"], one[4]["hr"])

    def test_they_are_pictures_full_of_edges(self):
        rng = np.random.default_rng(0)
        for _ in range(30):
            drawn = draw_leaves(64, rng, self.photo)
            assert drawn.shape == (3, 64, 64) and drawn.dtype == torch.uint8
            drawn = drawn.float()
            assert float(drawn.diff(dim=1).abs().max()) > 10 and float(drawn.diff(dim=2).abs().max()) > 10

    def test_shapes_of_every_size(self):
        """Twice as small, 2^0.6 times as many of more than that size: scaled down, the pictures look alike."""
        radii = leaves._radii(20000, np.random.default_rng(0))
        assert leaves.SMALLEST <= radii.min() and radii.max() <= leaves.LARGEST
        counts = [int(((radii > r) & (radii <= 2 * r)).sum()) for r in (0.04, 0.08, 0.16)]
        assert counts[0] / counts[1] == pytest.approx(2**0.6, rel=0.1) and counts[1] / counts[2] == pytest.approx(
            2**0.6, rel=0.1
        )

    def test_photographs_fill_them(self):
        rng, asked = np.random.default_rng(0), []
        draw_leaves(32, rng, lambda side: asked.append(side) or self.photo(side))
        assert asked and set(asked) == {32 * leaves.OVERSAMPLING}

    def test_shapes_of_every_kind_hide_something(self):
        rng = np.random.default_rng(0)
        shares = [np.asarray(leaves._shape(100, 30, rng)).mean() / 255 for _ in range(200)]
        assert 0 < np.median(shares) < 0.4 and sum(share > 0 for share in shares) > 190


def test_a_picture_that_vanishes_is_named_and_replaced(tmp_path, caplog):
    data = make_pictures(tmp_path / "data", 2)
    crops = Crops(pictures(data), CropSettings(32), seed=0)
    (data / "picture_0.png").unlink()
    for n in range(8):
        assert crops[n]["hr"].shape == (3, 32, 32)
    assert "picture_0.png cannot be read any more" in caplog.text
    (data / "picture_1.png").unlink()
    with pytest.raises(DataError, match="in a row cannot be read"):
        crops[0]


def test_a_picture_as_large_as_a_crop_is_used(folder):
    found = scan(find_images(folder), 72).used
    crop = Crops(found, CropSettings(72, turns=False))[0]["hr"] * 255
    assert any(
        torch.equal(way, read_rgb(picture.path).float()) for picture in found for way in (crop.round(), crop.round().flip(2))
    )


def test_the_cache_keeps_what_fits(folder, monkeypatch):
    crops = Crops(pictures(folder), CropSettings(32), cache_mib=1)  # a picture has 15.2 KiB
    assert crops.store.keep == 6
    crops.store.fill()
    monkeypatch.setattr("training.data.read_rgb", lambda path: pytest.fail("decoded again"))
    crops[0]
    assert Crops(pictures(folder), CropSettings(32), cache_mib=0).store.keep == 0


def test_both_sides_of_pairs_share_the_cache_by_their_sizes():
    found, small = [Picture(f"{n}.png", "", 64, 64) for n in range(8)], [Path(f"{n}.bmp") for n in range(8)]
    crops = PairedCrops(found, small, 4, CropSettings(32), cache_mib=5.5 * 3 * (64 * 64 + 16 * 16) / 2**20)
    assert (crops.store.keep, crops.small.keep) == (5, 5)


def test_workers_started_anew_share_the_cache(tmp_path, monkeypatch):
    """As on Windows and macOS, where processes are not forked."""
    data = make_pictures(tmp_path / "data", 3)
    plain = Crops(pictures(data), CropSettings(32))
    expected = torch.stack([plain[n]["hr"] for n in range(4)])
    monkeypatch.setattr("training.data.START", "spawn")
    crops = Crops(pictures(data), CropSettings(32), cache_mib=1)
    batches = load_batches(crops, Positions(0, 4, 0, 1), 2)
    shutil.rmtree(data)  # whoever decodes again finds nothing
    assert len(ForkingPickler.dumps(crops)) < 15000 < 72 * 72 * 3  # less than one picture
    _, (_, batch) = next(zip(range(1), batches))
    assert torch.equal(batch["hr"], expected)


def test_holes_of_inpainting(folder):
    crops = Crops(pictures(folder), CropSettings(64, holes=True))
    shares = [float(crops[n]["hole"].mean()) for n in range(30)]
    assert crops[0]["hole"].shape == (1, 64, 64) and 0.02 < np.mean(shares) < 0.6
    assert {float(value) for value in crops[1]["hole"].unique()} <= {0.0, 1.0}


@pytest.mark.parametrize("size", [(64, 64), (24, 96), (96, 40)])
def test_no_hole_is_empty(size):
    """Cut from the hole of a square, those of wide pictures were: PSNR, and so the best of a run, became infinite."""
    for n in range(200):
        hole = draw_hole(*size, np.random.default_rng(n))
        assert hole.shape == (1, *size) and hole.mean() >= 0.01


def test_pairs_are_cut_at_the_same_place(folder, tmp_path):
    for path in folder.iterdir():
        with Image.open(path) as image:
            image.resize((18, 18), Image.Resampling.BOX).save(tmp_path / f"{path.stem}.bmp")
    found = pictures(folder)
    partners = match_pairs(found, folder, tmp_path, 4)
    crops = PairedCrops(found, [partners[p.path] for p in found], 4, CropSettings(32), seed=1)
    for n in range(10):
        pair = crops[n]
        small = torch.nn.functional.avg_pool2d(pair["hr"][None], 4)[0]
        assert float((small - pair["lq"]).abs().max()) < 1.01 / 255


def test_a_pair_of_which_one_vanishes_is_named_and_replaced(tmp_path, caplog, monkeypatch):
    data, low = make_pictures(tmp_path / "data", 2), make_pictures(tmp_path / "low", 2, side=18)
    found = pictures(data)
    crops = PairedCrops(found, [low / Path(p.path).name for p in found], 4, CropSettings(32), cache_mib=0)
    (low / "picture_0.png").unlink()
    for n in range(8):
        assert crops[n]["lq"].shape == (3, 8, 8)
    assert "picture_0.png cannot be read any more" in caplog.text and str(low) in caplog.text
    kept = PairedCrops(found, [low / Path(p.path).name for p in found], 4, CropSettings(32), cache_mib=1)
    assert kept.store.keep == kept.small.keep == 2
    kept.fill()
    decoded, decode = set(), read_rgb
    monkeypatch.setattr("training.data.read_rgb", lambda path: decoded.add(Path(path)) or decode(path))
    for n in range(8):
        assert kept[n]["lq"].shape == (3, 8, 8)
    assert decoded == {low / "picture_0.png"}  # gone, and looked for again; the others are kept


def test_a_pair_of_which_one_has_changed_its_size_is_not_used(folder, tmp_path):
    (found, *_), small = pictures(folder), tmp_path / "a.png"
    crops = PairedCrops([found], [small], 4, CropSettings(32))
    Image.new("RGB", (18, 18)).save(small)
    assert crops[0]["lq"].shape == (3, 8, 8)
    Image.new("RGB", (20, 18)).save(small)
    with pytest.raises(DataError, match="in a row cannot be read"):
        crops[0]


def test_the_middles_of_given_pairs_show_the_same(folder, tmp_path):
    (found, *_), small = pictures(folder), tmp_path / "a.png"
    with Image.open(found.path) as image:
        image.resize((18, 18), Image.Resampling.BOX).save(small)
    (pair,) = given_pairs([found], [small], 4, 40)
    assert pair.truth.shape == (1, 3, 40, 40) and pair.lq.shape == (1, 3, 10, 10)
    assert float((torch.nn.functional.avg_pool2d(pair.truth, 4) - pair.lq).abs().max()) < 1.01 / 255


def test_pairs_that_do_not_fit_are_named(folder, tmp_path):
    for path in folder.iterdir():
        with Image.open(path) as image:
            image.resize((18, 20)).save(tmp_path / path.name)
    with pytest.raises(DataError, match="picture_0.png is 72x72, its partner 18x20"):
        match_pairs(pictures(folder), folder, tmp_path, 4)


def test_processes_share_every_batch():
    whole, parts = Positions(5, 6, 0, 1), [Positions(5, 6, rank, 3) for rank in range(3)]
    for numbers, *shares in zip(range(4), whole, *parts):
        assert [n for share in shares[1:] for n in share] == shares[0] == list(range((5 + numbers) * 6, (6 + numbers) * 6))


@pytest.mark.parametrize("start, most", [("fork", 12), ("spawn", 4)])
def test_as_many_workers_as_memory_allows(start, most, monkeypatch):
    monkeypatch.setattr("training.data.START", start)
    monkeypatch.setattr("os.cpu_count", lambda: 32)
    assert default_workers(torch.device("cuda"), 1) == most and default_workers(torch.device("cuda"), 8) == 3
    assert default_workers(torch.device("cpu"), 1) == 0


def test_loader_workers_give_the_same_batches(folder):
    crops = Crops(pictures(folder), CropSettings(32), cache_mib=10)
    plain, worked = (load_batches(crops, Positions(3, 4, 0, 1), workers) for workers in (0, 2))
    for _, (numbers, batch), (other_numbers, other) in zip(range(3), plain, worked):
        assert numbers == other_numbers and torch.equal(batch["hr"], other["hr"])


def test_a_manifest_lists_what_lies_beside_it(tmp_path):
    make_pictures(tmp_path / "data", 2)
    (tmp_path / "private.png").write_bytes(b"")
    for line in ("../private.png", str(tmp_path / "private.png")):
        (tmp_path / "data" / "MANIFEST.csv").write_text(f"file,split\n{line},train\n")
        with pytest.raises(DataError, match="lies outside of its folder"):
            find_images(tmp_path / "data", "train")
    elsewhere = make_pictures(tmp_path / "elsewhere", 1)
    link_folder(tmp_path / "data" / "linked", elsewhere)
    (name,) = os.listdir(elsewhere)
    (tmp_path / "data" / "MANIFEST.csv").write_text(f"file,split\nlinked/{name},train\n")
    assert [path.name for path in find_images(tmp_path / "data", "train")] == [name]  # a link is the user's own


class Stalled(torch.utils.data.Dataset):
    """Its drive answers for the first batch, and then no more."""

    def __getitem__(self, number):
        if number >= 4:
            time.sleep(1000)
        return {"hr": torch.zeros(3, 8, 8)}


@pytest.mark.skipif(START != "fork", reason="the dataset is one of this file")
def test_a_worker_that_is_stuck_does_not_keep_the_program():
    """They ignore SIGTERM, by which multiprocessing ends its processes before it waits for them."""
    before = set(multiprocessing.active_children())
    batches = load_batches(Stalled(), Positions(0, 4, 0, 1), 1)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    assert exit_status(batches.close) == 0
    worker.join(10)
    assert worker.exitcode == -signal.SIGKILL


def test_workers_are_shared_out_among_the_processes_of_their_machine(monkeypatch):
    """Four machines of 8 GPUs and 96 cores: every process has twelve cores, not three."""
    for name, value in {"WORLD_SIZE": "32", "LOCAL_WORLD_SIZE": "8", "RANK": "9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend, timeout: None)
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 9)
    monkeypatch.setattr("os.cpu_count", lambda: 96)
    monkeypatch.setattr("training.data.START", "fork")
    processes = distributed.start("cpu")
    assert (processes.rank, processes.world, processes.here) == (9, 32, 8)
    assert default_workers(torch.device("cuda"), processes.here) == 11


@pytest.mark.parametrize("found, device", [("cuda", "cuda"), ("mps", "cpu"), ("cpu", "cpu")])
def test_auto_is_what_upscaling_would_take_if_that_is_cuda(monkeypatch, found, device):
    """Not what torch says it sees: it sees cards that it has no kernels for."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found != "cuda")
    monkeypatch.setattr(distributed, "resolve_device", lambda word: torch.device(found))
    assert distributed.start("auto").device == torch.device(device)


def test_held_out_pictures_are_chosen_by_content(folder):
    found = pictures(folder)
    train, held = hold_out(found)
    assert len(held) == 2 and not {p.path for p in train} & {p.path for p in held}
    assert hold_out(found[::-1])[1] == held[::-1]
    assert hold_out(found[:3]) == (found[:3], [])
    many = [Picture(f"{n}.png", "", 64, 64, digest=f"{n:03}") for n in range(400)]
    assert [len(hold_out(many[:count])[1]) for count in (4, 100, 400)] == [2, 5, 16]


def test_the_middle_has_the_right_multiple():
    assert middle(torch.rand(3, 70, 131), 64, 4).shape == (3, 64, 64)
    assert middle(torch.rand(3, 30, 33), 64, 4).shape == (3, 28, 32)


def test_the_middle_of_a_pair_is_cut_at_whole_pixels_of_the_small_one():
    small = torch.rand(3, 19, 33)
    large = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.equal(middle(large, 64, 4), middle(small, 16, 1).repeat_interleave(4, 1).repeat_interleave(4, 2))


# ---------------------------------------------------------------------------------------------------- settings


def line(*more) -> list[str]:
    return ["--data", "in", "--output", "out", *(str(word) for word in more)]


def test_order_of_preset_file_and_command_line(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("training:\n  micro_batch: 3\n  learning_rate: 1e-3\n  betas: [0.8, 0.9]\n", encoding="utf-8")
    settings = parse(line("--preset", "12gb", "--config", file, "--learning-rate", 0.5))
    assert settings.checkpointing and settings.learning_rate == 0.5
    assert settings.micro_batch == PRESETS["12gb"]["micro_batch"]  # the file may be one that a run wrote, with all settings
    assert settings.betas == (0.8, 0.9) and settings.preset == "12gb"
    assert parse(line("--preset", "12gb", "--config", file, "--micro-batch", 5)).micro_batch == 5
    assert parse(line("--config", file)).micro_batch == 3
    for name in PRESETS:
        assert parse(line("--preset", name)).micro_batch == PRESETS[name]["micro_batch"]
    file.write_text("training:\n  preset: 12gb\n  checkpointing: false\n")
    settings = parse(line("--config", file))
    assert settings.preset == "12gb" and settings.micro_batch == PRESETS["12gb"]["micro_batch"] and not settings.checkpointing
    assert parse(line("--config", file, "--preset", "80gb")).micro_batch == 32


@pytest.mark.parametrize(
    "names", [("scan.json", "config.json"), ("scan.json", "autoencoder.safetensors"), ("table.csv", "table.md"), ("table.csv",)]
)
def test_what_our_programs_show_is_not_trained_on(tmp_path, names):
    make_pictures(tmp_path, 2, 48)
    made = make_pictures(tmp_path / "OUT" / "pictures", 1, 48)
    for name in names:
        (made.parent / name).write_text("")
    assert len(find_images(tmp_path)) == (2 if len(names) == 2 else 3)


def test_a_new_network_and_a_model_to_start_from_are_one_too_many(tmp_path):
    file = tmp_path / "own.json"
    file.write_text('{"model": {}, "training": {"model": "builtin"}}')
    assert parse(line("--config", file)).model == "builtin"  # as a run's config.json says what it began with
    with pytest.raises(SettingsError, match="Leave out one of them"):
        parse(line("--config", file, "--model", "builtin"))


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"training": {"learing_rate": 1}}', "unknown settings: learing_rate.*Known are: data, output"),
        ('{"training": {"not_here": ["a"]}}', "unknown settings: not_here"),
        ('{"trainings": {}}', "'model' and 'training' and nothing else"),
        ('{"training": {"iterations": "many"}}', "iterations is 'many'; it must be int"),
        ('{"training": {"degradation": "blurry"}}', "degradation is 'blurry'"),
        ("{", "cannot be read as a configuration"),
        ('{"training": [1]}', r"training is .1.; it must be settings"),
        ('{"training": {"betas": [0.9]}}', "betas is .*; it must be"),
        ('{"training": {"betas": [0.9, "abc"]}}', "betas is .*; it must be 2 numbers"),
        ("training:\n  1: 2\n", "unknown settings: 1"),
        ("training:\n  no: 1\n  foo: 3\n", "unknown settings: False, foo"),
        ("1: 2\nfoo: 3\n", "a configuration has 'model' and 'training'"),
        ("training:\n  degradation: [x]\n", "it must be one of realesrgan, paper-b1,"),
        ("training:\n  betas: [0.9]\n", "it must be 2 numbers"),
    ],
)
def test_wrong_files_are_said(tmp_path, text, message):
    path = tmp_path / ("own.json" if text.startswith("{") else "own.yaml")
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        parse(line("--config", path))


@pytest.mark.parametrize(
    "words, message",
    [
        (("--damaged-share", 2), "--damaged-share is 2.0; it must lie between 0 and 1"),
        (("--iterations", 0), "--iterations is 0; it must be above 0"),
        (("--degradation", "paired"), "needs --pairs"),
        (("--pairs", "low"), "Add --degradation paired"),
        (("--seed", 2**63), "it must be below 2..63"),
        (("--kappa", 0, "--eq8-weight", "True"), "divides by kappa"),
        (("--clip", "nan"), "--clip is nan; it must be 0 or a number above it"),
        (("--degradation", "paired", "--pairs", "low", "--validation-pairs", "low"), "beside --pairs. Give all three"),
    ],
)
def test_wrong_values_are_said(words, message):
    with pytest.raises(SettingsError, match=message):
        parse(line(*words))


def test_unknown_words_of_the_command_line_stop_it():
    with pytest.raises(SystemExit) as stop:
        parse(line("--learing-rate", 1))
    assert stop.value.code == 2


def test_what_is_left_open_is_chosen_for_the_model():
    published = resolve(parse(line()), rs.ModelConfig())
    assert (published.crop, published.learning_rate, published.loss, published.rollout_share) == (256, 5e-5, "mse", 0)
    builtin = rs.ModelConfig.from_dict(read_config(ROOT / "training/configs/builtin.json")["model"])
    assert resolve(parse(line()), builtin).crop == 160
    often = [resolve(parse(line("--iterations", count)), builtin) for count in (100, 5001, 50000)]
    assert [(run.validate_every, run.save_every) for run in often] == [(50, 50), (501, 501), (5000, 1000)]
    with pytest.raises(SettingsError, match="--crop is 200; this network needs a multiple of 256"):
        resolve(parse(line("--crop", 200)), rs.ModelConfig())


def test_a_student_that_gets_steps_again_is_trained_at_all_of_them():
    student = replace(standin.small_model().config, default_steps=1)
    assert resolve(parse(line()), student).last_step_share == 1
    assert resolve(parse(line("--steps", 4)), student).last_step_share == 0.5


def test_models_made_larger_warm_up():
    weight = torch.nn.Parameter(torch.zeros(1))
    first = {}
    for word in (("--width", 64), ()):
        settings = replace(parse(line("--iterations", 60, *word)), learning_rate=1.0)
        optimizer = torch.optim.SGD([weight], lr=1.0)
        make_scheduler(optimizer, settings).step_update(5)
        first[bool(word)] = optimizer.param_groups[0]["lr"]
    assert first[True] < 0.3 < 0.9 < first[False]
    make_scheduler(optimizer, replace(settings, iterations=10, width=64)).step_update(5)  # half of a short run at most
    assert optimizer.param_groups[0]["lr"] > 0.4


@pytest.mark.parametrize(("loss", "least"), [("--spectrum", 16), ("--adversarial", 9)])
def test_crops_smaller_than_a_losss_windows_are_refused(loss, least):
    model = rs.ModelConfig.from_dict(read_config(ROOT / "training/configs/builtin.json")["model"])
    with pytest.raises(SettingsError, match=f"--crop is 8; .* need {least} pixels"):
        resolve(parse(line("--crop", 8, loss, 0.1)), model)
    assert resolve(parse(line("--crop", 16, loss, 0.1)), model).crop == 16
    with pytest.raises(SettingsError, match=f"{loss} is -1.0; it must be 0 or a number above it"):
        parse(line(loss, -1))


def test_recipes_survive_a_file(tmp_path):
    settings = resolve(parse(line("--fonts", tmp_path)), rs.ModelConfig())
    again = typed(Settings, json.loads(json.dumps(to_dict(settings))), "the file")
    assert {**again} == {name: getattr(settings, name) for name in again}


@pytest.mark.parametrize(
    "name, loss",
    [
        ("builtin", "l1"),
        ("builtin-continue", "mse"),
        ("builtin-longer", "psnr"),
        ("builtin-wider", "psnr"),
        ("builtin-varied", "psnr"),
        ("builtin-real", "l1"),
        ("builtin-real-continue", "l1"),
    ],
)
def test_the_built_in_models_recipes_are_readable(name, loss):
    settings = parse(line("--config", ROOT / f"training/configs/{name}.json"))
    assert settings.iterations >= 1000 and 0 < settings.damaged_share < 1 and settings.loss == loss


def test_fonts_that_cannot_be_drawn_are_named_and_left_out(tmp_path, caplog):
    """A colour font of one size, among the system's own, once ended a run at its first page of text."""
    matplotlib = pytest.importorskip("matplotlib")
    good = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    kept = [tmp_path / "GOOD.TTF", tmp_path / "good.otf"]  # files from Windows are often spelt in capitals
    for path in kept:
        path.write_bytes(good.read_bytes())
    (tmp_path / "bad.ttf").write_bytes(good.read_bytes()[:200])
    (tmp_path / "._good.otf").write_bytes(good.read_bytes())  # as macOS puts beside files, but a font
    assert sorted(usable_fonts(tmp_path)) == [str(path) for path in kept] and "bad.ttf is left out" in caplog.text
    rng = np.random.default_rng(0)
    assert draw_page(64, rng, usable_fonts(tmp_path)).shape == (3, 64, 64)


def test_links_to_folders_of_fonts_are_followed(tmp_path):
    """As those to folders of pictures are; such a folder was once said to hold no font."""
    matplotlib = pytest.importorskip("matplotlib")
    good = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "good.ttc").write_bytes(good.read_bytes())
    (tmp_path / "fonts").mkdir()
    link_folder(tmp_path / "fonts" / "linked", tmp_path / "elsewhere")
    assert usable_fonts(tmp_path / "fonts") == [str(tmp_path / "fonts" / "linked" / "good.ttc")]


def test_what_is_validated_on_is_checked_aloud(folder, tmp_path, capsys):
    """Files that a manifest or --validation names and that cannot be used were left out without a word."""
    held = make_pictures(tmp_path / "held", 3, 40)
    (held / "picture_1.png").write_bytes(b"no picture")
    settings = Settings(folder, tmp_path / "out", validation=held)
    assert len(scan_validation(settings, Processes(0, 1, torch.device("cpu"))).used) == 2
    assert "To validate on, 2 pictures can be used.\n1 cannot be read" in capsys.readouterr().out
    assert scan_validation(Settings(folder, tmp_path / "out"), Processes(0, 1, torch.device("cpu"))) is None


def test_as_many_crops_are_damaged_as_the_settings_say():
    hr = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain = make_degradation("bicubic", 4, 0)(hr, range(4))
    damaged = [degradation_of(parse(line("--degradation", "everyday", "--damaged-share", share)), 4) for share in (0, 1)]
    assert [torch.equal(degrade(hr, range(4)), plain) for degrade in damaged] == [True, False]


def test_something_is_left_beside_what_is_validated_on(folder):
    found = scan(find_images(folder), 32)
    with pytest.raises(DataError, match="are those to validate on"):
        _held_out(list(found.used), found, folder)


def test_a_folder_is_not_both_pictures_and_output(tmp_path):
    data = make_pictures(tmp_path / "data", 2)
    assert len(find_images(data, "train", without=data / "run")) == 2
    with pytest.raises(DataError, match="Choose another --output"):
        find_images(data, "train", without=data / "." / "")


def test_a_folder_without_fonts_is_an_error(folder, tmp_path):
    (tmp_path / "fonts").mkdir()
    model = standin.small_model(model_channels=8)
    settings = resolve(Settings(folder, tmp_path / "out", crop=32, fonts=tmp_path / "fonts"), model.config)
    with pytest.raises(DataError, match="There is no font in"):
        prepare_data(settings, model, Processes(0, 1, torch.device("cpu")))


def test_pages_are_text_line_art_or_one_colour():
    """A fixed share is plain, half of its channels at an end of their range, and which page a seed gives is settled."""
    pages = [draw_page(48, np.random.default_rng(seed)) for seed in range(200)]
    plain = [page for page in pages if (page == page[:, :1, :1]).all()]
    assert 15 <= len(plain) <= 50  # 0.15 of them, and line art that misses its page
    ends = np.mean([[int(level) in (0, 255) for level in page[:, 0, 0]] for page in plain])
    assert 0.35 < ends < 0.75
    assert torch.equal(pages[7], draw_page(48, np.random.default_rng(7)))


# ---------------------------------------------------------------------------------------------------- found by review


@pytest.mark.parametrize(
    "text", ["\ufefffile;split\nx/a.png;train\nb.png;val\n", "split\tfile\tnote\ntrain\tx/a.png\tz\n\ntrain\n"]
)
def test_manifests_as_spreadsheets_write_them(tmp_path, text):
    (tmp_path / "MANIFEST.csv").write_text(text, encoding="utf-8")
    assert find_images(tmp_path, "train") == [tmp_path / "x/a.png"]


@pytest.mark.parametrize("data", [b"file,kind\na.png,train\n", "Größe,split\n".encode("cp1252")])
def test_manifests_that_say_nothing_are_errors(tmp_path, data):
    (tmp_path / "MANIFEST.csv").write_bytes(data)
    with pytest.raises(DataError, match=r"MANIFEST\.csv"):
        find_images(tmp_path, "train")


def test_links_to_folders_are_followed_and_circles_end(folder, tmp_path):
    (tmp_path / "deep").mkdir()
    link_folder(tmp_path / "deep" / "link", folder)
    link_folder(tmp_path / "deep" / "circle", tmp_path / "deep")
    assert [path.name for path in find_images(tmp_path)] == [path.name for path in find_images(folder)]
    assert find_images(tmp_path, without=folder) == []
    link_folder(folder / "loop", folder)
    assert not [path for path in find_images(folder) if "loop" in path.parts]


def test_what_macos_leaves_behind_is_no_data(tmp_path):
    data = make_pictures(tmp_path / "pictures", 2)
    (data / "._picture_0.png").write_bytes(b"\0\5\26\7")  # beside every file, on disks that are not its own
    (data / ".Trashes").mkdir()
    (data / "picture_1.png").rename(data / ".Trashes" / "picture_1.png")
    assert find_images(tmp_path) == [data / "picture_0.png"]


def test_deep_pictures_are_read_as_deep_or_refused(tmp_path):
    levels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png", transparency=7)
    Image.fromarray(np.full((64, 64), 10**6, np.int32)).save(tmp_path / "long.tif")
    Image.fromarray(np.full((64, 64), 200, np.int32)).save(tmp_path / "small.tif")
    Image.fromarray(np.full((64, 64), 0.5, np.float32)).save(tmp_path / "float.tif")
    assert float(read_rgb(tmp_path / "deep.png").float().mean()) == pytest.approx(127.5, abs=1)
    for name in ("long.tif", "small.tif", "float.tif"):
        assert "says nothing about black and white" in inspect(tmp_path / name).problem


def test_bare_names_pair_only_where_they_are_the_only_ones(tmp_path):
    for place in ("high/a", "high/b"):
        make_pictures(tmp_path / place, 1, side=72 if place.endswith("a") else 76)
    make_pictures(tmp_path / "low", 1, side=18)
    with pytest.raises(DataError, match="2 pairs do not fit: picture_0.png has no partner"):
        match_pairs(pictures(tmp_path / "high"), tmp_path / "high", tmp_path / "low", 4)


@pytest.mark.parametrize("name", ["recipe.json", "recipe.yaml"])
def test_a_recipe_that_was_edited_in_windows(tmp_path, name):
    (tmp_path / name).write_text('{"training": {"crop": 64}}', encoding="utf-8-sig")
    assert read_config(tmp_path / name) == {"training": {"crop": 64}}


@pytest.fixture
def data_set(tmp_path):
    """HR and LR, both with train and val, whose pictures have the same names."""
    for part in ("train", "val"):
        high = make_pictures(tmp_path / "HR" / part, 3)
        (tmp_path / "LR" / part).mkdir(parents=True)
        for number, path in enumerate(sorted(high.iterdir())):
            with Image.open(path) as image:
                if part == "val":
                    image = image.transpose(Image.Transpose.ROTATE_90)
                    image.save(path)
                image.resize((18, 18), Image.Resampling.BOX).save(tmp_path / "LR" / part / f"picture_{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    "data, pairs, more",
    [
        ("HR", "LR", ("--validation", "HR/val")),
        ("HR/train", "LR", ("--validation", "HR/val")),
        ("HR/train", "LR/train", ("--validation", "HR/val", "--validation-pairs", "LR/val")),
    ],
)
def test_held_out_pairs_are_those_of_their_own_folder(data_set, data, pairs, more, monkeypatch):
    monkeypatch.chdir(data_set)
    settings = parse(line("--data", data, "--output", "out", "--degradation", "paired", "--pairs", pairs, "--crop", 32, *more))
    model = rs.load_model("builtin", device="cpu", dtype="fp32")
    found = prepare_data(settings, model, Processes(0, 1, torch.device("cpu")))
    assert found.count == 3 and len(found.pairs) == 3
    few = prepare_data(replace(settings, validation_count=2), model, Processes(0, 1, torch.device("cpu")))
    assert [len(part) for part in (few.pairs, few.held)] == [2, 2] and few.held == found.held[:2]
    for pair in found.pairs:
        small = torch.nn.functional.avg_pool2d(pair.truth, 4)
        assert float((small - pair.lq).abs().max()) < 1.01 / 255


def test_a_low_picture_of_two_is_said(data_set, monkeypatch):
    monkeypatch.chdir(data_set)
    words = ("--data", "HR/train", "--validation", "HR/val", "--pairs", "LR/train", "--degradation", "paired", "--crop", 32)
    settings = parse(line("--output", "out", *words))
    model = rs.load_model("builtin", device="cpu", dtype="fp32")
    with pytest.raises(DataError, match=r"would be the low-resolution picture of .*train.* and of .*val.*--validation-pairs"):
        prepare_data(settings, model, Processes(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("beside", ["config.json", "contact_sheet.png"])
def test_folders_of_other_runs_hold_no_pictures(tmp_path, beside, caplog):
    data = make_pictures(tmp_path / "data", 2)
    make_pictures(data / "run1" / "validation", 2)
    assert len(find_images(data)) == 4
    (data / "run1" / "scan.json").write_text("{}")
    assert len(find_images(data)) == 4, "somebody's own file"
    (data / "run1" / beside).write_text("{}")
    assert len(find_images(data)) == 2 and "run1 is the folder of a run" in caplog.text


def test_a_manifest_by_hand(tmp_path, caplog):
    data = make_pictures(tmp_path, 4)
    text = "file, split\npicture_0.png,train\npicture_1.png, train \n picture_2.png,Train\npicture_3.png,testing\n"
    (data / "MANIFEST.csv").write_text(text)
    assert [path.name for path in find_images(data, "train")] == ["picture_0.png", "picture_1.png", "picture_2.png"]
    assert "pictures under testing are not used" in caplog.text


def test_empty_parts_of_a_recipe_are_none(tmp_path):
    (tmp_path / "own.yaml").write_text("model:\ntraining:\n")
    assert read_config(tmp_path / "own.yaml") == {}


@pytest.mark.parametrize(
    "words, told",
    [
        (("--fonts", str(ROOT)), "--fonts is of no use here"),
        (("--degradation", "bicubic", "--damaged-share", 0.1), "--damaged-share is of no use here"),
        (("--variety", "True", "--rescale-share", 0), "--rescale-share is of no use here"),
        (("--degradation", "paired", "--pairs", "low", "--min-rescale", 0.3), "--min-rescale is of no use here"),
        ((), ""),
    ],
)
def test_settings_without_effect_are_told(words, told, caplog):
    resolve(parse(line(*words)), rs.ModelConfig())
    assert told in caplog.text and ("no use" in caplog.text) == bool(told)


def test_pairs_of_which_a_mac_has_spelt_one(tmp_path):
    high, low = make_pictures(tmp_path / "high", 1), make_pictures(tmp_path / "low", 1, side=18)
    (high / "picture_0.png").rename(high / "e\u0301.png")
    (low / "picture_0.png").rename(low / "\u00e9.png")
    assert list(match_pairs(pictures(high), high, low, 4).values()) == [low / "\u00e9.png"]


@pytest.mark.parametrize("words", [("--seed", -1), ("--workers", -1), ("--betas", 2, 0.9), ("--learning-rate", "nan"), ("--validation-count", 0), ("--validation-crop", 3), ("--fonts", "/nowhere")])  # fmt: skip
def test_more_values_out_of_range(words):
    with pytest.raises(SettingsError, match=words[0]):
        parse(line(*words))


def test_the_default_crop_suits_every_published_network():
    for variant in ("realsr_x4_s4", "faceir_s4"):
        config = standin.published_config(variant)
        assert resolve(Settings(Path("in"), Path("out")), config).crop == (512 if variant == "faceir_s4" else 256)


def test_no_crop_shares_its_random_numbers_with_a_held_out_picture(folder):
    asked = []
    make_pairs(pictures(folder), lambda truth, numbers: asked.extend(numbers) or truth, 1, 16)
    assert asked and min(asked) >= 10**9 and len(set(asked)) == len(asked)
