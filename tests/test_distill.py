"""One-step students: SinSR's losses against closed forms, and what a distilled file does."""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import resshift_core as rs
from benchmarks import student as benchmark
from training import distill, finetune
from training.chain import Chain
from training.degradation import make_degradation
from training.distill import Distillation, DistillSettings
from training.resize import resize_trunk, widen

from . import standin
from .training_run import arguments, make_pictures, save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def setting(steps=4):
    teacher = standin.small_model(model_channels=8, steps=steps, default_steps=steps)
    chain = Chain(copy.deepcopy(teacher), make_degradation("bicubic", 4, 0), 0, 1.0, "cpu")
    hr = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return teacher, chain, chain.draw([0, 1], {"hr": hr})


def losses(chain, teacher, **weights) -> Distillation:
    """SinSR's, or with other weights."""
    return Distillation(chain, teacher, DistillSettings(data=Path(), output=Path(), **weights))


def test_the_teacher_is_upscale_with_the_deterministic_sampler():
    teacher, chain, points = setting()
    objective = losses(chain, teacher)
    noise = torch.randn((1, *points.x0.shape[1:]), generator=torch.Generator().manual_seed(9))
    points = copy.copy(points)
    object.__setattr__(points, "noise", torch.stack([noise, noise]).expand(2, 2, -1, -1, -1))
    found = teacher.autoencoder.decode(objective.teach(points)).add(1).div(2).clamp(0, 1)
    wanted = rs.upscale(teacher, points.lq.add(1).div(2), seed=9, noise="shared", sampler="deterministic")
    inner = (..., slice(20, -20), slice(20, -20))  # borders: upscale pads
    torch.testing.assert_close(found[inner], wanted[inner], atol=1e-4, rtol=0)


def test_a_one_step_teacher_is_already_its_student():
    teacher, chain, points = setting(steps=1)
    _, parts, _ = losses(chain, teacher, inverse=0, consistency=0)(chain.model.unet, points)
    assert float(parts["mse"]) < 1e-10


def test_the_losses_are_sinsrs():
    """With a network that returns y0 (residual 0), every loss has a closed form."""
    teacher, chain, points = setting()

    asked = []

    def nothing(x, t, lq, mask=None):
        asked.append(t.tolist())
        return torch.zeros_like(x)

    chain.model.unet.forward = nothing
    _, parts, _ = losses(chain, teacher, truth=1)(nothing, points)
    assert asked == [[3, 3], [0, 0], [0, 0], [3, 3]]  # the way back is that of t = 1
    x_T = points.y0 + chain.model.schedule.prior(points.y0)[1] * points.noise[1]
    assert float(parts["inverse"]) == pytest.approx(float((points.y0 - x_T).square().mean()), rel=1e-4)
    assert float(parts["truth"]) == pytest.approx(float((points.y0 - points.x0).square().mean()), rel=1e-4)
    assert float(parts["consistency"]) == pytest.approx(float((points.y0 - points.x0).square().mean()), rel=1e-4)


def test_nothing_is_learned_through_the_start_that_the_student_assigns_to_the_truth():
    teacher, chain, points = setting()
    objective, asked = losses(chain, teacher, inverse=0), []
    ask = objective.ask
    objective.ask = lambda net, points, x, t: asked.append((torch.is_grad_enabled(), x.requires_grad)) or ask(net, points, x, t)
    objective(chain.model.unet.requires_grad_(True), points)
    assert asked == [(True, False), (False, False), (True, False)]


def test_a_student_runs_in_one_step_and_comes_near_its_teacher(tmp_path):
    data, model = make_pictures(tmp_path / "pictures"), save_tiny_model(tmp_path / "teacher.safetensors", kappa=0.5)
    words = ("--iterations", 60, "--learning-rate", 3e-3, "--consistency", 0, "--inverse", 0.1)
    assert distill.main(arguments(data, tmp_path / "run", model, *words)) == 0
    teacher = rs.load_model(model, device="cpu", dtype="fp32")
    student = rs.load_model(tmp_path / "run" / "last.safetensors", device="cpu", dtype="fp32")
    assert student.config.default_steps == 1 and student.schedule.steps == 4
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    asked = []
    result = rs.upscale(student, image, on_step=lambda event: asked.append(event.steps))
    assert set(asked) == {1}
    wanted = rs.upscale(teacher, image, sampler="deterministic")
    before = rs.upscale(teacher, image, steps=1)
    assert float((result - wanted).square().mean()) < 0.5 * float((before - wanted).square().mean())


def test_weights_and_distance_are_those_asked_for():
    teacher, chain, points = setting()
    net = chain.model.unet
    loss, parts, _ = losses(chain, teacher, loss="l1", inverse=0.5, consistency=2.0, truth=3.0)(net, points)
    assert list(parts) == ["l1", "truth", "inverse", "consistency"]
    wanted = parts["l1"] + 3 * parts["truth"] + 0.5 * parts["inverse"] + 2 * parts["consistency"]
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)


