"""The shifting schedule of ResShift: eta_t, and the closed forms of the chain built on it.

Symbols are the paper's (Yue et al., "ResShift", NeurIPS 2023): e0 = y0 - x0 is the residual that the chain shifts,
eta_t grows from nearly 0 at t = 1 to nearly 1 at t = T, kappa scales the noise. Tables are float64, t = 1..T at index
0..T-1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .errors import InputError, brief
from .numeric import finite, whole

MAX_STEPS = 10000
SMALLEST = 1e-100  # of sqrt(eta): its square, by which the tables are divided, is still a number
MAX_KAPPA = 1e6  # its square, of which the tables are made, is still a number


def _check_steps(steps) -> int:
    number = whole("steps", steps)
    if not 1 <= number <= MAX_STEPS:
        raise InputError(f"steps is {steps!r}; it must be a whole number from 1 to {MAX_STEPS}.")
    return number


def _check_kappa(kappa) -> float:
    number = finite("kappa", kappa)
    if not 0 <= number <= MAX_KAPPA:
        raise InputError(f"kappa is {kappa!r}; it must be a number from 0 to {MAX_KAPPA:g}.")
    return number


def _positive(name: str, value) -> float:
    number = finite(name, value)
    if number <= 0:
        raise InputError(f"{name} is {value!r}; it must be a positive number.")
    return number


def _check_tau(tau, steps: int) -> np.ndarray:
    """A copy of its own: its tables are read-only, a caller's array is not."""
    try:
        table = np.asarray(tau, dtype=np.float64).copy()
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # the last one of torch's tensors
        raise InputError(f"tau is {brief(repr(tau))}; it must be a list of numbers.") from error
    if table.shape != (steps,):
        raise InputError(f"tau has the shape {table.shape}; it must hold one number for each of the {steps} steps.")
    if not np.isfinite(table).all() or table.min() < 0:
        raise InputError("tau holds a number that is not finite, or below 0.")
    return table


def _sqrt_eta_table(steps: int, p: float, sqrt_eta_1: float, sqrt_eta_T: float) -> np.ndarray:
    """sqrt(eta_t) = sqrt(eta_1) * b0^beta_t with beta_t = ((t-1)/(T-1))^p (T-1), eq. 10. Shape (T,)."""
    if steps == 1:
        return np.array([sqrt_eta_T], dtype=np.float64)
    t = np.arange(steps, dtype=np.float64)
    beta = (t / (steps - 1)) ** p * (steps - 1)
    log_b0 = math.log(sqrt_eta_T / sqrt_eta_1) / (steps - 1)  # log b0 = log(eta_T / eta_1) / (2 (T-1))
    return sqrt_eta_1 * np.exp(beta * log_b0)


