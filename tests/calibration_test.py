"""`--mode=calibrate` and `--confidence`: intervals of a real run, whatever its network is worth."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import small_run
from etils import epath
from PIL import Image

from sr3_jax import SuperResolver, conformal, jobs, released
from sr3_jax.config import changed, run_file
from sr3_jax.data import resumable
from sr3_jax.inference import cascade, confidence, inputs
from sr3_jax.jobs import calibrating, releasing

COUNT = 80


def _write_pictures(folder, rng, count):
    """Waves of random directions and some noise."""
    folder.mkdir(parents=True)
    rows, columns = np.mgrid[:32, :32] / 32
    for i in range(count):
        phase = rng.normal(size=(2, 3)) * 12
        waves = np.sin(rows[..., None] * phase[0] + columns[..., None] * phase[1])
        values = 128 + 60 * waves + rng.normal(size=(32, 32, 3)) * rng.uniform(2, 20)
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03d}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the folder of a calibrated run with random weights, and its config."""
    root, rng = epath.Path(tmp_path_factory.mktemp("calibrated")), np.random.default_rng(0)
    for name, count in (("held_out", COUNT), ("other", COUNT), ("few", 12)):
        _write_pictures(root / name, rng, count)
    config = small_run.write_workdir(root / "run", noise=0.05)
    values = {"data.source": "folder", "data.path": str(root), "calibration.num_samples": 3}
    values["data.eval_path"] = str(root / "held_out")
    config = changed(config, values)
    run_file.save(config, root / "run" / "config.json")
    jobs.calibrate(config, root / "run", {"num_steps": 2})
    return root, config


def _made(folder):
    found = pathlib.Path(folder).glob("images/sr3*/*.png")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}


def test_other_images_lie_inside_as_often_as_promised(run):
    """The network knows nothing, and the promise holds all the same."""
    root, config = run
    other = changed(config, {"data.eval_path": str(root / "other")})
    before = (root / "run" / confidence.FILE).read_bytes()
    jobs.calibrate(other, root / "run", {"num_steps": 2}, only_check=True)
    assert (root / "run" / confidence.FILE).read_bytes() == before
    folder = root / "run" / calibrating.FOLDER / "check"
    rows = json.loads((folder / "coverage.json").read_text())["rows"]
    found = {row["promised"]: row["found"] for row in rows}
    for promised, share in (("50%, average", 0.5), ("80%, average", 0.8), ("90%, average", 0.9)):
        # The interval is of the mean over these images; calibration's 40 add as much again.
        error = (found[promised]["high"] - found[promised]["low"]) / 2
        assert share - 2 * error <= found[promised]["mean"] <= share + 2 / 41 + 2 * error
    assert found["99%, average: too few images"] is None
    assert found["90%, each image"]["mean"] > 0.9
    report = (folder / "report.md").read_text()
    assert f"{COUNT} images that did not make them; 0 that did" in report
    assert "too few images" in report
    jobs.calibrate(
        config, root / "run", {"num_steps": 2}, only_check=True
    )  # of which 3/4 made them
    report = (folder / "report.md").read_text()
    assert f"{COUNT // 4} images that did not make them; {COUNT * 3 // 4} that did" in report
    smaller = changed(config, {"evaluation.image_size": 24})  # the same pictures
    jobs.calibrate(smaller, root / "run", {"num_steps": 2}, only_check=True)
    assert f"{COUNT // 4} images that did not make" in (folder / "report.md").read_text()
    for name in ("coverage.png", "samples.png"):
        with Image.open(folder / name) as drawn:
            assert len(drawn.convert("RGB").getcolors(1 << 24)) > 50


def test_a_second_run_makes_no_image_and_the_same_intervals(run):
    root, config = run
    folder, file = root / "run" / calibrating.FOLDER, root / "run" / confidence.FILE
    made, before = _made(folder), file.read_bytes()
    assert len(made) == 3 * COUNT
    (folder / "images" / "sr3_sample_1" / "000007.png").write_bytes(b"damaged")
    jobs.calibrate(config, root / "run", {"num_steps": 2})
    assert file.read_bytes() == before
    changed_ = [name for name, when in _made(folder).items() if made[name] != when]
    assert len(changed_) == 3 * config.sampling.batch_size  # the batch of the damaged one


