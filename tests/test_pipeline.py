"""Whole runs: recorded pictures, every size and shape, tiles, batches, seeds, progress, faults."""

import math
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import resshift_core as rs
from resshift_core import arguments, noise, pipeline, tile_runs
from resshift_core.alpha import fill_hidden, resize_visible
from resshift_core.arguments import check_images
from resshift_core.preview import Canvas
from resshift_core.resize import resize

from . import standin
from .test_unet import recording, relative


def picture(height, width, count=1, channels=3, seed=0):
    """A smooth random picture in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, channels, max(1, height // 4), max(1, width // 4), generator=generator)
    return F.interpolate(small, size=(height, width), mode="bilinear")


class TestRecorded:
    """Runs of the reference implementation with stand-in weights (facts.md section 6): bound 5e-3 for pictures."""

    @pytest.mark.parametrize("name, seed", [("seed12345", 12345), ("pad_40x56", 7)])
    def test_super_resolution(self, published_model, name, seed):
        data = recording(f"sample_realsr_x4_s4_{name}")
        lq = data["lq_uint8"].permute(2, 0, 1)[None] / 255
        out = rs.upscale(published_model("realsr_x4_s4"), lq, seed=seed)
        assert relative(out * 2 - 1, data["image"].clamp(-1, 1)) < 5e-3

    def test_every_step(self, published_model):
        """Predicted x0 and x_{t-1} after each step, in the latent."""
        data, model = recording("sample_realsr_x4_s4_seed12345"), published_model("realsr_x4_s4")
        seen = []
        original = tile_runs.sample

        def spy(*args, on_step, **words):
            return original(*args, on_step=lambda step, t, x0, x: seen.append((x0, x)), **words)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tile_runs, "sample", spy)
            rs.upscale(model, data["lq_uint8"].permute(2, 0, 1)[None] / 255, seed=12345)
        assert len(seen) == 4
        for (x0, x), x0_recorded, x_recorded in zip(seen, data["pred_x0"], data["sample"]):
            assert relative(x0, x0_recorded) < 1e-4 and relative(x, x_recorded) < 1e-4

    def test_inpainting(self, published_model):
        """The recorded picture is the one before the mask composes it with the input."""
        data = recording("sample_inpaint_256")
        image, mask = data["lq_uint8"].permute(2, 0, 1)[None] / 255, (data["mask"] + 1) / 2
        out = rs.upscale(published_model("inpaint_imagenet_s4"), image, seed=5, mask=mask)
        expected = mask * (data["image"].clamp(-1, 1) + 1) / 2 + (1 - mask) * image
        assert relative(out, expected) < 5e-3
        assert torch.equal(out[(mask == 0).expand_as(out)], image[(mask == 0).expand_as(out)])


@pytest.fixture(scope="module")
def model():
    """Random weights, but small outputs, as a trained residual model has."""
    made = standin.small_model()
    with torch.no_grad():
        made.unet.out[2].weight.mul_(0.02)
        made.unet.out[2].bias.mul_(0.02)
    return made


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90), width=st.integers(1, 90), count=st.integers(0, 3), channels=st.sampled_from([1, 3, 4]),
    scale=st.one_of(st.none(), st.floats(0.3, 9)), tile=st.sampled_from(["auto", None, 16, 32, 50]),
    overlap=st.sampled_from([None, 0, 8, 100]), sampler=st.sampled_from(["stochastic", "deterministic"]),
    color_fix=st.sampled_from(["none", "wavelet", "adain"]),
)  # fmt: skip
def test_any_input_gives_the_exact_size_finite_and_in_range(
    model, height, width, count, channels, scale, tile, overlap, sampler, color_fix
):
    images = torch.rand(count, channels, height, width)
    out = rs.upscale(
        model, images, steps=2, scale=scale, tile=tile, overlap=overlap, sampler=sampler, color_fix=color_fix, tile_batch=4
    )
    factor = 4 if scale is None else scale
    assert out.shape == (count, channels, max(1, round(height * factor)), max(1, round(width * factor)))
    assert out.dtype == torch.float32 and torch.isfinite(out).all()
    assert count == 0 or (out.min() >= 0 and out.max() <= 1)


class TestSize:
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_an_exact_size(self, model, channels):
        lq = picture(20, 30, channels=channels)
        assert rs.upscale(model, lq, size=(61, 100)).shape == (1, channels, 61, 100)
        assert torch.equal(rs.upscale(model, lq, size=(60, 90)), rs.upscale(model, lq, scale=3))
        assert rs.upscale(model, lq[..., :2, :3], size=(200, 300)).shape == (1, channels, 200, 300)  # an icon

    @pytest.mark.parametrize(
        "words, sentence",
        [
            ({"size": (80, 120), "scale": 4}, "give one of them"),
            ({"size": 80}, r"it must be \(height, width\)"),
            ({"size": (0, 120)}, "sides must be above 0"),
            ({"size": (10**6, 120)}, "at most"),
            ({"size": (80, 1.5)}, "size"),
        ],
    )
    def test_sizes_that_cannot_be(self, model, words, sentence):
        with pytest.raises(rs.InputError, match=sentence):
            rs.upscale(model, picture(20, 30), **words)

    def test_whole_numbers_of_another_kind(self, model):
        lq = picture(20, 30)
        assert torch.equal(rs.upscale(model, lq, tile_batch=2.0), rs.upscale(model, lq))


class TestTiles:
    def test_the_overlap_of_small_tiles_is_the_models_own(self, model):
        """Or half of the tile: less would show."""
        lq = picture(20, 150)
        for tile, overlap in ((64, 16), (32, 16), (16, 8)):
            assert torch.equal(rs.upscale(model, lq, tile=tile), rs.upscale(model, lq, tile=tile, overlap=overlap))

    def test_an_overlap_beyond_half_of_the_tile(self, model, caplog):
        lq = picture(40, 40)
        assert torch.equal(rs.upscale(model, lq, tile=0, overlap=30), rs.upscale(model, lq, tile=0))
        assert not caplog.records  # a single tile overlaps with nothing
        assert torch.equal(rs.upscale(model, lq, tile=32, overlap=30), rs.upscale(model, lq, tile=32, overlap=16))
        assert "overlap 30 is more than half of the tile of 32; 16 is used" in caplog.text

    def test_whole_picture_and_tiles_agree(self, model):
        """No norm and a reach far below the overlap: tiles must not be visible at all."""
        lq = picture(150, 170)
        whole = rs.upscale(model, lq, tile=None)
        for tile in (64, 128):
            for batch in (1, 3):
                tiled = rs.upscale(model, lq, tile=tile, overlap=32, tile_batch=batch)
                torch.testing.assert_close(tiled, whole, atol=2e-5, rtol=0)

    def test_memory_of_noise_does_not_change_the_picture(self, model, monkeypatch):
        lq = picture(100, 60)
        kept = rs.upscale(model, lq, tile=32)
        monkeypatch.setattr("resshift_core.noise.KEEP_BYTES", 0)
        assert torch.equal(rs.upscale(model, lq, tile=32), kept)

    @pytest.mark.parametrize("variant", ["realsr_x4_s4", "realsr_x2_s4", "inpaint_imagenet_s4", "faceir_s4"])
    def test_published_kinds_run_in_tiles_too(self, variant):
        """Narrow networks of the published structures, every scale and latent factor; inpainting crashes the reference."""
        config = standin.published_config(variant)
        narrow = replace(
            config,
            unet=replace(config.unet, model_channels=32, swin_channels=32, swin_depth=2, channel_mult=(1, 1, 1, 1)),
            autoencoder=replace(config.autoencoder, ch=8, num_res_blocks=(1,) * len(config.autoencoder.ch_mult)),
        )
        model = standin.standin_model(narrow)
        side = 2 * model.config.multiple if model.scale > 1 else model.config.multiple + 9
        lq = picture(side, side - 7)
        mask = torch.zeros(1, 1, side, side - 7)
        mask[..., 5:40, 5:40] = 1
        words = {"mask": mask} if model.config.task == "inpaint" else {}
        out = rs.upscale(model, lq, steps=1, tile=model.config.multiple, overlap=0, **words)
        assert out.shape == (1, 3, side * model.scale, (side - 7) * model.scale) and torch.isfinite(out).all()
        if words:
            assert torch.equal(out[(mask == 0).expand_as(out)], lq[(mask == 0).expand_as(out)])


class TestSeeds:
    def test_alone_and_in_a_batch(self, model):
        batch = picture(40, 50, count=3)
        together = rs.upscale(model, batch, seed=10, tile_batch=3)
        for i in range(3):
            alone = rs.upscale(model, batch[i : i + 1], seed=10 + i)
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-6, rtol=0)

    def test_same_settings_same_bytes_and_another_seed_differs(self, model):
        lq = picture(33, 47)
        first = rs.upscale(model, lq, seed=3)
        assert torch.equal(rs.upscale(model, lq, seed=3), first)
        assert not torch.equal(rs.upscale(model, lq, seed=4), first)

    def test_shared_noise_and_lists(self, model):
        frames = picture(32, 32).expand(3, -1, -1, -1)
        shared = rs.upscale(model, frames, seed=5, noise="shared")
        assert torch.equal(shared[0], shared[1]) and torch.equal(shared[0], shared[2])
        listed = rs.upscale(model, frames, seed=[5, 9, 5])
        assert torch.equal(listed[0], shared[0]) and torch.equal(listed[2], shared[0])
        assert not torch.equal(listed[1], shared[0])

    def test_noise_of_finished_pictures_is_let_go(self, model, monkeypatch):
        """A batch of frames keeps the noise of those at work, not of all."""
        alive = []
        real = tile_runs._Shared.noise

        def spy(self, *args):
            field = real(self, *args)
            alive.append(len(self._fields))
            return field

        monkeypatch.setattr(tile_runs._Shared, "noise", spy)
        rs.upscale(model, picture(32, 32, count=6), tile_batch=2)
        assert max(alive) == 2

    def test_deterministic_uses_the_same_start(self, model):
        lq = picture(32, 32)
        assert not torch.equal(rs.upscale(model, lq, sampler="deterministic"), rs.upscale(model, lq))
        one = [rs.upscale(model, lq, sampler=sampler, steps=1) for sampler in ("deterministic", "stochastic")]
        assert torch.equal(*one)  # with a single step there is only the start

    @pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple])
    def test_seeds_of_any_kind(self, model, kind):
        images = torch.cat([picture(16, 16), picture(16, 16, seed=1)])
        assert torch.equal(rs.upscale(model, images, seed=kind([5, 2**40])), rs.upscale(model, images, seed=[5, 2**40]))
        one = np.int64(7) if kind is np.array else torch.tensor(7)
        assert torch.equal(rs.upscale(model, images, seed=one), rs.upscale(model, images, seed=7))


class TestChannels:
    def test_grey_stays_grey_and_equals_its_rgb(self, model):
        grey = picture(20, 30, channels=1)
        out = rs.upscale(model, grey)
        torch.testing.assert_close(out, rs.upscale(model, grey.expand(-1, 3, -1, -1)).mean(1, keepdim=True))

    @pytest.mark.parametrize("scale", [None, 3, 5.3])
    def test_alpha_is_upscaled_beside_the_colours(self, model, scale):
        """By the built-in model, whatever the colours' is; what is constant stays so."""
        rgba = picture(40, 50, channels=4, count=2)
        rgba[1, 3] = 0.7
        rgba[0, 3] = (torch.arange(50) > 25).float()
        out = rs.upscale(model, rgba, scale=scale)
        torch.testing.assert_close(out[:, :3], rs.upscale(model, rgba[:, :3], scale=scale))
        builtin = rs.load_model("builtin", device="cpu", dtype="fp32")
        column = out.shape[-1] / 50
        near, far = slice(math.ceil(24 * column), int(28 * column)), int(23 * column)  # the edge is between 25 and 26
        expected = rs.upscale(builtin, rgba[:1, 3:], scale=scale)
        assert torch.equal(out[:1, 3:, :, near], expected[..., near])
        assert (out[0, 3, :, :far] == 0).all() and (out[0, 3, :, -int(22 * column) :] == 1).all()
        assert (out[1, 3] == rgba[1, 3, 0, 0]).all()
        bicubic = F.interpolate(rgba[:1, 3:], size=out.shape[-2:], mode="bicubic").clamp(0, 1)
        soft, softer = ((picture * (1 - picture)).sum() for picture in (expected, bicubic))
        assert soft < 0.8 * softer, f"{soft} {softer}"

    def test_another_model_of_that_name_does_not_upscale_alpha(self, small_model):
        """As `finetune.py --output runs/builtin` makes one."""
        rgba = picture(24, 24, channels=4)
        named, other = (rs.upscale(small_model(name=name), rgba) for name in ("builtin", "mine"))
        assert torch.equal(named, other)

    @pytest.mark.parametrize("name", ["builtin", "builtin-real"])
    def test_grey_stays_grey_however_it_is_stored(self, name):
        """Hosts hand over three equal channels; a network makes faint colours of them."""
        grey = (torch.rand(1, 1, 24, 30, generator=torch.Generator().manual_seed(0)) > 0.5).float()
        images = torch.cat([grey.expand(-1, 3, -1, -1), picture(24, 30)])
        model = rs.load_model(name, device="cpu", dtype="fp32")
        out = rs.upscale(model, images, noise="shared")
        assert (out[0] == out[0, :1]).all() and (out[1] - out[1].mean(0)).abs().max() > 0.05
        torch.testing.assert_close(out[:1], rs.upscale(model, grey).expand(-1, 3, -1, -1))

    def test_alpha_shares_the_progress(self, model):
        rgba, seen = picture(40, 50, channels=4), []
        rs.upscale(model, rgba, on_step=lambda event: seen.append(event.fraction))
        assert seen == sorted(seen) and seen[0] == 0 and seen[-1] == 1 and 0.5 in seen
        with pytest.raises(rs.Cancelled):
            rs.upscale(model, rgba, on_step=lambda event: event.fraction < 0.2)

    def test_events_of_alpha_name_the_picture_of_the_batch(self, model):
        batch, seen = torch.ones(3, 4, 16, 16) * 0.5, []
        batch[1, 3, :8] = 1  # alone has edges
        rs.upscale(model, batch, on_step=lambda e: seen.append((e.fraction, e.image, e.images, e.boxes[0][0])))
        first = [event[1:] for event in seen if event[0] < 0.4]
        assert set(first) == {(1, 3, 1)}

    def test_alpha_that_is_not_enlarged(self, model):
        rgba = picture(20, 30, channels=4)
        assert torch.equal(rs.upscale(model, rgba, scale=1)[:, 3:], rgba[:, 3:])
        assert torch.equal(rs.upscale(model, rgba, scale=0.5)[:, 3:], resize(rgba[:, 3:], (10, 15)))

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("size", [(7, 1), (2, 1), (1, 1), (1, 7)])
    def test_shrinking_to_a_single_column(self, channels, size):
        """Which torch itself does wrongly where channels do not come last: rows get other rows' values."""
        image = torch.rand(2, channels, 12, 3, generator=torch.Generator().manual_seed(0))
        alike = image[..., :1].expand(-1, -1, -1, 3)  # whose columns are equal, and so are those of any width
        of_any = F.interpolate(alike, size=(size[0], 9), mode="bicubic", antialias=True).clamp(0, 1)
        torch.testing.assert_close(resize(alike, size), of_any[..., : size[1]], atol=1e-5, rtol=0)

    def test_other_dtypes_come_in_and_float32_goes_out(self, model):
        out = rs.upscale(model, picture(16, 16).double())
        assert out.dtype == torch.float32

    def test_a_callers_default_device_changes_nothing(self, model, monkeypatch):
        """Such as the GPU of `torch.set_default_device("cuda")`; what lies on "meta" has no values."""
        monkeypatch.setattr(torch, "get_default_device", lambda: torch.device("cpu"), raising=False)  # as 2.3 says
        pictures = torch.rand(2, 4, 40, 24)
        expected = rs.upscale(model, pictures, tile=16, overlap=4, scale=3, color_fix="wavelet", wrap="x")
        weights = rs.load_model("builtin", device="cpu").unet.state_dict()
        with torch.device("meta"):
            got = rs.upscale(model, pictures, tile=16, overlap=4, scale=3, color_fix="wavelet", wrap="x")
            again = rs.load_model("builtin", device="cpu").unet.state_dict()
        assert torch.equal(got, expected)
        assert weights.keys() == again.keys() and all(torch.equal(weights[name], again[name]) for name in weights)

    def test_a_callers_autocast_changes_nothing(self, model):
        """Hosts' hires fix runs inside one."""
        alone = rs.upscale(model, picture(16, 16))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(rs.upscale(model, picture(16, 16)), alone)

    def test_values_that_are_no_colours(self, model, caplog):
        lq = picture(16, 16)
        lq[0, 0, 3, 3], lq[0, 1, 4, 4], lq[0, 2, 5, 5] = math.nan, math.inf, -math.inf
        assert torch.isfinite(rs.upscale(model, lq)).all()
        assert "not finite" in caplog.text
        assert torch.equal(rs.upscale(model, picture(16, 16) * 3 - 1), rs.upscale(model, (picture(16, 16) * 3 - 1).clamp(0, 1)))


