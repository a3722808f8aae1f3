"""One-step students: SinSR's losses against closed forms, and what a distilled file does."""

from __future__ import annotations

import copy

import pytest
import torch

import resshift_core as rs
from training import distill
from training.chain import Chain
from training.degradation import make_degradation
from training.distill import Distillation

from . import standin
from .training_run import arguments, make_pictures, save_tiny_model


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def setting(steps=4):
    teacher = standin.small_model(model_channels=8, steps=steps, default_steps=steps)
    chain = Chain(copy.deepcopy(teacher), make_degradation("bicubic", 4, 0), 0, 1.0, "cpu")
    hr = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return teacher, chain, chain.draw([0, 1], {"hr": hr})


def test_the_teacher_is_upscale_with_the_deterministic_sampler():
    teacher, chain, points = setting()
    objective = Distillation(chain, teacher, 1, 1)
    noise = torch.randn((1, *points.x0.shape[1:]), generator=torch.Generator().manual_seed(9))
    points = copy.copy(points)
    object.__setattr__(points, "noise", torch.stack([noise, noise]).expand(2, 2, -1, -1, -1))
    found = teacher.autoencoder.decode(objective.teach(points)).add(1).div(2).clamp(0, 1)
    wanted = rs.upscale(teacher, points.lq.add(1).div(2), seed=9, noise="shared", sampler="deterministic")
    inner = (..., slice(20, -20), slice(20, -20))  # borders: upscale pads
    torch.testing.assert_close(found[inner], wanted[inner], atol=1e-4, rtol=0)


def test_a_one_step_teacher_is_already_its_student():
    teacher, chain, points = setting(steps=1)
    _, parts, _ = Distillation(chain, teacher, 0, 0)(chain.model.unet, points)
    assert float(parts["mse"]) < 1e-10


def test_the_losses_are_sinsrs():
    """With a network that returns y0 (residual 0), every loss has a closed form."""
    teacher, chain, points = setting()

    def nothing(x, t, lq, mask=None):
        return torch.zeros_like(x)

    chain.model.unet.forward = nothing
    _, parts, _ = Distillation(chain, teacher, 1, 1)(nothing, points)
    x_T = points.y0 + chain.model.schedule.prior(points.y0)[1] * points.noise[1]
    assert float(parts["inverse"]) == pytest.approx(float((points.y0 - x_T).square().mean()), rel=1e-4)
    assert float(parts["consistency"]) == pytest.approx(float((points.y0 - points.x0).square().mean()), rel=1e-4)


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


def test_settings_of_fine_tuning_are_refused(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "teacher.safetensors")
    for words in (("--steps", 4), ("--lpips", 1)):
        assert distill.main(arguments(tmp_path, tmp_path / "run", model, *words)) == 2
        assert "of no use here" in capsys.readouterr().err


def test_a_student_cannot_teach(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "student.safetensors", default_steps=1)
    assert distill.main(arguments(tmp_path, tmp_path / "run", model)) == 2
    assert "one step already" in capsys.readouterr().err
