"""The estimator of degradations: what it looks at, that every tile of a picture is told the same, and how it is trained."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import resshift_core as rs
from resshift_core.degradation import DESCRIPTION, LEAST, MOST_WINDOWS, STEPS, WINDOW, combs, grid_of, transformed, windows
from resshift_core.limits import check_model
from training import distill, finetune, train_estimator
from training.degradation import descriptions, draw_everyday, make_degradation, random_for
from training.resize import add_estimator, resize_trunk, widen
from training.scan import read_rgb
from training.settings import SettingsError
from training.state import sha256_of
from training.trainer import NotFinite

from . import standin
from .training_run import arguments, make_pictures, save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

TOLD = {"trunk_blocks": 2, "degradation_channels": 6}


def told_model(**overrides) -> rs.ResShiftModel:
    return standin.small_model(model_channels=8, **{**TOLD, **overrides})


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1]: waves and noise."""
    y, x = torch.meshgrid(torch.arange(height) / 40, torch.arange(width) / 30, indexing="ij")
    waves = torch.stack([torch.sin(3 * y + 2 * x), torch.sin(5 * x), torch.cos(4 * y - x)]) * 0.3 + 0.5
    noise = torch.randn(waves.shape, generator=torch.Generator().manual_seed(seed)) * 0.03
    return (waves + noise).clamp(0, 1)[None]


@pytest.mark.parametrize("height, width, count", [(1, 1, 1), (64, 64, 1), (100, 130, 6), (5000, 64, MOST_WINDOWS)])
def test_windows_lie_on_jpegs_grid_and_are_not_more_for_larger_pictures(height, width, count):
    rows = torch.arange(height).view(1, -1, 1).expand(3, -1, width).float()
    parts = windows(rows)
    assert parts.shape == (count, 3, min(WINDOW, max(LEAST, height)), min(WINDOW, max(LEAST, width)))
    starts = parts[:, 0, 0, 0].sort().values
    assert not (starts % 8).any() and starts[0] == 0
    if height > WINDOW:
        assert height - WINDOW - 8 < starts[-1] <= height - WINDOW


def jpeg(image: torch.Tensor, quality: int) -> tuple[torch.Tensor, np.ndarray]:
    """(decoded picture in levels, luminance steps in the order of the cosine transform)."""
    buffer = io.BytesIO()
    levels = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(levels).save(buffer, "jpeg", quality=quality, subsampling=0)
    with Image.open(buffer) as decoded:
        steps = np.array(decoded.quantization[0])
        return torch.from_numpy(np.array(decoded)).permute(2, 0, 1)[None].float(), steps


def test_combs_find_jpegs_steps():
    """Where the luminance was divided by 3 to 12 levels, that step fits best of all that are not its divisors."""
    image = picture(160, 160)
    levels, steps = jpeg(image, 80)
    found = combs(transformed(levels))[0]
    before = combs(transformed((image * 255).round()))[0]
    low = [i for i in (1, 2, 3, 8, 9, 10, 16, 17) if 3 <= steps[i] <= 12]
    assert len(low) >= 5
    for i in low:
        step = int(steps[i])
        others = [other for other in range(2, STEPS + 1) if step % other and other % step]
        assert found[step - 1, i] > 0.5 > before[step - 1, i]
        assert found[step - 1, i] > found[[other - 1 for other in others], i].max()


@pytest.mark.parametrize("quality", [60, 85])
@pytest.mark.parametrize("top, left", [(0, 0), (5, 3), (0, 6)])
def test_pictures_cut_out_of_jpegs_are_looked_at_on_their_own_grid(quality, top, left):
    model = told_model()
    levels, _ = jpeg(picture(200, 230), quality)
    cut = levels[0, :, top:, left:] / 255
    assert grid_of(windows(cut) * 255) == (-top % 8, -left % 8)
    aligned = cut[:, -top % 8 :, -left % 8 :]
    found, wanted = (model.unet.degradation.of_picture(image) for image in (cut, aligned))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "levels",
    [picture(200, 230) * 255, picture(64, 64) * 255, torch.full((1, 3, 90, 90), 128.0), torch.rand(1, 3, 20, 20) * 255],
    ids=["waves", "one window", "flat", "few blocks"],
)
def test_without_jpeg_the_grid_is_the_pictures_own(levels):
    assert grid_of(windows(levels[0].round())) == (0, 0)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_picture_is_the_same_alone_and_beside_others(dtype):
    """Bit for bit: what is said of it goes into weights, which are rounded, and what is said of several would not."""
    torch.manual_seed(0)
    model = rs.load_model("builtin", device="cpu", dtype=dtype)
    flat = torch.rand(1, 3, 1, 1).expand(-1, -1, 24, 40)
    images = torch.cat([torch.rand(1, 3, 24, 40), flat, flat / 2 + torch.rand(1, 3, 24, 40) / 9])
    together = [rs.upscale(model, images, seed=[1, 2, 3], tile=24, tile_batch=count) for count in (1, 2, 5)]
    assert all(torch.equal(pictures, together[0]) for pictures in together)
    assert torch.equal(rs.upscale(model, images[1:2], seed=2, tile=24), together[0][1:2])