class TestMistakes:
    def test_values_from_minus_one_are_said(self, model, caplog):
        rs.upscale(model, picture(16, 16) * 2 - 1)
        assert "give x / 2 + 0.5" in caplog.text
        caplog.clear()
        rs.upscale(model, picture(16, 16) * 1.2 - 0.1)  # an overshoot
        assert not caplog.text

    @pytest.mark.parametrize("false", [False, np.False_, torch.tensor(False)])
    def test_any_false_stops(self, model, false):
        with pytest.raises(rs.Cancelled):
            rs.upscale(model, picture(16, 16), on_step=lambda event: false)

    @pytest.mark.parametrize("answer", [None, 0, "", np.True_, torch.tensor(True), torch.zeros(2, dtype=torch.bool)])
    def test_other_answers_do_not(self, model, answer):
        assert rs.upscale(model, picture(16, 16), on_step=lambda event: answer).shape == (1, 3, 64, 64)

    def test_what_cannot_be_called_is_a_sentence(self, model):
        with pytest.raises(rs.InputError, match="on_step is 'x'"):
            rs.upscale(model, picture(16, 16), on_step="x")

    def test_shapes_alone_are_a_sentence(self, small_model):
        with pytest.raises(rs.InputError, match="device meta"):
            rs.upscale(small_model().to("meta"), picture(16, 16))


