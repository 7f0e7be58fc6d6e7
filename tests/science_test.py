"""The downscaling example: its closed form is right, and its comparison is of what was measured."""

import json

import numpy as np
import pytest
import scipy.linalg
import small_run
import xarray
from etils import epath

from configs import fields_8_32
from launch import science
from sr3_jax import jobs
from sr3_jax.config import changed, read
from sr3_jax.data import degrade
from sr3_jax.metrics import fields


def test_the_best_crps_is_that_of_ensembles_of_the_true_distribution():
    """Such ensembles are drawn by moving free fields to the reduction of the truth."""
    random, crps = np.random.default_rng(0), {"t": [], "q": []}
    scale = {"t": (3.0, 0.0), "q": (2.0 * 0.6, 2.0 * 0.8)}  # of a and b, as the text says
    down, gain = science._reduction(), {}
    for name in "ab":
        prior = science._covariance(science._SLOPES[name])
        seen = down @ prior @ down.T
        gain[name] = scipy.linalg.solve(seen, down @ prior, assume_a="pos").T
    for _ in range(30):
        truth, drawn = {}, {}
        for name in "ab":
            made = science._draw(random, science._SLOPES[name], 17).reshape(17, -1)
            truth[name], free = made[0], made[1:]
            drawn[name] = free + (truth[name] - free) @ down.T @ gain[name].T
            seen = np.broadcast_to(down @ truth[name], (16, 64))
            np.testing.assert_allclose(drawn[name] @ down.T, seen, atol=1e-3)
        for variable, (of_a, of_b) in scale.items():
            whole = lambda parts: of_a * parts["a"] + of_b * parts["b"]  # noqa: B023, E731
            members = whole(drawn).reshape(16, 1, 32, 32, 1)
            crps[variable].append(fields.crps(members, whole(truth).reshape(1, 32, 32, 1)).mean())
    for variable, least in science.best().items():
        assert np.mean(crps[variable]) == pytest.approx(least, rel=0.03)


def test_fields_are_what_the_text_says(tmp_path):
    science.make(tmp_path, 200, 2)
    found = xarray.load_dataset(tmp_path / "train.nc", engine="h5netcdf")
    z = xarray.load_dataset(tmp_path / "train_z.nc", engine="h5netcdf").z.values
    assert found.t.dims == ("time", "y", "x") and found.t.attrs["units"] == "K"
    t, q = found.t.values, found.q.values
    a = (t - 285 + 0.0065 * z) / 3
    b = ((q - 8) / 2 - 0.6 * a) / 0.8
    for part in (a, b, (z - 500) / 300):
        assert part.mean() == pytest.approx(0, abs=0.1) and part.std() == pytest.approx(1, abs=0.1)
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.1
    assert degrade.resize_bicubic(a[0][..., None], 8).shape == (8, 8, 1)


def test_a_run_is_compared_with_the_best(tmp_path):
    science.make(tmp_path / "fields", 8, 2)
    data = {
        f"data.{half}{kind}": str(tmp_path / "fields" / f"{name}{end}.nc")
        for half, name in (("", "train"), ("eval_", "test"))
        for kind, end in (("path", ""), ("maps_path", "_z"))
    }
    small = {
        "model.channels": 8,
        "model.multipliers": [1],
        "train.num_steps": 2,
        "train.batch_size": 2,
        "train.num_warmup_steps": 1,
        "train.num_decay_steps": 1,
        "sampling.num_steps": 2,
        "evaluation.num_samples": 2,
    }
    config = changed(read(fields_8_32.get_config()), data | small)
    jobs.train(config, epath.Path(tmp_path / "run"))
    table = science.compare(tmp_path / "run")
    found = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    best = science.best()
    for name, unit in (("t", "K"), ("q", "g/kg")):
        value = found["sr3"][f"crps[{name} ({unit})]"]
        assert f"| {name} | sr3 | {value:.4f} | {value / best[name]:.3f} |" in table
        assert f"| {name} | best attainable | {best[name]:.4f} | 1 | 1 |" in table
    assert small_run.ROOT.joinpath("launch", "science.sh").exists()
