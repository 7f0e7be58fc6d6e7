"""Students: the target that replaces several calls, and a training whose best student is known."""

import dataclasses
import functools
import json

import forked_run
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_run
from etils import epath
from flax import linen as nn

from sr3_jax import SuperResolver, diffusion, models
from sr3_jax.config import read, reading, schedules, students
from sr3_jax.config.use_sections import Sampling
from sr3_jax.diffusion import distilling
from sr3_jax.training.state import TrainState
from sr3_jax.training.step import make_train_step
from sr3_jax.training.tasks import Teacher

KNOTS, CALLS = 16, 4
FINE = diffusion.uniform_log_snr(KNOTS, 0.02, 20.0)
COARSE = diffusion.respace(FINE, CALLS)
SAMPLERS = {"ddim": diffusion.ddim, "dpmpp_2m": diffusion.dpmpp_2m}
KEYS = jax.random.split(jax.random.key(0), 3)


def curved(y_t, gamma):
    """A denoiser that is not linear."""
    return jnp.tanh(1.5 * y_t + 0.3) * gamma[:, None] + 0.2 * jnp.sin(3 * y_t)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_merged_rows_are_those_of_ddim_on_every_kth_time(name, eta):
    rows = distilling.segments(SAMPLERS[name](FINE, eta), CALLS)
    coarse = diffusion.ddim(COARSE, eta)
    # With 1 as every estimate, and as the state, one by one.
    state, estimates, variance = np.ones(CALLS), np.zeros(CALLS), np.zeros(CALLS)
    for j in range(KNOTS // CALLS):
        state = state * rows.state[:, j]
        estimates = (
            estimates * rows.state[:, j] + rows.estimate[:, j] + rows.previous_estimate[:, j]
        )
        variance = variance * rows.state[:, j] ** 2 + rows.noise[:, j] ** 2
    np.testing.assert_allclose(rows.gamma[:, 0], coarse.gamma, rtol=1e-6)
    np.testing.assert_allclose(state, coarse.state, atol=1e-6)
    np.testing.assert_allclose(estimates, coarse.estimate, atol=1e-6)
    np.testing.assert_allclose(np.sqrt(variance), coarse.noise, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_call_with_the_target_leads_where_the_calls_of_the_teacher_lead(name):
    teacher = SAMPLERS[name](FINE)
    rows = distilling.segments(teacher, CALLS)
    for call in range(CALLS):
        y_t = jax.random.normal(jax.random.key(call), (3, 5))
        call_of_all = jnp.full(3, call)
        target = distilling.follow(curved, rows, call_of_all, y_t, KEYS, clip=False).estimate
        merged = diffusion.ddim(COARSE)[call]
        made = merged.state * y_t + merged.estimate * target
        # The sampling loop itself, begun at this state without a past.
        state = diffusion.State(y_t, (y_t, jnp.zeros_like(y_t)) if teacher.looks_back else None)
        for j in range(KNOTS // CALLS):
            row = jax.tree.map(lambda a: a[call, j], rows)  # noqa: B023
            state = diffusion.advance(curved, row, state, KEYS, clip=False)
        np.testing.assert_allclose(made, state.y_t, atol=2e-5)


def test_the_target_of_two_calls_is_that_of_salimans_and_ho():
    """By their formula (Algorithm 2), a quotient of differences, in float64."""
    two = diffusion.respace(FINE, 2 * CALLS)
    rows = distilling.segments(diffusion.ddim(two), CALLS)
    with jax.enable_x64(True):
        alpha, sigma = (
            np.sqrt(np.asarray(a, np.float64)) for a in (two.gamma, two.one_minus_gamma)
        )
        z = np.random.default_rng(0).normal(size=(3, 5))
        for call in range(CALLS):
            t = 2 * (CALLS - call)
            denoise = lambda y, t: np.asarray(curved(jnp.asarray(y), jnp.full(3, alpha[t] ** 2)))  # noqa: E731, B023
            x = denoise(z, t)
            middle = alpha[t - 1] * x + sigma[t - 1] / sigma[t] * (z - alpha[t] * x)
            x = denoise(middle, t - 1)
            last = alpha[t - 2] * x + sigma[t - 2] / sigma[t - 1] * (middle - alpha[t - 1] * x)
            ratio = sigma[t - 2] / sigma[t]
            theirs = (last - ratio * z) / (alpha[t - 2] - ratio * alpha[t])
            ours = distilling.follow(
                curved, rows, jnp.full(3, call), jnp.asarray(z), KEYS, clip=False
            )
            np.testing.assert_allclose(ours.estimate, theirs, atol=1e-5)


def test_calls_that_cannot_be_divided_are_named():
    with pytest.raises(ValueError, match="16 calls of a teacher cannot be divided among 3"):
        distilling.segments(diffusion.ddim(FINE), 3)
    with pytest.raises(ValueError, match="two calls a step"):
        distilling.segments(diffusion.heun(FINE), 1)


MEAN, STD = 0.2, 0.25  # of every pixel of the data, independently


class Affine(nn.Module):
    """Predicts y_0 as a y_t + b, with a and b of its own for each gamma that it was made for."""

    gammas: tuple[float, ...]
    has_source = False
    has_y_t = True
    num_classes = 0
    source_noise = False
    dtype = jnp.float32

    @nn.compact
    def __call__(self, x, y_t, gamma, dropout_keys=None):
        a = self.param("a", nn.initializers.zeros, (len(self.gammas),))
        b = self.param("b", nn.initializers.zeros, (len(self.gammas),))
        known = jnp.log(jnp.array(self.gammas))
        which = jnp.argmin(jnp.abs(jnp.log(gamma)[:, None] - known), axis=1)
        shape = (-1, 1, 1, 1)
        return a[which].reshape(shape) * y_t + b[which].reshape(shape)


class Exact(Affine):
    """E(y_0 | y_t) of the Gaussian data, in closed form."""

    gammas: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, x, y_t, gamma):
        gamma = gamma.reshape(-1, 1, 1, 1)
        gain = jnp.sqrt(gamma) * STD**2 / (gamma * STD**2 + 1 - gamma)
        return MEAN + gain * (y_t - jnp.sqrt(gamma) * MEAN)


@pytest.mark.parametrize("calls", [1, 4])
def test_the_way_back_keeps_the_quantile_of_gaussian_data(calls):
    """The probability-flow ODE moves each value with its distribution, and is of second order."""
    exact = functools.partial(models.Denoiser(Exact(), diffusion.PREDICTIONS["y_0"]), {}, None)

    def standardised(y, gamma):
        return (y - np.sqrt(gamma) * MEAN) / np.sqrt(gamma * STD**2 + 1 - gamma)

    y_1 = jax.random.normal(KEYS[0], (3, 8, 8, 3))
    errors = []
    for knots in (32, 128):
        schedule = diffusion.uniform_log_snr(knots, 0.02, 20.0)
        back = distilling.way_back(schedule, calls)
        ways = distilling.with_way_back(distilling.segments(diffusion.ddim(schedule), calls), back)
        led = distilling.follow(exact, ways, jnp.full(3, calls), y_1, KEYS, clip=False).y_t
        gap = standardised(led, ways.gamma[calls - 1, 0]) - standardised(y_1, back.gamma[0])
        errors.append(np.abs(gap).max())
    assert errors[1] < 0.003 and errors[1] < errors[0] / 8, errors


@pytest.mark.parametrize(("calls", "truth"), [(1, 0.0), (2, 0.0), (4, 0.0), (1, 1.0)])
def test_a_trained_student_of_gaussian_data_is_the_best_one(calls, truth):
    """The best student takes every y_T exactly to where the teacher's 16 calls take it.

    The teacher is affine, and so is that map: its slope and offset, from two points, give the mean
    and the deviation of the images. With the truth alone, where the teacher's calls lead counts no
    more, and the student makes the deviation of the data.
    """
    rows = distilling.segments(diffusion.ddim(FINE), calls)
    own = diffusion.ddim(diffusion.respace(FINE, calls))
    network = Affine(tuple(map(float, rows.gamma[:, 0])))
    denoiser = models.Denoiser(network, diffusion.PREDICTIONS["y_0"])
    optimizer = optax.adam(optax.linear_schedule(0.1, 0.0, 400))
    exact = models.Denoiser(Exact(), diffusion.PREDICTIONS["y_0"])
    ways = distilling.with_way_back(rows, distilling.way_back(FINE, calls)) if truth else rows
    teacher = Teacher(exact, ways, truth, clip=False)
    config = small_run.options(seed=1, loss="l2", ema_decay=0.0)
    step = jax.jit(make_train_step(denoiser, None, optimizer, config, teacher=teacher))
    params = network.init(jax.random.key(0), None, jnp.zeros((1, 8, 8, 3)), jnp.ones(1))["params"]
    state = TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params))
    rng = np.random.default_rng(0)
    for _ in range(400):
        levels = (rng.normal(MEAN, STD, (16, 8, 8, 3)) + 1) * 127.5
        batch = {
            "high_resolution": np.clip(np.round(levels), 0, 255).astype(np.uint8),
            "low_resolution": np.zeros((16, 0, 0, 3), np.uint8),
            "weight": np.ones(16, np.float32),
        }
        state, metrics = step(state, batch, {})
    ends = []
    for denoise, sampler in (
        (functools.partial(denoiser, state.params, None), own),
        (functools.partial(exact, {}, None), diffusion.ddim(FINE)),
    ):
        points = jnp.stack([jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1))])
        way = diffusion.State(points, None)
        for k in range(sampler.nfe):
            way = diffusion.advance(denoise, sampler[k], way, KEYS[:2], clip=False)
        offset, at_1 = way.y_t.reshape(2)
        ends.append((float(offset), float(at_1 - offset)))
    (mean, std), (best_mean, best_std) = ends
    if truth:
        assert abs(best_std - STD) > 0.02
        best_mean, best_std = MEAN, STD
    assert abs(mean - best_mean) < 0.004 and abs(std - best_std) < 0.004, ends


