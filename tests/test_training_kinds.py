"""finetune.py on every kind of model that the engine loads: narrow networks of the published configurations."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resshift_core as rs
from resshift_core.registry import VARIANTS
from training import distill, evaluate, finetune

from . import standin
from .training_run import arguments, make_pictures

# Each kind in one of the two forms in which models come: as published, two .pth files, or as this project saves them.
KINDS = {
    "realsr_x4_s15": "safetensors",
    "realsr_x4_s4": "pth",
    "bicsr_x4_s4": "safetensors",
    "realsr_x2_s4": "pth",
    "inpaint_imagenet_s4": "pth",
    "inpaint_face_s4": "safetensors",
    "faceir_s4": "pth",
    "sinsr_x4_s1": "pth",
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("kinds") / "pictures", 5, 160)


def narrow(variant: str) -> rs.ResShiftModel:
    """The published configuration with two levels of the least width: VQGAN, group norm, Swin layers, its inputs."""
    whole = standin.published_config(variant)
    unet = replace(whole.unet, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, swin_channels=32, head_channels=16)
    levels = len(whole.autoencoder.ch_mult)
    autoencoder = replace(whole.autoencoder, ch=32, ch_mult=(1,) * levels, num_res_blocks=(1,) * levels, n_embed=64)
    return standin.standin_model(replace(whole, unet=unet, autoencoder=autoencoder, licence="of the test"))


def save(model: rs.ResShiftModel, folder: Path, form: str) -> list:
    """Write the model as published (two .pth files) or as one .safetensors; -> the words that load it."""
    if form == "safetensors":
        return ["--model", rs.save_model(model, folder / "model.safetensors")]
    torch.save(model.unet.state_dict(), folder / "unet.pth")
    torch.save({"state_dict": model.autoencoder.state_dict()}, folder / "vq.pth")
    words = ["--model", folder / "unet.pth", "--autoencoder", folder / "vq.pth"]
    return [*words, "--variant", model.config.variant]


def words_for(model: rs.ResShiftModel, pictures: Path, folder: Path, form: str, *more) -> list[str]:
    """finetune.py or distill.py with the smallest crops that the network takes; the run is in `folder`/run."""
    side = model.config.unet.latent_multiple * model.config.autoencoder.factor
    small = ("--iterations", 2, "--batch-size", 2, "--crop", side, "--validation-crop", side, "--learning-rate", 1e-3)
    given = arguments(pictures, folder / "run", "unused", *save(model, folder, form), *small, *more)
    at = given.index("--degradation")
    return given[:at] + given[at + 2 :]  # the kind's own, unless `more` has one


def square_hole() -> torch.Tensor:
    """(1, 1, 40, 48), 1 in the middle."""
    mask = torch.zeros(1, 1, 40, 48)
    mask[..., 10:30, 10:30] = 1
    return mask


@pytest.mark.parametrize("variant", KINDS)
def test_every_kind_is_fine_tuned(pictures, tmp_path, variant):
    start, kind = narrow(variant), VARIANTS[variant]
    assert finetune.main(words_for(start, pictures, tmp_path, KINDS[variant])) == 0

    model = rs.load_model(tmp_path / "run" / "last.safetensors", device="cpu", dtype="fp32")
    config, metadata = model.config, model.metadata
    assert (config.unet, config.autoencoder) == (start.config.unet, start.config.autoencoder)
    assert (config.task, config.scale, config.steps, config.kappa) == (kind.task, kind.scale, kind.steps, 2.0)
    assert config.min_noise_level == kind.min_noise_level and config.default_steps == (kind.default_steps or kind.steps)
    assert metadata["steps_trained"] == "2" and len(metadata["parent_sha256"]) == 64
    assert metadata["degradation"] == ("bicubic" if kind.task == "inpaint" else "realesrgan")
    assert json.loads(metadata["training"])["last_step_share"] == (1.0 if kind.default_steps == 1 else 0.0)
    before, after = start.unet.state_dict(), model.unet.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(value, before[key]) for key, value in after.items())
    for key, value in start.autoencoder.state_dict().items():
        assert torch.equal(value, model.autoencoder.state_dict()[key]), key

    image = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    mask, seen = square_hole() if kind.task == "inpaint" else None, []
    result = rs.upscale(model, image, mask=mask, on_step=lambda event: seen.append(event.steps))
    assert result.shape == (1, 3, 40 * kind.scale, 48 * kind.scale) and set(seen) == {config.default_steps}
    if mask is not None:
        assert torch.equal(result * (1 - mask), image * (1 - mask))


def test_a_latent_model_is_trained_from_nothing_on_a_trained_autoencoder(pictures, tmp_path, capsys):
    model, file = narrow("realsr_x4_s4"), tmp_path / "config.json"
    file.write_text(json.dumps({"model": model.config.to_dict(), "training": {}}))
    words = words_for(model, pictures, tmp_path, "pth", "--config", file)
    while "--model" in words:  # a new network starts from none
        at = words.index("--model")
        del words[at : at + 2]
    assert finetune.main(words) == 0
    new = rs.load_model(tmp_path / "run" / "last.safetensors", device="cpu", dtype="fp32")
    assert new.metadata["parent"] == "" and new.config.unet == model.config.unet
    for key, value in model.autoencoder.state_dict().items():
        assert torch.equal(value, new.autoencoder.state_dict()[key]), key
    at = words.index("--autoencoder")
    assert finetune.main(words[:at] + words[at + 2 :]) == 2
    assert "must be trained beforehand" in capsys.readouterr().err
    other = replace(model.config, autoencoder=replace(model.config.autoencoder, n_embed=32))
    file.write_text(json.dumps({"model": other.to_dict()}))
    assert finetune.main(words) == 2
    assert "but the configuration asks for" in capsys.readouterr().err


def test_pairs_for_inpainting_are_given_holes(pictures, tmp_path):
    start = narrow("inpaint_imagenet_s4")
    more = ("--degradation", "paired", "--pairs", pictures, "--contact-sheet", "True")
    assert finetune.main(words_for(start, pictures, tmp_path, "safetensors", *more)) == 0
    with Image.open(next((tmp_path / "run" / "validation").glob("*.png"))) as grid:
        black = (np.asarray(grid.convert("RGB"))[:256, :256] == 0).all(2)  # of the input
    assert 0.001 < black.mean() < 0.06  # the hole; around the crop of 64 there is white


def test_inpainting_is_distilled(pictures, tmp_path):
    start = narrow("inpaint_imagenet_s4")
    assert distill.main(words_for(start, pictures, tmp_path, "pth")) == 0
    student = rs.load_model(tmp_path / "run" / "last.safetensors", device="cpu", dtype="fp32")
    assert student.config.default_steps == 1 and student.config.task == "inpaint"
    assert rs.upscale(student, torch.rand(1, 3, 40, 48), mask=square_hole()).shape == (1, 3, 40, 48)


def test_inpainting_is_evaluated_on_pictures_with_holes(pictures, tmp_path, capsys):
    model = rs.save_model(narrow("inpaint_imagenet_s4"), tmp_path / "model.safetensors")
    words = ["--models", str(model), "--output", str(tmp_path / "out"), "--device", "cpu", "--dtype", "fp32"]
    more = ["--truth", str(pictures), "--limit", "2", "--crop", "64", "--steps", "1", "2"]
    assert evaluate.main([*words, *more]) == 0
    with open(tmp_path / "out" / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["steps"] for row in rows] == ["", "1", "2"] and all(5 < float(row["psnr"]) < 60 for row in rows)
    assert evaluate.main([*words, "--lq", str(pictures)]) == 2
    assert "holes are drawn" in capsys.readouterr().err


@pytest.mark.slow
def test_the_published_x4_network_is_tried_out(tmp_path, capsys):
    """At full size, 119 M parameters, with stand-in weights: what an 8 GB card is given, on the CPU."""
    data = make_pictures(tmp_path / "pictures", 4, 256)
    torch.save(standin.standin_unet(standin.UNETS["unet_realsr_x4"]).state_dict(), tmp_path / "resshift_realsrx4_s4_v3.pth")
    torch.save(standin.fill(rs.VQGAN(standin.VQGANS["vq_f4"])).state_dict(), tmp_path / "vq.pth")
    words = ["--model", tmp_path / "resshift_realsrx4_s4_v3.pth", "--autoencoder", tmp_path / "vq.pth", "--preset", "8gb"]
    run = ["--data", data, "--output", tmp_path / "run", "--device", "cpu", "--dry-run", "True", "--batch-size", 1]
    assert finetune.main([str(word) for word in (*run, *words, "--variant", "realsr_x4_s4", "--workers", 0)]) == 0
    shown = capsys.readouterr().out
    assert "1 crops at a time" in shown and "images/s" in shown
