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


# The colour of each pixel of the data is Gaussian, with covariance TURN diag(SPREAD^2) TURN^T.
MEAN, SPREAD = np.array([0.2, -0.1, 0.05]), np.array([0.25, 0.12, 0.05])
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]


def _of_data(rng, *shape):
    colours = MEAN + rng.normal(size=(*shape, 3)) * SPREAD @ TURN.T
    return np.clip(np.round((colours + 1) * 127.5), 0, 255).astype(np.uint8)


class Affine(small_run.Network):
    """Predicts y_0 as A y_t + b, with A and b of its own for each gamma that it was made for."""

    gammas: tuple[float, ...] = ()
    has_source = False

    @nn.compact
    def __call__(self, x, y_t, gamma, dropout_keys=None):
        count = len(self.gammas)
        matrix = self.param("matrix", nn.initializers.zeros, (count, 3, 3))
        offset = self.param("offset", nn.initializers.zeros, (count, 3))
        known = jnp.log(jnp.array(self.gammas))
        which = jnp.argmin(jnp.abs(jnp.log(gamma)[:, None] - known), axis=1)
        return jnp.einsum("bij,bhwj->bhwi", matrix[which], y_t) + offset[which][:, None, None]


class Exact(Affine):
    """E(y_0 | y_t) of the Gaussian data, in closed form."""

    @nn.compact
    def __call__(self, x, y_t, gamma):
        gamma = gamma.reshape(-1, 1, 1, 1)
        gain = jnp.sqrt(gamma) * SPREAD**2 / (gamma * SPREAD**2 + 1 - gamma)
        return MEAN + (y_t - jnp.sqrt(gamma) * MEAN) @ TURN * gain @ TURN.T


EXACT = models.Denoiser(Exact(), diffusion.PREDICTIONS["y_0"])


