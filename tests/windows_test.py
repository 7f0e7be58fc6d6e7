"""Windows that are no squares, and pairs whose factor is 1 or no whole number."""

import fractions
import json
import pathlib

import jax
import numpy as np
import pytest
import small_run
from etils import epath
from PIL import Image

from configs import arrays_4x
from sr3_jax import SuperResolver, jobs
from sr3_jax.config import changed, read
from sr3_jax.data import arrays, degrade, pairs, pipeline, resampling, source_kinds, windows
from sr3_jax.data.image_files import BadImageError
from sr3_jax.inference.inputs import UpscaleOptions
from sr3_jax.tools import export


def _places(height, width, step=1.0):
    """An image whose channels are the place of each pixel's centre, in units of `step` pixels."""
    y, x = np.meshgrid(*((np.arange(n) + 0.5) * step for n in (height, width)), indexing="ij")
    return np.stack([y, x, y * 0], axis=-1).astype(np.float32)


@pytest.mark.parametrize("size", [(200, 300), (300, 200), (96, 160), (97, 400)])
def test_boxes_have_the_shape_asked_for(size):
    options = degrade.DegradeOptions((96, 160), (24, 40), "random", (0.0, 1.0))
    random, seen = np.random.default_rng(0), []
    boxes = [windows.random_box(*size, options, random.uniform(size=3)) for _ in range(300)]
    for left, top, right, bottom in [*boxes, windows.central_box(*size, (96, 160))]:
        assert 0 <= left and 0 <= top and right <= size[1] and bottom <= size[0]
        tall, wide = bottom - top, right - left
        assert tall >= 96 and wide >= 160 and abs(tall * 160 / 96 - wide) < 1
        seen.append(tall)
    left, top, right, bottom = windows.central_box(*size, (96, 160))
    assert max(seen) == bottom - top == min(size[0], size[1] * 96 // 160)
    assert abs(left - (size[1] - right)) <= 1 and abs(top - (size[0] - bottom)) <= 1


@pytest.mark.parametrize("sizes", [((96, 160), (24, 40)), ((48, 96), (32, 64)), (45, 30)])
def test_both_sizes_cover_the_same_window(sizes):
    options = degrade.DegradeOptions(*sizes, "random")
    crop = degrade.cut(_places(211, 319), None, options, np.array([0.3, 0.6, 0.2]))
    ((high, low),) = degrade.make_pairs([crop], options)
    assert high.shape[:2] == degrade.sides(sizes[0]) and low.shape[:2] == degrade.sides(sizes[1])
    np.testing.assert_allclose(high.mean(axis=(0, 1)), low.mean(axis=(0, 1)), atol=0.1)


@pytest.mark.parametrize(
    ("ratio", "low_size", "size"),
    [
        ((3, 2), (40, 50), (60, 75)),
        ((3, 2), (41, 51), (61, 77)),
        ((3, 2), (41, 51), (62, 76)),
        ((4, 1), (40, 50), (163, 199)),
        ((1, 1), (64, 80), (64, 80)),
    ],
)
def test_windows_of_pairs_lie_on_whole_pixels_of_both(ratio, low_size, size):
    """What is more of one than of the other, a part of a low pixel, is left out at the end."""
    of_high, of_low = ratio
    options = degrade.DegradeOptions(8 * of_high, 8 * of_low, "random", (0.0, 0.4))
    assert options.ratio == fractions.Fraction(*ratio)
    high, low = _places(*size), _places(*low_size, of_high / of_low)
    for uniforms in (None, *np.random.default_rng(0).uniform(size=(20, 3))):
        crop = degrade.cut(high, low, options, uniforms)
        (ours, its), corner = crop[:2], crop.high[0, 0, :2] - 0.5
        np.testing.assert_allclose(its[0, 0, :2] - 0.5 * of_high / of_low, corner, atol=1e-4)
        assert ours.shape[0] * of_low == its.shape[0] * of_high
        exact = all(n * of_low == m * of_high for n, m in zip(size, low_size, strict=True))
        assert bool(crop.loss) == (not exact or any(n % of_low for n in low_size))
    with pytest.raises(BadImageError, match="times as many are needed"):
        degrade.cut(high[: -of_high - 4], low, options, None)


def test_what_is_left_out_is_counted_once(tmp_path):
    for i in range(3):
        _save(tmp_path / "high" / f"{i}.png", _places(33 + (i > 0), 32))
        _save(tmp_path / "low" / f"{i}x1.png", _places(22, 22, 1.5))
    place = source_kinds.Place("train", str(tmp_path / "high"), str(tmp_path / "low"))
    source = pairs.open_source(place)
    images = pipeline.Pipeline(source, degrade.DegradeOptions(24, 16), batch_size=3)
    for _ in range(2):
        assert next(images.evaluation_batches())["weight"].all()
    (loss,) = images.reader.losses
    assert "a part of a pixel, which is left out" in loss and images.reader.losses[loss] == 3


def _save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


@pytest.mark.parametrize("factor", [1.5, 4 / 3, 2.5])
@pytest.mark.parametrize("traced", [False, True])
def test_a_consistent_image_is_found_for_other_factors(factor, traced):
    random = np.random.default_rng(0)
    low = random.uniform(-0.6, 0.6, (1, 17, 22, 1)).astype(np.float32)
    size = tuple(round(n * factor) for n in low.shape[1:3])
    images = resampling.resize(low, factor, size) + random.normal(0, 0.1, (1, *size, 1))
    images = images.astype(np.float32)
    if traced:
        images, low = jax.numpy.asarray(images), jax.numpy.asarray(low)
    made = resampling.make_consistent(images, low, clip=False, factor=factor)
    down = resampling.resize(np.asarray(made), 1 / factor, low.shape[1:3])
    np.testing.assert_allclose(down, low, atol=2e-4)
    # The projection is orthogonal: of what it adds nothing is seen beside the low resolution.
    assert np.abs(made - images).max() < 1


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A run on pairs of pictures, 2 to 3, in windows of 24x48, and its folder."""
    root = epath.Path(tmp_path_factory.mktemp("pictures"))
    random = np.random.default_rng(0)
    for i in range(8):
        whole = random.uniform(0, 255, (10, 10, 3)).astype(np.uint8)
        picture = Image.fromarray(whole).resize((98, 62), Image.BICUBIC)
        _save(pathlib.Path(root / "high" / f"{i:04d}.png"), np.asarray(picture)[: 61 + i % 2])
        _save(pathlib.Path(root / "low" / f"{i:04d}x2.png"), picture.resize((65, 41)))
    values = small_run.OVERRIDES | {
        "data.source": "folder_pairs",
        "data.path": str(root / "high"),
        "data.low_path": str(root / "low"),
        "data.num_eval_images": 2,
        "data.image_size": (24, 48),
        "data.low_resolution": (16, 32),
        "evaluation.image_size": (24, 48),
        "train.num_steps": 4,
        "train.sample_every_steps": 4,
        "sampling.tile_size": 64,
    }
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    config = changed(read(small_run.config()), values)
    jobs.train(config, root / "run")
    return root


def test_windows_of_pictures_train_and_are_scored(pictures):
    folder = pictures / "run" / "evaluation"
    scores = json.loads((folder / "metrics.json").read_text())
    assert scores["sr3"]["n"] == 2 and scores["bicubic"]["psnr"] > 20
    said = (folder / "report.md").read_text()
    assert "resized by area to 24x48" in said and "Inputs: 16x32, those that come with" in said
    assert (folder / "samples.png").exists()
    made = next((folder / "images" / "sr3").glob("*.png"))
    assert Image.open(made).size == (48, 24)


def test_another_factor_upscales_files_and_exports(pictures, tmp_path):
    network = SuperResolver.from_workdir(pictures / "run", consistent=True)
    assert network.factor == 1.5
    low = np.asarray(Image.open(pictures / "low" / "0001x2.png"))
    made = network.upscale(low)
    assert made.shape == (62, 98, 3)  # 61.5 and 97.5, rounded to even
    down = resampling.resize(made[None].astype(np.float32), 1 / 1.5, low.shape[:2])[0]
    assert np.abs(down - low).mean() < 0.5
    assert network.upscale(low, factor=3).shape == (123, 195, 3)
    assert network.upscale(low, factor=1).shape == low.shape
    assert jobs.upscale(pictures / "run", pictures / "low", epath.Path(tmp_path) / "made") == 0
    assert Image.open(tmp_path / "made" / "0001x2.png").size == (98, 62)
    plan = export.make_plan(read(network_config(pictures)), (16, 32), platforms=("cpu",))
    assert plan.large_size == (24, 48)
    with pytest.raises(ValueError, match="has parts of pixels; give a --size of mult"):
        export.make_plan(read(network_config(pictures)), (17, 32), platforms=("cpu",))


def network_config(root):
    return json.loads((root / "run" / "config.json").read_text())


def _arrays_of(root, **values):
    """The config of a training of two steps on fields, two of which are held out."""
    small = {
        "data.channels": 1,
        "data.num_eval_images": 2,
        "model.channels": 8,
        "model.multipliers": [1],
        "train.num_steps": 2,
        "train.batch_size": 4,
        "train.num_warmup_steps": 1,
        "train.num_decay_steps": 1,
        "train.sample_every_steps": 0,
        "sampling.num_steps": 2,
        "sampling.tile_size": 32,
        "data.path": str(root / "clean"),
    }
    return changed(read(arrays_4x.get_config()), small | values)


def test_restoration_has_the_factor_1(tmp_path):
    """Noisy fields and clean ones of the same size, in windows of 16x24."""
    root, random = epath.Path(tmp_path), np.random.default_rng(0)
    for folder in ("clean", "noisy"):
        (root / folder).mkdir()
    for i in range(6):
        field = random.normal(size=(20, 33)).cumsum(axis=0) * 3.0 + 280
        np.save(root / "clean" / f"{i}.npy", field)
        np.save(root / "noisy" / f"{i}.npy", field + random.normal(size=field.shape))
    sizes = {"data.image_size": [16, 24], "data.low_resolution": [16, 24]}
    config = _arrays_of(root, **sizes, **{"data.low_path": str(root / "noisy")})
    jobs.train(config, root / "run")
    scores = json.loads((root / "run" / "evaluation" / "metrics.json").read_text())
    assert scores["bicubic"]["rmse[0]"] == pytest.approx(1.0, rel=0.1)  # the noise
    options = UpscaleOptions()
    assert jobs.upscale(root / "run", root / "noisy", root / "made", options) == 0
    assert arrays.open_file(str(root / "made" / "0.npy")).shape == (20, 33, 1)
    # The same fields by a factor of 4 to 3, without low resolutions of their own.
    sizes = {"data.image_size": [16, 32], "data.low_resolution": [12, 24]}
    jobs.train(_arrays_of(root, **sizes), root / "another")
    assert (root / "another" / "evaluation" / "samples.png").exists()
    jobs.upscale(root / "another", root / "noisy" / "1.npy", root / "made", overwrite=True)
    assert arrays.open_file(str(root / "made" / "1.npy")).shape == (27, 44, 1)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"data.image_size": 64, "data.low_resolution": 64}, "the source would be y_0 itself"),
        ({"data.image_size": [64, 96]}, "is not of the shape of"),
        ({"data.image_size": 32, "data.low_resolution": 64}, "at most as large"),
        (
            {
                "data.image_size": [64, 90],
                "data.low_resolution": [32, 45],
                "model.multipliers": [1, 1, 1, 1],
            },
            r"\(64, 88\) or \(64, 96\) would do",
        ),
        ({"evaluation.image_size": 50}, "not a multiple of 4"),
        ({"data.image_size": [64, 96, 3]}, "has 3 items; give 2"),
        ({"data.image_size": "64"}, r"give a whole number, or \(height, width\)"),
        ({"data.image_size": [64, 96], "data.low_resolution": 0}, "makes squares; give one number"),
        (
            {"degradation.jpeg": [30, 90], "data.source": "folder_pairs"},
            "'folder_pairs' has its own",
        ),
        ({"degradation.resize_kernels": []}, "resize_kernels is empty; name one at least"),
        ({"degradation.noise": [9.0, 1.0]}, "must not decrease"),
        ({"degradation.blur_kernels": ["round"]}, "'round' is unknown; use one of gaussian"),
    ],
)
def test_sizes_that_cannot_work_are_told(values, why):
    with pytest.raises(ValueError, match=why):
        changed(read(small_run.config()), values)


def test_a_pair_of_equal_sides_is_a_square():
    config = changed(read(small_run.config()), {"data.image_size": [16, 16]})
    assert config == read(small_run.config())