class TestMemory:
    """What a run no longer needs must be gone before the next large thing is made."""

    def test_pictures_in_range_are_not_copied(self, model):
        images = picture(16, 16, count=2)
        assert check_images(images) is images

    @pytest.mark.parametrize("words", [{}, {"color_fix": "wavelet"}, {"color_fix": "adain", "scale": 1}, {"wrap": "both"}])
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_the_callers_picture_stays_as_it_is(self, model, channels, words):
        images = picture(20, 24, channels=channels)
        before = images.clone()
        rs.upscale(model, images, steps=2, **words)
        assert torch.equal(images, before)

    def test_a_chain_keeps_nothing_of_its_past(self, small_model, monkeypatch):
        model = small_model(scale=2, lq_stages=1)  # which goes the general way to its latent
        made: dict[str, list[weakref.ref]] = {"enlarged": [], "x0": [], "decoded": []}

        def gone(kind):
            return all(reference() is None for reference in made[kind])

        def observed(owner, name, kind, of_input=False, needs_gone=()):
            method = getattr(owner, name)

            def replacement(first, *args, **words):
                assert all(map(gone, needs_gone))
                result = method(first, *args, **words)
                made[kind].append(weakref.ref(first if of_input else result))
                return result

            monkeypatch.setattr(owner, name, replacement)

        observed(model.autoencoder, "encode", "enlarged", of_input=True, needs_gone=("x0", "decoded"))
        observed(model, "denoise", "x0", needs_gone=("enlarged", "x0", "decoded"))
        observed(model.autoencoder, "decode", "decoded")
        rs.upscale(model, picture(40, 40), tile=32, overlap=8, steps=3)
        assert {kind: len(references) for kind, references in made.items()} == {"enlarged": 4, "x0": 12, "decoded": 4}


