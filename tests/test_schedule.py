"""The schedule against the recorded tables, closed forms, and the probability theory behind eq. 1, 2 and 6."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import resshift_core as rs

from .standin import GOLDEN

RECORDED = json.loads((GOLDEN / "schedules.json").read_text())


@pytest.mark.parametrize("entry", RECORDED, ids=lambda e: f"T{e['steps']}-p{e['p']}-kappa{e['kappa']}")
def test_tables_agree_with_the_recorded_ones(entry):
    s = rs.ShiftSchedule(entry["steps"], entry["kappa"], entry["p"], entry["min_noise_level"], entry["etas_end"])
    rows = entry["index"]
    np.testing.assert_allclose(s.sqrt_eta[rows], entry["sqrt_eta"], rtol=1e-12)
    np.testing.assert_allclose(s.posterior_variance[rows], entry["posterior_variance"], rtol=1e-9)
    coefficients = np.array([s.posterior_coefficients(row + 1) for row in rows])
    np.testing.assert_allclose(coefficients[:, 0], entry["coef_xt"], rtol=1e-9)
    np.testing.assert_allclose(coefficients[:, 1], entry["coef_x0"], rtol=1e-9)
    np.testing.assert_allclose(s.loss_weight()[rows], entry["loss_weight"], rtol=1e-9)


def test_printed_values_of_the_checkpoints():
    four = rs.ShiftSchedule(4, 2.0, 0.3, 0.2)
    np.testing.assert_allclose(four.sqrt_eta, [0.1, 0.5201, 0.7614, 0.99], atol=5e-5)
    fifteen = rs.ShiftSchedule()
    np.testing.assert_allclose(fifteen.sqrt_eta[[0, 1, 7, 14]], [0.02, 0.1172, 0.4759, 0.99], atol=5e-5)


@pytest.mark.parametrize("kappa, eta_1", [(2.0, 0.0004), (0.5, 0.001), (16.0, (0.04 / 16) ** 2)])
def test_paper_form_has_the_printed_end_points(kappa, eta_1):
    s = rs.ShiftSchedule.paper(15, kappa, 0.3)
    assert s.eta[0] == pytest.approx(eta_1, rel=1e-12)
    assert s.eta[-1] == pytest.approx(0.999, rel=1e-12)
    # eq. 10 written out for one inner step, t = 6
    b0 = math.exp(math.log(s.eta[-1] / s.eta[0]) / (2 * 14))
    assert s.sqrt_eta[5] == pytest.approx(math.sqrt(eta_1) * b0 ** ((5 / 14) ** 0.3 * 14), rel=1e-12)


@settings(deadline=None)  # processors may be shared
@given(
    steps=st.integers(2, 60), kappa=st.floats(0.02, 40), p=st.floats(0.1, 4), m=st.floats(0.005, 0.5), end=st.floats(0.6, 1.0)
)
def test_identities_hold_for_any_setting(steps, kappa, p, m, end):
    s = rs.ShiftSchedule(steps, kappa, p, m, end)
    assert s.sqrt_eta[0] == pytest.approx(min(m / kappa, m)) and s.sqrt_eta[-1] == pytest.approx(end)
    assert (np.diff(s.eta) > 0).all()
    np.testing.assert_allclose(s.alpha.cumsum(), s.eta, rtol=1e-9)  # eta_t is the sum of the shifts
    assert s.posterior_variance[0] == 0
    for t in (1, steps // 2 + 1, steps):
        of_xt, of_x0 = s.posterior_coefficients(t)
        assert of_xt + of_x0 == pytest.approx(1)


def test_composing_transitions_gives_the_marginal():
    """Eq. 1 applied t times, with means and variances added up exactly, is eq. 2."""
    s = rs.ShiftSchedule(15, 2.0, 0.3)
    x0, y0 = np.array([0.3, -1.2]), np.array([0.9, 0.4])
    mean, variance = x0, 0.0
    for t in range(1, 16):
        mean, std = s.transition(mean, x0, y0, t)
        variance += std**2
        expected_mean, expected_std = s.marginal(x0, y0, t)
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-12)
        assert variance == pytest.approx(expected_std**2, rel=1e-12)


def test_posterior_is_bayes_rule():
    """q(x_{t-1} | x_t, x0, y0) from the densities of eq. 1 and eq. 2 on a grid, without eq. 6."""
    s = rs.ShiftSchedule(4, 2.0, 0.3, 0.2)
    x0, y0, x_t = 0.25, -0.4, 0.7
    grid = np.linspace(-12, 12, 48001)
    for t in (2, 3, 4):
        prior_mean, prior_std = s.marginal(x0, y0, t - 1)
        shift_mean, shift_std = s.transition(grid, x0, y0, t)
        log_density = -0.5 * ((grid - prior_mean) / prior_std) ** 2 - 0.5 * ((x_t - shift_mean) / shift_std) ** 2
        density = np.exp(log_density - log_density.max())
        density /= density.sum()
        mean = (grid * density).sum()
        std = math.sqrt(((grid - mean) ** 2 * density).sum())
        expected_mean, expected_std = s.posterior(x_t, x0, t)
        assert mean == pytest.approx(expected_mean, abs=1e-6)
        assert std == pytest.approx(expected_std, abs=1e-6)


def test_simulated_chains_have_the_marginals_statistics():
    """200,000 chains drawn step by step with eq. 1: mean, variance and correlation with the start at every t."""
    s = rs.ShiftSchedule(15, 2.0, 0.3)
    rng = np.random.default_rng(0)
    n, x0, y0 = 200_000, 0.5, -0.5
    x = np.full(n, x0)
    for t in range(1, 16):
        mean, std = s.transition(x, x0, y0, t)
        x = mean + std * rng.standard_normal(n)
        expected_mean, expected_std = s.marginal(x0, y0, t)
        assert x.mean() == pytest.approx(expected_mean, abs=5 * expected_std / math.sqrt(n))
        assert x.std() == pytest.approx(expected_std, rel=0.01)


def test_loss_weight_is_that_of_the_variational_bound():
    s = rs.ShiftSchedule(15, 2.0, 0.3)
    t = np.arange(1, 15)  # t = 2..15
    printed = s.alpha[t] / (2 * s.kappa**2 * s.eta[t] * s.eta[t - 1])  # eq. 8
    np.testing.assert_allclose(s.loss_weight()[t], printed, rtol=1e-12)


def test_a_step_in_which_nothing_changes_has_no_weight():
    weights = rs.ShiftSchedule(15, 2.0, 30.0, 0.04).loss_weight()
    assert np.isfinite(weights[1:]).all() and (weights == 0).any()


def test_a_chain_of_one_step_has_a_weight():
    """`--eq8-weight` of a model that was trained with one step."""
    assert np.isfinite(rs.ShiftSchedule(1).loss_weight()).all()


def test_without_noise_the_curve_begins_where_it_would_with_little():
    assert rs.ShiftSchedule(4, 0.0).sqrt_eta[0] == rs.ShiftSchedule(4, 0.5).sqrt_eta[0] == 0.04


def test_without_noise_and_residual_the_guess_is_the_input():
    assert not rs.ShiftSchedule(4, kappa=0.0).residual_gain(0.0).any()


def test_input_scale():
    s = rs.ShiftSchedule(4, 2.0, 0.3, 0.2)
    assert s.input_scale(4) == pytest.approx(1 / math.sqrt(1 + 4 * 0.9801))
    assert s.input_scale(4, "pixel") == pytest.approx(1 / (1 + 3 * 2 * 0.99))
    x0 = torch.randn(100_000, generator=torch.Generator().manual_seed(0))  # a unit-variance latent that equals y0
    noise = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    mean, std = s.prior(x0)
    assert ((mean + std * noise) * s.input_scale(4)).std().item() == pytest.approx(1, abs=0.01)


class TestRetime:
    trained = rs.ShiftSchedule(15, 2.0, 0.3)

    @pytest.mark.parametrize("words", [{}, {"steps": 15}, {"p": 0.3}, {"steps": 15, "kappa": 2.0, "p": 0.3}])
    def test_nothing_changed_is_bit_for_bit_the_same(self, words):
        again = self.trained.retime(**words)
        for table in ("sqrt_eta", "eta", "alpha", "posterior_variance", "tau"):
            assert getattr(again, table).tobytes() == getattr(self.trained, table).tobytes()
        assert again.tau.tolist() == list(range(15))

    @pytest.mark.parametrize("steps, p", [(4, None), (8, None), (30, None), (15, 1.0), (6, 0.7)])
    def test_end_points_stay_and_tau_is_where_the_trained_curve_has_the_value(self, steps, p):
        s = self.trained.retime(steps, None, p)
        assert s.sqrt_eta[0] == pytest.approx(self.trained.sqrt_eta[0], rel=1e-12)
        assert s.sqrt_eta[-1] == pytest.approx(self.trained.sqrt_eta[-1], rel=1e-12)
        assert s.tau[0] == 0 and s.tau[-1] == pytest.approx(14)
        assert (np.diff(s.tau) > 0).all()
        # going back: the trained curve, read at tau on a logarithmic scale, has the new value
        back = np.exp(np.interp(s.tau, np.arange(15), np.log(self.trained.sqrt_eta)))
        np.testing.assert_allclose(back, s.sqrt_eta, rtol=1e-9)

    def test_kappa_moves_neither_the_curve_nor_tau(self):
        s = self.trained.retime(kappa=8.0)
        assert s.sqrt_eta.tobytes() == self.trained.sqrt_eta.tobytes() and s.tau.tolist() == list(range(15))
        np.testing.assert_allclose(s.posterior_variance, 16 * self.trained.posterior_variance, rtol=1e-12)

    def test_a_retimed_schedule_can_be_retimed_again(self):
        once, twice = self.trained.retime(6), self.trained.retime(6).retime(steps=6, kappa=3.0)
        assert once.tau.tolist() == twice.tau.tolist() and once.sqrt_eta.tolist() == twice.sqrt_eta.tolist()

    def test_one_step(self):
        s = self.trained.retime(1)
        assert s.sqrt_eta.tolist() == [0.99] and s.tau.tolist() == pytest.approx([14.0])
        assert rs.ShiftSchedule(steps=1).sqrt_eta.tolist() == [0.99]

    def test_a_one_step_model_cannot_get_more_steps(self):
        with pytest.raises(rs.InputError, match="trained with one step and cannot run 4"):
            rs.ShiftSchedule(steps=1).retime(4)


@pytest.mark.parametrize(
    "words, sentence",
    [
        ({"steps": 0}, "steps is 0"), ({"steps": 2.5}, "steps is 2.5"), ({"p": 0}, "p is 0"), ({"p": -1}, "p is -1"),
        ({"kappa": -0.1}, "kappa is -0.1"), ({"kappa": math.nan}, "kappa is nan"), ({"sqrt_eta_T": 0}, "sqrt_eta_T is 0"),
        ({"min_noise_level": 0}, "min_noise_level is 0"), ({"sqrt_eta_1": 2.0}, "sqrt_eta_1 is 2.0"),
        ({"sqrt_eta_1": 1e-300}, "sqrt_eta_1 is 1e-300; it must lie in .1e-100"),
        ({"min_noise_level": 5}, "min_noise_level is 5, which makes sqrt_eta_1 2.5; it must lie in"),
        ({"steps": math.nan}, "steps is nan"), ({"steps": math.inf}, "steps is inf"), ({"steps": "4"}, "steps is '4'"),
        ({"steps": None}, "steps is None"), ({"kappa": "2"}, "kappa is '2'"), ({"kappa": 1e200}, "kappa is 1e[+]200"),
        ({"p": "x"}, "p is 'x'"), ({"p": None}, "p is None"), ({"p": [0.3, 0.4]}, "p is .0.3, 0.4"),
        ({"sqrt_eta_T": None}, "sqrt_eta_T is None"), ({"sqrt_eta_1": "0.1"}, "sqrt_eta_1 is '0.1'"),
        ({"min_noise_level": math.nan}, "min_noise_level is nan"), ({"min_noise_level": 0.0, "sqrt_eta_1": 0.1}, "min_noise_level"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_sentences(words, sentence):
    with pytest.raises(rs.InputError, match=sentence):
        rs.ShiftSchedule(**words)


@pytest.mark.parametrize(
    "words", [{"steps": math.nan}, {"steps": "4"}, {"kappa": "2"}, {"kappa": math.inf}, {"kappa": -1}, {"p": "x"}, {"p": 0}]
)
def test_new_times_that_are_no_numbers_are_sentences(words):
    for make in (rs.ShiftSchedule().retime, rs.ShiftSchedule.paper):
        with pytest.raises(rs.InputError, match=f"{next(iter(words))} is "):
            make(**words)


@pytest.mark.parametrize(
    "tau, sentence",
    [
        (np.arange(3.0), "one number for each of the 4 steps"),
        ([[0, 1, 2, 3]], "one number for each"),
        ([0, 1, math.nan, 3], "not finite"),
        ([-1, 0, 1, 2], "below 0"),
        ("abcd", "a list of numbers"),
        ([0, None, 1, object()], "a list of numbers"),
        ([0, 1, 2, 10**400], "a list of numbers"),
        (torch.zeros(4, requires_grad=True), "a list of numbers"),
    ],
)
def test_times_of_the_network_are_checked(tau, sentence):
    with pytest.raises(rs.InputError, match=sentence):
        rs.ShiftSchedule(4, 2.0, 0.3, tau=tau)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_times_of_the_network_are_the_schedules_own(kind):
    tau = kind([0.0, 1.5, 2.0, 3.0])
    s = rs.ShiftSchedule(4, 2.0, 0.3, tau=tau)
    tau[1] = 1.0
    assert s.tau.tolist() == [0, 1.5, 2, 3]


@pytest.mark.parametrize("four", [4.0, np.int64(4), np.float32(4), torch.tensor(4)])
def test_numbers_of_every_kind_become_pythons(four):
    given, plain = rs.ShiftSchedule(four, four / 2, four / 10, min_noise_level=four / 20), rs.ShiftSchedule(4, 2.0, 0.4, 0.2)
    again = plain.retime(steps=four)
    assert type(given.steps) is int and type(again.steps) is int and {type(given.kappa), type(given.p)} == {float}
    np.testing.assert_allclose(given.sqrt_eta, plain.sqrt_eta, rtol=1e-6)
    assert again == plain and [given.posterior_coefficients(t) for t in range(1, given.steps + 1)]


def test_times_are_whole_numbers():
    four = rs.ShiftSchedule(4, 2.0, 0.3)
    with pytest.raises(rs.InputError, match="t is '4'; it must be a whole number"):
        four.input_scale("4")
    with pytest.raises(rs.InputError, match="this schedule has t = 1..4"):
        four.input_scale(5)
    assert four.input_scale(4.0) == four.input_scale(4)
    assert four.posterior(1.0, 0.0, np.float64(3)) == four.posterior(1.0, 0.0, 3)
    with pytest.raises(rs.InputError, match="space is 'image'"):
        four.input_scale(4, "image")


def test_the_smallest_first_step_has_tables_of_numbers():
    schedule = rs.ShiftSchedule(4, sqrt_eta_1=1e-100)
    assert np.isfinite(schedule.posterior_variance).all() and np.isfinite(schedule.loss_weight()).all()


def test_tables_cannot_be_changed():
    with pytest.raises(ValueError):
        rs.ShiftSchedule().eta[0] = 1
