"""Noise schedules, and the definitions of SR3's noise symbols.

Time runs over t = 1..T; index 0 of every array is the clean image. With the paper's symbols:

* `beta[t]` in (0, 1) is the variance added at step t, and `alpha[t] = 1 - beta[t]`;
* `gamma[t] = prod_{i<=t} alpha[i]` is the share of signal variance left; `gamma[0] = 1`;
* "noise level" is `sqrt(gamma)`. It falls from 1 (clean) to about 0 (pure noise). Other code
  bases use both words otherwise (VDM's gamma is minus the log signal-to-noise ratio).
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Array, Float

# Above this sqrt(gamma_T), y_T still shows the image, so the reverse process, which starts from
# N(0, I), would start outside the distribution that the network was trained on.
MAX_TERMINAL_NOISE_LEVEL = 0.05


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """A discrete variance-preserving noise schedule; immutable and a pytree.

    The functions of this module make and check schedules. Each array is rounded once from float64,
    because computing `1 - gamma` in float32 would lose most digits near t = 1 (1 - gamma_1 is 1e-6
    in SR3). Each has T + 1 entries, t = 0..T.

    Attributes (`[T + 1]` each):
      beta: variance of each forward step; `beta[0] = 0`.
      gamma: share of signal variance left after t steps; `gamma[0] = 1`.
      one_minus_gamma: variance of the noise after t steps; `one_minus_gamma[0] = 0`.
    """

    beta: Float[Array | np.ndarray, " knots"]
    gamma: Float[Array | np.ndarray, " knots"]
    one_minus_gamma: Float[Array | np.ndarray, " knots"]

    @property
    def num_steps(self) -> int:
        """T, the number of diffusion steps."""
        return self.beta.shape[0] - 1


def from_betas(
    beta: Float[np.ndarray, " T"],
    *,
    max_terminal_noise_level: float = MAX_TERMINAL_NOISE_LEVEL,
) -> NoiseSchedule:
    """Makes a schedule from the variances of its steps.

    Args:
      beta: beta_1..beta_T, each in (0, 1).
      max_terminal_noise_level: largest sqrt(gamma_T) accepted. 1.0 accepts schedules that do not
        end in noise; sampling with them starts from the wrong distribution.

    Raises:
      ValueError: the schedule is empty, a beta is outside (0, 1) or NaN, gamma does not fall at
        each step, or it ends too far from pure noise.
    """
    beta = np.asarray(beta, np.float64)
    if beta.ndim != 1 or beta.size == 0:
        raise ValueError(
            f"beta must be a vector of at least one step, found shape {beta.shape}; "
            "give one variance for each of the T steps"
        )
    wrong = np.flatnonzero(~((beta > 0) & (beta < 1)))
    if wrong.size:
        t = int(wrong[0]) + 1
        raise ValueError(
            f"beta_{t} = {beta[wrong[0]]} is outside (0, 1) ({wrong.size} of {beta.size} steps "
            "are); every step must keep some signal and add some noise"
        )
    log_gamma = np.cumsum(np.log1p(-beta))
    gamma = np.concatenate([[1.0], np.exp(log_gamma)])
    one_minus_gamma = np.concatenate([[0.0], -np.expm1(log_gamma)])
    if not np.all(np.diff(gamma) < 0):
        t = int(np.flatnonzero(np.diff(gamma) >= 0)[0]) + 1
        raise ValueError(
            f"gamma must fall at every step, but gamma_{t} = gamma_{t - 1} = {gamma[t]} in "
            f"float64: beta_{t} = {beta[t - 1]} is too small; use larger betas"
        )
    terminal = float(np.sqrt(gamma[-1]))
    if terminal > max_terminal_noise_level:
        # log gamma_T is about proportional to the betas.
        factor = 2 * np.log(max_terminal_noise_level) / log_gamma[-1]
        raise ValueError(
            f"the schedule's T = {beta.size} steps end at noise level sqrt(gamma_T) = "
            f"{terminal:.3g}, over {max_terminal_noise_level:.3g}: sampling starts from pure "
            "noise, which this schedule never reaches. A schedule shortened from a longer one "
            f"needs larger betas: multiply them by about {factor:.3g}, or use respace()"
        )
    return NoiseSchedule(
        beta=np.concatenate([[0.0], beta]).astype(np.float32),
        gamma=gamma.astype(np.float32),
        one_minus_gamma=one_minus_gamma.astype(np.float32),
    )


def _from_gammas(gamma: Float[np.ndarray, " knots"], **limits: float) -> NoiseSchedule:
    return from_betas(1.0 - gamma[1:] / gamma[:-1], **limits)


def linear(
    num_steps: int = 2000, beta_start: float = 1e-6, beta_end: float = 1e-2, **limits: float
) -> NoiseSchedule:
    """Makes beta_t linear in t; the defaults are SR3's training schedule (gamma_T = 4.4e-5)."""
    return from_betas(np.linspace(beta_start, beta_end, _checked(num_steps)), **limits)