class Noise(nn.Module):
    """Makes an image of noise alone, mean + deviation y_t, and ignores its source."""

    has_source = True
    has_y_t = True
    num_classes = 0
    source_noise = False
    dtype = jnp.float32

    @nn.compact
    def __call__(self, x, y_t, gamma, dropout_keys=None):
        mean = self.param("mean", nn.initializers.zeros, ())
        return mean + self.param("std", lambda key: jnp.full((), 0.05)) * y_t


def test_training_by_the_energy_score_finds_mean_and_deviation_of_the_data():
    """The score is proper: a sampler of this family that scores best is the true distribution."""
    denoiser = models.Denoiser(Noise(), diffusion.PREDICTIONS["y_0"])
    optimizer = optax.adam(optax.linear_schedule(0.02, 0.0, 300))
    config = dataclasses.replace(
        small_run.options(seed=1, loss="energy", ema_decay=0.0),
        sampling=Sampling(num_steps=1, sampler="ddim", schedule="log_snr"),
    )
    step = jax.jit(make_train_step(denoiser, None, optimizer, config))
    size = jnp.zeros((1, 16, 16, 3))
    params = denoiser.network.init(jax.random.key(0), size, size, jnp.ones(1))["params"]
    state = TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params))
    rng = np.random.default_rng(0)
    for _ in range(300):
        levels = (rng.normal(MEAN, STD, (8, 16, 16, 3)) + 1) * 127.5
        batch = {
            "high_resolution": np.clip(np.round(levels), 0, 255).astype(np.uint8),
            "low_resolution": np.zeros((8, 4, 4, 3), np.uint8),
            "weight": np.array([1, 1, 1, 1, 1, 1, 1, 0], np.float32),
        }
        state, metrics = step(state, batch)
    assert abs(state.params["mean"] - MEAN) < 0.01 and abs(state.params["std"] - STD) < 0.01