class TestEvents:
    def test_progress_is_complete_and_monotonous(self, model):
        events = []
        rs.upscale(model, picture(40, 70, count=2), tile=32, on_step=events.append)
        assert {event.phase for event in events} == {"encode", "step", "decode"}
        fractions = [event.fraction for event in events]
        assert fractions == sorted(fractions) and 0 <= fractions[0] and fractions[-1] == 1
        tiles = events[0].tiles
        assert sum(event.phase == "step" for event in events) == tiles * 4
        assert {event.image for event in events} == {0, 1} and {event.step for event in events if event.phase == "step"} == {
            1,
            2,
            3,
            4,
        }

    def test_preview_is_a_small_picture_of_x0(self, model):
        previews = []
        lq = picture(32, 48)
        out = rs.upscale(model, lq, on_step=lambda e: previews.append(e.preview()) if e.phase == "step" else None)
        assert previews[-1].shape == (1, 3, 32, 48)
        torch.testing.assert_close(previews[-1], F.avg_pool2d(out, 4), atol=0.02, rtol=0)  # clamping apart

    def test_false_cancels_and_exceptions_pass(self, model):
        with pytest.raises(rs.Cancelled):
            rs.upscale(model, picture(16, 16), on_step=lambda event: event.step < 2)

        def stop(event):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            rs.upscale(model, picture(16, 16), on_step=stop)


class TestBatchesOfLargePictures:
    """Fields that are too large to be kept hand out memory that they use again."""

    @pytest.fixture
    def small_blocks(self, monkeypatch):
        monkeypatch.setattr(noise, "KEEP_BYTES", 0)
        monkeypatch.setattr(noise, "ROW_BYTES", 0)
        monkeypatch.setattr(noise, "BLOCK_BYTES", 0)

    @pytest.mark.parametrize("tile_batch", [2, 3, 6])
    def test_tiles_that_go_together_have_their_own_noise(self, model, small_blocks, tile_batch):
        lq = picture(112, 144)
        alone = rs.upscale(model, lq, tile=64, overlap=16, tile_batch=1)
        together = rs.upscale(model, lq, tile=64, overlap=16, tile_batch=tile_batch)
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)

    def test_pictures_that_go_together_have_their_own_noise(self, model, small_blocks):
        both = rs.upscale(model, picture(48, 48, count=2), tile_batch=2, seed=[3, 4])
        for i in range(2):
            alone = rs.upscale(model, picture(48, 48, count=2)[i : i + 1], seed=[3 + i])
            torch.testing.assert_close(both[i : i + 1], alone, atol=1e-5, rtol=0)


def test_the_result_can_be_used_like_any_tensor(model):
    out = rs.upscale(model, picture(16, 16))
    out.mul_(2)
    weight = torch.ones(1, requires_grad=True)
    (out * weight).sum().backward()
    assert weight.grad is not None


