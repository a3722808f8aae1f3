"""One update of the weights: the chain's points, the losses, accumulation, memory, EMA, steps that are not finite."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.optim import muon
from timm.utils import ModelEmaV3
from torch import nn
from torchmetrics.functional.image import peak_signal_noise_ratio

import resshift_core as rs
from resshift_core import atomic_file
from resshift_core.sampler import sample
from training import finetune
from training import state as state_files
from training.chain import Chain
from training.degradation import make_degradation
from training.distributed import Processes
from training.losses import (
    SPECTRUM_EPS,
    SPECTRUM_WINDOW,
    Discriminator,
    LossSettings,
    Objective,
    detail,
    distance,
    local_spectra,
    make_lpips,
    spectrum_distance,
    step_weights,
)
from training.memory import fit_micro_batch
from training.settings import SettingsError, TrainSettings, resolve
from training.state import StateError, load_state, save_state, saved
from training.trainer import (
    NotFinite,
    Trainer,
    ema_decay,
    load_moments,
    make_average,
    make_optimizer,
    recompute_activations,
    zero_init,
)
from training.validation import Pair, Validator

from . import standin
from .training_run import vq_model

CPU = Processes(0, 1, torch.device("cpu"))


pytestmark = pytest.mark.usefixtures("one_thread")


def settings_for(model: rs.ResShiftModel, output, **more) -> TrainSettings:
    base = {"batch_size": 4, "crop": 32, "precision": "fp32", "iterations": 50, "degradation": "bicubic", **more}
    return resolve(TrainSettings(data=output, output=output, **base), model.config)


def small_told_model():
    return standin.small_model(model_channels=8, trunk_blocks=2, degradation_channels=4)


def trainer_for(model, output, **more) -> Trainer:
    return finetune.make_trainer(settings_for(model, output, **more), model, CPU)


def tiny(**more) -> rs.ResShiftModel:
    return standin.small_model(model_channels=8, **more)


def crops(count: int = 4, size: int = 32) -> dict[str, torch.Tensor]:
    return {"hr": torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))}


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in trainer.raw.named_parameters() if p.requires_grad}


# ---------------------------------------------------------------------------------------------------- the chain


def test_the_points_follow_equation_2():
    model = tiny(steps=4, kappa=0.5)
    chain = Chain(model, make_degradation("bicubic", 4, 0), 0, 0.0, "cpu")
    count = 400
    points = chain.draw(range(count), {"hr": crops(1, 16)["hr"].expand(count, -1, -1, -1)})
    for t in range(4):
        which = points.t == t
        assert 60 < int(which.sum()) < 145  # uniform: 100 expected
        x_t = points.x_t[which]
        mean, std = model.schedule.marginal(points.x0[0], points.y0[0], t + 1)
        assert float(x_t.std(0).mean()) == pytest.approx(std, rel=0.05)
        error = (x_t.mean(0) - mean).square().mean().sqrt()
        assert float(error) == pytest.approx(std / int(which.sum()) ** 0.5, rel=0.15)


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)])
def test_on_a_gpu_pictures_are_encoded_in_the_number_format_of_the_run(tmp_path, precision, dtype):
    """As the engine does there: in float32 that would be most of a step of the published networks."""
    model = vq_model()
    trainer = trainer_for(model, tmp_path, precision=precision, crop=64)
    assert trainer.chain.encoder is model.autoencoder, "results on a processor stay what they were"
    picture, exact = crops(1, 64)["hr"], trainer.chain.encode(crops(1, 64)["hr"])
    there = Processes(0, 1, torch.device("cuda"))
    chain = Trainer(model, trainer.settings, trainer.objective, there).chain
    assert next(chain.encoder.parameters()).dtype == dtype and next(model.autoencoder.parameters()).dtype == torch.float32
    twin = rs.ResShiftModel(model.config)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(chain.encode(picture), twin.to(dtype).autoencoder.encode(picture).float())
    assert (chain.encode(picture) - exact).square().mean() < 1e-3 * exact.var()


def test_a_picture_that_overflows_is_encoded_again_in_float32():
    model = vq_model()
    with torch.no_grad():
        model.autoencoder.quant_conv.weight.mul_(1e8)
    chain = Chain(model, None, 0, 0.0, "cpu")
    exact = chain.encode(crops(1, 64)["hr"])
    chain.encode_in(torch.float16)
    assert torch.equal(chain.encode(crops(1, 64)["hr"]), exact) and exact.isfinite().all()


def test_the_network_learns_to_fill_holes_that_are_black_as_upscale_leaves_them():
    unet = rs.UNetConfig(model_channels=32, channel_mult=(1, 1), num_res_blocks=1, swin_channels=32, lq_stages=2, mask=True)
    vqgan = rs.VQGANConfig(ch=32, ch_mult=(1, 1, 1), num_res_blocks=(1, 1, 1), n_embed=64)
    chain = Chain(standin.standin_model(rs.ModelConfig(unet, vqgan, scale=1, task="inpaint")), None, 0, 0.0, "cpu")
    hr, hole = crops(2, 64)["hr"], torch.zeros(2, 1, 64, 64)
    hole[:, :, 10:30, 20:50] = 1
    points = chain.draw(range(2), {"hr": hr, "lq": hr, "hole": hole})
    assert torch.equal(points.lq, torch.where(hole > 0, -1.0, 2 * hr - 1)) and torch.equal(points.mask, 2 * hole - 1)
    assert torch.equal(points.hr, 2 * hr - 1) and torch.equal(points.y0, chain.encode(points.lq))


def test_the_share_of_last_steps():
    chain = Chain(tiny(steps=4), make_degradation("bicubic", 4, 0), 0, 0.6, "cpu")
    t, _, _ = chain._random(range(1000), (1,))
    assert float((t == 3).float().mean()) == pytest.approx(0.6 + 0.4 / 4, abs=0.07)


def test_the_network_is_asked_as_upscale_asks_it():
    """A point at t = T with the noise of `upscale`: the same prediction."""
    model = tiny(steps=1, default_steps=1)
    chain = Chain(model, make_degradation("bicubic", 4, 0), 0, 1.0, "cpu")
    hr = crops(1, 64)["hr"]
    points = chain.draw([0], {"hr": hr})
    noise = torch.randn(points.x0.shape, generator=torch.Generator().manual_seed(5))
    points = dataclasses.replace(points, x_t=chain.shifted(points.y0, points.y0, points.t, noise))
    with torch.no_grad():
        image = model.autoencoder.decode(chain.predict_x0(model.unet, points)).add(1).div(2).clamp(0, 1)
    wanted = rs.upscale(model, points.lq.add(1).div(2), seed=5)
    inner = (..., slice(16, -16), slice(16, -16))  # borders: upscale pads
    torch.testing.assert_close(image[inner], wanted[inner], atol=1e-4, rtol=0)


@pytest.mark.parametrize("overrides", [{"predict": "x0"}, {}, {"residual_std": 0.1}])
def test_the_prediction_is_the_engines(overrides):
    """Every sample has a step of its own; `ResShiftModel.denoise`, which users run, takes one step for all."""
    model = tiny(steps=4, **overrides)
    chain = Chain(model, make_degradation("bicubic", 4, 0), 0, 0.0, "cpu")
    points = chain.draw(range(12), crops(12))
    assert set(points.t.tolist()) == {0, 1, 2, 3}
    with torch.no_grad():
        found = chain.predict_x0(model.unet, points)
        for i, t in enumerate(points.t.tolist()):
            condition = model.unet.condition(points.lq[i : i + 1])
            wanted = model.denoise(points.x_t[i : i + 1], points.y0[i : i + 1], model.schedule, t + 1, condition)
            torch.testing.assert_close(found[i : i + 1], wanted, atol=1e-4, rtol=1e-4)


def test_rolled_points_are_what_the_sampler_arrives_at():
    """The engine's `sample` with the same noise, stopped at every step."""
    model = tiny(steps=4, kappa=0.5)
    chain = Chain(model, make_degradation("bicubic", 4, 0), 0, 0.0, "cpu", rollout_share=1.0)
    points = chain.draw(range(12), crops(12))
    assert points.rolled == tuple(t if t < 3 else None for t in points.t.tolist())
    rolled, seen = chain.roll_out(points), set(points.t.tolist())
    for i, t in enumerate(points.t.tolist()):
        if t == 3:
            assert torch.equal(rolled.x_t[i], points.x_t[i])
            continue
        condition = model.unet.condition(points.lq[i : i + 1])
        y0, arrived = points.y0[i : i + 1], {}
        with torch.no_grad():
            sample(
                lambda x, step: model.denoise(x, y0, model.schedule, step, condition), y0, model.schedule,  # noqa: B023
                lambda draw: points.noise[1 + draw, i : i + 1] if draw < 4 else None,  # noqa: B023
                on_step=lambda number, step, x0, x: arrived.update({step - 2: x}),  # noqa: B023
            )  # fmt: skip
        torch.testing.assert_close(rolled.x_t[i : i + 1], arrived[t], atol=1e-4, rtol=1e-4)
    assert seen == {0, 1, 2, 3}


