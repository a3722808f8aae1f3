"""The degradations against closed forms, torch's and kornia's own operators, libjpeg, and the ranges they are drawn from."""

from __future__ import annotations

import io
import math

import kornia
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from training import degradation, kernels
from training.canvas import Canvas, Noise, add_noise, blur, jpeg, resize
from training.degradation import draw_b1, draw_everyday, make_degradation, paper_b1, random_for, realesrgan
from training.kernels import Kernel, KernelRange, draw_kernel, draw_sinc, make_kernels

DRAWS = 3000


pytestmark = pytest.mark.usefixtures("one_thread")


def photo(height: int = 160, width: int = 192) -> torch.Tensor:
    """A picture with the 1/f spectrum of photographs, correlated colours and a few edges. (1, 3, H, W) in [0, 1]."""
    rng = np.random.default_rng(7)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    spectrum = rng.standard_normal((4, height, width // 2 + 1)) + 1j * rng.standard_normal((4, height, width // 2 + 1))
    planes = np.fft.irfft2(spectrum / np.maximum(np.hypot(fy, fx), 1 / 256), s=(height, width))
    planes /= planes.std((1, 2), keepdims=True)
    image = 0.5 + 0.18 * planes[3] + 0.06 * planes[:3]
    image[:, 40:90, 50:120] += 0.25
    return torch.from_numpy(np.clip(image, 0, 1)).float()[None].mul(255).round().div(255)


def within(share: float, expected: float, draws: int) -> bool:
    """Whether a frequency is within 4.5 standard deviations of its probability."""
    return abs(share - expected) < 4.5 * math.sqrt(expected * (1 - expected) / draws)


# ---------------------------------------------------------------------------------------------------- kernels


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    return [draw_kernel(rng, degradation.FIRST.kernel) for _ in range(DRAWS)]


def test_kernels_sum_to_one_and_are_symmetric(drawn):
    made = make_kernels(drawn[:300])
    torch.testing.assert_close(made.sum((1, 2)), torch.ones(300), atol=1e-5, rtol=0)
    torch.testing.assert_close(made, made.flip(1, 2), atol=1e-7, rtol=1e-4)


def test_a_round_gaussian_is_kornias():
    for size, sigma in ((7, 0.8), (13, 2.0), (21, 3.0)):
        ours = make_kernels([Kernel("iso", size, sigma, sigma, angle=1.1)])[0]
        theirs = kornia.filters.get_gaussian_kernel2d((size, size), (sigma, sigma))[0]
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_an_elongated_gaussian_has_its_covariance():
    sx, sy, angle = 3.0, 1.5, 0.6
    weights = make_kernels([Kernel("aniso", 41, sx, sy, angle)])[0].double()
    axis = torch.arange(41, dtype=torch.float64) - 20
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    c, s = math.cos(angle), math.sin(angle)
    wanted = [c * c * sx**2 + s * s * sy**2, s * c * (sx**2 - sy**2), s * s * sx**2 + c * c * sy**2]
    found = [float((weights * u).sum()) for u in (x * x, x * y, y * y)]
    assert found == pytest.approx(wanted, rel=1e-3)


def test_generalised_and_plateau_kernels_have_their_formulas():
    gen, flat = make_kernels([Kernel("generalized_iso", 9, 2, 2, beta=3.0), Kernel("plateau_iso", 9, 2, 2, beta=1.5)])
    form = 3.0**2 / 2.0**2  # three pixels to the right of the centre, sigma 2
    assert float(gen[4, 7] / gen[4, 4]) == pytest.approx(math.exp(-0.5 * form**3), rel=1e-4)
    assert float(flat[4, 7] / flat[4, 4]) == pytest.approx(1 / (1 + form**1.5), rel=1e-4)


def test_a_sinc_kernel_passes_low_frequencies_alone():
    cutoff = math.pi / 2
    weights = make_kernels([Kernel("sinc", 201, cutoff=cutoff)])[0]
    gain = torch.fft.fft2(weights, s=(512, 512)).abs()
    frequency = torch.fft.fftfreq(512) * 2 * math.pi
    radius = torch.hypot(frequency[:, None], frequency[None])
    assert float(gain[radius < 0.8 * cutoff].min()) > 0.9
    assert float(gain[radius > 1.2 * cutoff].max()) < 0.1


def test_smaller_kernels_lie_in_zeros():
    small = make_kernels([Kernel("iso", 3, 1, 1), Kernel("iso", 9, 1, 1)])[0]
    assert int((small > 0).sum()) == 9
    torch.testing.assert_close(small[3:6, 3:6], make_kernels([Kernel("iso", 3, 1, 1)])[0])


def test_ranges_of_the_first_stages_kernels(drawn):
    plain = [kernel for kernel in drawn if kernel.kind != "sinc"]
    assert within(1 - len(plain) / DRAWS, 0.1, DRAWS)
    for kind, share in zip(kernels.KINDS, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)):
        of_kind = [kernel for kernel in plain if kernel.kind == kind]
        assert within(len(of_kind) / len(plain), share, len(plain)), kind
        assert all(
            (kernel.sigma_x == kernel.sigma_y) == kind.endswith("iso") * (not kind.endswith("aniso")) for kernel in of_kind
        )
        low, high = {"g": (0.5, 4.0), "p": (1.0, 2.0)}.get(kind[0], (1.0, 1.0))
        assert all(low <= kernel.beta <= high for kernel in of_kind)
    assert {kernel.size for kernel in drawn} == set(range(7, 22, 2))
    sigmas = [kernel.sigma_x for kernel in plain]
    assert 0.2 <= min(sigmas) < 0.3 and 2.9 < max(sigmas) <= 3.0


def test_ranges_of_sinc_filters():
    rng = np.random.default_rng(1)
    drawn = [draw_sinc(rng, (7, 21)) for _ in range(500)]
    assert all(math.pi / (3 if kernel.size < 13 else 5) <= kernel.cutoff <= math.pi for kernel in drawn)
    assert {kernel.size for kernel in draw_many(lambda r: draw_sinc(r, (3, 15)), 300)} == set(range(3, 16, 2))


def draw_many(draw, count: int) -> list:
    rng = np.random.default_rng(3)
    return [draw(rng) for _ in range(count)]


# ---------------------------------------------------------------------------------------------------- plans


@pytest.fixture(scope="module")
def plans():
    return [degradation.draw_plan(np.random.default_rng([5, n])) for n in range(DRAWS)]


def check_stage(stages, resize_range, shares, gaussian, poisson, blur_share):
    count = len(stages)
    factors = np.array([stage.factor for stage in stages])
    assert (
        resize_range[0] <= factors.min() < resize_range[0] + 0.02 and resize_range[1] - 0.02 < factors.max() <= resize_range[1]
    )
    for share, found in zip(shares, ((factors > 1).mean(), (factors < 1).mean(), (factors == 1).mean())):
        assert within(found, share, count)
    assert {stage.mode for stage in stages} == {"area", "bilinear", "bicubic"}
    for kind, (low, high) in (("gaussian", gaussian), ("poisson", poisson)):
        strengths = np.array([stage.noise.strength for stage in stages if stage.noise.kind == kind])
        assert within(len(strengths) / count, 0.5, count)
        assert low <= strengths.min() < low + 0.3 and high - 0.3 < strengths.max() <= high
    assert within(np.mean([stage.noise.grey for stage in stages]), 0.4, count)
    assert within(np.mean([stage.kernel.kind != "none" for stage in stages]), blur_share, count) or blur_share == 1
    assert {stage.quality for stage in stages} == set(range(30, 96))


def test_ranges_of_the_first_stage(plans):
    check_stage([plan.first for plan in plans], (0.15, 1.5), (0.2, 0.7, 0.1), (1, 30), (0.05, 3.0), 1.0)
    assert all(plan.first.kernel.kind != "none" for plan in plans)


def test_ranges_of_the_second_stage_and_the_end(plans):
    second = [plan.second for plan in plans if plan.second is not None]
    assert within(len(second) / DRAWS, 0.5, DRAWS)
    check_stage(second, (0.3, 1.2), (0.3, 0.4, 0.3), (1, 25), (0.05, 2.5), 0.8)
    assert {stage.kernel.size for stage in second if stage.kernel.kind != "none"} == set(range(3, 16, 2))
    sigmas = [stage.kernel.sigma_x for stage in second if stage.kernel.kind not in ("none", "sinc")]
    assert 0.2 <= min(sigmas) and max(sigmas) <= 1.5
    assert within(np.mean([plan.sinc.kind == "sinc" for plan in plans]), 0.8, DRAWS)
    assert within(np.mean([plan.jpeg_first for plan in plans]), 0.5, DRAWS)
    assert {plan.quality for plan in plans} == set(range(30, 96))


def test_ranges_of_appendix_b1():
    drawn = draw_many(degradation.draw_b1, DRAWS)
    assert {plan.kernel.size for plan in drawn} == {13}
    assert within(np.mean([plan.kernel.kind == "iso" for plan in drawn]), 0.6, DRAWS)
    sigmas = [plan.kernel.sigma_x for plan in drawn]
    assert 0.2 <= min(sigmas) and max(sigmas) <= 0.8
    for kind, low, high in (("gaussian", 1, 15), ("poisson", 0.05, 0.3)):
        strengths = [plan.noise.strength for plan in drawn if plan.noise.kind == kind]
        assert within(len(strengths) / DRAWS, 0.5, DRAWS)
        assert low <= min(strengths) and max(strengths) <= high
    assert {plan.quality for plan in drawn} == set(range(70, 96))
    assert {plan.mode for plan in drawn} == {"area", "bilinear", "bicubic"}


# ---------------------------------------------------------------------------------------------------- operators


def test_blurring_is_correlation_with_reflected_borders():
    image = photo(40, 50)
    weights = make_kernels([Kernel("aniso", 7, 2.0, 0.7, 0.5)])
    padded = F.pad(image[0][:, None], (3, 3, 3, 3), mode="reflect")
    torch.testing.assert_close(blur(Canvas.of(image), weights).pixels[0], F.conv2d(padded, weights[:, None])[:, 0])


def test_blurring_asks_no_library_that_searches_for_every_size(monkeypatch):
    asked, real = [], kornia.filters.filter2d
    monkeypatch.setattr(
        kornia.filters, "filter2d", lambda *args, **words: asked.append(torch.backends.cudnn.enabled) or real(*args, **words)
    )
    make_degradation("realesrgan", 4, 0)(torch.rand(2, 3, 32, 32), [0, 1])
    assert asked and not any(asked) and torch.backends.cudnn.enabled


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_resizing_is_torchs(mode, antialias):
    images = torch.cat([photo(64, 80), photo(64, 80).flip(3)])
    sizes = ((37, 90), (100, 41))
    canvas = resize(Canvas.of(images), *zip(*sizes), (mode, mode), antialias)
    for i, (height, width) in enumerate(sizes):
        options = {} if mode == "area" else {"antialias": antialias}
        wanted = F.interpolate(images[i : i + 1], size=(height, width), mode=mode, **options)[0]
        torch.testing.assert_close(canvas.pixels[i, :, :height, :width], wanted, atol=1e-5, rtol=0)


def test_what_lies_beyond_a_picture_on_the_canvas_does_not_matter():
    image = photo(40, 50)
    wide = Canvas(F.pad(image, (0, 30, 0, 24), value=9.0), (40,), (50,))
    weights = make_kernels([Kernel("iso", 9, 2, 2)])
    for codec in ("libjpeg", "blocks"):
        alone = jpeg(blur(Canvas.of(image), weights), [60], codec=codec).pixels
        together = jpeg(blur(wide, weights), [60], codec=codec).pixels[:, :, :40, :50]
        torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("codec", ["libjpeg", "blocks"])
@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_jpeg_is_libjpegs(codec, quality):
    image = photo(150, 187)  # not multiples of the block
    buffer = io.BytesIO()
    array = image[0].mul(255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(buffer, "JPEG", quality=quality)
    wanted = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float()
    found = jpeg(Canvas.of(image), [quality], codec=codec).pixels[0] * 255
    assert float((found - wanted).abs().mean()) < (0.01 if codec == "libjpeg" else 1.5)
    assert float((wanted - image[0] * 255).abs().mean()) > 0.5  # there was something to get right


def test_gaussian_noise_has_its_variance():
    flat = torch.full((2, 3, 128, 128), 0.5)
    noises = [Noise("gaussian", 10.0), Noise("gaussian", 20.0, grey=True)]
    found = add_noise(Canvas.of(flat), noises, [torch.Generator().manual_seed(n) for n in range(2)]).pixels - 0.5
    assert float(found[0].std()) * 255 == pytest.approx(10, rel=0.02)
    assert float(found[1].std()) * 255 == pytest.approx(20, rel=0.03)
    assert torch.equal(found[1, 0], found[1, 2]) and not torch.equal(found[0, 0], found[0, 2])


@pytest.mark.parametrize("level", [40, 160])
def test_poisson_noise_has_the_variance_of_its_counts(level):
    flat = torch.full((1, 3, 128, 128), level / 255)
    found = add_noise(Canvas.of(flat), [Noise("poisson", 1.5)], [torch.Generator().manual_seed(0)]).pixels * 255 - level
    assert float(found.std()) == pytest.approx(1.5 * math.sqrt(level), rel=0.03)
    assert abs(float(found.mean())) < 4.5 * 1.5 * math.sqrt(level / found.numel())


# ---------------------------------------------------------------------------------------------------- pipelines


@pytest.mark.parametrize("kind", ["realesrgan", "paper-b1", "everyday", "mixed", "bicubic"])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_picture_does_not_depend_on_its_batch(kind, scale):
    images = torch.cat([photo(64, 64), photo(64, 64).flip(2), photo(64, 64).transpose(2, 3), 1 - photo(64, 64)])
    degrade = make_degradation(kind, scale, seed=3)
    together = degrade(images, [10, 11, 12, 13])
    assert together.shape == (4, 3, 64 // scale, 64 // scale)
    assert torch.equal(together * 255, (together * 255).round())
    for i in range(4):
        torch.testing.assert_close(degrade(images[i : i + 1], [10 + i])[0], together[i], atol=1 / 255 + 1e-6, rtol=0)
    if kind != "bicubic":
        assert not torch.equal(together, degrade(images, [20, 21, 22, 23]))


def test_bicubic_is_pillows():
    image = photo()
    small = make_degradation("bicubic", 4, 0)(image, [0])[0] * 255
    pixels = Image.fromarray(image[0].mul(255).byte().permute(1, 2, 0).numpy())
    wanted = torch.from_numpy(np.array(pixels.resize((48, 40), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    assert float((small - wanted).abs().max()) <= 2.0  # Pillow rounds to 8 bit between its two passes
    assert float((small - wanted).abs().mean()) < 0.3


def test_the_batched_codec_leads_to_the_same_pictures():
    images = photo(96, 96).repeat(4, 1, 1, 1)
    ours, other = paper_b1(images, range(4), 0), paper_b1(images, range(4), 0, codec="blocks")
    assert float((ours - other).abs().mean()) * 255 < 2
    assert realesrgan(images, range(4), 0, codec="blocks").shape == (4, 3, 24, 24)


def test_the_batched_codec_clips_light_and_repeats_borders_as_libjpeg_does():
    """Of yellow stripes the light overshoots; a picture's last block is filled up from its border."""
    y, x = torch.meshgrid(torch.arange(37) / 37, torch.arange(43) / 43, indexing="ij")
    stripes, ramp = torch.zeros(1, 3, 64, 64), torch.stack([x, y, 1 - x])[None]
    stripes[:, :2, :, ::3] = 1
    for image, quality, part in ((stripes, 10, slice(None)), (ramp, 30, slice(-5, None))):
        ours, theirs = (jpeg(Canvas.of(image), [quality], codec=codec).pixels for codec in ("blocks", "libjpeg"))
        assert float((ours - theirs)[..., part, :].abs().mean()) * 255 < 1.3


def test_the_batched_codec_takes_a_quality_per_picture():
    images = photo(64, 64).repeat(2, 1, 1, 1)
    both = jpeg(Canvas.of(images), [30, 90], codec="blocks").pixels
    for i, quality in enumerate((30, 90)):
        torch.testing.assert_close(both[i], jpeg(Canvas.of(images[:1]), [quality], codec="blocks").pixels[0])
    only = jpeg(Canvas.of(images), [30, 90], which=[False, True], codec="blocks").pixels
    assert torch.equal(only[0], images[0]) and torch.equal(only[1], both[1])


def test_the_share_of_damaged_pictures():
    images = photo(32, 32).repeat(200, 1, 1, 1)
    plain = make_degradation("bicubic", 4, 0)(images, range(200))
    mixed = make_degradation("paper-b1", 4, 0, share=0.3)(images, range(200))
    damaged = (mixed != plain).flatten(1).any(1).float().mean()
    assert within(float(damaged), 0.3, 200)


def test_smaller_ranges_are_possible():
    kernel = draw_kernel(np.random.default_rng(0), KernelRange((3, 3), (1.0, 1.0), sinc_share=0.0))
    assert kernel.size == 3 and kernel.sigma_x == 1.0


def test_an_unknown_degradation_is_named():
    with pytest.raises(ValueError, match="'blurry'; known are realesrgan"):
        make_degradation("blurry", 4, 0)


def test_everyday_damage_is_b1_or_each_part_by_itself():
    """Shares over 4000 draws, within four standard deviations; noise without JPEG is there, and so is JPEG without noise."""
    drawn = [draw_everyday(random_for(0, number, 1)) for number in range(4000)]
    b1 = [draw_b1(random_for(0, number, 1)) for number in range(4000)]
    same = np.array([plan == other for (plan, _), other in zip(drawn, b1)])
    assert abs(same.mean() - 0.7) < 0.03
    others = [(plan, last) for (plan, last), is_b1 in zip(drawn, same) if not is_b1]
    assert all(last for (_, last), is_b1 in zip(drawn, same) if is_b1)
    noisy = np.array([plan.noise.strength > 0 for plan, _ in others])
    compressed = np.array([last for _, last in others])
    assert abs(noisy.mean() - 0.6) < 0.06 and abs(compressed.mean() - 0.5) < 0.06
    assert (noisy & ~compressed).mean() > 0.2 and (~noisy & compressed).mean() > 0.1
    assert max(plan.noise.strength for plan, _ in others) <= 25 and min(plan.quality for plan, _ in others) >= 40


def test_mixed_is_half_of_each():
    images, numbers = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0)), list(range(40))
    mixed, heavy, light = (make_degradation(kind, 4, 3)(images, numbers) for kind in ("mixed", "realesrgan", "everyday"))
    like_heavy, like_light = ([torch.equal(a, b) for a, b in zip(mixed, other)] for other in (heavy, light))
    assert all(a != b for a, b in zip(like_heavy, like_light)) and 10 <= sum(like_heavy) <= 30


def test_the_damaged_share_of_mixed_is_half_of_each_too():
    images, numbers = torch.rand(60, 3, 32, 32, generator=torch.Generator().manual_seed(0)), list(range(60))
    kinds = ("mixed", "bicubic", "realesrgan", "everyday")
    mixed, *others = (make_degradation(kind, 4, 3, 0.5)(images, numbers) for kind in kinds[:2])
    others += (make_degradation(kind, 4, 3)(images, numbers) for kind in kinds[2:])
    plain, heavy, light = (sum(torch.equal(a, b) for a, b in zip(mixed, other)) for other in others)
    assert plain + heavy + light == 60 and 20 <= plain <= 40 and min(heavy, light) >= 6


def test_everyday_noise_reaches_the_picture_where_no_jpeg_follows():
    numbers = [n for n in range(200) if not draw_everyday(random_for(0, n, 1))[1]][:8]
    plans = [draw_everyday(random_for(0, n, 1))[0] for n in numbers]
    small = make_degradation("everyday", 4, 0)(torch.full((len(numbers), 3, 256, 256), 0.5), numbers) * 255
    for picture, plan in zip(small, plans):
        assert abs(float(picture.std()) - plan.noise.strength) < 0.5 + 0.05 * plan.noise.strength


def test_the_second_stage_is_relative_to_the_final_size(monkeypatch):
    """As in Real-ESRGAN: its factors lie around the size of the result, the first stage's around that of the truth."""
    numbers, called = range(12), []
    monkeypatch.setattr(degradation, "resize", lambda canvas, *sizes: called.append(sizes[0]) or resize(canvas, *sizes))
    realesrgan(torch.rand(12, 3, 96, 96), numbers, 0)
    plans = [degradation.draw_plan(random_for(0, number, 1)) for number in numbers]
    assert called[0] == tuple(round(96 * plan.first.factor) for plan in plans)
    twice = [plan for plan in plans if plan.second is not None]
    assert 0 < len(twice) < 12 and called[1] == tuple(max(4, round(24 * plan.second.factor)) for plan in twice)
    assert {*called[2], *called[3]} == {24}


def test_the_last_jpeg_comes_once_before_or_after_the_sinc_filter(monkeypatch):
    asked = []
    monkeypatch.setattr(degradation, "jpeg", lambda canvas, qualities, which, codec: asked.append(which) or canvas)
    realesrgan(torch.rand(24, 3, 64, 64), range(24), 0)
    plans = [degradation.draw_plan(random_for(0, number, 1)) for number in range(24)]
    first = [plan.jpeg_first for twice in (True, False) for plan in plans if (plan.second is not None) == twice]
    last = [which for which in asked if which]
    before, after = (sum(last[start::2], []) for start in (0, 1))
    assert before == first and after == [not word for word in first]


def test_which_pictures_are_damaged_says_nothing_about_how():
    """The choice has draws of its own."""
    chosen = [degradation._is_damaged(0, number, 0.5) for number in range(100)]
    for purpose in (1, 2, 5, 6):
        first = [random_for(0, number, purpose).random() < 0.5 for number in range(100)]
        assert 25 < sum(a == b for a, b in zip(chosen, first)) < 75