class TestFaults:
    def run_with_failure(self, model, monkeypatch, fails):
        """Upscale while `fails(tiles in the batch, height of a tile)` decides when the device is out of memory."""
        real = tile_runs._run_tiles

        def guarded(model, jobs, shared, progress):
            if fails(len(jobs), jobs[0][0].axes[0].tile):
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return real(model, jobs, shared, progress)

        monkeypatch.setattr(tile_runs, "_run_tiles", guarded)
        return rs.upscale(model, picture(200, 200), tile=128, overlap=32, tile_batch=4)

    def test_out_of_memory_means_fewer_tiles_at_a_time(self, model, monkeypatch, caplog):
        expected = rs.upscale(model, picture(200, 200), tile=128, overlap=32)
        out = self.run_with_failure(model, monkeypatch, lambda tiles, side: tiles > 1)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
        assert "going on with 2" in caplog.text and "going on with 1" in caplog.text

    def test_then_smaller_tiles(self, model, monkeypatch, caplog):
        expected = rs.upscale(model, picture(200, 200), tile=64, overlap=32)
        out = self.run_with_failure(model, monkeypatch, lambda tiles, side: side > 80)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
        assert "starting again with 64" in caplog.text

    def test_then_an_error_with_numbers(self, model, monkeypatch):
        with pytest.raises(rs.OutOfMemory, match=r"a tile of 64 pixels needs about \d+ MiB on cpu"):
            self.run_with_failure(model, monkeypatch, lambda tiles, side: True)

    def test_other_errors_are_not_taken_for_it(self, model, monkeypatch):
        def broken(*args):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        monkeypatch.setattr(tile_runs, "_run_tiles", broken)
        with pytest.raises(RuntimeError, match="mat1"):
            rs.upscale(model, picture(16, 16))

    def test_fp16_that_torch_does_not_compute_is_a_sentence(self, monkeypatch):
        half = standin.small_model().to(dtype=torch.float16)
        monkeypatch.setattr(arguments, "cpu_has_fp16", lambda: False)
        with pytest.raises(rs.InputError, match="is in fp16, which torch .* does not compute on a processor. Choose auto"):
            rs.upscale(half, picture(16, 16))
        assert rs.upscale(half.to(dtype=torch.float32), picture(16, 16)).shape == (1, 3, 64, 64)

    @pytest.mark.fp16
    def test_a_tile_that_overflows_in_half_precision_is_redone(self, caplog):
        half = standin.small_model()
        with torch.no_grad():
            half.unet.input_blocks[0][0].weight.mul_(2e4)  # the weights fit into float16, what they make does not
            half.unet.out[2].weight.mul_(2e-5)
        lq = picture(16, 40)
        expected = rs.upscale(half, lq, tile=16)
        out = rs.upscale(half.to(dtype=torch.float16), lq, tile=16)
        assert torch.isfinite(out).all()
        assert (out - expected).abs().mean() < 0.02
        assert caplog.text.count("overflowed") == 1

    @pytest.mark.fp16
    @pytest.mark.parametrize("part", ["network", "encoder", "decoder"])
    def test_an_overflow_before_a_codebook_is_noticed_too(self, caplog, part):
        """A codebook has a valid code for whatever is not finite, so the picture would not tell."""
        unet = rs.UNetConfig(model_channels=32, channel_mult=(1, 1), num_res_blocks=1, swin_channels=32, head_channels=16)
        vqgan = rs.VQGANConfig(32, (1, 1, 1), (1, 1, 1), n_embed=64)
        model = standin.standin_model(rs.ModelConfig(unet, vqgan, tile=64))
        layers = {
            "network": (model.unet.input_blocks[0][0], model.unet.out[2]),
            "encoder": (model.autoencoder.encoder.conv_in, model.autoencoder.encoder.conv_out),
            "decoder": (model.autoencoder.decoder.conv_in, model.autoencoder.decoder.conv_out),
        }
        first, _ = layers[part]
        with torch.no_grad():
            first.weight.mul_(3e4 / first.weight.abs().max())  # a norm later on brings it back, in float32
        lq = picture(24, 24)
        expected = rs.upscale(model, lq)
        out = rs.upscale(model.to(dtype=torch.float16), lq)
        assert caplog.text.count("it is done again in float32") == 1
        assert (out - expected).abs().mean() < 0.02

    @pytest.mark.fp16
    @pytest.mark.parametrize("half", ["unet", "autoencoder"])
    def test_either_of_two_formats_may_overflow(self, caplog, half):
        """ComfyUI's flags set them apart."""
        unet = rs.UNetConfig(model_channels=32, channel_mult=(1, 1), num_res_blocks=1, swin_channels=32, head_channels=16)
        model = standin.standin_model(rs.ModelConfig(unet, rs.VQGANConfig(32, (1, 1, 1), (1, 1, 1), n_embed=64), tile=64))
        first = model.unet.input_blocks[0][0] if half == "unet" else model.autoencoder.encoder.conv_in
        with torch.no_grad():
            first.weight.mul_(3e4 / first.weight.abs().max())
        lq = picture(24, 24)
        expected = rs.upscale(model, lq)
        getattr(model, half).to(torch.float16)
        if half == "autoencoder":
            model.autoencoder.quantize.float()
        assert (rs.upscale(model, lq) - expected).abs().mean() < 0.02
        assert caplog.text.count("it is done again in float32") == 1

    def test_damaged_weights_are_told_as_such(self):
        broken = standin.small_model()
        with torch.no_grad():
            broken.unet.out[2].bias.fill_(math.nan)
        with pytest.raises(rs.InputError, match="probably damaged"):
            rs.upscale(broken, picture(16, 16))