def test_noise_is_drawn_as_far_as_a_sample_goes():
    """One field at t = T, one more for x_T of a chain and one for each of its steps; without chains two, for students."""
    chain = Chain(tiny(steps=4), None, 0, 0.4, "cpu", rollout_share=0.7)
    t, rolled, noise = chain._random(range(64), (3, 8, 8))
    assert noise.shape == (5, 64, 3, 8, 8) and set(rolled) == {None, 0, 1, 2}
    for i, goal in enumerate(rolled):
        drawn = 1 if goal is None else 5 - goal
        assert float(noise[:drawn, i].std(dim=(1, 2, 3)).min()) > 0.7 and not noise[drawn:, i].any()
    assert len({float(value) for value in noise[:, :, 0, 0, 0].flatten() if value}) == int((noise[:, :, 0, 0, 0] != 0).sum())
    alone = chain._random([7], (3, 8, 8))
    assert torch.equal(alone[2][:, 0], noise[:, 7]) and int(alone[0]) == int(t[7])
    assert float(Chain(tiny(steps=4), None, 0, 0.4, "cpu")._random(range(64), (3, 8, 8))[2].std(dim=(2, 3, 4)).min()) > 0.7


# ---------------------------------------------------------------------------------------------------- losses


def test_distances_are_torchs():
    a, b = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    assert float(distance("mse", a, b).mean()) == pytest.approx(float(F.mse_loss(a, b)))
    assert float(distance("l1", a, b).mean()) == pytest.approx(float(F.l1_loss(a, b)))
    assert float(distance("charbonnier", a, b).mean()) == pytest.approx(float(F.l1_loss(a, b)), rel=1e-2)
    assert float(distance("charbonnier", a, a).mean()) == pytest.approx(1e-3)
    with pytest.raises(ValueError, match="loss is 'huber'"):
        distance("huber", a, b)


def test_what_is_told_of_psnr_is_decibels(tmp_path):
    values = trainer_for(tiny(), tmp_path, loss="psnr").step([0, 1, 2, 3], crops())
    assert values["psnr"] == pytest.approx(-values["loss"]) and values["psnr"] > 0


