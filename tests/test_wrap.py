"""Wrap-around, repeating noise and the fitted preview: against torch's circular padding, indexing and closed forms."""

import pytest
import torch
import torch.nn.functional as F

import resshift_core as rs
import resshift_core.noise as noise_module
import resshift_core.wrap as wrap_module
from resshift_core.noise import NoiseField, Repeat, RepeatedNoise
from resshift_core.preview import Canvas
from resshift_core.progress import pixels_by_fit
from resshift_core.wrap import Torus, match_color_around, resize_around


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(seed))


def rolled(images: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return images.roll((rows, columns), dims=(-2, -1))


class TestTorus:
    def test_extends_as_circular_padding_does(self):
        torus = Torus.of("both", 40, 56, 16)
        image = picture(40, 56)
        (top, bottom), (left, right) = ((side.before, side.after) for side in (torus.rows, torus.columns))
        assert torch.equal(torus.extend(image), F.pad(image, (left, right, top, bottom), mode="circular"))
        assert (40 + top + bottom) % 16 == 0 and (56 + left + right) % 16 == 0 and min(top, bottom, left, right) >= 32

    def test_sides_smaller_than_the_margin_go_round_more_than_once(self):
        image = picture(1, 3)
        extended = Torus.of("x", 1, 3, 16).extend(image)
        assert extended.shape[-2] == 1 and torch.equal(extended[..., 32:35], image)
        assert torch.equal(extended[..., :3], extended[..., 3:6])

    def test_closing_an_extended_picture_gives_the_picture_back(self):
        image = picture(40, 56)
        for wrap in ("x", "y", "both"):
            torus = Torus.of(wrap, 40, 56, 16)
            torch.testing.assert_close(torus.close(torus.extend(image), 1), image)

    def test_closing_joins_ends_that_differ(self):
        ramp = torch.arange(32.0 + 64 + 32).expand(1, 1, 16, -1).clone()  # rises by 1 per pixel, also across the end
        closed = Torus.of("x", 16, 64, 16).close(ramp, 1)[0, 0, 0]
        assert abs(closed[0] - closed[-1] - 1) < 0.2  # the first pixel follows the last
        assert torch.equal(closed[16:], ramp[0, 0, 0, 48:96])


class TestRuns:
    @pytest.mark.parametrize("wrap", ["x", "y", "both"])
    def test_the_result_of_a_periodic_input_does_not_know_where_it_was_cut(self, small_model, wrap):
        model, lq = small_model(norm="position"), picture(24, 48)
        out = rs.upscale(model, lq, wrap=wrap, steps=1, kappa=1e-9)  # no noise: it stays where it is when the picture moves
        rows, columns = (8 if wrap != "x" else 0), (16 if wrap != "y" else 0)
        moved = rs.upscale(model, rolled(lq, rows, columns), wrap=wrap, steps=1, kappa=1e-9)
        torch.testing.assert_close(moved, rolled(out, 4 * rows, 4 * columns), atol=1e-5, rtol=0)

    def test_without_wrap_it_does_know(self, small_model):
        model, lq = small_model(norm="position"), picture(24, 48)
        moved = rs.upscale(model, rolled(lq, 0, 16), steps=1, kappa=1e-9)
        assert (moved - rolled(rs.upscale(model, lq, steps=1, kappa=1e-9), 0, 64)).abs().max() > 1e-3

    def test_noise_continues_at_the_other_side(self, small_model):
        model = small_model(norm="position")
        flat = torch.full((1, 3, 32, 32), 0.5)
        out = rs.upscale(model, flat, wrap="both", kappa=0.3, sampler="deterministic")
        across = (out[..., :, 0] - out[..., :, -1]).abs().mean()
        inside = (out[..., :, 1:] - out[..., :, :-1]).abs()[..., 3::4].mean()  # at the borders of latent positions
        assert 0.5 < across / inside < 2

    def test_tiles_give_what_the_whole_picture_gives(self, small_model):
        model, lq = small_model(norm="position"), picture(48, 112)
        whole = rs.upscale(model, lq, wrap="both", steps=1, tile=None)
        torch.testing.assert_close(rs.upscale(model, lq, wrap="both", steps=1, tile=128, overlap=64), whole, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("scale", [1, 1.5, 2, 3.3, 4])
    def test_any_scale_and_colour_fix_stay_periodic(self, small_model, scale):
        model, lq = small_model(norm="position"), picture(20, 20)
        settings = {"wrap": "both", "steps": 1, "kappa": 1e-9, "scale": scale, "color_fix": "wavelet"}
        out = rs.upscale(model, lq, **settings)
        moved = rs.upscale(model, rolled(lq, 10, 10), **settings)
        half = round(10 * scale)
        assert half == 10 * scale
        torch.testing.assert_close(moved, rolled(out, half, half), atol=1e-4, rtol=0)

    def test_alpha_and_tiny_pictures(self, small_model):
        assert rs.upscale(small_model(), picture(1, 1, 4), wrap="both").shape == (1, 4, 4, 4)

    def test_an_unknown_word_is_an_error(self, small_model):
        with pytest.raises(rs.InputError, match="wrap is 'z'"):
            rs.upscale(small_model(), picture(8, 8), wrap="z")


class TestAround:
    def test_resizing_is_that_of_an_endless_picture(self):
        image, size = picture(12, 18), (20, 27)
        endless = F.interpolate(image.repeat(1, 1, 3, 3), size=(60, 81), mode="bicubic", align_corners=False)
        torch.testing.assert_close(
            resize_around(image, size, "both"), endless[..., 20:40, 27:54].clamp(0, 1), atol=1e-5, rtol=0
        )

    def test_shrinking_sees_as_far_beyond_the_side_as_it_looks(self):
        image, size = picture(6, 120), (6, 5)
        endless = F.interpolate(image.repeat(1, 1, 1, 3), size=(6, 15), mode="bicubic", antialias=True, align_corners=False)
        torch.testing.assert_close(resize_around(image, size, "x"), endless[..., 5:10].clamp(0, 1), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("wrap", ["x", "y", "both"])
    @pytest.mark.parametrize("size", [(13, 31), (7, 23), (9, 50), (12, 19)])  # that share no factor with those of the picture
    def test_resizing_in_parts(self, monkeypatch, wrap, size):
        """One direction after the other, some lines at a time: as both together, as torch does it."""
        image = picture(12, 18)
        shrinks = size[0] < 12 or size[1] < 18
        down, across = (3 if wrap in words else 1 for words in (("y", "both"), ("x", "both")))
        whole = F.interpolate(
            image.repeat(1, 1, down, across), size=(size[0] * down, size[1] * across), mode="bicubic", antialias=shrinks
        )
        top, left = size[0] * (down // 2), size[1] * (across // 2)
        expected = whole[..., top : top + size[0], left : left + size[1]].clamp(0, 1)
        for together in (2**23, 100):
            monkeypatch.setattr(wrap_module, "RESIZED_TOGETHER", together)
            torch.testing.assert_close(resize_around(image, size, wrap), expected, atol=1e-5, rtol=0)

    def test_no_pictures(self):
        """With which the command line has its settings checked."""
        assert resize_around(torch.zeros(0, 3, 8, 8), (9, 13), "both").shape == (0, 3, 9, 13)

    def test_resizing_holds_little_of_what_it_adds(self, monkeypatch):
        """1200 -> 991 pixels share no factor: in one piece the picture would be nine times as large on the way."""
        held, real = [], wrap_module.bicubic
        monkeypatch.setattr(wrap_module, "bicubic", lambda part, *rest: held.append(part.numel()) or real(part, *rest))
        image = torch.rand(1, 3, 1200, 1200)
        resize_around(image, (991, 991), "both")
        assert len(held) > 2 and max(held) <= wrap_module.RESIZED_TOGETHER

    @pytest.mark.parametrize("wrap, tile", [("both", None), ("x", 32)])
    def test_the_preview_lies_where_the_picture_does(self, small_model, wrap, tile):
        model, image = small_model(), picture(40, 72)
        canvas = Canvas(image, 512)
        result = rs.upscale(
            model, image, wrap=wrap, tile=tile, overlap=8, on_step=lambda e: canvas.paint(e) if e.phase == "decode" else None
        )  # fmt: skip
        shown = torch.nn.functional.avg_pool2d(result, 4)[0]
        assert (canvas.pixels - shown).abs().mean() < 0.02

    def test_colours_are_matched_around(self):
        result, reference = picture(64, 96), picture(64, 96, seed=1)
        moved = match_color_around(rolled(result, 20, 40), rolled(reference, 20, 40), "wavelet", "both")
        torch.testing.assert_close(moved, rolled(match_color_around(result, reference, "wavelet", "both"), 20, 40))


class TestRepeatedNoise:
    @pytest.mark.parametrize("first, last", [(0, 50), (7, 11), (13, 46)])
    def test_reads_its_field_modulo_the_period(self, first, last):
        repeat = Repeat(height=12, width=20, top=3, left=5)
        noise, field = RepeatedNoise(9, 2, 4, 50, 70, repeat), NoiseField(9, 2, 4, 12, 32)
        rows = (torch.arange(first, last) - 3) % 12
        expected = field.block(1, 0, 12)[:, rows][:, :, (torch.arange(70) - 5) % 20]
        assert torch.equal(noise.block(1, first, last), expected)

    def test_a_streamed_field_gives_the_same_across_both_ends(self, monkeypatch):
        whole = RepeatedNoise(9, 2, 4, 200, 150, Repeat(140, 96, top=32, left=32))
        monkeypatch.setattr(noise_module, "KEEP_BYTES", 0)
        monkeypatch.setattr(noise_module, "ROW_BYTES", 0)
        monkeypatch.setattr(noise_module, "BLOCK_BYTES", 2 * 4 * 4 * 64 * 70)  # 70 columns of 64 rows
        streamed = RepeatedNoise(9, 2, 4, 200, 150, Repeat(140, 96, top=32, left=32))
        assert streamed.field._whole is None
        for first in (0, 50, 136):
            for left, right in ((0, 64), (30, 94), (64, 128), (86, 150), (0, 150)):
                for draw in (0, 1):
                    expected = whole.block(draw, first, first + 64, left, right)
                    assert torch.equal(streamed.block(draw, first, first + 64, left, right), expected)

    def test_a_wide_picture_keeps_little(self):
        noise = RepeatedNoise(0, 2, 48, 320, 4160, Repeat(256, 4096, 32, 32))
        for draw in (0, 1):
            noise.block(draw, 0, 256, 0, 256)  # across the left end and the upper one
        assert sum(values.numel() * 4 for _, values in noise.field._blocks.values()) < 140 * 2**20

    def test_periodic_noise_is_the_same_480_pixels_further(self, small_model):
        model = small_model(norm="position", tile=576)
        flat = torch.full((1, 3, 16, 576), 0.5)
        out = rs.upscale(model, flat, noise="periodic", steps=1, kappa=0.3)
        inner, later = slice(4 * 32, 4 * 64), slice(4 * 512, 4 * 544)  # away from the borders
        assert out[..., inner].std() > 1e-3
        torch.testing.assert_close(out[..., inner], out[..., later], atol=1e-5, rtol=0)

    def test_noise_has_one_period(self, small_model):
        with pytest.raises(rs.InputError, match="noise='periodic' .* wrap='x'.* Leave out one"):
            rs.upscale(small_model(), torch.rand(1, 3, 16, 16), noise="periodic", wrap="x")

    def test_periodic_noise_is_shared_by_the_pictures_of_a_batch(self, small_model):
        frames = picture(16, 16).expand(2, -1, -1, -1)
        first, second = rs.upscale(small_model(), frames, noise="periodic", kappa=0.3)
        assert torch.equal(first, second)


class TestPreview:
    def test_the_fit_recovers_any_affine_encoding(self):
        mix = torch.randn(8, 3, generator=torch.Generator().manual_seed(2))
        pixels = picture(16, 24)

        def encode(image):
            return torch.einsum("kc,bchw->bkhw", mix, image * 2 - 1) + 0.3

        other = picture(16, 24, seed=3)
        preview = pixels_by_fit(encode(other), encode(pixels), pixels * 2 - 1)
        torch.testing.assert_close(preview, other, atol=0.02, rtol=0)

    def test_a_flat_picture_does_not_upset_it(self):
        flat = torch.full((1, 3, 8, 8), 0.25)
        preview = pixels_by_fit(torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8), flat * 2 - 1)
        torch.testing.assert_close(preview, flat, atol=0.02, rtol=0)

    def test_events_say_where_their_tiles_lie(self, small_model):
        boxes = []

        def note(event):
            boxes.extend(event.boxes if event.phase == "decode" else ())

        rs.upscale(small_model(), picture(40, 40).expand(2, -1, -1, -1), tile=32, overlap=16, tile_batch=3, on_step=note)
        assert len(boxes) == len(set(boxes)) == 8
        assert {box[0] for box in boxes} == {0, 1} and all(box[3:] == (32, 32) for box in boxes)
        assert {box[1] for box in boxes} == {0, 8}