@pytest.mark.parametrize("calls", [1, 4])
def test_the_way_back_keeps_the_quantile_of_gaussian_data(calls):
    """The probability-flow ODE moves each value with its distribution, and is of second order."""

    def std(gamma):
        return np.sqrt(gamma * SPREAD**2 + 1 - gamma)

    z = jax.random.normal(KEYS[0], (3, 8, 8, 3))
    errors = []
    for knots in (32, 128):
        schedule = diffusion.uniform_log_snr(knots, 0.02, 20.0)
        back = diffusion.way_back(schedule, knots // calls)
        ways = distilling.with_way_back(distilling.segments(diffusion.ddim(schedule), calls), back)
        exact, gamma = functools.partial(EXACT, {}, None), back.gamma[0]
        y_1 = np.sqrt(gamma) * MEAN + z * std(gamma) @ TURN.T
        led = distilling.follow(exact, ways, jnp.full(3, calls), y_1, KEYS, clip=False).y_t
        gamma = ways.gamma[calls - 1, 0]
        errors.append(np.abs((led - np.sqrt(gamma) * MEAN) @ TURN / std(gamma) - z).max())
    assert errors[1] < 0.01 and errors[1] < errors[0] / 8, errors


def _images_of(denoise, sampler):
    """Returns mean and covariance of the colours that an affine denoiser makes of N(0, I)."""
    points = jnp.concatenate([jnp.zeros((1, 3)), jnp.eye(3)]).reshape(4, 1, 1, 3)
    way = diffusion.State(points, None)
    for k in range(sampler.nfe):
        way = diffusion.advance(denoise, sampler[k], way, jax.random.split(KEYS[0], 4), clip=False)
    offset, *ends = np.asarray(way.y_t, np.float64).reshape(4, 3)
    matrix = np.stack([end - offset for end in ends], axis=1)
    return offset, matrix @ matrix.T


@pytest.mark.parametrize(("calls", "truth"), [(1, 0.0), (2, 0.0), (4, 0.0), (1, 1.0)])
def test_a_trained_student_of_gaussian_data_is_the_best_one(calls, truth):
    """The best student takes every y_T exactly to where the teacher's 16 calls take it.

    The teacher is affine, and so is that map, from which mean and covariance of the images follow.
    With the truth alone, where the teacher's calls lead counts no more, and the student makes the
    covariance of the data.
    """
    rows = distilling.segments(diffusion.ddim(FINE), calls)
    network = Affine(tuple(map(float, rows.gamma[:, 0])))
    denoiser = models.Denoiser(network, diffusion.PREDICTIONS["y_0"])
    optimizer = optax.adam(optax.linear_schedule(0.1, 0.0, 400))
    ways = (
        distilling.with_way_back(rows, diffusion.way_back(FINE, KNOTS // calls)) if truth else rows
    )
    teacher = Teacher(EXACT, ways, truth, clip=False)
    config = small_run.options(seed=1, loss="l2", ema_decay=0.0)
    step = jax.jit(make_train_step(denoiser, None, optimizer, config, teacher=teacher))
    params = network.init(jax.random.key(0), None, jnp.zeros((1, 8, 8, 3)), jnp.ones(1))["params"]
    state = TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params))
    rng = np.random.default_rng(0)
    for _ in range(400):
        batch = {
            "high_resolution": _of_data(rng, 16, 8, 8),
            "low_resolution": np.zeros((16, 0, 0, 3), np.uint8),
            "weight": np.ones(16, np.float32),
        }
        state, metrics = step(state, batch, {})
    own = diffusion.ddim(diffusion.respace(FINE, calls))
    mean, covariance = _images_of(functools.partial(denoiser, state.params, None), own)
    best = _images_of(functools.partial(EXACT, {}, None), diffusion.ddim(FINE))
    of_data = MEAN, TURN * SPREAD**2 @ TURN.T
    size = np.linalg.norm(of_data[1])
    assert np.linalg.norm(best[1] - of_data[1]) > 0.1 * size  # 16 calls are not exact
    best_mean, best_covariance = of_data if truth else best
    found = (
        np.linalg.norm(mean - best_mean) / np.linalg.norm(best_mean),
        np.linalg.norm(covariance - best_covariance) / size,
    )
    print(f"calls {calls}, truth {truth:g}: mean {found[0]:.4%}, covariance {found[1]:.4%} off")
    assert max(found) < (0.03 if truth else 0.001)


class Noise(small_run.Network):
    """Makes an image of noise alone, mean + std y_t, and ignores its source."""

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
        levels = (rng.normal(0.2, 0.25, (8, 16, 16, 3)) + 1) * 127.5
        batch = {
            "high_resolution": np.clip(np.round(levels), 0, 255).astype(np.uint8),
            "low_resolution": np.zeros((8, 4, 4, 3), np.uint8),
            "weight": np.array([1, 1, 1, 1, 1, 1, 1, 0], np.float32),
        }
        state, metrics = step(state, batch)
    assert abs(state.params["mean"] - 0.2) < 0.01 and abs(state.params["std"] - 0.25) < 0.01


def test_students_are_workdirs_like_others(tmp_path):
    """`sr3 distill` as users call it, then upscaling; called again, it finds all done."""
    teacher, folder = epath.Path(tmp_path) / "teacher", tmp_path / "students"
    small_run.write_workdir(teacher, noise=0.05)
    given = ["--mode=distill", f"--teacher={teacher}", f"--workdir={folder}", "--steps=2"]
    by_energy = [*given, "--objective=energy"]  # without a flag of the config
    by_energy[2] = f"--workdir={tmp_path / 'energy'}"
    given += ["--config.sampling.schedule=log_snr", "--calls=1", "--truth=0.5"]
    said = tmp_path / "said.txt"
    assert forked_run.run(given, said) == 0, said.read_text()
    assert forked_run.run(by_energy, said) == 0, said.read_text()
    assert forked_run.run([*by_energy, "--calls=2"], said) == 2
    assert "leave out --calls and --truth" in said.read_text()
    for name in ("1_call", "1_call_truth", "../energy/1_call"):
        assert json.loads((folder / name / "inference.json").read_text())["calls"] == 1
        assert (folder / name / "evaluation" / "metrics.json").exists()
        student = SuperResolver.from_workdir(str(folder / name))
        assert student.nfe() == 1
        assert student.upscale(np.zeros((5, 7, 3), np.uint8)).shape == (20, 28, 3)
        with pytest.raises(ValueError, match="3 steps, but the network is a student, whose nu"):
            student.upscale(np.zeros((5, 7, 3), np.uint8), steps=3)
        with pytest.raises(ValueError, match="sampling.rho = 5.0, but .* trained with 3.0; leave"):
            SuperResolver.from_workdir(str(folder / name), rho=5.0)
    metadata = [p.stat().st_mtime_ns for p in folder.rglob("checkpoints/*/_METADATA")]
    assert forked_run.run(given, said) == 0, said.read_text()
    assert metadata == [p.stat().st_mtime_ns for p in folder.rglob("checkpoints/*/_METADATA")]
    # What was begun otherwise does not go on in its place.
    kept = (folder / "1_call" / "inference.json").read_text()
    for other, named in (
        (["--truth=0", "--config.sampling.eta=1"], "config.sampling.eta was 0.0 and is now 1.0"),
        (["--steps=3"], "config.train.num_steps was 2 and is now 3"),
        (
            [f"--teacher={folder / '1_call'}"],
            "1_call is a student, whose number of steps is 1: there are none fewer to learn",
        ),
        (["--config.train.learning_rate=0.1"], "config.train.learning_rate was 0.0015 and is now"),
        (["--config.train.batch_size=2", "--config.seed=7"], "config.seed was 0 and is now 7"),
        (["--teacher=nofolder"], "--teacher=nofolder: nofolder/config.json does not exist"),
        ([f"--workdir={teacher}"], "is the teacher's; give another folder"),
        (["--config.model.channels=16"], "config.distillation.teacher = "),
        (["--calls=0"], "--calls=0: give 1 or more calls"),
        (["--config.train.loss=l1"], "config.train.loss = 'l1', but a student has 'l2'; leave it"),
        (["--config.train.num_steps=9"], "config.train.num_steps = 9, but a student has 2; use --"),
    ):
        assert forked_run.run([*given, *other], said) == 2, said.read_text()
        assert named in said.read_text()
    # The tuned eta of a teacher may lie between those of students, which follow it without noise.
    (teacher / "inference.json").write_text(json.dumps({"sampling": {"eta": 0.28}}))
    assert forked_run.run(given, said) == 0, said.read_text()
    assert (folder / "1_call" / "inference.json").read_text() == kept
    # A released student needs no teacher; a tuned one samples as before.
    released = tmp_path / "released"
    assert (
        forked_run.run(["--mode=push", f"--workdir={folder / '1_call'}", f"--to={released}"], said)
        == 0
    ), said.read_text()
    assert SuperResolver.from_workdir(str(released)).nfe() == 1
    assert "samples in 1 call only" in (released / "README.md").read_text()
    tune = ["--mode=tune_schedule", f"--workdir={folder / '1_call'}"]
    assert forked_run.run(tune, said) == 0, said.read_text()
    found = json.loads((folder / "1_call" / "inference.json").read_text())
    assert found["calls"] == 1 and found["sampling"] == json.loads(kept)["sampling"]


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
    # A student as a teacher is called as it samples, and has no say in what its students learn.
    taught = planned[epath.Path("DIR/8_calls")]
    taught = reading.changed(taught, {"distillation.truth": 0.5})
    (of_student,) = students.plan(taught, "DIR/8_calls", epath.Path("B"), [2], 100).values()
    own = of_student.distillation
    assert (own.teacher_calls, own.teacher_sampler, own.truth) == (4, "ddim", 0.0)
    np.testing.assert_allclose(
        schedules.segments(of_student).gamma.reshape(-1), schedules.sampler(taught).gamma
    )
    for calls in ([8, 2], [3]):
        with pytest.raises(ValueError, match="must begin with a smaller number that divides it"):
            students.plan(taught, "DIR/8_calls", epath.Path("B"), calls)
    (by_energy,) = students.plan_one_call(taught, "DIR/8_calls", epath.Path("B")).values()
    assert by_energy.distillation.teacher == "" and by_energy.student_calls == 1