def test_psnr_is_minus_the_mean_of_decibels():
    """Of pictures in [-1, 1]; a flat crop that is nearly right must not outweigh the others."""
    truth = torch.rand(3, 3, 16, 16) * 2 - 1
    close = truth + torch.randn_like(truth) * torch.tensor([0.3, 0.05, 1e-4])[:, None, None, None]
    values = distance("psnr", close, truth)
    for one in (0, 1):
        wanted = peak_signal_noise_ratio(close[one : one + 1], truth[one : one + 1], data_range=2.0)
        assert float(values[one]) == pytest.approx(-float(wanted), abs=0.2)
    assert float(values[2]) == pytest.approx(-46, abs=0.01)
    assert float(distance("psnr", close, truth, psnr_limit=30.0)[2]) == pytest.approx(-30, abs=0.01)
    prediction = close.clone().requires_grad_()
    distance("psnr", prediction, truth).sum().backward()
    norms = prediction.grad.flatten(1).norm(dim=1)
    assert float(norms[2]) < float(norms[1]) and float(norms[0]) < float(norms[1])


def test_local_spectra_are_numpys():
    images = torch.rand(1, 2, 40, 48, generator=torch.Generator().manual_seed(3)) * 2 - 1
    found = local_spectra(images)
    half, w = SPECTRUM_WINDOW // 2, SPECTRUM_WINDOW
    assert found.shape == (1, 2, 40 // half - 1, 48 // half - 1, w, w // 2 + 1)
    taper = np.sin(np.pi * np.arange(w) / w) ** 2  # Hann's window
    patch = images[0, 1, 2 * half : 2 * half + w, 3 * half : 3 * half + w].numpy() * np.outer(taper, taper)
    wanted = np.log(np.sqrt(np.abs(np.fft.rfft2(patch, norm="ortho")) ** 2 + SPECTRUM_EPS**2))
    np.testing.assert_allclose(found[0, 1, 2, 3].numpy(), wanted, atol=1e-4)


def test_spectra_ask_for_the_energy_and_leave_the_phase_open():
    """Other noise of the same strength is much nearer to noise than its mean is, though its mean square error is twice as large."""
    truth, other = 0.3 * torch.randn(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    mean = torch.zeros_like(truth)
    assert float(distance("mse", other, truth)) > 1.8 * float(distance("mse", mean, truth))
    assert float(spectrum_distance(other, truth)) < 0.4 * float(spectrum_distance(mean, truth))
    assert float(spectrum_distance(truth, truth)) == 0


def test_spectra_reach_the_network(tmp_path):
    trainer = trainer_for(tiny(), tmp_path, spectrum=0.5)
    points = trainer.chain.draw([0, 1], crops(2, 64))
    loss, parts, image = trainer.objective(trainer.net, points)
    assert float(parts["spectrum"]) == pytest.approx(float(spectrum_distance(image, points.hr).mean().detach()), rel=1e-4)
    assert float(loss.detach()) == pytest.approx(float(parts["mse"] + 0.5 * parts["spectrum"]), rel=1e-4)
    loss.backward()
    assert float(trainer.raw.out[2].weight.grad.abs().max()) > 0


def test_detail_is_what_the_local_mean_lacks():
    ramp = torch.linspace(-1, 1, 48).expand(1, 3, 48, 48)
    assert float(detail(ramp)[..., 8:-8].abs().max()) < 1e-5  # shading is none
    line = torch.zeros(1, 3, 48, 48)
    line[..., 24] = 1
    np.testing.assert_allclose(
        detail(line)[0, 0, 24, 19:30].numpy(),
        4 * (np.arange(19, 30) == 24) - 4 / 9 * (abs(np.arange(19, 30) - 24) < 5),
        atol=1e-5,
    )


def test_weights_of_equation_8():
    schedule = rs.ShiftSchedule(steps=4, kappa=2.0, min_noise_level=0.2)
    weights = step_weights(schedule, "cpu").double().numpy()
    eta, alpha = schedule.eta, schedule.alpha
    for t in (2, 3):  # ratios do not depend on the normalisation
        wanted = [alpha[i] / (2 * 2.0**2 * eta[i] * eta[i - 1]) for i in (t - 1, t)]
        assert weights[t - 1] / weights[t] == pytest.approx(wanted[0] / wanted[1], rel=1e-5)
    assert weights.mean() == pytest.approx(1)


def test_gradients_pass_straight_through_the_quantiser():
    model = vq_model()
    objective = Objective(Chain(model, None, 0, 0.0, "cpu"), LossSettings())
    latent = torch.randn(1, 3, 8, 8, requires_grad=True)
    target = torch.rand(1, 3, 32, 32)
    F.mse_loss(objective._decode(latent), target).backward()
    code = model.autoencoder.quantize(latent.detach()).requires_grad_(True)
    F.mse_loss(model.autoencoder.decode(code, quantize=False), target).backward()
    torch.testing.assert_close(latent.grad, code.grad)
    assert float(latent.grad.abs().max()) > 0


@pytest.fixture
def lpips_weights(tmp_path, monkeypatch):
    """A torch cache with random weights under the name of SqueezeNet's."""
    import torchvision

    torch.manual_seed(0)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    net = torchvision.models.squeezenet1_1()
    torch.save(net.state_dict(), tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def test_lpips_reaches_the_network_through_the_decoder(lpips_weights, tmp_path):
    """A published kind of network: latent, VQGAN, group norm, Swin, in bf16 autocast."""
    trainer = trainer_for(vq_model(), tmp_path, lpips=1.0, lpips_net="squeeze", precision="bf16", crop=64)
    points = trainer.chain.draw([0, 1], crops(2, 64))
    with trainer.autocast():
        loss, parts, image = trainer.objective(trainer.net, points)
    alone = make_lpips("squeeze")(image.float(), points.hr).mean()
    assert float(parts["lpips"]) == pytest.approx(float(alone.detach()), rel=0.05)
    assert float(loss.detach()) == pytest.approx(float(parts["mse"] + parts["lpips"]), rel=1e-3)
    (perceptual,) = torch.autograd.grad(trainer.objective.lpips(image, points.hr).mean(), trainer.raw.out[2].weight)
    assert torch.isfinite(perceptual).all() and float(perceptual.abs().max()) > 0


def test_the_discriminator_learns_to_tell(tmp_path):
    trainer = trainer_for(tiny(), tmp_path, adversarial=0.1, learning_rate=2e-3)
    first = trainer.step([0, 1, 2, 3], crops())
    for _ in range(20):
        last = trainer.step([0, 1, 2, 3], crops())
    assert last["discriminator"] < 0.9 * first["discriminator"]
    assert first["discriminator"] == pytest.approx(math.log(2), abs=0.05)  # it tells nothing yet
    assert Discriminator()(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_weight_learns_from_texture_and_its_own_chain(tmp_path, precision):
    """The chain runs without gradients first: torch before 2.10 kept the weights that autocast made there, and learned nothing."""
    trainer = trainer_for(
        tiny(), tmp_path, rollout_share=1.0, last_step_share=0.0, spectrum=0.3, adversarial=0.1, precision=precision
    )
    nn.init.normal_(trainer.raw.out[2].weight, std=0.05)  # at the start it passes no gradient on
    judge = [parameter.detach().clone() for parameter in trainer.objective.discriminator.parameters()]
    trainer.accumulate([0, 1, 2, 3], crops())
    for name, parameter in trainer.raw.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name
    values = trainer.step([0, 1, 2, 3], crops())
    assert math.isfinite(values["discriminator"]) and not values["skipped"]
    moved = [not torch.equal(old, new) for old, new in zip(judge, trainer.objective.discriminator.parameters())]
    assert all(moved[:-1])  # the last bias cancels: judgements are compared with each other


def test_a_lower_rate_given_when_resuming_is_the_discriminators_too(tmp_path):
    before = trainer_for(tiny(), tmp_path, adversarial=0.1, learning_rate=1e-3)
    before.step([0, 1, 2, 3], crops())
    after = trainer_for(tiny(), tmp_path, adversarial=0.1, learning_rate=1e-4)
    after.load_state_dict(before.state_dict())
    after.step([4, 5, 6, 7], crops())
    assert {group["lr"] for group in after.judge_optimizer.param_groups} == {1e-4}


@pytest.mark.parametrize(
    ("name", "major", "amd", "dtype"),
    [
        ("NVIDIA GeForce GTX 1660 SUPER", 7, None, torch.float32), ("NVIDIA GeForce RTX 2080 Ti", 7, None, torch.float16),
        ("NVIDIA GeForce RTX 3060", 8, None, torch.bfloat16), ("Radeon RX 6800 XT", 10, "gfx1030", torch.float16),
    ],
)  # fmt: skip
def test_training_and_the_engine_choose_the_same_number_format(tmp_path, monkeypatch, name, major, amd, dtype):
    """In fp16, convolutions of NVIDIA's 16 series come out as NaN; older AMD cards emulate bf16."""
    trainer, card = trainer_for(tiny(), tmp_path, precision="auto"), SimpleNamespace(name=name, major=major, gcnArchName=amd)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.version, "hip", amd and "6.2")
    pretended = Processes(0, 1, torch.device("cuda"))
    assert Trainer(trainer.model, trainer.settings, trainer.objective, pretended).precision == dtype


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_graph_that_recomputes_is_not_split_for_several_gpus(tmp_path, monkeypatch, checkpointing):
    """Older versions of torch stop there: "DDPOptimizer backend: Found a higher order op in the graph"."""
    monkeypatch.setattr(torch, "compile", lambda module: module)
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", lambda module, device_ids: module)
    model = tiny()
    settings = settings_for(model, tmp_path, compile=True, checkpointing=checkpointing)
    chain = Chain(model, None, 0, 0.0, "cpu")
    with torch._dynamo.config.patch(optimize_ddp=True):
        Trainer(model, settings, Objective(chain, LossSettings()), Processes(0, 2, torch.device("cpu")))
        assert torch._dynamo.config.optimize_ddp is not checkpointing


@pytest.mark.parametrize("amd", [None, "6.2"])
def test_algorithms_are_searched_on_nvidias_cards_alone(tmp_path, monkeypatch, amd):
    """AMD's MIOpen searches for minutes for every shape when asked to."""
    monkeypatch.setattr(torch.version, "hip", amd)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    finetune.prepare(settings_for(rs.load_model("builtin", device="cpu"), tmp_path), CPU)
    assert torch.backends.cudnn.benchmark == (amd is None)


def test_a_judgement_that_is_not_finite_skips_the_step(tmp_path):
    trainer = trainer_for(tiny(), tmp_path, adversarial=0.1)
    before = flat(trainer.judge_optimizer.state_dict())
    trainer.judge = lambda images: trainer.objective.discriminator(images) * math.nan
    assert trainer.step([0, 1, 2, 3], crops())["skipped"]
    assert flat(trainer.judge_optimizer.state_dict()) == before


# ---------------------------------------------------------------------------------------------------- updates


def test_a_published_kind_of_network_learns_in_autocast(tmp_path):
    trainer = trainer_for(vq_model(steps=4), tmp_path, crop=64, precision="bf16", learning_rate=2e-3, batch_size=2)
    found = [trainer.step([0, 1], crops(2, 64))["loss"] for _ in range(12)]
    assert found[-1] < 0.7 * found[0]
    assert all(p.dtype == torch.float32 for p in trainer.raw.parameters())


def test_half_precision_scales_its_loss_and_remembers_by_how_much(tmp_path):
    trainer = trainer_for(tiny(), tmp_path, precision="fp16", learning_rate=2e-3)
    found = [trainer.step([0, 1, 2, 3], crops())["loss"] for _ in range(12)]
    assert found[-1] < found[0] and all(torch.isfinite(p).all() for p in trainer.raw.parameters())
    trainer.raw.out[2].weight.register_hook(lambda grad: grad * float("inf"))
    before, scale = trainer.raw.out[2].weight.clone(), trainer.scaler.get_scale()
    trainer.step([0, 1, 2, 3], crops())
    assert torch.equal(trainer.raw.out[2].weight, before) and trainer.scaler.get_scale() == scale / 2
    again = trainer_for(tiny(), tmp_path, precision="fp16")
    again.load_state_dict(trainer.state_dict())
    assert again.scaler.get_scale() == scale / 2


def test_micro_batches_add_up_to_the_batch(tmp_path):
    found = []
    for micro in (4, 3, 1):
        trainer = trainer_for(tiny(), tmp_path, micro_batch=micro)
        loss, _ = trainer.accumulate([0, 1, 2, 3], crops())
        found.append((float(loss), gradients(trainer)))
    for loss, grads in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, found[0][1][name], rtol=1e-3, atol=1e-6)


def test_micro_batches_of_the_discriminator_add_up_too(tmp_path):
    """What the norms of its layers' spectra know stays as it is within an update, and grows with every one."""
    found = []
    for micro in (4, 1):
        torch.manual_seed(0)
        trainer = trainer_for(tiny(), tmp_path, micro_batch=micro, adversarial=0.1)
        layers = [layer for layer in trainer.objective.discriminator if hasattr(layer, "parametrizations")]
        before = layers[0].parametrizations.weight[0]._u.clone()
        trainer.step([0, 1, 2, 3], crops())
        assert not torch.equal(layers[0].parametrizations.weight[0]._u, before)
        found.append(torch.cat([p.grad.flatten() for p in trainer.objective.discriminator.parameters()]))
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 1e-4


@pytest.mark.parametrize("p", [0.3, 1, 3, 20])
def test_eq_8_weighs_the_first_step_as_the_second(p):
    """At t = 1 the posterior has no variance. With p = 3 as in the paper's Table 1, it once took 99.7 % of all."""
    weights = step_weights(rs.ShiftSchedule(15, 2.0, p, 0.04), "cpu")
    assert torch.isfinite(weights).all() and weights[0] == weights[1] and float(weights.mean()) == pytest.approx(1, rel=1e-4)
    if p == 3:
        assert float(weights.max()) < 4


def test_optimisers_that_draw_go_on_exactly(tmp_path, monkeypatch):
    """Kron takes its numbers from torch's own generator. timm compiles it, which takes a minute and draws the same."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    results = []
    for stop in (None, 2):
        torch.manual_seed(1)
        trainer = trainer_for(tiny(), tmp_path, optimizer="kron", learning_rate=1e-3)
        for iteration in range(4):
            if iteration == stop:
                state = copy.deepcopy(trainer.state_dict())
                torch.manual_seed(99)
                trainer = trainer_for(tiny(), tmp_path, optimizer="kron", learning_rate=1e-3)
                trainer.load_state_dict(state)
            trainer.step([0, 1, 2, 3], crops())
        results.append(torch.cat([p.detach().flatten() for p in trainer.raw.parameters()]))
    assert torch.equal(*results)


def test_moments_are_taken_over_with_the_settings_of_now():
    weight = nn.Parameter(torch.ones(2))
    before, now = (torch.optim.AdamW([weight], rate, (beta, 0.99), eps, decay) for rate, beta, eps, decay in
                   ((1e-3, 0.9, 1e-8, 0.1), (1e-4, 0.5, 1e-6, 0.2)))  # fmt: skip
    weight.sum().backward()
    before.step()
    load_moments(now, before.state_dict())
    (group,) = now.param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-4, (0.5, 0.99), 1e-6, 0.2)
    assert torch.equal(now.state[weight]["exp_avg"], before.state[weight]["exp_avg"]) and now.state[weight]["exp_avg"].all()


@pytest.mark.parametrize("name", ["adan", "adahessian"])
def test_optimisers_of_other_kinds(tmp_path, name):
    """Of three betas, and one that wants derivatives of gradients."""
    if name == "adahessian":
        with pytest.raises(SettingsError, match="needs derivatives of gradients"):
            trainer_for(tiny(), tmp_path, optimizer=name)
    else:
        trainer_for(tiny(), tmp_path, optimizer=name).step([0, 1, 2, 3], crops())


@pytest.mark.parametrize("micro_batch", [4, 2])
def test_the_next_step_is_drawn_before_this_one_is_waited_for(tmp_path, monkeypatch, micro_batch):
    """On a GPU: its hundreds of small kernels are launched while the large ones of this step run."""
    batches = [([4 * i + j for j in range(4)], crops()) for i in range(3)]
    one, other = (trainer_for(tiny(), tmp_path, micro_batch=micro_batch, degradation="paper-b1") for _ in range(2))
    told, events, draw, update = [one.step(*batch) for batch in batches], [], other.chain.draw, other._update
    monkeypatch.setattr(other.chain, "draw", lambda numbers, crops: events.append(numbers[0]) or draw(numbers, crops))
    monkeypatch.setattr(other, "_update", lambda: events.append("update") or update())
    assert [other.step(*batch, after) for batch, after in zip(batches, [*batches[1:], None])] == told
    assert all(torch.equal(a, b) for a, b in zip(one.raw.parameters(), other.raw.parameters()))
    rest = [] if micro_batch == 4 else [2]
    assert events == [0, *rest, 4, "update", *(4 + r for r in rest), 8, "update", *(8 + r for r in rest), "update"]


def test_steps_know_the_next_one_where_that_helps():
    def steps(device):
        run = SimpleNamespace(processes=Processes(0, 1, torch.device(device)))
        return list(finetune.Run.steps(run, iter("abc")))

    assert steps("cuda") == [("a", "b"), ("b", "c")] and steps("cpu") == [("a", None), ("b", None), ("c", None)]


@pytest.mark.parametrize(
    "best_by, scores, best",
    [("psnr", [math.nan, 30, math.nan, 29, 31], [30, 31]), ("lpips", [math.inf, 0.4, 0.5, 0.3], [0.4, 0.3])],
)
def test_the_best_is_the_best_of_the_scores_that_are_numbers(best_by, scores, best):
    left, found = iter(scores), []
    run = SimpleNamespace(
        settings=SimpleNamespace(best_by=best_by),
        trainer=SimpleNamespace(position=SimpleNamespace(iteration=0), averaged_model=lambda: None),
        validator=lambda model: SimpleNamespace(scores={best_by: next(left)}, grid=None),
        report=SimpleNamespace(validated=lambda iteration, told, grid: last.append(told[best_by])),
        export=lambda name: found.append(len(last)),
        best=None,
    )
    last: list[float] = []
    for _ in scores:
        finetune.Run.validate(run, SimpleNamespace(breakable=contextlib.nullcontext))
    assert [scores[i] for i in found] == best


def test_the_last_step_is_logged_validated_and_saved_whatever_its_number():
    done: list[tuple[str, int]] = []
    run = SimpleNamespace(
        settings=SimpleNamespace(iterations=7, log_every=3, validate_every=4, save_every=5),
        trainer=SimpleNamespace(position=SimpleNamespace(iteration=0), device=None),
        report=SimpleNamespace(step=lambda *_: None, write=lambda iteration, values: done.append(("log", iteration))),
        validate=lambda _: done.append(("validate", run.trainer.position.iteration)),
        save=lambda: done.append(("save", run.trainer.position.iteration)),
    )
    for run.trainer.position.iteration in range(1, 8):
        finetune.Run._after_step(run, {"loss": 1.0}, 2.0, None)
    assert done == [("log", 3), ("validate", 4), ("save", 5), ("log", 6), ("log", 7), ("validate", 7), ("save", 7)]


@pytest.mark.parametrize("make", [vq_model, small_told_model], ids=["published kind", "without norms, told"])
def test_recomputed_activations_give_the_same_gradients(tmp_path, make):
    found = []
    for checkpointing in (False, True):
        trainer = trainer_for(make(), tmp_path, crop=64, checkpointing=checkpointing)
        trainer.accumulate([0, 1], crops(2, 64))
        found.append(gradients(trainer))
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name])


def test_recomputing_saves_memory():
    def kept(net):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            net(torch.rand(1, 3, 16, 16), torch.zeros(1), torch.rand(1, 3, 16, 16))
        return sum(sizes)

    net = vq_model().unet.requires_grad_(True)
    plain = kept(net)
    recompute_activations(net)
    assert kept(net) < 0.5 * plain


def test_the_moving_average_is_its_closed_form():
    assert [ema_decay(0.999, n) for n in (0, 8, 10**6)] == [0.1, 0.5, 0.999]
    net = torch.nn.Linear(1, 1, bias=False)
    average, wanted = make_average(net, 0.6), None
    for n in range(12):
        value = float(n * n)
        torch.nn.init.constant_(net.weight, value)
        average.update_parameters(net)
        wanted = value if n == 0 else wanted + (1 - min(0.6, (1 + n) / (10 + n))) * (value - wanted)
    assert float(average.module.weight) == pytest.approx(wanted, rel=1e-6)


def test_the_average_becomes_timms():
    """Beyond its warm-up ours is timm's fixed decay."""
    net = torch.nn.Linear(4, 4)
    ours, theirs = make_average(net, 0.1), ModelEmaV3(net, decay=0.1)
    for _ in range(5):
        with torch.no_grad():
            net.weight.add_(torch.randn(4, 4))
        ours.update_parameters(net)
        theirs.update(net)
    torch.testing.assert_close(ours.module.weight, theirs.module.weight, rtol=1e-3, atol=1e-3)


def test_the_learning_rate_warms_up_and_falls(tmp_path):
    trainer = trainer_for(tiny(), tmp_path, iterations=100, warmup_share=0.1, learning_rate=1.0, final_rate=0.05)
    rates = []
    for n in range(100):
        trainer.scheduler.step_update(n)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[0] < 0.01 and rates[5] == pytest.approx(0.5, abs=0.01) and max(rates) == pytest.approx(rates[10])
    wanted = 0.05 + 0.95 * 0.5  # half of the cosine, at half of the iterations
    assert rates[50] == pytest.approx(wanted, abs=0.01) and rates[99] == pytest.approx(0.05, abs=0.01)
    constant = trainer_for(tiny(), tmp_path, iterations=100, schedule="constant", warmup_share=0, learning_rate=0.5)
    constant.scheduler.step_update(99)
    assert constant.optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("native", [False, True])
def test_muon_does_not_emulate_bf16(native, tmp_path, monkeypatch):
    found, dtypes = muon.zeropower_via_newtonschulz, []
    newton_schulz = getattr(found, "func", found)  # as timm has it: an earlier run of this process may have changed it

    def recorded(*args, **options):
        result = newton_schulz(*args, **options)
        dtypes.append(result.dtype)
        return result

    monkeypatch.setattr(muon, "zeropower_via_newtonschulz", recorded)
    monkeypatch.setattr("resshift_core.device.cpu_has_bf16", lambda: native)
    layer = nn.Linear(8, 4, bias=False)
    optimizer = make_optimizer(layer, TrainSettings(data=tmp_path, output=tmp_path, optimizer="muon"))
    layer.weight.grad = torch.ones(4, 8)
    optimizer.step()
    assert dtypes == [torch.bfloat16 if native else torch.float32]


@pytest.mark.parametrize(
    ("name", "major", "emulates"), [("Tesla P100-PCIE-16GB", 6, True), ("Tesla T4", 7, True), ("NVIDIA A100", 8, False)]
)
def test_muon_asks_no_card_for_bf16_that_has_none(tmp_path, monkeypatch, name, major, emulates):
    """cuBLAS refuses it on Pascal."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name=name, major=major))
    monkeypatch.setattr(torch.version, "hip", None)
    asked = []
    monkeypatch.setattr("training.trainer._orthogonalise_in_float32", lambda: asked.append(name))
    layer = nn.Linear(8, 4, bias=False)
    monkeypatch.setattr(layer, "parameters", lambda: iter([SimpleNamespace(device=torch.device("cuda"))]))
    monkeypatch.setattr("training.trainer.create_optimizer_v2", lambda *args, **options: None)
    make_optimizer(layer, TrainSettings(data=tmp_path, output=tmp_path, optimizer="muon"))
    assert bool(asked) == emulates


def test_a_new_network_predicts_nothing():
    model = tiny()
    torch.nn.init.normal_(model.unet.out[2].bias)
    zero_init(model.unet)
    assert float(model.unet(torch.rand(1, 48, 4, 4), torch.zeros(1), lq=torch.rand(1, 3, 4, 4)).abs().max()) == 0


# ---------------------------------------------------------------------------------------------------- what goes wrong


def break_loss(trainer: Trainer, bad: set[int]):
    whole = trainer.objective.__call__

    def objective(net, points):
        loss, parts, image = whole(net, points)
        return (loss * float("nan") if trainer.position.iteration in bad else loss), parts, image

    trainer.objective = type("Broken", (), {"__call__": staticmethod(objective), "chain": trainer.chain})()


def test_steps_that_are_not_finite_are_skipped(tmp_path):
    trainer = trainer_for(tiny(), tmp_path)
    break_loss(trainer, {1, 2, 4})
    for _ in range(6):
        before = {name: value.clone() for name, value in trainer.raw.state_dict().items()}
        skipped = trainer.step([0, 1, 2, 3], crops())["skipped"]
        changed = any(not torch.equal(value, before[name]) for name, value in trainer.raw.state_dict().items())
        assert changed == (not skipped)
    assert trainer.position.skipped == 3 and trainer.position.iteration == 6
    assert all(torch.isfinite(value).all() for value in trainer.average.module.state_dict().values())


def test_three_in_a_row_stop_the_run_and_keep_the_batch(tmp_path):
    trainer = trainer_for(tiny(), tmp_path)
    break_loss(trainer, {0, 1, 2})
    trainer.step([0, 1, 2, 3], crops())
    trainer.step([4, 5, 6, 7], crops())
    with pytest.raises(NotFinite, match="--learning-rate"):
        trainer.step([8, 9, 10, 11], crops())
    kept = torch.load(tmp_path / "bad_batch_0.pt", weights_only=True)
    assert kept["numbers"] == [8, 9, 10, 11] and torch.equal(kept["crops"]["hr"], crops()["hr"])


@pytest.mark.parametrize("fits", [4, 3, 1])
def test_out_of_memory_halves_the_micro_batch(tmp_path, monkeypatch, fits):
    trainer = trainer_for(tiny(), tmp_path)
    whole = trainer.chain.draw

    def draw(numbers, batch):
        if len(numbers) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(numbers, batch)

    monkeypatch.setattr(trainer.chain, "draw", draw)
    said = fit_micro_batch(trainer, [0, 1, 2, 3], crops())
    micro = {4: 4, 3: 2, 1: 1}[fits]
    assert trainer.micro_batch == micro and f"{micro} crops at a time" in said and f"{4 // micro} micro-batches" in said
    assert all(p.grad is None for p in trainer.raw.parameters()) and not trainer.optimizer.state
    trainer.step([0, 1, 2, 3], crops())


def flat(value) -> list:
    """Every number in nested dictionaries and lists, tensors as bytes."""
    if isinstance(value, dict):
        return [item for key in value for item in flat(value[key])]
    if isinstance(value, (list, tuple)):
        return [item for element in value for item in flat(element)]
    return [value.detach().numpy().tobytes() if isinstance(value, torch.Tensor) else value]


def test_trying_out_the_memory_leaves_no_trace(tmp_path):
    """Otherwise a run that is resumed, and tries again, would not go on exactly."""
    trainer = trainer_for(tiny(), tmp_path, adversarial=0.1)
    for _ in range(2):
        before = flat(trainer.state_dict())
        fit_micro_batch(trainer, [0, 1, 2, 3], crops())
        assert flat(trainer.state_dict()) == before
        trainer.step([0, 1, 2, 3], crops())


def test_no_memory_at_all_is_a_sentence(tmp_path, monkeypatch):
    trainer = trainer_for(tiny(), tmp_path)

    def draw(numbers, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.chain, "draw", draw)
    with pytest.raises(MemoryError, match="Not even one crop of 32 pixels"):
        fit_micro_batch(trainer, [0, 1, 2, 3], crops())


# ---------------------------------------------------------------------------------------------------- state files


def test_of_two_states_of_one_iteration_the_later_counts(tmp_path):
    """As when a run is stopped at once after it went on; whatever their checksums are."""
    save_state(tmp_path, 1, {"n": -1})
    for n in range(6):
        save_state(tmp_path, 2, {"n": n})
        assert load_state(tmp_path) == {"n": n} and len(saved(tmp_path)) == 2


def test_the_two_newest_states_are_kept(tmp_path):
    for n in (1, 5, 20):
        save_state(tmp_path, n, {"n": n})
    assert [int(path.name[:9]) for path in saved(tmp_path)] == [20, 5]
    assert load_state(tmp_path) == {"n": 20}
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "gone"])
def test_damaged_states_are_passed_over(tmp_path, damage, caplog):
    save_state(tmp_path, 1, {"weights": torch.arange(1000)})
    newest = save_state(tmp_path, 2, {"weights": torch.zeros(1000)})
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    {
        "torn": lambda: newest.write_bytes(newest.read_bytes()[:-10]),
        "flipped": lambda: newest.write_bytes(data),
        "empty": lambda: newest.write_bytes(b""),
        "gone": newest.unlink,
    }[damage]()
    assert torch.equal(load_state(tmp_path)["weights"], torch.arange(1000))
    assert damage == "gone" or newest.name in caplog.text


def test_windows_is_given_time(tmp_path, monkeypatch):
    """A scanner looks at each new file for a moment, and at one that is to go: no reason to end a run of hours."""
    refusals, replace, unlink = iter([PermissionError]), os.replace, Path.unlink

    def refuse_once(part, target):
        for error in refusals:
            raise error
        replace(part, target)

    def refuse(path, missing_ok=False):
        if path.suffix == ".pt":
            raise PermissionError
        unlink(path, missing_ok)

    windows = SimpleNamespace(name="nt", replace=lambda part, target: os.replace(part, target))
    monkeypatch.setattr(atomic_file, "os", windows)
    monkeypatch.setattr(atomic_file, "RETRIES_S", (0.0,))
    monkeypatch.setattr(os, "replace", refuse_once)
    for n in (1, 2):
        save_state(tmp_path, n, {"n": n})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        save_state(tmp_path, 3, {"n": 3})
    assert [int(path.name[:9]) for path in saved(tmp_path)] == [3, 2, 1]
    save_state(tmp_path, 4, {"n": 4})
    assert [int(path.name[:9]) for path in saved(tmp_path)] == [4, 3]


def test_no_state_is_none(tmp_path):
    assert load_state(tmp_path / "nothing") is None


def test_gradients_are_clipped(tmp_path):
    """The norm that is told is the one before; what the optimiser sees has at most the limit."""
    norms = {}
    for clip in (0.0, 1e-3):
        trainer = trainer_for(tiny(), tmp_path, clip=clip)
        told = trainer.step([0, 1, 2, 3], crops())["gradient"]
        total = torch.stack([value.norm() for value in gradients(trainer).values()]).norm()
        norms[clip] = (told, float(total))
    assert norms[0.0][0] == pytest.approx(norms[0.0][1], rel=1e-4) and norms[0.0][0] > 1e-3
    assert norms[1e-3][0] == pytest.approx(norms[0.0][0], rel=1e-5)
    assert norms[1e-3][1] == pytest.approx(1e-3, rel=1e-2)


def test_what_is_validated_and_written_is_the_average(tmp_path):
    trainer = trainer_for(tiny(), tmp_path, learning_rate=1e-2)
    start = {name: value.clone() for name, value in trainer.raw.state_dict().items()}
    for _ in range(3):
        trainer.step([0, 1, 2, 3], crops())
    made = trainer.averaged_model().unet.state_dict()
    average, name = trainer.average.module.state_dict(), "out.2.weight"
    assert all(torch.equal(value, average[key]) for key, value in made.items())
    assert not torch.equal(made[name], trainer.raw.state_dict()[name]) and not torch.equal(made[name], start[name])


@pytest.mark.fp16
def test_gradients_of_fp16_are_clipped_by_their_own_norm(tmp_path):
    found = [trainer_for(tiny(), tmp_path, precision=word).step([0, 1, 2, 3], crops())["gradient"] for word in ("fp32", "fp16")]
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_skipped_steps_are_counted_over_a_resumption(tmp_path):
    trainer = trainer_for(tiny(), tmp_path)
    break_loss(trainer, {0, 1})
    for _ in range(2):
        trainer.step([0, 1, 2, 3], crops())
    again = trainer_for(tiny(), tmp_path)
    again.load_state_dict(trainer.state_dict())
    assert again.position == trainer.position and again.position.skipped_in_row == 2


def test_a_state_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else a power cut leaves an empty file under it, and the states before are gone."""
    done, real = [], state_files.replace
    monkeypatch.setattr(state_files.os, "fsync", lambda handle: done.append("written"))
    monkeypatch.setattr(state_files, "replace", lambda *paths: done.append("named") or real(*paths))
    save_state(tmp_path, 1, {"n": 1})
    assert done == ["written", "named"]


def test_the_pictures_that_lost_most_are_shown_first():
    lost = (0.1, 0.5, 0.2, 0.0, 0.4, 0.3)
    pairs = [Pair(torch.full((1, 3, 32, 32), value), torch.zeros(1, 3, 8, 8)) for value in lost]
    assert Validator(pairs).shown == [1, 4, 5, 2]


def test_every_validation_has_the_same_noise():
    generator = torch.Generator().manual_seed(0)
    pair = Pair(*(torch.rand(1, 3, side, side, generator=generator) for side in (64, 16)))
    validator, model = Validator([pair]), tiny()
    wanted = float(peak_signal_noise_ratio(rs.upscale(model, pair.lq, seed=0), pair.truth, data_range=1.0))
    assert [validator(model).scores["psnr"] for _ in range(2)] == pytest.approx([wanted] * 2, abs=1e-5)


def test_memory_is_tried_beside_the_gradients_of_a_micro_batch_before(tmp_path):
    trainer, there = trainer_for(tiny(), tmp_path), []
    real = trainer.objective

    def objective(net, points):
        there.append(trainer.raw.out[2].weight.grad is not None)
        return real(net, points)

    trainer.objective = objective
    fit_micro_batch(trainer, [0, 1, 2, 3], crops())
    assert there == [False, True]


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_state_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_state(tmp_path / "state", 1, {"n": Hostile()})  # whose name has the right hash
    with pytest.raises(StateError):
        load_state(tmp_path / "state")
    assert not Path("ran").exists()