def test_upscaling_writes_the_ends_of_the_intervals(run, tmp_path):
    root, _ = run
    picture = np.asarray(Image.open(root / "few" / "000.png"))[:8, :12]
    folder = epath.Path(tmp_path / "in")
    folder.mkdir()
    Image.fromarray(picture).save(folder / "a.png")
    Image.fromarray(picture[..., 0]).save(folder / "grey.png")
    Image.fromarray(picture[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    promise = conformal.Promise(0.8)
    options = confidence.with_band(inputs.UpscaleOptions(2), root / "run", promise)
    assert options.num_samples == 3
    out = epath.Path(tmp_path / "out")
    assert jobs.upscale(root / "run", folder, out, options) == 0
    resolver = SuperResolver.from_workdir(root / "run", num_steps=2)
    seed = options.seed_of("a.png")
    seeds = [(seed + (k << 24)) % 2**32 for k in range(3)]
    samples = resolver.upscale(np.repeat(picture[None], 3, axis=0), seed=seeds)
    band = options.band
    center, half = conformal.center(samples), band.half_widths(conformal.local_deviation(samples))
    lower, mean, upper = (
        np.asarray(Image.open(out / f"a.png{part}")).astype(float)
        for part in (".lower.png", "", ".upper.png")
    )
    np.testing.assert_array_equal(mean, np.rint(center))
    assert (lower <= np.clip(center - half, 0, 255)).all()  # rounded outward, by less than one
    assert (lower > np.clip(center - half, 0, 255) - 1.001).all()
    assert (upper >= np.clip(center + half, 0, 255)).all()
    assert (upper < np.clip(center + half, 0, 255) + 1.001).all()
    with Image.open(out / "grey.png.lower.png") as grey:
        assert grey.mode == "L"
    deep = [
        np.asarray(Image.open(out / f"deep.png{part}")) for part in (".lower.png", "", ".upper.png")
    ]
    assert deep[0].dtype in (np.uint16, np.int32) and deep[2].max() > 256
    assert (deep[0] <= deep[1]).all() and (deep[1] <= deep[2]).all()
    # The same command does nothing, one with another promise is refused.
    before = (out / "a.png.upper.png").stat().mtime
    assert jobs.upscale(root / "run", folder, out, options) == 0
    assert (out / "a.png.upper.png").stat().mtime == before
    other = confidence.with_band(inputs.UpscaleOptions(2), root / "run", conformal.Promise(0.7))
    with pytest.raises(ValueError, match="confidence was 0.8 and is 0.7"):
        jobs.upscale(root / "run", folder, out, other)


def test_no_ends_are_left_beside_another_picture(run, tmp_path):
    root, _ = run
    folder, out = epath.Path(tmp_path / "in"), epath.Path(tmp_path / "out")
    folder.mkdir()
    Image.fromarray(np.asarray(Image.open(root / "few" / "002.png"))[:8, :8]).save(folder / "a.png")
    plain = inputs.UpscaleOptions(2)
    options = confidence.with_band(plain, root / "run", conformal.Promise(0.8))
    assert jobs.upscale(root / "run", folder, out, options) == 0
    (out / "of_another.png.lower.png").write_bytes(b"a file of someone else")
    recipe = json.loads((out / resumable.MARK).read_text())
    assert (recipe["confidence"], recipe["guarantee"], recipe["delta"]) == (0.8, "average", 0.1)
    assert jobs.upscale(root / "run", folder, out, plain, overwrite=True) == 0
    left = sorted(path.name for path in out.glob("*.png"))
    assert left == ["a.png", "of_another.png.lower.png"]


def test_python_gives_the_same_intervals(run):
    root, _ = run
    resolver = SuperResolver.from_workdir(root / "run", num_steps=2)
    picture = np.asarray(Image.open(root / "few" / "001.png"))[:8, :8]
    mean, lower, upper = resolver.interval(picture, 0.8, seed=5)
    samples = resolver.sample_many(picture, 3, seed=5)
    band = confidence.read(root / "run").calibration.choose(conformal.Promise(0.8))
    np.testing.assert_array_equal(confidence.interval(samples, band), (lower, upper))
    np.testing.assert_array_equal(mean, np.rint(samples.mean(0)))
    wide = resolver.interval(picture, conformal.Promise(0.8, "each_image", 0.1), seed=5)
    assert (wide[2] >= upper).all() and wide[2].astype(int).sum() > upper.astype(int).sum()


def test_what_was_not_calibrated_is_refused(run, tmp_path):
    root, config = run
    run_dir, promise, options = root / "run", conformal.Promise(0.8), inputs.UpscaleOptions(4)
    given = confidence.with_band(options, run_dir, promise)
    with pytest.raises(ValueError, match="num_steps was 2 and is 4.*Calibrate again"):
        jobs.upscale(run_dir, root / "few", epath.Path(tmp_path), given)
    with pytest.raises(ValueError, match="num_steps was 2 and is 4"):
        SuperResolver.from_workdir(run_dir).interval(np.zeros((8, 8, 3), np.uint8))
    # The size of a picture decides about tiles, so they are free.
    tiled = SuperResolver.from_workdir(run_dir, num_steps=2, tile_size=16, tile_overlap=4)
    tiled.interval(np.zeros((8, 8, 3), np.uint8), 0.8)
    with pytest.raises(ValueError, match="--samples=4, but the network was calibrated with 3"):
        confidence.with_band(options, run_dir, promise, samples=4)
    with pytest.raises(ValueError, match="--factor=2"):
        confidence.with_band(dataclasses.replace(options, factor=2.0), run_dir, promise)
    with pytest.raises(ValueError, match="too few"):
        confidence.with_band(options, run_dir, conformal.Promise(0.99))
    other = small_run.write_workdir(epath.Path(tmp_path / "run"))
    with pytest.raises(FileNotFoundError, match="--mode=calibrate"):
        confidence.with_band(options, tmp_path / "run", promise)
    with pytest.raises(ValueError, match="gives one answer"):
        calibrating.check(changed(other, {"method": "regression"}))
    few = changed(config, {"data.eval_path": str(root / "few")})
    edited = json.loads((run_dir / confidence.FILE).read_text())
    edited["num_samples"] = 2
    for content in ("{}", "[1]", json.dumps(edited), (run_dir / confidence.FILE).read_text()[:-9]):
        (epath.Path(tmp_path) / "run" / confidence.FILE).write_text(content)
        with pytest.raises(ValueError, match="is damaged"):
            confidence.read(tmp_path / "run")
    with pytest.raises(ValueError, match="12 held-out images can be used; calibration takes 20"):
        jobs.calibrate(few, epath.Path(tmp_path / "run"), {})


def test_a_released_network_keeps_its_intervals_where_its_weights_are_the_same(run, tmp_path):
    root, _ = run
    first, second, third = (epath.Path(tmp_path / name) for name in ("first", "second", "third"))
    releasing.push(root / "run", str(first), dtype="bfloat16")
    assert not (first / confidence.FILE).exists()  # rounded weights were not calibrated
    there = confidence.read(root / "run")
    stage = cascade.open_stage(first, num_steps=2)
    made_with = confidence.sampled(stage.fingerprint())
    dataclasses.replace(there, made_with=made_with).write(first / confidence.FILE)
    releasing.push(first, str(second), dtype="bfloat16")
    resolver = SuperResolver.from_workdir(second, num_steps=2)
    resolver.interval(np.zeros((8, 8, 3), np.uint8), 0.8)
    releasing.push(first, str(third), dtype="float32")
    assert not (third / confidence.FILE).exists()


@pytest.mark.parametrize("name", released.names())
def test_intervals_of_the_package_are_of_its_networks(name):
    """And of the sampling that upscaling takes unless it is told otherwise."""
    folder = released.shipped(name)
    found = confidence.read(folder)
    found.check(cascade.open_stage(folder).fingerprint(), folder)
    narrow, wide = (found.calibration.choose(conformal.Promise(share)) for share in (0.5, 0.9))
    assert np.array(wide.radii).min() > np.array(narrow.radii).min() > 0