@dataclass(frozen=True)
class ShiftSchedule:
    """sqrt(eta_t) for t = 1..T, the noise scale kappa, and the quantities of eq. 1-8 that follow from them.

    Args:
        steps: T, the number of diffusion steps, 1 to 10000.
        kappa: noise scale, 0 to 1e6 (0 makes the chain noise free).
        p: exponent of eq. 10, > 0; larger values spend more steps at small eta (fidelity).
        min_noise_level: m; checkpoints use sqrt(eta_1) = min(m / kappa, m).
        sqrt_eta_T: sqrt(eta) at the last step, in (0, 1].
        sqrt_eta_1: sqrt(eta) at the first step; given, it replaces the rule above.
        tau: (T,), the trained network's time input for every step, counted from 0, possibly fractional; None = 0..T-1.

    Raises:
        InputError: a value is no number, or outside its range.
    """

    steps: int = 15
    kappa: float = 2.0
    p: float = 0.3
    min_noise_level: float = 0.04
    sqrt_eta_T: float = 0.99
    sqrt_eta_1: float | None = None
    tau: np.ndarray | None = field(default=None, compare=False, repr=False)

    sqrt_eta: np.ndarray = field(init=False, compare=False, repr=False)
    eta: np.ndarray = field(init=False, compare=False, repr=False)
    alpha: np.ndarray = field(init=False, compare=False, repr=False)
    posterior_variance: np.ndarray = field(init=False, compare=False, repr=False)

    def __post_init__(self):
        steps, kappa, p = _check_steps(self.steps), _check_kappa(self.kappa), _positive("p", self.p)
        m, last = _positive("min_noise_level", self.min_noise_level), finite("sqrt_eta_T", self.sqrt_eta_T)
        if not 0 < last <= 1:
            raise InputError(f"sqrt_eta_T is {last!r}; it must lie in (0, 1].")
        if self.sqrt_eta_1 is not None:
            first = finite("sqrt_eta_1", self.sqrt_eta_1)
        else:
            first = min(m / kappa, m) if kappa > 0 else m
        if not SMALLEST <= first <= last:
            given = self.sqrt_eta_1 is not None
            words = "sqrt_eta_1 is" if given else f"min_noise_level is {m:g}, which makes sqrt_eta_1"
            raise InputError(f"{words} {first!r}; it must lie in [{SMALLEST:g}, sqrt_eta_T = {last}].")
        numbers = {"steps": steps, "kappa": kappa, "p": p, "min_noise_level": m, "sqrt_eta_T": last, "sqrt_eta_1": first}
        for name, number in numbers.items():
            object.__setattr__(self, name, number)
        self._fill(_sqrt_eta_table(self.steps, self.p, self.sqrt_eta_1, self.sqrt_eta_T))

    def _fill(self, sqrt_eta: np.ndarray) -> None:
        eta = sqrt_eta**2
        previous = np.concatenate([[0.0], eta[:-1]])  # eta_0 = 0
        alpha = eta - previous
        tables = {
            "sqrt_eta": sqrt_eta,
            "eta": eta,
            "alpha": alpha,
            "posterior_variance": self.kappa**2 * previous / eta * alpha,
            "tau": np.arange(len(eta), dtype=np.float64) if self.tau is None else _check_tau(self.tau, len(eta)),
        }
        for name, table in tables.items():
            table.setflags(write=False)
            object.__setattr__(self, name, table)

    @classmethod
    def paper(cls, steps: int = 15, kappa: float = 2.0, p: float = 0.3) -> ShiftSchedule:
        """The schedule as the paper prints it (eq. 9-10): eta_1 = min((0.04/kappa)^2, 0.001), eta_T = 0.999."""
        kappa, most = _check_kappa(kappa), math.sqrt(0.001)
        return cls(steps, kappa, p, sqrt_eta_T=math.sqrt(0.999), sqrt_eta_1=min(0.04 / kappa, most) if kappa > 0 else most)

    def retime(self, steps: int | None = None, kappa: float | None = None, p: float | None = None) -> ShiftSchedule:
        """Another schedule for the network that was trained with this one; None keeps the trained value.

        The new sqrt(eta'_t) runs between the trained end points with eq. 10's exponent for the new T and p. `tau` of the
        result is the fractional index at which the trained curve has the same value, found by linear interpolation of
        log sqrt(eta). kappa moves neither. With nothing changed the result equals this schedule bit for bit.

        Raises:
            InputError: a value is out of range, or a one-step schedule is asked for more steps.
        """
        new_steps = self.steps if steps is None else _check_steps(steps)
        new_p = self.p if p is None else _positive("p", p)
        new_kappa = self.kappa if kappa is None else _check_kappa(kappa)
        if new_steps == self.steps and new_p == self.p:
            tau = self.tau
        elif self.steps == 1 and new_steps > 1:
            raise InputError(
                f"This model was trained with one step and cannot run {new_steps}: there is no trained curve to follow. "
                "Use steps=1."
            )
        else:
            sqrt_eta = _sqrt_eta_table(new_steps, new_p, self.sqrt_eta_1, self.sqrt_eta_T)
            tau = np.interp(np.log(sqrt_eta), np.log(self.sqrt_eta), self.tau)
        return ShiftSchedule(new_steps, new_kappa, new_p, self.min_noise_level, self.sqrt_eta_T, self.sqrt_eta_1, tau=tau)

    # The closed forms below take t = 1..T as the paper does, and torch tensors or numpy arrays of any one shape.

    def _index(self, t: int) -> int:
        number = whole("t", t)
        if not 1 <= number <= self.steps:
            raise InputError(f"t is {t}; this schedule has t = 1..{self.steps}.")
        return number - 1

    def marginal(self, x0, y0, t: int):
        """(mean, standard deviation) of q(x_t | x0, y0) = N(x0 + eta_t e0, kappa^2 eta_t I), eq. 2."""
        i = self._index(t)
        return x0 + float(self.eta[i]) * (y0 - x0), self.kappa * float(self.sqrt_eta[i])

    def transition(self, x_prev, x0, y0, t: int):
        """(mean, standard deviation) of q(x_t | x_{t-1}, y0) = N(x_{t-1} + alpha_t e0, kappa^2 alpha_t I), eq. 1."""
        i = self._index(t)
        return x_prev + float(self.alpha[i]) * (y0 - x0), self.kappa * math.sqrt(self.alpha[i])

    def posterior_coefficients(self, t: int) -> tuple[float, float]:
        """(eta_{t-1} / eta_t, alpha_t / eta_t): the weights of x_t and x0 in the posterior mean of eq. 6."""
        i = self._index(t)
        share = float(self.alpha[i] / self.eta[i])
        return (float(self.eta[i - 1] / self.eta[i]) if i else 0.0), share

    def posterior(self, x_t, x0, t: int):
        """(mean, standard deviation) of q(x_{t-1} | x_t, x0), eq. 6; the standard deviation is 0 at t = 1."""
        of_xt, of_x0 = self.posterior_coefficients(t)
        return of_xt * x_t + of_x0 * x0, self.posterior_std(t)

    def posterior_std(self, t: int) -> float:
        """The standard deviation of eq. 6; 0 at t = 1."""
        return math.sqrt(self.posterior_variance[self._index(t)])

    def deterministic_coefficients(self, t: int) -> tuple[float, float, float]:
        """(k, m, j) of the noise-free step x_{t-1} = k x0 + m x_t + j y0 (SinSR's map; eta_0 = 0)."""
        i = self._index(t)
        if i == 0:
            return 1.0, 0.0, 0.0
        previous, eta = float(self.eta[i - 1]), float(self.eta[i])
        cross = math.sqrt(previous * eta)
        m = math.sqrt(previous / eta)
        return 1 - previous + cross - m, m, previous - cross

    def prior(self, y0):
        """(mean, standard deviation) of x_T: N(y0, kappa^2 eta_T I)."""
        return y0, self.kappa * float(self.sqrt_eta[-1])

    def residual_gain(self, residual_std: float) -> np.ndarray:
        """g_t of the best linear guess of x0 from what is known before the network: y0 + g_t (x_t - y0). Shape (T,).

        With e0 ~ N(0, residual_std^2), eq. 2 makes g_t = (1 - eta_t) s^2 / ((1 - eta_t)^2 s^2 + kappa^2 eta_t): nearly 1 at
        t = 1, where x_t is nearly x0, and nearly 0 at t = T, where x_t knows nothing that y0 does not. A network that
        predicts the rest need not copy x_t. `residual_std=0` gives 0: the guess is y0.
        """
        if residual_std == 0:
            return np.zeros_like(self.eta)
        kept = (1 - self.eta) * residual_std**2
        return kept / ((1 - self.eta) * kept + self.kappa**2 * self.eta)

    def loss_weight(self) -> np.ndarray:
        """w_t = alpha_t / (2 kappa^2 eta_t eta_{t-1}) of eq. 8, shape (T,). With kappa = 0 all are infinite.

        At t = 1, where the posterior has no variance, that of t = 2 stands in for it.

        It is the weight of ||x0 - f||^2 that the variational bound gives: (alpha_t / eta_t)^2 over twice the posterior
        variance. Published checkpoints were trained with w_t = 1.
        """
        variance = self.posterior_variance.copy()
        variance[0] = variance[1] if self.steps > 1 else 1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = 0.5 * (self.alpha / self.eta) ** 2 / variance
        return np.where(self.alpha > 0, weights, 0.0)  # with a large p, eta may stay as it is for a step

    def input_scale(self, t: int, space: str = "latent") -> float:
        """Factor on x_t before it enters the network.

        "latent": 1 / sqrt(1 + kappa^2 eta_t), unit variance for a unit-variance latent.
        "pixel": 1 / (1 + 3 kappa sqrt(eta_t)), which keeps 3 sigma inside [-1, 1].

        Raises:
            InputError: another space, or t.
        """
        i = self._index(t)
        if space not in ("latent", "pixel"):
            raise InputError(f'space is {space!r}; it must be "latent" or "pixel".')
        if space == "pixel":
            return 1.0 / (1.0 + 3.0 * self.kappa * float(self.sqrt_eta[i]))
        return 1.0 / math.sqrt(1.0 + self.kappa**2 * float(self.eta[i]))
