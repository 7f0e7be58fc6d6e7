"""The search for an inference schedule, and the distance it goes by."""

import functools
import json

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import skimage.data
import small_run
from etils import epath
from PIL import Image

from sr3_jax import SuperResolver, parallel
from sr3_jax.config import changed, run_file, schedules, with_sampling
from sr3_jax.data.resumable import Fingerprint
from sr3_jax.evaluation import schedule_search
from sr3_jax.evaluation.schedule_search import Trial, Trials
from sr3_jax.jobs import shared, tuning
from sr3_jax.metrics.samples import energy_score
from sr3_jax.tools.benchmark import options as options_benchmark


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return epath.Path(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def config(workdir):
    config = small_run.write_workdir(workdir)
    tuning = {"calls": (2, 3), "num_trials": 8, "num_images": 4, "reference_calls": 6}
    return changed(config, {f"tuning.{key}": value for key, value in tuning.items()})


@pytest.fixture(scope="module")
def rows(config, workdir):
    """Those of a whole search."""
    tuning.tune_schedule(config, workdir, None)
    return (workdir / tuning.FOLDER / "trials.jsonl").read_text().splitlines()


def test_every_trial_is_in_the_table_and_the_best_is_used(rows, config, workdir):
    fingerprint, *trials = (json.loads(row) for row in rows)
    assert fingerprint["checkpoint"] == 3 and fingerprint["metric"] == "energy"
    assert [trial["calls"] for trial in trials] == [2] * 8 + [3] * 8 + [6]
    done = [trial for trial in trials if trial["status"] == "done"]
    assert all(np.isfinite(list(trial["metrics"].values())).all() for trial in done)
    assert {"heun"} == {t["sampling"]["sampler"] for t in trials[8:]} - {
        t["sampling"]["sampler"] for t in trials[:8]
    }
    found = json.loads((workdir / run_file.INFERENCE).read_text())
    best = min((t for t in done if t["calls"] < 6), key=lambda t: t["metrics"]["energy"])
    assert found["metrics"]["energy"] <= best["metrics"]["energy"] * (1 + config.tuning.tolerance)
    resolver = SuperResolver.from_workdir(workdir)
    expected = schedules.sampler(with_sampling(config, found["sampling"]))
    assert resolver.nfe() == found["calls"] == expected.nfe
    np.testing.assert_array_equal(
        resolver.make_sampler(found["sampling"]["num_steps"]).gamma, expected.gamma
    )
    with Image.open(workdir / tuning.FOLDER / "quality.png") as drawn:
        assert len(drawn.convert("RGB").getcolors(1 << 20)) > 20
    with Image.open(workdir / tuning.FOLDER / "samples.png") as drawn:
        assert drawn.width > 5 * 192 and drawn.height > 4 * 192  # input, 2, 3, 6 calls, reference
    table = (workdir / tuning.FOLDER / "table.md").read_text()
    assert table.count("| 2 |") >= 1 and table.count("| 6 |") == 1


def test_a_search_goes_on_where_it_was_killed(rows, config, workdir):
    """With the same proposals; what is done already is not done again."""
    path = workdir / tuning.FOLDER / "trials.jsonl"
    # Older tables call a metric otherwise.
    path.write_text("".join(f"{row}\n" for row in rows[:8]).replace("gradient_energy", "detail"))
    tuning.tune_schedule(config, workdir, 2)
    again = path.read_text().splitlines()
    assert again[:8] == rows[:8]
    a, b = json.loads(rows[8]), json.loads(again[8])
    assert a["sampling"] == b["sampling"]
    assert a["metrics"] == pytest.approx(b["metrics"], rel=1e-3)


def test_trials_of_something_else_are_refused(rows, config, workdir):
    other = changed(config, {"tuning.num_images": 3})
    with pytest.raises(ValueError, match="trials of something else: images was .4, .* and is .3, "):
        tuning.tune_schedule(other, workdir, 2)


def test_a_schedule_that_does_not_end_in_noise_is_refused(config, workdir):
    resolver = SuperResolver.from_config(config, workdir / "checkpoints")
    sampling = {"sampler": "ddim", "schedule": "log_snr", "sigma_max": 2.0, "num_steps": 4}
    low, high = np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 16, 16, 3), np.uint8)
    images = shared.HeldOut(low, high, np.zeros(1, np.int32))
    trial, _ = tuning._try(
        config, resolver, sampling, 4, None, images, parallel.StopSignal(), print
    )
    assert trial.status == "refused" and "end at noise level" in trial.reason


def test_baselines_have_no_schedule(config, workdir):
    other = changed(config, {"method": "regression"})
    with pytest.raises(ValueError, match="'regression' has no schedule"):
        tuning.tune_schedule(other, workdir, None)


def _trials(tmp_path, metric, values):
    trials = Trials(tmp_path / "t.jsonl", Fingerprint({}))
    for calls, value in values:
        trials.add(
            Trial(
                calls,
                {"sampler": "ddim", "schedule": "karras"},
                "done",
                "",
                {metric: value},
                calls / 10,
            )
        )
    return trials


@pytest.mark.parametrize("metric, sign", [("energy", 1), ("psnr", -1)])
def test_the_fewest_calls_that_are_about_as_good_are_chosen(tmp_path, metric, sign):
    """Whether lower or higher is better; a reference outside of the budgets is not chosen."""
    values = [(5, 20.0), (10, 10.4), (20, 10.0), (50, 10.1), (2000, 5.0)]
    values = [(calls, value if sign > 0 else 40 - value) for calls, value in values]
    trials = _trials(tmp_path, metric, values)
    choose = functools.partial(schedule_search.chosen, trials, metric, budgets=(5, 10, 20, 50))
    assert choose(tolerance=0.05).calls == 10
    assert choose(tolerance=0.0).calls == 20
    assert choose(tolerance=2.0).calls == 5
    assert len(Trials(tmp_path / "t.jsonl", Fingerprint({})).rows) == 5