def test_students_are_workdirs_like_others(tmp_path):
    """`sr3 distill` as users call it, then upscaling; called again, it finds all done."""
    teacher, folder = epath.Path(tmp_path) / "teacher", tmp_path / "students"
    small_run.write_workdir(teacher, noise=0.05)
    given = ["--mode=distill", f"--teacher={teacher}", f"--workdir={folder}", "--steps=2"]
    given += ["--calls=1", "--truth=0.5", "--config.sampling.schedule=log_snr"]
    said = tmp_path / "said.txt"
    assert forked_run.run(given, said) == 0, said.read_text()
    for name in ("1_call", "1_call_truth"):
        assert json.loads((folder / name / "inference.json").read_text())["calls"] == 1
        assert (folder / name / "evaluation" / "metrics.json").exists()
        student = SuperResolver.from_workdir(str(folder / name))
        assert student.nfe() == 1
        assert student.upscale(np.zeros((5, 7, 3), np.uint8)).shape == (20, 28, 3)
    metadata = [p.stat().st_mtime_ns for p in folder.rglob("checkpoints/*/_METADATA")]
    assert forked_run.run(given, said) == 0, said.read_text()
    assert metadata == [p.stat().st_mtime_ns for p in folder.rglob("checkpoints/*/_METADATA")]


def test_each_student_is_the_teacher_of_the_next():
    teacher = reading.changed(
        read(small_run.config()),
        {"sampling.schedule": "log_snr", "sampling.guidance": 2.0, "model.num_classes": 3},
    )
    planned = students.plan(teacher, "hf://A/B", epath.Path("DIR"), [8, 4, 1], 100, truth=0.5)
    found = [
        (
            str(workdir),
            config.train.initial_weights,
            config.distillation.teacher,
            config.distillation.teacher_calls,
            config.distillation.teacher_guidance,
            config.distillation.truth,
            schedules.segments(config).gamma.shape,
        )
        for workdir, config in planned.items()
    ]
    assert found == [
        ("DIR/8_calls", "hf://A/B", "hf://A/B", 4, 2.0, 0.0, (8, 4)),
        ("DIR/4_calls", "DIR/8_calls", "DIR/8_calls", 2, 1.0, 0.0, (4, 2)),
        ("DIR/1_call", "DIR/4_calls", "DIR/4_calls", 4, 1.0, 0.0, (1, 4)),
        ("DIR/1_call_truth", "DIR/1_call", "hf://A/B", 32, 2.0, 0.5, (2, 32)),
    ]
    with pytest.raises(ValueError, match="each number must be a divisor of the one before"):
        students.plan(teacher, "hf://A/B", epath.Path("DIR"), [8, 3])
