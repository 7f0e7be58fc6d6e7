"""Samplers as tables of weights, made from a schedule alone.

Every sampler here is linear in the estimates of y_0, so that its weights can be worked out
beforehand, in float64, and one loop (`sampling.sample`) runs them all. Samplers of as many network
calls share one compiled program, which is what a search among them needs.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped

from sr3_jax.diffusion import process
from sr3_jax.diffusion.schedule import NoiseSchedule

Variance = Literal["fixed_large", "fixed_small", "learned"]
# Arrays `[calls]`, or `[]` in one row. Unchecked, since jax puts other objects there in tracing.
_Floats = Any
_Ints = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampler:
    """One row for each call of the network, from noise to image; immutable and a pytree.

    Row k calls the denoiser on the state y and turns its estimate of y_0 into the next state

        state y + estimate y_0 + previous_state y' + previous_estimate y_0' + noise z

    with y' and y_0' those of row k - 1 and z standard normal. If the variance is learned, the
    weight of z is noise exp(s spread), with s the network's, for each value of an image.

    Attributes (`[calls]` each):
      gamma: share of signal variance in y, an input of the denoiser.
      time: t of the state that the row makes, T - 1 to 0; equal where a step takes several calls.
      state, estimate, previous_state, previous_estimate, noise, spread: weights, see above.
      is_stochastic: whether any weight of z is above 0; drawing z costs time.
      looks_back: whether any row uses y' or y_0'.
      learns_variance: whether the denoiser also gives s (`sampling.Denoise`).
    """

    gamma: _Floats
    time: _Ints
    state: _Floats
    estimate: _Floats
    previous_state: _Floats
    previous_estimate: _Floats
    noise: _Floats
    spread: _Floats
    is_stochastic: bool = dataclasses.field(metadata={"static": True})
    looks_back: bool = dataclasses.field(metadata={"static": True})
    learns_variance: bool = dataclasses.field(default=False, metadata={"static": True})

    def __getitem__(self, index: object) -> Sampler:
        """Returns the row of an index, which may be traced, or the rows of a slice."""
        return jax.tree.map(lambda weights: weights[index, ...], self)

    @property
    def num_steps(self) -> int:
        """T of the schedule; its arrays must be concrete."""
        return int(self.time[0]) + 1

    @property
    def nfe(self) -> int:
        """Number of function evaluations (NFE), that is, of calls of the network."""
        return self.gamma.shape[0]


def ancestral(schedule: NoiseSchedule, variance: Variance = "fixed_large") -> Sampler:
    """Makes iterative refinement (Algorithm 2 of SR3), which draws from p(y_{t-1} | y_t).

    The mean is that of q(y_{t-1} | y_0, y_t) at the estimate of y_0; without clipping that is
    Eq. 11 of SR3. The variance `fixed_large` is 1 - alpha_t, SR3's choice (section 2.3);
    `fixed_small` is that of q(y_{t-1} | y_0, y_t). `learned` lies between the two, in the
    logarithm, where the network says (Nichol and Dhariwal 2021, Eq. 15). It takes one call a step.
    """
    if variance not in get_args(Variance):
        known = ", ".join(map(repr, get_args(Variance)))
        raise ValueError(f"variance = {variance!r} is unknown; use one of {known}")
    from_y_0, from_y_t, posterior = process.posterior_coefficients(schedule)
    large, small = np.sqrt(schedule.beta), np.sqrt(posterior)
    # The last step returns the mean: z = 0 at t = 1.
    drawn = np.arange(len(small)) > 1
    noise = np.where(drawn, large if variance == "fixed_large" else small, 0.0)
    spread = np.log(large, where=drawn, out=np.zeros_like(large))
    spread -= np.log(small, where=drawn, out=np.zeros_like(small))
    is_learned = variance == "learned"
    made = _one_call_a_step(
        schedule,
        state=from_y_t[1:],
        estimate=from_y_0[1:],
        noise=noise[1:],
        spread=spread[1:] * is_learned,
    )
    return dataclasses.replace(made, learns_variance=is_learned)


def ddim(schedule: NoiseSchedule, eta: float = 0.0) -> Sampler:
    """Makes DDIM (Song, Meng and Ermon 2021, Eq. 12 and 16), with one call a step.

    `eta`, in [0, 1], is the standard deviation of the noise that each step draws, as a share of the
    posterior's: 0 is deterministic (Euler's method for the probability-flow ODE), 1 is ancestral
    sampling with the posterior's variance.
    """
    _check_eta(eta)
    alpha, sigma = _alpha_sigma(schedule)
    drawn = eta * np.sqrt(process.posterior_coefficients(schedule)[2][1:])
    kept = np.sqrt(np.maximum(sigma[:-1] ** 2 - drawn**2, 0.0)) / sigma[1:]
    estimate = alpha[:-1] - kept * alpha[1:]
    return _one_call_a_step(schedule, state=kept, estimate=estimate, noise=drawn)


def dpmpp_2m(schedule: NoiseSchedule, eta: float = 0.0) -> Sampler:
    """Makes DPM-Solver++(2M) (Lu et al. 2022, section 4.2), of second order with one call a step.

    It uses the estimate of the previous step. The first step and the last one, to gamma = 1, are
    of first order. `eta`, in [0, 1]: 0 solves the probability-flow ODE; 1 the reverse SDE, which is
    SDE-DPM-Solver++(2M) (their section 5); in between, the noise's rate is eta^2 times the SDE's.
    """
    _check_eta(eta)
    at = np.arange(schedule.num_steps, 0, -1)
    alpha, sigma = (values[::-1] for values in _alpha_sigma(schedule))
    return _sampler(schedule.gamma[at], at - 1, **_second_order(alpha, sigma, eta))


def way_back(schedule: NoiseSchedule, num_steps: int) -> Sampler:
    """Makes the rows that lead an image, with the noise of t = 1, back to t = `num_steps`.

    They solve the probability-flow ODE as `dpmpp_2m` does, in the other direction.

    Returns:
      A sampler of `num_steps` rows. The last one changes nothing, since one fewer leads there.
    """
    at = np.arange(1, num_steps + 1)
    alpha, sigma = (values[at] for values in _alpha_sigma(schedule))
    rows = {name: np.append(row, 0.0) for name, row in _second_order(alpha, sigma).items()}
    rows["state"][-1] = 1.0
    return _sampler(schedule.gamma[at], at + 1, **rows)


def _second_order(
    alpha: Float[np.ndarray, " knots"], sigma: Float[np.ndarray, " knots"], eta: float = 0.0
) -> dict[str, Float[np.ndarray, " calls"]]:
    """Returns the weights of DPM-Solver++(2M) from each knot to the next, in the order given."""
    with np.errstate(divide="ignore"):
        half_log_snr = np.log(alpha) - np.log(sigma)  # their lambda; infinite at t = 0
    h = np.diff(half_log_snr)
    estimate = -alpha[1:] * np.expm1(-(1 + eta**2) * h)
    # Half the slope of the estimate between the step before and this one.
    slope = np.zeros_like(h)
    slope[1:] = 0.5 * h[1:] / h[:-1]
    slope[np.isinf(h)] = 0.0
    return {
        "state": sigma[1:] / sigma[:-1] * np.exp(-(eta**2) * np.minimum(h, 700.0)),
        "estimate": estimate * (1 + slope),
        "previous_estimate": -estimate * slope,
        "noise": sigma[1:] * np.sqrt(-np.expm1(-2 * eta**2 * h)) if eta else np.zeros_like(h),
    }


def heun(schedule: NoiseSchedule) -> Sampler:
    """Makes Heun's method for the probability-flow ODE (Karras et al. 2022, Algorithm 1, no churn).

    It is of second order, with two calls a step and one for the last, 2 T - 1 in all. The first
    call makes Euler's step; the second averages the slopes at both ends, in y / sqrt(gamma) over
    the noise-to-signal ratio.
    """
    alpha, sigma = _alpha_sigma(schedule)
    ratio = sigma / alpha
    rows = []
    for t in range(schedule.num_steps, 0, -1):
        euler = sigma[t - 1] / sigma[t]
        rows.append((t, t - 1, euler, alpha[t - 1] - euler * alpha[t], 0.0, 0.0))
        if t > 1:
            # y / alpha moves by the step's length times the mean of (y / alpha - y_0) / ratio.
            length = ratio[t - 1] - ratio[t]
            here, there = (alpha[t - 1] * length / (2 * ratio[s]) for s in (t, t - 1))
            previous_state = (alpha[t - 1] + here) / alpha[t]
            rows.append((t - 1, t - 1, there / alpha[t - 1], -there, previous_state, -here))
    at, time, *weights = map(np.array, zip(*rows, strict=True))
    names = ("state", "estimate", "previous_state", "previous_estimate")
    return _sampler(schedule.gamma[at], time, **dict(zip(names, weights, strict=True)))


def one_call() -> Sampler:
    """Makes the sampler of one call, whose y_0 is the result, for baselines, which take no y_t."""
    zero = np.zeros(1)
    return _sampler(zero, zero, state=zero, estimate=np.ones(1))


def _one_call_a_step(schedule: NoiseSchedule, **weights: Float[np.ndarray, " T"]) -> Sampler:
    """Makes a sampler from weights in the order t = 1..T."""
    at = np.arange(schedule.num_steps, 0, -1)
    reversed_weights = {name: weight[::-1] for name, weight in weights.items()}
    return _sampler(schedule.gamma[at], at - 1, **reversed_weights)


def _sampler(
    gamma: Float[Array | np.ndarray, " calls"],
    time: Shaped[np.ndarray, " calls"],
    **weights: Float[np.ndarray, " calls"],
) -> Sampler:
    """Makes a sampler; weights that are not given are 0."""
    others = ("previous_state", "previous_estimate", "noise", "spread")
    none = dict.fromkeys(others, np.zeros(len(gamma)))
    weights = {name: weight.astype(np.float32) for name, weight in (none | weights).items()}
    return Sampler(
        gamma=np.asarray(gamma, np.float32),
        time=time.astype(np.int32),
        **weights,
        is_stochastic=bool(weights["noise"].any()),
        looks_back=any(weights[name].any() for name in ("previous_state", "previous_estimate")),
    )


def _alpha_sigma(
    schedule: NoiseSchedule,
) -> tuple[Float[np.ndarray, " knots"], Float[np.ndarray, " knots"]]:
    """Returns sqrt(gamma) and sqrt(1 - gamma), the shares of signal and noise, in float64."""
    gamma = np.asarray(schedule.gamma, np.float64)
    return np.sqrt(gamma), np.sqrt(np.asarray(schedule.one_minus_gamma, np.float64))


def _check_eta(eta: float) -> None:
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta = {eta} is outside [0, 1]; 0 is deterministic")
