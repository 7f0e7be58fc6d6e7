"""Thirteen bands with elevation beside, in float32 with missing values: a whole run."""

import json
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from etils import epath

from configs import arrays_4x
from sr3_jax import SuperResolver, conformal, jobs
from sr3_jax.config import changed, networks, read, run_file
from sr3_jax.data import arrays, degrade
from sr3_jax.inference import confidence
from sr3_jax.inference.inputs import UpscaleOptions
from sr3_jax.jobs import initial_weights, releasing
from sr3_jax.tools import export

rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")

_BANDS = 13
_ORIGIN = (500_000.0, 4_600_000.0)


def _write(path, values, pixel, nodata=-9999.0):
    """Writes a GeoTIFF as rasterio does; NaN becomes nodata."""
    height, width, count = values.shape
    stored = np.where(np.isnan(values), nodata, values).astype(np.float32)
    where = rasterio.transform.from_origin(*_ORIGIN, pixel, pixel)
    path.parent.mkdir(parents=True, exist_ok=True)
    how = dict(driver="GTiff", height=height, width=width, count=count, dtype="float32")
    with rasterio.open(path, "w", nodata=nodata, transform=where, crs="EPSG:32633", **how) as file:
        file.write(np.moveaxis(stored, -1, 0))


def _scene(rng, height, width):
    """Bands in thousands, some of which follow the elevation; a corner is missing."""
    elevation = rng.normal(size=(height, width, 1)).cumsum(axis=0).cumsum(axis=1) * 5.0
    noise = rng.normal(size=(height, width, _BANDS)).cumsum(axis=1) * 40.0
    bands = 2000.0 + 10.0 * np.arange(_BANDS) + noise + 0.3 * elevation
    bands[: height // 5, : width // 4] = np.nan
    return bands, elevation


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the folder of a run of six steps, its images and its config."""
    root, rng = epath.Path(tmp_path_factory.mktemp("bands")), np.random.default_rng(0)
    for i in range(6):
        bands, elevation = _scene(rng, 24, 28)
        _write(root / "scenes" / f"{i}.tif", bands, 10.0)
        _write(root / "elevation" / f"{i}.tif", elevation, 10.0)
    config = changed(
        read(arrays_4x.get_config()),
        {
            "data.path": str(root / "scenes"),
            "data.maps_path": str(root / "elevation"),
            "data.channels": _BANDS,
            "data.maps": 1,
            "data.missing": True,
            "data.num_eval_images": 2,
            "data.image_size": 16,
            "data.low_resolution": 4,
            "model.channels": 8,
            "model.multipliers": [1],
            "train.num_steps": 6,
            "train.batch_size": 4,
            "train.num_warmup_steps": 1,
            "train.num_decay_steps": 1,
            "train.sample_every_steps": 6,
            "checkpoint.every_steps": 3,
            "checkpoint.keep_last": 3,
            "sampling.num_steps": 2,
            "sampling.tile_size": 64,
            "sampling.tile_overlap": 16,
            "evaluation.image_size": 16,
            "evaluation.num_samples": 2,
        },
    )
    jobs.train(config, root / "run")
    return root, config


def test_it_trains_and_resumes_to_the_bit(run, tmp_path):
    root, config = run
    kept = run_file.load(root / "run" / "config.json")
    assert len(kept.units.least) == _BANDS + 1 and kept.model.sigma_data > 0
    again = epath.Path(tmp_path / "again")
    shutil.copytree(root / "run", again)
    shutil.rmtree(again / "checkpoints" / "6")
    jobs.train(config, again)
    small_run.assert_same_arrays(
        small_run.read_checkpoint(root / "run", 6), small_run.read_checkpoint(again, 6)
    )


def test_it_is_scored_by_channel_in_its_units(run):
    root, _ = run
    folder = root / "run" / "evaluation"
    scores = json.loads((folder / "metrics.json").read_text())
    for row in scores.values():
        assert row["n"] == 2 and row["rmse[0]"] > 1 and np.isfinite(row["crps[12]"])
        assert "psnr" not in row
    assert scores["bicubic"]["spread_skill"] == 0 < scores["sr3"]["spread_skill"]
    for name in ("samples.png", "spectra.png", "refinement.png", "report.html"):
        assert (folder / name).exists()
    report = (folder / "report.md").read_text()
    assert "| 12 | sr3 |" in report and "spectra.png" in report
    with np.load(next((folder / "images" / "sr3").glob("*.npz"))) as made:
        assert made["values"].shape == (16, 16, _BANDS)
    for picture in (folder / "images").glob("*/*.png"):
        raise AssertionError(f"{picture} has levels")


def test_intervals_are_in_the_units_of_the_data(run, tmp_path):
    """Of 24 scenes, with maps and missing values; the ends have place and nodata as the mean."""
    root, _ = run
    folder, rng = epath.Path(tmp_path), np.random.default_rng(5)
    for i in range(24):
        bands, elevation = _scene(rng, 24, 28)
        _write(folder / "scenes" / f"{i}.tif", bands, 10.0)
        _write(folder / "elevation" / f"{i}.tif", elevation, 10.0)
    shutil.copytree(root / "run", folder / "run", ignore=shutil.ignore_patterns("evaluation"))
    values = {"data.eval_path": "scenes", "data.eval_maps_path": "elevation"}
    values = {key: str(folder / name) for key, name in values.items()}
    config = run_file.load(folder / "run" / "config.json")
    config = changed(config, values | {"calibration.num_samples": 3})
    jobs.calibrate(config, folder / "run", {})
    coverage = json.loads((folder / "run" / "calibration" / "coverage.json").read_text())
    half_widths = [row["half_width"] for row in coverage["rows"] if row["found"]]
    assert min(half_widths) > 1.0  # of thousands
    low = degrade.resize_bicubic(_scene(rng, 32, 32)[0].astype(np.float32), (8, 8))
    _write(folder / "in" / "scene.tif", low, 40.0)
    _write(folder / "maps" / "scene.tif", _scene(rng, 32, 32)[1], 10.0)
    promise = conformal.Promise(0.5)
    options = UpscaleOptions(maps=str(folder / "maps"), are_arrays=True)
    options = confidence.with_band(options, folder / "run", promise)
    made = folder / "made"
    assert jobs.upscale(folder / "run", folder / "in", made, options) == 0
    lower, mean, upper = (
        arrays.open_file(made / f"scene{part}.tif") for part in (".lower", "", ".upper")
    )
    values = [file.read(0) for file in (lower, mean, upper)]
    known = np.isfinite(values[1])
    assert known.any() and not known.all()
    assert all((np.isfinite(each) == known).all() for each in values)
    widths = (values[2] - values[0])[known]
    assert (widths > 0).all() and len(np.unique(widths.round(3))) > 20
    np.testing.assert_allclose((values[2] + values[0])[known] / 2, values[1][known], rtol=1e-5)
    with rasterio.open(made / "scene.upper.tif") as file:
        assert file.transform == rasterio.transform.from_origin(*_ORIGIN, 10.0, 10.0)
        assert file.nodata == -9999.0
    assert sorted(path.name for path in made.glob("*.tif")) == sorted(
        f"scene{part}.tif" for part in ("", ".lower", ".upper", *(f".sample_{k}" for k in range(3)))
    )


@pytest.fixture(scope="module")
def scene(run):
    """Returns the folder of a scene larger than a tile, its low resolution and its maps."""
    root, _ = run
    bands, elevation = _scene(np.random.default_rng(1), 128, 64)
    low = degrade.resize_bicubic(bands.astype(np.float32), (32, 16))
    _write(root / "small" / "scene.tif", low, 40.0)
    _write(root / "maps" / "scene.tif", elevation, 10.0)
    return root, low, elevation


def test_a_scene_comes_back_with_its_place_and_what_is_missing(scene):
    root, low, elevation = scene
    options = UpscaleOptions(num_samples=2, maps=str(root / "maps"))
    made = root / "made"
    assert jobs.upscale(root / "run", root / "small", made, options) == 0
    with rasterio.open(made / "scene.tif") as file:
        assert (file.height, file.width, file.count) == (128, 64, _BANDS)
        assert file.transform == rasterio.transform.from_origin(*_ORIGIN, 10.0, 10.0)
        assert (file.crs.to_epsg(), file.nodata, file.dtypes[0]) == (32633, -9999.0, "float32")
        mean = np.moveaxis(file.read(masked=True).filled(np.nan), 0, -1)
    members = [arrays.open_file(made / f"scene.sample_{k}.tif").read(0) for k in (0, 1)]
    np.testing.assert_allclose(np.mean(members, axis=0), mean, rtol=1e-6)
    assert np.nanstd(members[0] - members[1]) > 0
    missing = np.isnan(mean)
    assert missing[:20, :12].all() and not missing[32:].any() and not missing[:, 24:].any()
    # The first member is the one that a network gives alone.
    network = SuperResolver.from_workdir(root / "run")
    seed = UpscaleOptions().seed_of("scene.tif")
    alone = network.upscale(low[None], seed=[seed], maps=elevation)[0]
    np.testing.assert_allclose(alone, members[0], rtol=1e-5)


def test_zarr_comes_back_as_zarr_and_is_made_once(scene):
    xarray = pytest.importorskip("xarray", reason="xarray is not installed")
    root, low, _ = scene
    names = [f"band_{i:02d}" for i in range(_BANDS)]
    small = xarray.Dataset(
        {name: (("y", "x"), low[..., i]) for i, name in enumerate(names)},
        {"x": 40.0 * np.arange(16) + 20, "y": -40.0 * np.arange(32)},
        {"source": "a test"},
    )
    small.to_zarr(str(root / "zarr" / "deep" / "scene.zarr"))
    small.to_zarr(str(root / "zarr" / "older.zarr"), zarr_format=2)
    options, made = UpscaleOptions(maps=str(root / "maps" / "scene.tif")), root / "made_zarr"
    assert jobs.upscale(root / "run", root / "zarr", made, options) == 0
    assert (made / "older.zarr" / ".zgroup").exists()
    older = xarray.open_zarr(str(made / "older.zarr"))
    assert older.band_12.shape == (128, 64)
    large = xarray.open_zarr(str(made / "deep" / "scene.zarr"))
    assert [*large] == names and large.attrs == small.attrs
    assert large.band_03.shape == (128, 64) and large.band_03.dtype == np.float32
    np.testing.assert_allclose(large.x[:3], [5.0, 15.0, 25.0])
    assert np.isnan(large.band_00[:20, :12]).all() and not np.isnan(large.band_00[32:]).any()
    before = (made / "deep" / "scene.zarr" / "zarr.json").stat().mtime
    assert jobs.upscale(root / "run", root / "zarr", made, options) == 0
    assert (made / "deep" / "scene.zarr" / "zarr.json").stat().mtime == before
    # A folder that was not made here is left alone.
    (root / "theirs" / "deep").mkdir(parents=True)
    small.to_zarr(str(root / "theirs" / "deep" / "scene.zarr"))
    with pytest.raises(ValueError, match="no row of the manifest"):
        jobs.upscale(root / "run", root / "zarr", root / "theirs", options)


def test_tiles_leave_no_seam(scene):
    root, low, elevation = scene
    # Of one height and width of the padded image, whole and cut, so that the noise is the same.
    made = [
        SuperResolver.from_workdir(root / "run", tile_size=size, num_steps=4).upscale(
            low[:16], maps=elevation[:64]
        )
        for size in (64, 32)
    ]
    apart = np.abs(made[1] - made[0])
    assert np.nanmax(apart) < 0.02 * np.nanstd(made[0])


def test_values_beyond_the_training_are_told(scene, tmp_path):
    root, low, elevation = scene
    other = epath.Path(tmp_path) / "other.npy"
    np.save(other, low + np.where(np.arange(_BANDS) == 4, 1e6, 0.0))
    np.save(tmp_path / "elevation.npy", elevation)
    options = UpscaleOptions(maps=str(tmp_path / "elevation.npy"))
    assert jobs.upscale(root / "run", other, epath.Path(tmp_path) / "made", options) == 0
    (row,) = (tmp_path / "made" / "manifest.jsonl").read_text().splitlines()
    assert "100% of 4 are outside" in json.loads(row)["note"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "the network takes 1 maps: give --maps"),
        ({"maps": "nowhere"}, "--maps=nowhere does not exist"),
        ({"maps": ".", "factor": 2.0}, "--factor is for pictures"),
        ({"maps": ".", "format": "png"}, "--format is for pictures"),
    ],
)
def test_what_cannot_be_upscaled_is_told_before(scene, tmp_path, given, why):
    root, *_ = scene
    with pytest.raises(ValueError, match=why):
        jobs.upscale(
            root / "run", root / "small", epath.Path(tmp_path) / "made", UpscaleOptions(**given)
        )


def test_the_python_interface_names_what_is_wrong(scene):
    root, low, elevation = scene
    network = SuperResolver.from_workdir(root / "run")
    for given, why in (
        (dict(images=low), "takes 1 maps, and none were given"),
        (dict(images=low[..., :3], maps=elevation), "real numbers of shape"),
        (dict(images=low, maps=elevation[:8]), "give \\[128, 64, 1\\] for all images"),
        (dict(images=np.full_like(low, np.inf), maps=elevation), "infinite values"),
        (dict(images=low, maps=np.full_like(elevation, np.nan)), "maps have missing values"),
        (dict(images=low, maps=elevation, factor=3), "takes its own alone, 4"),
    ):
        with pytest.raises(ValueError, match=why):
            network.upscale(**given)


def test_its_export_gives_the_same_numbers(scene, tmp_path):
    root, low, elevation = scene
    config = run_file.load(root / "run" / "config.json")
    plan = export.make_plan(config, (16, 16), platforms=("cpu",))
    network = SuperResolver.from_workdir(root / "run")
    program = export.export_sampler(plan, network.params)
    export.write(str(tmp_path / "export"), plan, network.params, program)
    np.save(tmp_path / "low.npy", low[:16])
    np.save(tmp_path / "maps.npy", elevation[:64])
    command = [sys.executable, "run.py", "../low.npy", "../made.npy", "--maps=../maps.npy"]
    subprocess.run(command, cwd=tmp_path / "export", check=True, timeout=300)
    made = np.load(tmp_path / "made.npy")
    expected = network.upscale(low[None, :16], seed=[0], maps=elevation[:64])[0]
    np.testing.assert_array_equal(np.isnan(made), np.isnan(expected))
    np.testing.assert_allclose(made, expected, atol=1e-3 * np.nanstd(expected))


def test_weights_move_to_other_channels(run, tmp_path):
    """What two networks have in common does what it did; what is new does nothing at first."""
    root, config = run
    wider = changed(
        config, {"data.channels": 15, "data.maps": 2, "train.initial_weights": str(root / "run")}
    )
    _, found = initial_weights.find(wider, "train.initial_weights")
    before = initial_weights.read(found)
    after = initial_weights.with_channels(before, config, wider)
    one, other = (networks.denoiser(of) for of in (config, wider))
    rng = np.random.default_rng(0)
    draw = lambda channels: jnp.asarray(rng.normal(size=(2, 8, 8, channels)), jnp.float32)  # noqa: E731
    low, known, maps, y_t = draw(15), jnp.ones((2, 8, 8, 15)), draw(2), draw(15)
    x_of = lambda c, m: jnp.concatenate([low[..., :c], known[..., :c], maps[..., :m]], -1)  # noqa: E731
    gamma = jnp.full(2, 0.5)
    made = one(before, x_of(13, 1), y_t[..., :13], gamma)
    again = other(after, x_of(15, 2), y_t, gamma)
    np.testing.assert_allclose(again[..., :13], made, atol=1e-5)
    back = initial_weights.with_channels(after, wider, config)
    small_run.assert_same_arrays([before] * 2, [back] * 2)
    # A single channel sees and makes what a grey picture has in each of several.
    grey = changed(config, {"data.channels": 1})
    single = initial_weights.with_channels(before, config, grey)
    same, noisy = (jnp.broadcast_to(part[..., :1], (2, 8, 8, 13)) for part in (low, y_t))
    inputs = jnp.concatenate([same, known[..., :13], maps[..., :1]], axis=-1)
    kernel = {"params": before}, {"params": single}
    expected = one.network.apply(kernel[0], inputs, noisy, gamma).mean(axis=-1)
    of_one = networks.model(grey).apply(kernel[1], x_of(1, 1), y_t[..., :1], gamma)
    np.testing.assert_allclose(of_one[..., 0], expected, atol=1e-5)


def test_frozen_parameters_stay_and_the_others_learn(run, tmp_path):
    root, config = run
    frozen = changed(
        config,
        {
            "train.initial_weights": str(root / "run"),
            "train.frozen": ["down_*", "*/norm_*"],
            "train.num_steps": 2,
            "checkpoint.every_steps": 2,
        },
    )
    jobs.train(frozen, epath.Path(tmp_path) / "frozen")
    before = small_run.read_checkpoint(root / "run", 6)["ema_params"]
    after = small_run.read_checkpoint(tmp_path / "frozen", 2)["params"]
    np.testing.assert_array_equal(
        before["down_0_block_0"]["conv_0"]["kernel"], after["down_0_block_0"]["conv_0"]["kernel"]
    )
    np.testing.assert_array_equal(
        before["up_0_block_0"]["norm_0"]["scale"], after["up_0_block_0"]["norm_0"]["scale"]
    )
    assert (before["conv_in"]["kernel"] != after["conv_in"]["kernel"]).any()
    wrong = changed(frozen, {"train.frozen": ["encoder*"]})
    with pytest.raises(ValueError, match="'encoder\\*', which matches no parameter.*conv_in"):
        jobs.train(wrong, epath.Path(tmp_path) / "wrong")


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"data.dtype": "uint8"}, "need a scaling, and levels have none"),
        ({"data.low_resolution": 0}, "is for networks with a source"),
        ({"data.source_channels": 3}, "must be at least config.data.channels = 13"),
        ({"sampling.clip": True}, "'standardise' have no limits"),
        ({"sampling.consistent": True}, "needs whole images"),
        ({"units.least": [0.0, 1.0]}, "has 2 numbers; give 14, for 14 channels"),
        ({"data.maps": 0}, "but config.data.maps is 0"),
        ({"evaluation.feature_metrics": ["fid"]}, "are of pictures"),
    ],
)
def test_options_that_numbers_cannot_have_are_told(run, values, why):
    _, config = run
    with pytest.raises(ValueError, match=why):
        changed(config, values)


def test_schedules_of_numbers_are_not_tuned(run):
    root, _ = run
    with pytest.raises(ValueError, match="schedules are tuned on pictures"):
        jobs.tune_schedule(run_file.load(root / "run" / "config.json"), root / "run", None)


def test_its_card_says_what_it_takes(run, tmp_path):
    root, _ = run
    releasing.push(root / "run", str(tmp_path / "card"))
    card = (tmp_path / "card" / "README.md").read_text()
    assert "Upscales arrays of 13 channels, which are 0 (" in card and "with 1 maps beside" in card
    assert "photographs" not in card
