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
    out = sample(lambda x, tau: X0, Y0, schedule, field(0, steps + 1, Y0.shape), sampler=sampler)
    torch.testing.assert_close(out, X0, rtol=1e-12, atol=1e-12)


def test_intermediate_states_follow_the_marginal():
    """With the true x0 predicted, x_t of the reverse chain must be distributed as eq. 2 says."""
    schedule, shape = rs.ShiftSchedule(4, 2.0, 0.3, 0.2), (200_000,)
    x0, y0, states = torch.full(shape, 0.4, dtype=torch.float64), torch.full(shape, -0.6, dtype=torch.float64), {}
    sample(lambda x, tau: x0, y0, schedule, field(3, 5, shape), on_step=lambda step, t, x0, x: states.update({t - 1: x}))
    for t in (3, 2, 1):
        mean, std = schedule.marginal(0.4, -0.6, t)
        assert states[t].mean().item() == pytest.approx(mean, abs=5 * std / math.sqrt(len(x0)))
        assert states[t].std().item() == pytest.approx(std, rel=0.01)


def test_deterministic_states_keep_the_noise_of_the_start():
    """x_t = x0 + eta_t (y0 - x0) + kappa sqrt(eta_t) n for the one n of x_T: the closed form of the noise-free map."""
    schedule, states = rs.ShiftSchedule(15), {}
    noise = field(5, 1, Y0.shape)
    sample(
        lambda x, tau: X0, Y0, schedule, noise, sampler="deterministic",
        on_step=lambda step, t, x0, x: states.update({t - 1: x}),
    )  # fmt: skip
    n = (Y0 + schedule.kappa * schedule.sqrt_eta[-1] * noise(0) - X0 - schedule.eta[-1] * (Y0 - X0)) / (
        schedule.kappa * schedule.sqrt_eta[-1]
    )
    for t in range(1, 15):
        mean, std = schedule.marginal(X0, Y0, t)
        torch.testing.assert_close(states[t], mean + std * n, rtol=1e-10, atol=1e-10)


def test_the_network_gets_the_scaled_state_and_tau():
    schedule, seen = rs.ShiftSchedule(15).retime(4), []
    noise = field(0, 5, Y0.shape)

    def network(x, tau):
        seen.append((x, tau))
        return X0

    sample(network, Y0, schedule, noise)
    assert [tau for _, tau in seen] == schedule.tau[::-1].tolist()
    x_T = Y0 + 2.0 * 0.99 * noise(0)
    torch.testing.assert_close(seen[0][0], x_T / math.sqrt(1 + 4 * 0.9801))
    seen.clear()
    sample(network, Y0, schedule, noise, space="pixel")
    torch.testing.assert_close(seen[0][0], x_T / (1 + 3 * 2 * 0.99))


def test_noise_draws_are_numbered_as_the_reference_draws_them():
    """x_T takes draw 0, the step from t takes the next; the last draw is never needed."""
    asked = []
    noise = field(0, 5, Y0.shape)
    sample(lambda x, tau: X0, Y0, rs.ShiftSchedule(4), lambda n: asked.append(n) or noise(n))
    assert asked == [0, 1, 2, 3]


def test_kappa_zero_is_noise_free_and_finite():
    out = sample(lambda x, tau: x, Y0, rs.ShiftSchedule(4, kappa=0.0), field(0, 5, Y0.shape))
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out, Y0)  # the identity network leaves the start, which is y0