def quadratic(
    num_steps: int = 2000, beta_start: float = 1e-6, beta_end: float = 2e-2, **limits: float
) -> NoiseSchedule:
    """Makes sqrt(beta_t) linear in t: more steps at low noise than `linear`."""
    root = np.linspace(beta_start**0.5, beta_end**0.5, _checked(num_steps))
    return from_betas(root**2, **limits)


def warm_up(
    num_steps: int, beta_start: float, beta_end: float, share: float, **limits: float
) -> NoiseSchedule:
    """Makes beta_t linear over the first `share` of the steps, then constant (code of DDPM)."""
    beta = np.full(_checked(num_steps), beta_end)
    rising = int(num_steps * share)
    beta[:rising] = np.linspace(beta_start, beta_end, rising)
    return from_betas(beta, **limits)


def cosine(
    num_steps: int = 2000, offset: float = 0.008, max_beta: float = 0.999, **limits: float
) -> NoiseSchedule:
    """Makes the cosine schedule (Nichol and Dhariwal 2021, Eq. 17), betas capped at `max_beta`."""
    t = np.arange(_checked(num_steps) + 1) / num_steps
    gamma = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2
    return from_betas(np.minimum(1.0 - gamma[1:] / gamma[:-1], max_beta), **limits)


def uniform_gamma(num_steps: int = 2000, gamma_end: float = 1e-4, **limits: float) -> NoiseSchedule:
    """Spaces gamma_t evenly from 1 to `gamma_end` above 0, so that training gammas are uniform."""
    if not 0 < gamma_end < 1:
        raise ValueError(f"gamma_end = {gamma_end} is outside (0, 1); use a value such as 1e-4")
    return _from_gammas(np.linspace(1.0, gamma_end, _checked(num_steps) + 1), **limits)


def karras(
    num_steps: int = 100,
    sigma_min: float = 0.02,
    sigma_max: float = 20.0,
    rho: float = 7.0,
    **limits: float,
) -> NoiseSchedule:
    """Makes noise-to-signal ratios sigma = sqrt(1/gamma - 1) by Eq. 5 of Karras et al. (2022).

    sigma^(1/rho) falls linearly in t, from `sigma_max` at T to `sigma_min` at 1. This is a schedule
    for inference: it starts at the same noise for any number of steps. A sigma of 20 (a noise level
    of 0.05) suffices; above it, errors of the network are amplified most.
    """
    _check_sigmas(sigma_min, sigma_max)
    grid = _from_to(sigma_min ** (1 / rho), sigma_max ** (1 / rho), num_steps)
    return _from_gammas(np.concatenate([[1.0], 1 / (1 + grid ** (2 * rho))]), **limits)


def uniform_log_snr(
    num_steps: int = 100, sigma_min: float = 0.02, sigma_max: float = 20.0, **limits: float
) -> NoiseSchedule:
    """Spaces log(gamma_t / (1 - gamma_t)) evenly: the limit of `karras` for large rho.

    `sigma_max` is sqrt(1/gamma_T - 1), and `sigma_min` sqrt(1/gamma_1 - 1), from where the last
    step goes to the clean image.
    """
    _check_sigmas(sigma_min, sigma_max)
    grid = np.exp(_from_to(np.log(sigma_min), np.log(sigma_max), num_steps))
    return _from_gammas(np.concatenate([[1.0], 1 / (1 + grid**2)]), **limits)


def uniform_noise_level(
    num_steps: int = 100, sigma_max: float = 20.0, **limits: float
) -> NoiseSchedule:
    """Spaces sqrt(gamma_t) evenly from 1 down to the noise level of `sigma_max`.

    It has few steps at low noise: of 20 steps, the last starts at a noise-to-signal ratio of 0.32.
    """
    if not sigma_max > 0:
        raise ValueError(f"sigma_max = {sigma_max}; it must be above 0, such as 20")
    return _from_gammas(
        np.linspace(1.0, 1 / np.sqrt(1 + sigma_max**2), _checked(num_steps) + 1) ** 2, **limits
    )


def _from_to(low: float, high: float, num_steps: int) -> Float[np.ndarray, " T"]:
    """Returns evenly spaced values; a single one is `high`."""
    return np.linspace(low, high, num_steps) if _checked(num_steps) > 1 else np.array([high])


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"sigma_min = {sigma_min} and sigma_max = {sigma_max}; need 0 < sigma_min < sigma_max"
        )


def respace(schedule: NoiseSchedule, num_steps: int, **limits: float) -> NoiseSchedule:
    """Makes a schedule of fewer steps, at evenly spaced times of `schedule`.

    It ends at the same gamma_T. The network needs no retraining, since it was trained on
    continuous gamma. The arrays of `schedule` must be concrete. More steps than it has are a
    ValueError.
    """
    if _checked(num_steps) > schedule.num_steps:
        raise ValueError(
            f"cannot take {num_steps} steps out of a schedule of {schedule.num_steps}; use fewer"
        )
    t = np.round(np.linspace(0, schedule.num_steps, num_steps + 1)).astype(int)
    log_gamma = np.cumsum(np.log1p(-np.asarray(schedule.beta, np.float64)))[t]
    return from_betas(-np.expm1(np.diff(log_gamma)), **limits)


def _checked(num_steps: int) -> int:
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps}; a schedule needs at least one step")
    return num_steps