@pytest.mark.parametrize("metric, sign", [("energy", 1), ("psnr", -1)])
def test_how_much_faster_is_said_of_what_is_as_good(tmp_path, metric, sign):
    values = [(5, 20.0), (10, 10.4), (20, 10.0), (2000, 10.2)]
    values = [(calls, value if sign > 0 else 40 - value) for calls, value in values]
    speedup = functools.partial(
        schedule_search.speedup, _trials(tmp_path, metric, values), metric, 2000
    )
    assert speedup(tolerance=0.05).startswith("10 calls (ddim; karras) are within 5%")
    assert speedup(tolerance=0.05).endswith("in 1 and 200 s for an image: 200 times faster")
    assert speedup(tolerance=0.0).startswith("20 calls")
    missing = schedule_search.speedup(_trials(tmp_path / "b", metric, values), metric, 50, 0.05)
    assert missing == ""


def _drawn(rng, scale, shape):
    return np.clip(np.round(rng.normal(128, scale, shape)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 2.0])
def test_the_energy_score_of_gaussians_is_known(spread):
    """In closed form; the true spread scores best. So small images are one level."""
    rng = np.random.default_rng(0)
    reference = _drawn(rng, 20, (32, 24, 24, 3))
    samples = _drawn(rng, 20 * spread, (4, *reference.shape))
    dimension = 7 * 7 * 3
    chi = scipy.stats.chi(dimension).mean() / np.sqrt(dimension)
    expected = chi * (np.sqrt(1 + spread**2) - spread / np.sqrt(2))
    assert energy_score(samples, reference) == {24: pytest.approx(expected, rel=1e-2)}
    assert expected >= chi / np.sqrt(2)


def test_noise_does_not_make_up_for_texture_elsewhere():
    """Rough and smooth images: samples of the right roughness, of the mean, and of each other's."""
    rng = np.random.default_rng(0)
    scale = np.repeat([2.0, 20.0], 8)[:, None, None, None]
    reference = _drawn(rng, scale, (16, 32, 32, 3))
    right, mean, wrong = (
        energy_score(_drawn(rng, s, (2, *reference.shape)), reference)[32]
        for s in (scale, 11.0, scale[::-1])
    )
    assert right * 1.05 < mean < wrong / 1.05


def test_farther_from_the_truth_is_worse():
    """Blur and noise, the more the worse, at the level where they act."""
    photo = skimage.data.chelsea()
    crops = [photo[y : y + 64, x : x + 64] for y in (60, 130) for x in (60, 130, 200, 270)]
    reference = np.stack(crops)
    score = lambda images: energy_score(np.stack([images] * 2), reference)  # noqa: E731
    assert set(score(reference)) == {64, 32, 16}
    assert max(score(reference).values()) == 0
    blurred = [
        score(scipy.ndimage.gaussian_filter(reference, (0, s, s, 0)))[64] for s in (0.5, 1, 2)
    ]
    assert 0 < blurred[0] < blurred[1] < blurred[2]
    rng = np.random.default_rng(0)
    noisy = [
        score(np.clip(reference + rng.normal(0, s, reference.shape), 0, 255).astype(np.uint8))[64]
        for s in (4, 8, 16)
    ]
    assert 0 < noisy[0] < noisy[1] < noisy[2]
    darker = score((reference * 0.8).astype(np.uint8))
    assert darker[16] > 2 * darker[64]
    with pytest.raises(ValueError, match="1 sample of each image; the energy score takes two"):
        energy_score(reference[None], reference)


def test_what_options_are_worth(config, workdir, tmp_path):
    """A network that has learnt little is nearer to the truth by its mean than by a sample."""
    drawn = tmp_path / "options.png"
    result = options_benchmark.measure(workdir, 4, steps=2, num_samples=3, picture=drawn)
    with Image.open(drawn) as sheet:
        assert sheet.width > 6 * 192 and sheet.height > 4 * 192
    rows = result["rows"]
    assert list(rows) == [
        "one sample",
        "one sample, mean of 3",
        "consistent",
        "consistent, mean of 3",
        "factor 2: result resized",
        "factor 2: input resized before",
    ]
    for name in ("one sample", "consistent"):
        assert rows[f"{name}, mean of 3"]["PSNR (dB)"] > rows[name]["PSNR (dB)"]
    assert rows["consistent"]["consistency"] < rows["one sample"]["consistency"] / 2
    assert (result["images"], result["calls"]) == (4, 2)
    assert options_benchmark.report(result).count("\n| factor 2") == 2


def test_a_true_uncertainty_scores_1():
    """Samples and the truth drawn alike, noisier on the right: as far apart as from the truth."""
    rng = np.random.default_rng(0)
    scale = np.repeat([4.0, 16.0], 64)[None, None, :, None]
    drawn = np.clip(rng.normal(128, scale, (5, 3, 64, 128, 3)), 0, 255).astype(np.uint8)
    found = options_benchmark._uncertainty(drawn[:4], drawn[4])
    assert found["distance_ratio"] == pytest.approx(1, abs=0.02)
    assert found["rank_correlation"] > 0.7
    narrow = options_benchmark._uncertainty((drawn[:4] // 2 + 64).astype(np.uint8), drawn[4])
    # Of half the deviation: variances 2 * 1/4 between samples, 1/4 + 1 from the truth.
    assert narrow["distance_ratio"] == pytest.approx(np.sqrt(0.5 / 1.25), abs=0.02)
