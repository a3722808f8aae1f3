"""The sampler against closed forms: what a perfect network must lead to, and what the chain's statistics must be."""

import math

import pytest
import torch

import resshift_core as rs
from resshift_core.sampler import sample


def field(seed: int, draws: int, shape):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(draws)]
    return lambda number: drawn[number]


X0, Y0 = (torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (1, 2))


@pytest.mark.parametrize("sampler", ["stochastic", "deterministic"])
@pytest.mark.parametrize("steps", [1, 2, 4, 15])
def test_a_perfect_network_gives_the_truth(sampler, steps):
    schedule = rs.ShiftSchedule(steps)
    out = sample(lambda x, t: X0, Y0, schedule, field(0, steps + 1, Y0.shape), sampler=sampler)
    torch.testing.assert_close(out, X0, rtol=1e-12, atol=1e-12)


def test_intermediate_states_follow_the_marginal():
    """With the true x0 predicted, x_t of the reverse chain must be distributed as eq. 2 says."""
    schedule, shape = rs.ShiftSchedule(4, 2.0, 0.3, 0.2), (200_000,)
    x0, y0, states = torch.full(shape, 0.4, dtype=torch.float64), torch.full(shape, -0.6, dtype=torch.float64), {}
    sample(lambda x, t: x0, y0, schedule, field(3, 5, shape), on_step=lambda step, t, x0, x: states.update({t - 1: x}))
    for t in (3, 2, 1):
        mean, std = schedule.marginal(0.4, -0.6, t)
        assert states[t].mean().item() == pytest.approx(mean, abs=5 * std / math.sqrt(len(x0)))
        assert states[t].std().item() == pytest.approx(std, rel=0.01)


@pytest.mark.parametrize("schedule", [rs.ShiftSchedule(15), rs.ShiftSchedule(4, 0.05, 0.3, 0.2), rs.ShiftSchedule(4, 0.0)])
def test_every_state_is_the_schedule_s_posterior(schedule):
    """Eq. 6 stands in two places: as it is written, for everybody, and as one interpolation, here."""
    noise, states = field(4, schedule.steps + 1, Y0.shape), {}
    guess = lambda x, t: 0.3 * x + t / 20  # noqa: E731
    sample(guess, Y0, schedule, noise, on_step=lambda step, t, x0, x: states.update({t - 1: x}))
    mean, std = schedule.prior(Y0)
    x = mean + std * noise(0)
    for step, t in enumerate(range(schedule.steps, 1, -1), start=1):
        mean, std = schedule.posterior(x, guess(x, t), t)
        x = mean + std * noise(step)
        torch.testing.assert_close(states[t - 1], x, rtol=1e-12, atol=1e-12)


def test_deterministic_states_keep_the_noise_of_the_start():
    """x_t = x0 + eta_t (y0 - x0) + kappa sqrt(eta_t) n for the one n of x_T: the closed form of the noise-free map."""
    schedule, states = rs.ShiftSchedule(15), {}
    noise = field(5, 1, Y0.shape)
    sample(
        lambda x, t: X0, Y0, schedule, noise, sampler="deterministic",
        on_step=lambda step, t, x0, x: states.update({t - 1: x}),
    )  # fmt: skip
    n = (Y0 + schedule.kappa * schedule.sqrt_eta[-1] * noise(0) - X0 - schedule.eta[-1] * (Y0 - X0)) / (
        schedule.kappa * schedule.sqrt_eta[-1]
    )
    for t in range(1, 15):
        mean, std = schedule.marginal(X0, Y0, t)
        torch.testing.assert_close(states[t], mean + std * n, rtol=1e-10, atol=1e-10)


def test_the_network_gets_the_scaled_state_and_tau(small_model):
    """Through ResShiftModel.denoise: x_t times the input scale of the configured space, and tau for every t."""
    schedule = rs.ShiftSchedule(15, 2.0).retime(4)
    x_t = torch.randn(2, 48, 8, 8, generator=torch.Generator().manual_seed(0))
    for space, factor in (("latent", 1 / math.sqrt(1 + 4 * 0.9801)), ("pixel", 1 / (1 + 3 * 2 * 0.99))):
        model, seen = small_model(space=space), []
        model.unet.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args))
        condition = model.unet.condition(torch.zeros(2, 3, 8, 8))
        for t in (4, 3, 2, 1):
            model.denoise(x_t, x_t, schedule, t, condition)
        assert [tau.tolist() for _, tau in seen] == [pytest.approx([tau, tau]) for tau in schedule.tau[::-1].tolist()]
        torch.testing.assert_close(seen[0][0], x_t * factor)


def test_the_guess_is_the_best_linear_one():
    """Against least squares on simulated (x0, y0, x_t): no other weight of x_t leaves a smaller error."""
    schedule, std = rs.ShiftSchedule(4, 0.1, 0.3, 0.2), 0.09
    generator = torch.Generator().manual_seed(0)
    y0, e0, n = (torch.randn(400_000, generator=generator, dtype=torch.float64) for _ in range(3))
    x0 = y0 - std * e0
    for t, gain in enumerate(schedule.residual_gain(std), start=1):
        mean, noise = schedule.marginal(x0, y0, t)
        known, wanted = mean + noise * n - y0, x0 - y0
        assert gain == pytest.approx(((known * wanted).sum() / (known * known).sum()).item(), abs=0.01)
    assert schedule.residual_gain(0.0).tolist() == [0, 0, 0, 0]


def test_what_the_network_output_is_added_to(small_model):
    y0, x_t = torch.rand(1, 48, 4, 4), torch.rand(1, 48, 4, 4)
    schedule = rs.ShiftSchedule(4, 0.1, 0.3, 0.2)
    assert torch.equal(small_model(predict="x0").guess(x_t, y0, schedule, 2), torch.zeros_like(y0))
    assert torch.equal(small_model(predict="residual").guess(x_t, y0, schedule, 2), y0)
    gain = schedule.residual_gain(0.09)[1]
    guess = small_model(predict="residual", residual_std=0.09).guess(x_t, y0, schedule, 2)
    torch.testing.assert_close(guess, y0 + gain * (x_t - y0), rtol=1e-4, atol=1e-6)


def test_noise_draws_are_numbered_as_the_reference_draws_them():
    """x_T takes draw 0, the step from t takes the next; the last draw is never needed."""
    asked = []
    noise = field(0, 5, Y0.shape)
    sample(lambda x, t: X0, Y0, rs.ShiftSchedule(4), lambda n: asked.append(n) or noise(n))
    assert asked == [0, 1, 2, 3]


def test_kappa_zero_is_noise_free_and_finite():
    out = sample(lambda x, t: x, Y0, rs.ShiftSchedule(4, kappa=0.0), field(0, 5, Y0.shape))
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out, Y0)  # the identity network leaves the start, which is y0