def test_a_shorter_trunk_is_made_of_the_teachers_blocks():
    teacher = standin.small_model(trunk_blocks=12)
    whole = teacher.unet.state_dict()
    for blocks, kept in ((1, [0]), (2, [0, 11]), (3, [0, 6, 11]), (12, range(12))):
        student = resize_trunk(teacher, blocks)
        assert student.config == replace(teacher.config, unet=replace(teacher.config.unet, trunk_blocks=blocks))
        fresh = rs.ResShiftModel(student.config)
        fresh.unet.load_state_dict(student.unet.state_dict())  # strict
        found = student.unet.state_dict()
        for new, old in enumerate(kept, 1):
            key = "in_layers.2.weight"
            assert torch.equal(found[f"trunk.{new}.{key}"], whole[f"trunk.{old + 1}.{key}"])
        assert torch.equal(found["trunk.0.weight"], whole["trunk.0.weight"])
    student.unet.trunk[0].weight.zero_()
    assert torch.equal(teacher.unet.state_dict()["trunk.0.weight"], whole["trunk.0.weight"])


def test_a_longer_trunk_changes_nothing_until_it_is_trained(tmp_path):
    data = make_pictures(tmp_path / "pictures")
    file = save_tiny_model(tmp_path / "model.safetensors", trunk_blocks=2)
    before, image = rs.load_model(file, device="cpu", dtype="fp32"), torch.rand(1, 3, 16, 16)
    longer = resize_trunk(before, 5)
    assert longer.config.unet.trunk_blocks == 5 and before.config.unet.trunk_blocks == 2
    assert torch.equal(rs.upscale(longer, image, seed=1), rs.upscale(before, image, seed=1))
    run = tmp_path / "run"
    assert finetune.main(arguments(data, run, file, "--trunk-blocks", 5, "--iterations", 3)) == 0
    assert finetune.main(arguments(data, run, file, "--trunk-blocks", 5, "--iterations", 5, "--resume", "auto")) == 0
    trained = rs.load_model(run / "last.safetensors", device="cpu", dtype="fp32")
    assert trained.config.unet.trunk_blocks == 5 and trained.metadata["steps_trained"] == "5"
    assert all(float(block.out_layers[3].weight.abs().max()) > 0 for block in trained.unet.trunk[1:])
    assert finetune.main(arguments(data, tmp_path / "other", file, "--trunk-blocks", 257)) == 2


def test_a_wider_network_changes_nothing_until_it_is_trained(tmp_path):
    data = make_pictures(tmp_path / "pictures")
    settings = {"trunk_blocks": 2, "channel_mult": (1,), "num_res_blocks": 2}
    file = save_tiny_model(tmp_path / "model.safetensors", **settings)
    before, image = rs.load_model(file, device="cpu", dtype="fp32"), torch.rand(1, 3, 16, 16)
    there = before.config.unet.model_channels
    wider = widen(before, there + 8)
    assert wider.config.unet.model_channels == there + 8 and before.config.unet.model_channels == there
    assert (rs.upscale(wider, image, seed=1) - rs.upscale(before, image, seed=1)).abs().max() < 1e-5
    run = tmp_path / "run"
    words = ("--width", there + 8, "--trunk-blocks", 3)
    assert finetune.main(arguments(data, run, file, *words, "--iterations", 3)) == 0
    assert finetune.main(arguments(data, run, file, *words, "--iterations", 5, "--resume", "auto")) == 0
    trained = rs.load_model(run / "last.safetensors", device="cpu", dtype="fp32")
    assert trained.config.unet.model_channels == there + 8 and trained.metadata["steps_trained"] == "5"
    for block in trained.unet.trunk[1:]:  # the old channels look at the new ones
        assert float(block.in_layers[2].weight[:there, there:].abs().max()) > 0


@pytest.mark.parametrize(
    "changes, width, sentence",
    [
        ({}, 4, "give"),
        ({}, 9000, "give"),
        ({"channel_mult": (1, 2)}, 64, "one level"),
        ({"norm": "group"}, 64, "without norms"),
    ],
)
def test_widths_that_cannot_be_are_refused(tmp_path, capsys, changes, width, sentence):
    model = save_tiny_model(tmp_path / "model.safetensors", **{"channel_mult": (1,), **changes})
    assert finetune.main(arguments(make_pictures(tmp_path / "pictures"), tmp_path / "run", model, "--width", width)) == 2
    assert sentence in capsys.readouterr().err