class TestOneStepAndRetiming:
    @pytest.mark.parametrize("steps, times", [(1, [3.0]), (None, [3.0, 2.0, 1.0, 0.0])])
    def test_one_step_is_one_evaluation_at_T(self, model, steps, times):
        """Where the network is evaluated: what it is given of a step belongs to one of the times that are embedded."""
        embedded, given = [], []
        hooks = [
            model.unet.time_embed.register_forward_pre_hook(lambda module, args: embedded.append(args[0])),
            model.unet.register_forward_pre_hook(lambda module, args, more: given.append(more["constants"]), with_kwargs=True),
        ]
        try:
            rs.upscale(model, picture(16, 40), steps=steps, tile=16)
        finally:
            for hook in hooks:
                hook.remove()
        (t,) = embedded  # once a run, for all tiles and steps
        assert sorted(t.tolist()) == sorted(times)
        block = next(module for module in model.unet.modules() if hasattr(module, "emb_layers"))
        wanted = [model.unet.constants(torch.tensor([time]))[0][block][1] for time in times]
        assert len(given) % len(times) == 0 and len(given) > len(times)  # several tiles
        for constants, shift in zip(given, wanted * (len(given) // len(times))):
            torch.testing.assert_close(constants[block][1], shift, rtol=1e-4, atol=1e-5)

    def test_as_trained_is_the_default(self, model):
        lq = picture(20, 20)
        assert torch.equal(rs.upscale(model, lq), rs.upscale(model, lq, steps=4, kappa=0.1, p=0.3))
        assert not torch.equal(rs.upscale(model, lq), rs.upscale(model, lq, p=0.6))

    def test_more_steps_than_a_student_learned_warn(self, small_model, caplog):
        student = small_model(default_steps=1)
        rs.upscale(student, torch.rand(1, 3, 8, 8))
        assert not caplog.text
        rs.upscale(student, torch.rand(1, 3, 8, 8), steps=4)
        assert "distilled to run in one step" in caplog.text

    def test_a_far_kappa_warns(self, model, caplog):
        rs.upscale(model, picture(16, 16), kappa=0.11)
        assert not caplog.text
        rs.upscale(model, picture(16, 16), kappa=0.2)
        assert "kappa 0.2 is far from the 0.1" in caplog.text


@pytest.mark.parametrize(
    "words, sentence",
    [
        ({"images": torch.rand(3, 8, 8)}, r"this is \(3, 8, 8\)"),
        ({"images": torch.rand(1, 2, 8, 8)}, "2 channels"),
        ({"images": torch.rand(1, 3, 0, 8)}, "is empty"),
        ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, "divide 8-bit values by 255"),
        ({"images": "photo.png"}, "this is str"),
        ({"images": np.zeros((1, 3, 8, 8), np.float32)}, "this is ndarray. Use torch.from_numpy"),
        ({"steps": 0}, "steps is 0; it must be a whole number from 1 to 10000"),
        ({"steps": 10**9}, "steps is 1000000000; it must be a whole number from 1 to 10000"),
        ({"scale": "2"}, "scale is '2'; it must be a number"),
        ({"scale": (2, 2)}, r"scale is \(2, 2\); it must be a number"),
        ({"scale": torch.ones(2)}, "scale is tensor.*; it must be a number"),
        ({"scale": True}, "scale is True"),
        ({"kappa": "a"}, "kappa is 'a'; it must be a number"),
        ({"kappa": math.nan}, "kappa is nan"),
        ({"p": "x"}, "p is 'x'; it must be a number"),
        ({"steps": 2.5}, "steps is 2.5; it must be a whole number"),
        ({"steps": True}, "steps is True"),
        ({"seed": "abc"}, "seed is 'abc'; it must be a whole number"),
        ({"seed": float("nan")}, "seed is nan"),
        ({"tile": math.inf}, "tile is inf"),
        ({"overlap": math.nan}, "overlap is nan"),
        ({"tile_batch": 2.5}, "tile_batch is 2.5"),
        ({"sampler": "euler"}, "known are stochastic, deterministic"),
        ({"color_fix": "lab"}, "known are none, wavelet, adain"),
        ({"noise": "same"}, "known are per_image, shared"),
        ({"noise": np.array([1, 2])}, "known are per_image, shared"),
        ({"sampler": np.array(["deterministic", "stochastic"])}, "known are stochastic, deterministic"),
        ({"scale": 0}, "scale is 0"),
        ({"scale": math.inf}, "scale is inf"),
        ({"tile": -1}, "must not be negative"),
        ({"tile": "big"}, "tile is 'big'"),
        ({"tile_batch": -2}, "tile_batch is -2"),
        ({"steps": -1}, "steps is -1"),
        ({"kappa": -1}, "kappa is -1"),
        ({"p": 0.0}, "p is 0.0"),
        ({"seed": [1, 2]}, "list of 2 numbers for 1 pictures"),
        ({"mask": torch.zeros(1, 1, 8, 8)}, "does not fill holes"),
    ],
)
def test_wrong_arguments_are_sentences(model, words, sentence):
    images = words.pop("images", torch.rand(1, 3, 8, 8))
    with pytest.raises(rs.InputError, match=sentence):
        rs.upscale(model, images, **words)


def test_a_model_or_a_mask_that_is_none(small_model):
    with pytest.raises(rs.InputError, match="model is 'builtin'; it must be what load_model returns"):
        rs.upscale("builtin", picture(8, 8))
    with pytest.raises(rs.InputError, match="mask must be a torch.Tensor; this is ndarray"):
        rs.upscale(small_model(task="inpaint", scale=1, lq_stages=2, mask=True), picture(8, 8), mask=np.zeros((1, 1, 8, 8)))


def test_a_wrong_number_is_not_warned_of_first(model, caplog):
    with pytest.raises(rs.InputError, match="kappa is -1"):
        rs.upscale(model, picture(8, 8), kappa=-1)
    assert not caplog.text


def test_numbers_of_torch_and_numpy(model):
    expected = rs.upscale(model, picture(20, 20), scale=2.0, kappa=0.125, p=0.5)
    assert torch.equal(
        rs.upscale(model, picture(20, 20), scale=torch.tensor(2.0), kappa=np.float32(0.125), p=np.float64(0.5)), expected
    )


def test_eight_bit_values_are_told(model, caplog):
    rs.upscale(model, picture(16, 16) * 1.5)
    assert not caplog.text
    rs.upscale(model, picture(16, 16) * 255)
    assert "Divide 8-bit values by 255" in caplog.text


def test_a_model_that_was_loaded_in_inference_mode_serves_outside_of_it():
    """Forge's hires fix is in it, its Extras tab is not."""
    image = picture(12, 12)
    expected = rs.upscale(rs.load_model("builtin", device="cpu", dtype="fp32"), image)
    with torch.inference_mode():
        model = rs.load_model("builtin", device="cpu", dtype="fp32")
        assert torch.equal(rs.upscale(model, image), expected)
        model.to(torch.float64).to(torch.float32)  # a move, as to a GPU and back
    for _ in range(2):
        model.unet._apply(lambda weights: weights.clone())  # another, which keeps the parameters
        assert torch.equal(rs.upscale(model, image), expected)
        with torch.inference_mode():
            assert torch.equal(rs.upscale(model.to("cpu"), image), expected)
    assert not any(weights.is_inference() for weights in model.unet.parameters())


def test_another_default_number_format(model):
    lq = picture(40, 40)
    expected = rs.upscale(model, lq, tile=32)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        shown = []
        out = rs.upscale(model, lq, tile=32, on_step=lambda event: shown.append(event.preview()))
        assert torch.equal(out, expected) and shown
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("color_fix", ["none", "wavelet", "adain"])
@pytest.mark.parametrize("wrap", ["none", "both"])
def test_what_lies_under_transparent_pixels_does_not_show(model, color_fix, wrap):
    """Editors leave black there, or anything."""
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(70.0), indexing="ij")
    alpha = ((26 - ((y - 30) ** 2 + (x - 35) ** 2).sqrt()).clamp(0, 1))[None, None]
    cut = torch.cat([0.5 + 0.5 * picture(60, 70), alpha], 1)
    results = []
    for hidden in (torch.zeros(3, 1), torch.ones(3, 1), torch.rand(3, 1)):
        painted = cut.clone()
        painted[:, :3] = torch.where(alpha > 0, painted[:, :3], hidden[None, :, :, None])
        results.append(rs.upscale(model, painted, color_fix=color_fix, wrap=wrap))
        inside = (results[-1][:, 3:] == 0).expand(-1, 3, -1, -1)
        assert inside.any() and (results[-1][:, :3][inside] == hidden[0, 0]).float().mean() >= 1 / 3  # the colour is put back
    shown = results[0][:, 3:] * 255 > 0.5
    assert all(torch.equal(result * shown, results[0] * shown) for result in results)
    unseen = ((results[1][:, 3:] * 255).round() == 0).expand(-1, 3, -1, -1)  # in a file of 8 bits
    assert (results[1][:, :3][unseen] == 1).all()  # or it would hold several colours, and show a rim the next time
    assert results[0][:, :3][shown.expand(-1, 3, -1, -1)].min() > 0.3  # no dark rim around the visible part, which is 0.5 to 1


def test_hidden_pixels_at_the_seam_get_the_colours_of_the_other_side():
    images = torch.zeros(1, 4, 48, 64)
    images[:, 2, :, 16:40] = images[:, 0, :, 40:] = images[:, 3, :, 16:] = 1  # hidden black, blue, red
    out = rs.upscale(rs.load_model("builtin", device="cpu", dtype="fp32"), images, wrap="x")
    red = torch.tensor([1.0, 0, 0])[:, None, None]
    assert (out[0, :3, :, -24:] - red).abs().max() < 0.1  # 0.34 where the blue was brought beside the red