def test_every_tile_is_told_what_is_said_of_the_whole_picture(monkeypatch):
    model, told = told_model(), []
    condition = model.unet.condition
    monkeypatch.setattr(model.unet, "condition", lambda lq, mask, given: told.append(given) or condition(lq, mask, given))
    image = torch.cat([picture(150, 130), picture(150, 130, seed=1).flip(3) ** 2])
    rs.upscale(model, image, tile=64, overlap=8, tile_batch=3)
    assert len(told) > 2
    per_tile = torch.cat(told)
    own = torch.cat([model.unet.degradation.of_picture(part) for part in image])
    assert (own[0] - own[1]).abs().max() > 1e-4
    half = len(per_tile) // 2
    torch.testing.assert_close(per_tile, own.repeat_interleave(half, 0))


def test_what_is_told_changes_the_picture_and_a_picture_alone_is_as_in_a_batch():
    model = told_model()
    lq = picture(24, 24) * 2 - 1
    given = torch.zeros(1, len(DESCRIPTION))
    assert (model.unet.condition(lq, None, given) - model.unet.condition(lq, None, 1 - given)).abs().max() > 1e-3
    torch.testing.assert_close(model.unet.condition(lq), model.unet.condition(lq, None, model.unet.degradation(lq)))
    large = picture(70, 200)
    torch.testing.assert_close(model.unet.degradation(large * 2 - 1), model.unet.degradation.of_picture(large[0].double()))
    batch = torch.cat([picture(40, 40), picture(40, 40, seed=3) * 0.5])
    together = rs.upscale(model, batch, noise="shared", tile_batch=1)
    for alone, result in zip(batch, together):
        assert torch.equal(rs.upscale(model, alone[None])[0], result)


@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 0.02), (torch.float16, 0.004)])
def test_halved_weights_say_the_same(dtype, most):
    model = told_model()
    exact = model.unet.degradation.of_picture(picture(70, 90)[0])
    model.to(dtype=dtype)
    found = model.unet.degradation.of_picture(picture(70, 90)[0])
    assert found.dtype == torch.float32 and (found - exact).abs().max() < most
    assert rs.upscale(model, picture(16, 16)).isfinite().all()


def test_a_file_keeps_the_estimator(tmp_path):
    model = told_model()
    again = rs.load_model(rs.save_model(model, tmp_path / "told.safetensors"), device="cpu", dtype="fp32")
    assert again.config.unet.degradation_channels == 6
    assert torch.equal(rs.upscale(again, picture(20, 20)), rs.upscale(model, picture(20, 20)))


def test_without_a_trunk_nothing_can_be_told():
    config = standin.small_model(model_channels=8).config
    with pytest.raises(ValueError, match="no trunk"):
        check_model(replace(config, unet=replace(config.unet, trunk_blocks=0, degradation_channels=6)))
    with pytest.raises(SettingsError, match="no trunk"):
        add_estimator(standin.small_model(model_channels=8, trunk_blocks=0), 6)


def test_networks_that_nothing_could_be_put_through_are_refused():
    config = standin.small_model(model_channels=8).config
    with pytest.raises(ValueError, match="filled in at scale 1"):
        check_model(replace(config, task="inpaint", unet=replace(config.unet, mask=True)))
    with pytest.raises(ValueError, match="model_channels is 33"):
        check_model(replace(config, unet=replace(config.unet, model_channels=33)))


def test_around_a_hole_nothing_is_estimated():
    model = standin.small_model(model_channels=8, trunk_blocks=2)
    unet = replace(model.config.unet, mask=True)
    with pytest.raises(ValueError, match="estimates around a hole"):
        check_model(replace(model.config, unet=replace(unet, degradation_channels=6), task="inpaint"))
    model.config = replace(model.config, unet=unet, task="inpaint")
    with pytest.raises(SettingsError, match="hole"):
        add_estimator(model, 6)


def test_files_without_an_estimator_are_read_by_programs_that_know_none():
    assert "degradation_channels" not in standin.small_model(model_channels=8).config.to_dict()["unet"]
    told = told_model().config
    assert rs.ModelConfig.from_dict(told.to_dict()) == told