def test_a_student_with_a_shorter_trunk_runs_everywhere(tmp_path):
    """File, metadata, one step, resuming, and a state of another network."""
    data = make_pictures(tmp_path / "pictures")
    model = save_tiny_model(tmp_path / "teacher.safetensors", trunk_blocks=4, kappa=0.5)
    run = tmp_path / "run"
    assert distill.main(arguments(data, run, model, "--trunk-blocks", 2, "--iterations", 4)) == 0
    more = ("--trunk-blocks", 2, "--iterations", 6, "--resume", "auto")
    assert distill.main(arguments(data, run, model, *more)) == 0
    student = rs.load_model(run / "last.safetensors", device="cpu", dtype="fp32")
    assert student.config.unet.trunk_blocks == 2 and student.config.default_steps == 1
    assert student.metadata["steps_trained"] == "6" and student.metadata["parent"] == "small"
    again = tmp_path / "again"  # what a run writes down is a recipe for another
    assert distill.main(arguments(data, again, model, "--config", run / "config.json", "--iterations", 1)) == 0
    assert json.loads((again / "config.json").read_text())["training"]["trunk_blocks"] == 2
    image, asked = torch.rand(1, 3, 16, 16), []
    assert rs.upscale(student, image, on_step=lambda event: asked.append(event.steps)).shape == (1, 3, 64, 64)
    assert set(asked) == {1}


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_weights_that_are_none_are_said(tmp_path, capsys, value):
    model = save_tiny_model(tmp_path / "teacher.safetensors", trunk_blocks=4)
    assert distill.main(arguments(make_pictures(tmp_path / "pictures"), tmp_path / "run", model, "--inverse", value)) == 2
    assert "are weights" in capsys.readouterr().err


def test_a_state_of_another_network_is_said(tmp_path, capsys):
    data = make_pictures(tmp_path / "pictures")
    model = save_tiny_model(tmp_path / "teacher.safetensors", trunk_blocks=4)
    words = arguments(data, tmp_path / "run", model, "--iterations", 2)
    assert distill.main([*words, "--trunk-blocks", "2"]) == 0
    assert distill.main([*words, "--trunk-blocks", "3", "--resume", "auto"]) == 2
    assert "of another network" in capsys.readouterr().err
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    assert finetune.main([*words, "--trunk-blocks", "2", "--iterations", "4", "--resume", "auto"]) == 2
    assert "is of another program" in capsys.readouterr().err
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "blocks, there, sentence",
    [(3, 2, "the teacher's trunk has 2, so give 1 to 2"), (0, 2, "give 1 to 2"), (1, 0, "this model has no trunk")],
)
def test_trunks_that_cannot_be_are_refused(tmp_path, capsys, blocks, there, sentence):
    model = save_tiny_model(tmp_path / "teacher.safetensors", trunk_blocks=there)
    assert distill.main(arguments(tmp_path, tmp_path / "run", model, "--trunk-blocks", blocks)) == 2
    assert sentence in capsys.readouterr().err


def test_a_recipe_is_taken_and_a_model_in_it_refused(tmp_path, capsys):
    model, file = save_tiny_model(tmp_path / "teacher.safetensors"), tmp_path / "recipe.json"
    file.write_text('{"training": {"trunk_blocks": 9}}')
    assert distill.main(arguments(tmp_path, tmp_path / "run", model, "--config", file)) == 2
    assert "--trunk-blocks is 9" in capsys.readouterr().err
    file.write_text('{"model": {}, "training": {}}')
    assert distill.main(arguments(tmp_path, tmp_path / "run", model, "--config", file)) == 2
    assert "Leave 'model' out" in capsys.readouterr().err


def test_settings_of_fine_tuning_are_refused(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "teacher.safetensors")
    for words in (("--steps", 4), ("--width", 64), ("--lpips", 1), ("--rollout-share", 0)):
        assert distill.main(arguments(tmp_path, tmp_path / "run", model, *words)) == 2
        assert "of no use here" in capsys.readouterr().err


def test_a_student_cannot_teach(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "student.safetensors", default_steps=1)
    assert distill.main(arguments(tmp_path, tmp_path / "run", model)) == 2
    assert "one step already" in capsys.readouterr().err


def test_the_benchmark_compares_a_student_with_its_teacher(tmp_path):
    """Steps, PSNR and the share of the network's time; a trunk of 1 block of 4 and one step of four is less than half."""
    data = make_pictures(tmp_path / "pictures", 2, 128)
    teacher = standin.small_model(model_channels=32, trunk_blocks=4)
    student = resize_trunk(teacher, 1)
    student.config = replace(student.config, default_steps=1)
    files = [rs.save_model(model, tmp_path / f"{n}.safetensors") for n, model in enumerate((teacher, student))]
    words = argparse.Namespace(device="cpu", degradation="bicubic", limit=0, crop=0, rounds=5)
    table = benchmark.measure(*(str(file) for file in files), data, words)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[3:]]
    assert rows[0][:2] == ["teacher, float32", "4"] and rows[1][:2] == ["student, float32", "1"]
    assert rows[0][6] == "100.0%" and float(rows[1][6].rstrip("%")) < 70
    assert float(rows[1][3]) == pytest.approx(float(rows[1][2]) - float(rows[0][2]), abs=0.011)
