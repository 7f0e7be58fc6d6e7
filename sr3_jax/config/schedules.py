"""Noise schedules and samplers of a config."""

from __future__ import annotations

import math

from sr3_jax import diffusion
from sr3_jax.config.sections import Config
from sr3_jax.diffusion import distilling


def training_schedule(config: Config) -> diffusion.NoiseSchedule | None:
    """Makes the noise schedule of training; None for a baseline, which takes no y_t.

    Raises:
      ValueError: the schedule does not end in noise.
    """
    if config.predicts_image:
        return None
    c = config.diffusion
    make = {
        "linear": lambda n: diffusion.linear(n, c.beta_start, c.beta_end),
        "quadratic": lambda n: diffusion.quadratic(n, c.beta_start, c.beta_end),
        "warmup10": lambda n: diffusion.warm_up(n, c.beta_start, c.beta_end, 0.1),
        "warmup50": lambda n: diffusion.warm_up(n, c.beta_start, c.beta_end, 0.5),
        "cosine": diffusion.cosine,
        "uniform_gamma": diffusion.uniform_gamma,
        "log_snr": lambda n: _between_ends_of_linear(n, c.beta_start, c.beta_end),
    }
    return _of_section("diffusion", make[c.schedule], c.num_steps)


def sampling_schedule(
    config: Config, num_steps: int | None = None
) -> diffusion.NoiseSchedule | None:
    """Makes the noise schedule of sampling, of `num_steps` if given; None for a baseline.

    Raises:
      ValueError: the schedule does not end in noise, or has too many steps; or steps are given for
        a baseline, which takes one call, or others than a student's own.
    """
    if config.predicts_image:
        if num_steps not in (None, 1):
            raise ValueError(
                f"{num_steps} steps with config.method = {config.method!r}, which makes its image "
                "in one call; leave the number out"
            )
        return None
    num_steps = config.sampling.num_steps if num_steps is None else num_steps
    if config.student_calls not in (0, num_steps):
        raise ValueError(
            f"{num_steps} steps, but the network is a student, whose number of "
            f"steps is {config.student_calls}; leave the number out, or use its teacher"
        )
    return _spaced(config, num_steps)


def _spaced(config: Config, num_steps: int) -> diffusion.NoiseSchedule:
    """Makes the schedule of so many steps: all, or every kth of the knots."""
    c = config.sampling
    make = {
        "respaced": lambda n: diffusion.respace(training_schedule(config), n),
        "karras": lambda n: diffusion.karras(n, c.sigma_min, c.sigma_max, c.rho),
        "log_snr": lambda n: diffusion.uniform_log_snr(n, c.sigma_min, c.sigma_max),
        "noise_level": lambda n: diffusion.uniform_noise_level(n, c.sigma_max),
        "linear": lambda n: diffusion.linear(n, c.beta_start, c.beta_end),
    }
    if not c.knots:
        return _of_section("sampling", make[c.schedule], num_steps)
    if c.knots % num_steps:
        divisors = [str(n) for n in range(1, c.knots + 1) if not c.knots % n]
        raise ValueError(
            f"{num_steps} steps are not evenly spaced among config.sampling.knots = {c.knots}; use "
            f"one of {', '.join(divisors)}"
        )
    knots = _of_section("sampling", make[c.schedule], c.knots)
    return diffusion.respace(knots, num_steps)


def sampler(config: Config, num_steps: int | None = None) -> diffusion.Sampler:
    """Makes the sampler on `sampling_schedule`; for a baseline, the one of a single call."""
    noise = sampling_schedule(config, num_steps)
    if noise is None:
        return diffusion.one_call()
    c = config.sampling
    make = {
        "ancestral": lambda: diffusion.ancestral(noise, c.variance),
        "ddim": lambda: diffusion.ddim(noise, c.eta),
        "dpmpp_2m": lambda: diffusion.dpmpp_2m(noise, c.eta),
        "heun": lambda: diffusion.heun(noise),
    }
    return _of_section("sampling", make[c.sampler])


def segments(config: Config) -> diffusion.Sampler:
    """Makes the rows of the teacher's sampler for each call of a student (`distilling.segments`).

    Where `distillation.truth` is above 0, the rows of the way back are the last segment.

    Raises:
      ValueError: the schedule has not so many steps.
    """
    own, calls = config.distillation.calls, config.distillation.teacher_calls
    noise = _spaced(config, own * calls)
    make = {"ddim": diffusion.ddim, "dpmpp_2m": diffusion.dpmpp_2m}
    sampler = make[config.distillation.teacher_sampler](noise, config.sampling.eta)
    rows = distilling.segments(sampler, own)
    if not config.distillation.truth:
        return rows
    return distilling.with_way_back(
        rows, diffusion.way_back(noise, config.distillation.teacher_calls)
    )


def sampler_name(config: Config) -> str:
    """Returns the sampler with its option for reports: `ancestral (variance fixed_large)`."""
    c = config.sampling
    eta = f" (eta {c.eta:g})"
    option = {"ancestral": f" (variance {c.variance})", "ddim": eta, "dpmpp_2m": eta, "heun": ""}
    return c.sampler + option[c.sampler]


def check(config: Config) -> None:
    """Raises ValueError if a schedule of training or sampling cannot be made."""
    training_schedule(config)
    sampler(config)
    if config.distillation.teacher_calls:
        segments(config)


def _between_ends_of_linear(
    num_steps: int, beta_start: float, beta_end: float
) -> diffusion.NoiseSchedule:
    """Makes a schedule uniform in log SNR, from the first to the last noise of `linear`."""
    linear = diffusion.linear(num_steps, beta_start, beta_end)
    first, last = (math.sqrt(linear.one_minus_gamma[t] / linear.gamma[t]) for t in (1, num_steps))
    return diffusion.uniform_log_snr(num_steps, first, last)


def _of_section(name: str, make, *args):
    """Calls `make`, and adds the section to the message of a ValueError."""
    try:
        return make(*args)
    except ValueError as error:
        raise ValueError(f"config.{name}: {error}") from error