def test_a_new_estimator_changes_nothing_yet_and_grown_models_stay_what_they_were():
    before = standin.small_model(model_channels=8, trunk_blocks=2)
    image = picture(20, 20)
    after = add_estimator(before, 6)
    assert after.config.unet.degradation_channels == 6 and add_estimator(after, 9) is after
    torch.testing.assert_close(rs.upscale(after, image), rs.upscale(before, image))
    told = told_model()
    for grown in (resize_trunk(told, 4), widen(told, 12)):
        torch.testing.assert_close(rs.upscale(grown, image), rs.upscale(told, image), atol=2e-4, rtol=0)


def test_descriptions_are_what_was_drawn():
    seed, numbers = 3, range(60)
    rows = descriptions("everyday", numbers, seed, 0.6)
    assert rows.shape == (60, len(DESCRIPTION)) and 0 <= rows.min() and rows.max() <= 1
    hr = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain = make_degradation("bicubic", 4, seed)(hr, [0])
    degrade, clean = make_degradation("everyday", 4, seed, 0.6), 0
    for number, row in zip(numbers, rows):
        words = dict(zip(DESCRIPTION, row.tolist()))
        small = degrade(hr, [number])
        if not words["damaged"]:
            assert not row.any() and torch.equal(small, plain)
            clean += 1
            continue
        plan, compressed = draw_everyday(random_for(seed, number, 1))
        assert words["compressed"] == compressed and words[plan.mode] == 1
        assert words["area"] + words["bilinear"] + words["bicubic"] == 1
        assert words["coarseness"] == pytest.approx((100 - plan.quality) / 70 if compressed else 0)
        if plan.noise.kind == "gaussian":
            assert 2 ** (5 * words["noise"]) - 1 == pytest.approx(plan.noise.strength, abs=1e-3)
        if plan.noise.kind == "poisson":  # of a middle grey
            assert 2 ** (5 * words["noise"]) - 1 == pytest.approx(plan.noise.strength * 128**0.5, abs=1e-3)
        assert words["shot"] == (plan.noise.kind == "poisson") and words["grey"] == (plan.noise.grey and words["noise"] > 0)
        sigmas = (plan.kernel.sigma_x, plan.kernel.sigma_y) if plan.kernel.kind != "none" else (0, 0)
        assert words["blur"] == pytest.approx(np.sqrt(np.mean(np.square(sigmas))))
    assert 10 < clean < 40
    assert not descriptions("bicubic", numbers, seed, 1.0).any()
    with pytest.raises(ValueError, match="realesrgan"):
        descriptions("realesrgan", [0], 0, 1.0)


def test_three_bad_steps_in_a_row_stop_the_estimator(tmp_path):
    class Batches(list):
        settings = train_estimator.EstimatorSettings(tmp_path, tmp_path, learning_rate=1e-3)

    estimator = told_model().unet.degradation.train().requires_grad_(True)
    good, bad = ((torch.full((2, 3, 64, 64), value), torch.zeros(2, len(DESCRIPTION))) for value in (0.0, torch.nan))
    train_estimator.learn(estimator, Batches([bad, bad, good, bad, bad]))
    assert all(bool(torch.isfinite(weight).all()) for weight in estimator.parameters())
    with pytest.raises(NotFinite, match="3 steps in a row"):
        train_estimator.learn(estimator, Batches([good, bad, bad, bad]))


def test_what_never_varies_has_no_share_that_is_explained():
    wanted = torch.zeros(4, len(DESCRIPTION))
    wanted[:2, 0], wanted[:, 1] = 1, 1
    batches = [(wanted[:3], wanted[:3]), (wanted[3:], wanted[3:])]
    assert train_estimator.explained(lambda lq: lq, batches) == {DESCRIPTION[0]: 1}
    assert train_estimator.explained(lambda lq: torch.full_like(lq, 0.5), batches) == {DESCRIPTION[0]: 0}


def test_crops_that_are_only_looked_at_are_no_runs_and_every_repeat_has_its_own_damage(tmp_path, monkeypatch):
    class Crops:
        def __getitem__(self, number):
            looked_at.append(number)
            return {"hr": torch.rand(3, 32, 32)}

    looked_at, damaged = [], []
    settings = train_estimator.EstimatorSettings(tmp_path, tmp_path, degradation="everyday", batch_size=2, repeats=3)
    batches = train_estimator.Batches(settings, Crops(), 4, torch.device("cpu"))
    monkeypatch.setattr(batches, "degrade", lambda hr, numbers: damaged.extend(numbers) or hr[..., ::4, ::4])
    first, *rest = batches.held()
    assert len(rest) == train_estimator.HELD - 1 and [len(part) for part in first] == [6, 6]
    assert looked_at == list(range(10**9, 10**9 + 2 * train_estimator.HELD))
    assert len(set(damaged)) == len(damaged) == 6 * train_estimator.HELD