def test_what_lies_under_transparent_pixels_may_mean_something(model):
    """Textures keep data in alpha: several colours under it are no filling."""
    lq = picture(40, 48, channels=4)
    lq[:, 3, :, 24:] = 0
    assert torch.equal(rs.upscale(model, lq)[:, :3], rs.upscale(model, lq[:, :3]))


def test_hidden_pixels_get_the_colours_around_them():
    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])
    images = torch.zeros(2, 4, 33, 64)
    images[0, :3, 7, 50], images[0, 3, 7, 50] = red, 0.1
    images[1, :3, :, :8], images[1, :3, :, 56:] = red[:, None, None], blue[:, None, None]
    images[1, 3, :, :8] = images[1, 3, :, 56:] = 1
    filled, colors = fill_hidden(images)
    assert torch.allclose(filled[0], red[:, None, None].expand(3, 33, 64)) and colors == [(0, 0, 0)] * 2
    assert torch.allclose(filled[1, :, :, 10], red[:, None], atol=0.1) and torch.allclose(
        filled[1, :, :, 53], blue[:, None], atol=0.1
    )
    assert torch.equal(filled[1, :, :, 56:], images[1, :3, :, 56:])


def test_what_is_filled_in_is_seen(small_model):
    """A hole in a picture is often one in its alpha, which hosts take for the mask."""
    inpainting = small_model(task="inpaint", scale=1, lq_stages=2, mask=True)
    image, mask = picture(40, 40, channels=4), torch.zeros(1, 1, 40, 40)
    image[:, 3] = 0.6
    mask[..., 8:24, 10:30] = 1
    mask[..., 30:, 30:] = 0.8
    image[:, 3, 10:20, 10:20] = 0
    alpha = rs.upscale(inpainting, image, mask=mask)[:, 3:]
    assert torch.equal(alpha, torch.where(mask > 0, mask, torch.tensor(0.6)))


def test_what_an_inpainting_run_keeps_it_keeps_under_transparent_pixels_too(small_model):
    inpainting = small_model(task="inpaint", scale=1, lq_stages=2, mask=True)
    image, mask = picture(40, 56, channels=4), torch.zeros(1, 1, 40, 56)
    image[:, 3] = 1
    image[..., 5:20, 5:20] = torch.tensor([0.2, 0.4, 0.6, 0]).view(1, 4, 1, 1)
    image[..., 12, 12] = torch.tensor([0.2, 0.4, 0.6, 1])
    mask[..., 10:30, 12:40] = 1
    out = rs.upscale(inpainting, image, mask=mask)
    assert torch.equal(out * (1 - mask), image * (1 - mask))


def test_tiles_that_overflowed_alone_are_done_again(monkeypatch):
    asked = []

    def run(model, jobs, shared, progress):
        asked.append(jobs)
        return torch.tensor([10.0 * job + len(asked) for job in jobs]), torch.tensor([job != 2 for job in jobs]) | (
            len(asked) > 1
        )

    monkeypatch.setattr(tile_runs, "_run_tiles", run)
    shared = SimpleNamespace(in_float32=lambda model: model)
    result = tile_runs._run_tiles_safely(SimpleNamespace(computes_in_half=True), [1, 2, 3], shared, None)
    assert result.tolist() == [11, 22, 31] and asked == [[1, 2, 3], [2]]


def test_previews_of_narrow_pictures():
    """torch mixes up the rows of what shrinks to one column."""
    ramp = torch.linspace(0, 1, 4000).view(1, 4000, 1).expand(3, 4000, 6)
    canvas = Canvas(ramp[None], 512)
    canvas.paint(SimpleNamespace(boxes=[(0, 0, 0, 0, 0)], preview=list))
    assert canvas.shape == (512, 1)
    expected = (torch.arange(512) + 0.5) * 4000 / 512 / 4000
    assert (canvas.pixels[:, :, 0] - expected).abs().max() < 2e-3


@pytest.mark.parametrize("wrap", ["none", "x"])
def test_what_is_to_be_gone_does_not_fill_transparent_pixels(small_model, wrap):
    """The ring of its colours around the hole would be what the hole is filled from."""
    inpainting = small_model(task="inpaint", scale=1, lq_stages=2, mask=True)
    image, mask = torch.zeros(1, 4, 40, 48), torch.zeros(1, 1, 40, 48)
    image[:, 3, :, :24] = 1
    image[:, :3, :, :8] = 0.3
    mask[..., 8:30] = 1  # the rest of what is visible, and some of what is not
    results = []
    for color in ((1, 0, 0), (0, 0, 1)):
        image[:, :3, :, 8:24] = torch.tensor(color).view(1, 3, 1, 1)
        image[:, :3, :, 24:30] = color[0]  # another colour than the transparent rest
        filled, _ = fill_hidden(image, mask)
        assert torch.allclose(filled[..., 30:], torch.tensor(0.3)) and torch.equal(fill_hidden(image, mask / 2)[0], filled)
        results.append(rs.upscale(inpainting, image, mask=mask, wrap=wrap))
    assert torch.equal(*results)
    mask[..., :30] = 1  # nothing is left to fill from
    assert torch.equal(fill_hidden(image, mask)[0], image[:, :3])


def test_pictures_that_are_wholly_visible_or_not_at_all_stay_as_they_are(model):
    lq = torch.cat([picture(30, 30), torch.ones(1, 1, 30, 30)], 1)
    assert torch.equal(rs.upscale(model, lq)[:, :3], rs.upscale(model, lq[:, :3]))
    lq[:, 3] = 0
    assert torch.equal(rs.upscale(model, lq)[:, :3], rs.upscale(model, lq[:, :3]))


@pytest.mark.parametrize("color_fix", ["wavelet", "adain"])
def test_colours_of_an_inpainted_picture(small_model, color_fix):
    """What lies under the hole does not show, and what is kept is kept exactly."""
    inpainting = small_model(task="inpaint", scale=1, lq_stages=2, mask=True)
    image, mask = picture(40, 56), torch.zeros(1, 1, 40, 56)
    mask[..., 10:30, 12:40] = 1
    painted = torch.where(mask > 0, 1 - image, image)
    out, other = (rs.upscale(inpainting, source, mask=mask, color_fix=color_fix) for source in (image, painted))
    assert torch.equal(out, other)
    assert torch.equal(out * (1 - mask), image * (1 - mask))