def test_an_estimator_is_trained_and_finetune_leaves_it_as_it_is(tmp_path, capsys):
    pictures = make_pictures(tmp_path / "pictures", side=160)
    parent = save_tiny_model(tmp_path / "parent.safetensors", trunk_blocks=2)
    output = tmp_path / "out"
    words = [
        "--data", str(pictures), "--output", str(output), "--model", str(parent), "--device", "cpu", "--crop", "128",
        "--workers", "0", "--damaged-share", "0.6", "--iterations", "60",
    ]  # fmt: skip
    assert train_estimator.main(words) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("Explained"))
    shares = {name: float(share) for name, share in (part.split() for part in line.split(": ")[1].split(", "))}
    assert set(shares) == set(DESCRIPTION)
    assert shares["compressed"] > 0.5 and shares["damaged"] > 0.2
    path = output / "estimator.safetensors"
    model = rs.load_model(path, device="cpu", dtype="fp32")
    assert model.metadata["parent"] == "small" and model.config.name == "out"
    assert model.metadata["parent_sha256"] == sha256_of(parent)
    image = picture(20, 20)
    torch.testing.assert_close(rs.upscale(model, image), rs.upscale(rs.load_model(parent, device="cpu", dtype="fp32"), image))

    tuned = tmp_path / "tuned"
    assert finetune.main(arguments(pictures, tuned, path, "--degradation", "everyday", "--iterations", "3")) == 0
    after = rs.load_model(tuned / "last.safetensors", device="cpu", dtype="fp32").unet.state_dict()
    assert (
        finetune.main(["--config", str(tuned / "config.json"), "--data", str(pictures), "--output", str(tmp_path / "new")]) == 2
    )
    assert "train_estimator.py" in capsys.readouterr().err  # nothing in it would have been trained
    changed = {key for key, value in model.unet.state_dict().items() if not torch.equal(value, after[key])}
    assert not any(key.startswith("degradation.") for key in changed)
    assert "trunk.1.emb_layers.1.weight" in changed
    assert json.loads((tuned / "config.json").read_text())["model"]["unet"]["degradation_channels"] == 64


def test_crops_of_pairs_are_told_what_is_said_of_the_whole_file(tmp_path, monkeypatch):
    """As when the file is upscaled. Of a crop, with JPEG's grid anywhere in it, something else would be said."""
    high, low = make_pictures(tmp_path / "high", side=256), tmp_path / "low"
    low.mkdir()
    for path in high.iterdir():
        with Image.open(path) as image:
            image.resize((64, 64), Image.Resampling.BICUBIC).save(low / f"{path.stem}.jpg", quality=40)
    model = told_model()
    parent = rs.save_model(model, tmp_path / "parent.safetensors")
    files = {path.stem: model.unet.degradation.of_picture(read_rgb(path) / 255) for path in low.iterdir()}

    told, condition = [], rs.SwinUNet.condition

    def spy(self, lq, mask=None, given=None):
        if lq.shape[-1] == 8:  # a crop, not a picture to validate on
            told.append(given)
        return condition(self, lq, mask, given)

    monkeypatch.setattr(rs.SwinUNet, "condition", spy)
    words = ("--degradation", "paired", "--pairs", low, "--validate-every", 99, "--rollout-share", 1)
    assert finetune.main(arguments(high, tmp_path / "out", parent, *words)) == 0
    assert len(told) > 6 and all(given is not None for given in told)
    known = torch.cat(list(files.values()))
    for given in torch.cat(told):
        assert float((known - given).abs().amax(1).min()) < 1e-5
    words = ("--degradation", "paired", "--pairs", low, "--inverse", 1, "--consistency", 1)
    told.clear()
    assert distill.main(arguments(high, tmp_path / "student", parent, *words)) == 0
    assert len(told) > 6 and all(given is not None for given in told)


@pytest.mark.parametrize(
    "more, word",
    [(("--degradation", "realesrgan"), "realesrgan"), (("--repeats", "0"), "repeats"), (("--dry-run", "True"), "dry-run")],
)
def test_what_cannot_be_estimated_is_a_sentence(tmp_path, capsys, more, word):
    pictures = make_pictures(tmp_path / "pictures", count=2)
    assert train_estimator.main(["--data", str(pictures), "--output", str(tmp_path / "out"), *more]) == 2
    assert word in capsys.readouterr().err