def test_a_mask_of_numbers_of_another_kind(small_model):
    inpainting = small_model(task="inpaint", scale=1, lq_stages=2, mask=True)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:20, 8:20] = 1
    expected = rs.upscale(inpainting, picture(32, 32), mask=mask)
    assert torch.equal(rs.upscale(inpainting, picture(32, 32), mask=mask.to(torch.float64)), expected)


def test_tiles_that_go_together_have_less_than_two_to_the_31_numbers(monkeypatch):
    with torch.device("meta"):
        model = rs.ResShiftModel(standin.published_config("realsr_x4_s4"))
    assert model.most_tiles(128, 128) == 31  # 256 channels of 512 x 512
    assert model.most_tiles(4096, 4096) == 0
    assert tile_runs._tile_batch(model, 128, 128, 256) == 31
    monkeypatch.setattr(tile_runs, "free_bytes", lambda device: 10**15)
    monkeypatch.setattr(rs.ResShiftModel, "device", torch.device("cuda"))
    assert tile_runs._tile_batch(model, 128, 128, None) == 31
    monkeypatch.setattr(rs.ResShiftModel, "device", torch.device("mps"))
    assert model.most_tiles(128, 128) == 15  # Apple's library: 4 GiB in float32


def test_tiles_leave_memory_to_others(monkeypatch):
    """Three tenths of what is free, or what the host reserves."""
    with torch.device("meta"):
        model = rs.ResShiftModel(standin.published_config("realsr_x4_s4"))
    one = model.bytes_per_tile(64, 64)
    monkeypatch.setattr(tile_runs, "free_bytes", lambda device: 20 * one)
    monkeypatch.setattr(rs.ResShiftModel, "device", torch.device("cuda"))
    for reserved, tiles in ((0, 14), (5 * one, 14), (12 * one, 8), (30 * one, 1)):
        model.reserved_bytes = reserved
        assert tile_runs._tile_batch(model, 64, 64, None) == tiles
    monkeypatch.setattr(rs.ResShiftModel, "device", torch.device("cpu"))
    assert model.most_tiles(4096, 4096) == 1


def test_inpainting_needs_a_mask_of_the_right_size(small_model):
    inpainting = small_model(task="inpaint", scale=1, lq_stages=2, mask=True)
    images = torch.rand(2, 3, 40, 50)
    with pytest.raises(rs.InputError, match="give mask="):
        rs.upscale(inpainting, images)
    with pytest.raises(rs.InputError, match=r"mask is \(1, 1, 40, 40\)"):
        rs.upscale(inpainting, images, mask=torch.zeros(1, 1, 40, 40))
    mask = torch.zeros(1, 1, 40, 50)
    mask[..., 10:20, 10:20] = 1
    out = rs.upscale(inpainting, images, mask=mask, tile=16)
    keep = (mask == 0).expand(2, 3, -1, -1)
    assert torch.equal(out[keep], images[keep]) and not torch.equal(out[~keep], images[~keep])


def test_alpha_is_upscaled_in_the_models_format_and_beside_what_the_host_reserves(small_model, monkeypatch):
    seen, real = [], pipeline.run_tiles

    def run(model, *rest):
        seen.append((model.dtype, model.reserved_bytes))
        return real(model, *rest)

    monkeypatch.setattr(pipeline, "run_tiles", run)
    model = small_model().to(dtype=torch.bfloat16)
    model.reserved_bytes = 5
    rs.upscale(model, picture(16, 16, channels=4), steps=1)
    assert seen == [(torch.bfloat16, 5)] * 2


def test_memory_is_given_back_before_fewer_tiles_are_tried(model, monkeypatch):
    """What the failed batch left in the cache is needed for the next one."""
    done, real = [], tile_runs._run_tiles

    def run(model, jobs, *rest):
        done.append(len(jobs))
        if len(jobs) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return real(model, jobs, *rest)

    monkeypatch.setattr(tile_runs, "_run_tiles", run)
    monkeypatch.setattr(tile_runs, "release_memory", lambda device: done.append("given back"))
    rs.upscale(model, picture(20, 60), tile=32, overlap=0, tile_batch=2, steps=1)
    assert done[:3] == [2, "given back", 1]


def test_a_tile_is_enlarged_with_the_pixels_around_it(small_model):
    """Bicubic looks two pixels beyond; without overlap nothing hides a border that was made up."""
    model = small_model()
    torch.nn.init.zeros_(model.unet.out[2].weight)  # what is left is the enlargement
    torch.nn.init.zeros_(model.unet.out[2].bias)
    model.config = replace(model.config, predict="residual")
    lq = picture(32, 64)
    whole = rs.upscale(model, lq, tile=0)
    torch.testing.assert_close(rs.upscale(model, lq, tile=16, overlap=0), whole, atol=1e-6, rtol=0)


def test_plain_enlargement_keeps_the_hidden_colour_where_nothing_shows():
    image = torch.full((1, 4, 24, 24), 0.8)
    image[:, :, :12] = 0
    large = resize_visible(image, (96, 96))
    hidden = large[:, 3:] == 0
    assert hidden.any() and large[:, :3][hidden.expand(-1, 3, -1, -1)].max() == 0
    assert large[:, :3][~hidden.expand(-1, 3, -1, -1)].min() > 0.79


def test_a_preview_shows_tiles_of_its_own_picture_alone():
    """A batch of tiles may end in the next picture."""
    canvas = Canvas(torch.full((2, 3, 16, 32), 0.5), 512)
    tiles = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    canvas.paint(SimpleNamespace(boxes=[(0, 0, 16, 16, 16), (1, 0, 0, 16, 16)], preview=lambda: tiles))
    assert (canvas.pixels[:, :, :16] == 1).all() and (canvas.pixels[:, :, 16:] == 0.5).all()


def test_tiles_done_before_memory_ran_out_do_not_count_twice(model, monkeypatch):
    expected = rs.upscale(model, picture(200, 200), tile=64, overlap=32)
    real, sides = tile_runs._run_tiles, []

    def run(model, jobs, *rest):
        sides.append(jobs[0][0].axes[0].tile)
        if len(sides) == 3:  # two are in the result by now
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return real(model, jobs, *rest)

    monkeypatch.setattr(tile_runs, "_run_tiles", run)
    out = rs.upscale(model, picture(200, 200), tile=128, overlap=32, tile_batch=1)
    assert sides[2] > 80 > sides[3]
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
