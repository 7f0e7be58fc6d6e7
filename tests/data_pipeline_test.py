"""Tests of sr3_jax.data.pipeline."""

import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sr3_jax import scaling
from sr3_jax.data import (
    array_source,
    degrade,
    depth,
    folders,
    photos,
    source_kinds,
    sources,
    windows,
)
from sr3_jax.data.pipeline import Pipeline, TooManyBadError

_CENTRAL = degrade.DegradeOptions(16, 4)
_RANDOM = degrade.DegradeOptions(16, 4, crop="random")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Seven images of different sizes, each of one colour with noise on it."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(7):
        noise = rng.integers(0, 30, (20 + 3 * i, 40 - 2 * i, 3))
        Image.fromarray((noise + 30 * i).astype(np.uint8)).save(root / f"{i}.png")
    return folders.folder(root)


def _take(batches, count):
    return list(itertools.islice(batches, count))


def _assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_shapes_and_types(source):
    batch = next(Pipeline(source, _RANDOM, batch_size=6).training_batches())
    found = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert found == {
        "high_resolution": ("uint8", (6, 16, 16, 3)),
        "low_resolution": ("uint8", (6, 4, 4, 3)),
        "weight": ("float32", (6,)),
        "index": ("int32", (6,)),
        "label": ("int32", (6,)),
    }


def test_every_image_comes_exactly_once_per_epoch_in_a_new_order(source):
    batches = _take(Pipeline(source, _RANDOM, batch_size=3).training_batches(), 28)
    epochs = np.concatenate([batch["index"] for batch in batches]).reshape(-1, len(source))
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(7), (12, 1)))
    assert len({tuple(epoch) for epoch in epochs}) > 10
    assert all((batch["weight"] == 1).all() for batch in batches)


def test_rows_hold_the_image_their_index_names(source):
    for batch in _take(Pipeline(source, _RANDOM, batch_size=4).training_batches(), 5):
        for key in ("high_resolution", "low_resolution"):
            # Image i has the levels 30 i to 30 i + 29.
            np.testing.assert_array_equal(batch[key].mean((1, 2, 3)) // 30, batch["index"])


def test_resuming_at_any_step_gives_the_tail_of_the_stream(source):
    whole = _take(Pipeline(source, _RANDOM, batch_size=3, seed=5).training_batches(), 9)
    for start in (1, 4, 7):
        pipeline = Pipeline(source, _RANDOM, batch_size=3, seed=5, num_threads=3)
        _assert_equal(_take(pipeline.training_batches(start), 9 - start), whole[start:])


def test_a_very_late_step_is_reached_at_once(source):
    pipeline = Pipeline(source, _RANDOM, batch_size=7)
    late = _take(pipeline.training_batches(10**9), 2)
    for batch in late:
        np.testing.assert_array_equal(np.sort(batch["index"]), np.arange(7))


@pytest.mark.parametrize("evaluation", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_slices_of_any_number_of_processes_make_up_the_global_batches(source, evaluation, count):
    """A restart with other processes goes on with the same examples: these are from a step on."""

    def batches(**kwargs):
        pipeline = Pipeline(source, _RANDOM, batch_size=4, seed=2, **kwargs)
        return _take(
            pipeline.evaluation_batches() if evaluation else pipeline.training_batches(3), 5
        )

    parts = [batches(process_index=i, process_count=count) for i in range(count)]
    joined = [
        {key: np.concatenate([part[key] for part in rows]) for key in rows[0]}
        for rows in zip(*parts, strict=True)
    ]
    _assert_equal(joined, batches())


def test_seed_decides_order_and_crops(source):
    def stream(seed):
        return _take(Pipeline(source, _RANDOM, batch_size=7, seed=seed).training_batches(), 3)

    _assert_equal(stream(1), stream(1))
    first, second = stream(1), stream(2)
    assert any((a["index"] != b["index"]).any() for a, b in zip(first, second, strict=True))


def test_crops_differ_from_epoch_to_epoch(source):
    batches = _take(Pipeline(source[-1:], _RANDOM, batch_size=1).training_batches(), 20)
    assert len({batch["high_resolution"].tobytes() for batch in batches}) >= 18


def test_evaluation_covers_each_image_once_in_order_by_central_crops(source):
    batches = list(Pipeline(source, _RANDOM, batch_size=4).evaluation_batches())
    index = np.concatenate([batch["index"] for batch in batches])
    weight = np.concatenate([batch["weight"] for batch in batches])
    np.testing.assert_array_equal(index, [0, 1, 2, 3, 4, 5, 6, -1])
    np.testing.assert_array_equal(weight, [1, 1, 1, 1, 1, 1, 1, 0])
    high = np.concatenate([batch["high_resolution"] for batch in batches])
    low = np.concatenate([batch["low_resolution"] for batch in batches])
    assert not high[7].any() and not low[7].any()
    for i, ref in enumerate(source):
        image = ref.read().image
        left, top, right, bottom = windows.central_box(*image.shape[:2])
        expected = degrade.make_pair(image[top:bottom, left:right], 16, 4)
        np.testing.assert_array_equal(high[i], expected[0])
        np.testing.assert_array_equal(low[i], expected[1])


def test_evaluating_twice_gives_the_same_with_and_without_cache(source):
    cached = Pipeline(source, _CENTRAL, batch_size=3)
    first = list(cached.evaluation_batches())
    _assert_equal(list(cached.evaluation_batches()), first)
    for cache_bytes in (0, 5000):
        pipeline = Pipeline(source, _CENTRAL, batch_size=3, cache_bytes=cache_bytes)
        _assert_equal(list(pipeline.evaluation_batches()), first)
        _assert_equal(list(pipeline.evaluation_batches()), first)


def test_cache_serves_images_whose_file_is_gone(tmp_path):
    Image.new("RGB", (20, 20), (1, 2, 3)).save(tmp_path / "a.png")
    pair = 3 * (16 * 16 + 4 * 4)
    kept, not_kept = (
        Pipeline(folders.folder(tmp_path), _CENTRAL, batch_size=1, cache_bytes=size)
        for size in (pair, pair - 1)
    )
    for pipeline in (kept, not_kept):
        assert list(pipeline.evaluation_batches())[0]["weight"] == [1]
    (tmp_path / "a.png").unlink()
    assert list(kept.evaluation_batches())[0]["weight"] == [1]
    assert list(not_kept.evaluation_batches())[0]["weight"] == [0]
    assert "no such file" in not_kept.skipped["a.png"]


@pytest.fixture
def partly_bad_folder(tmp_path):
    """Three good images, and one bad image of every kind."""
    good = Image.effect_noise((40, 30), 50).convert("RGB")
    good.save(tmp_path / "good.jpg")
    good.convert("CMYK").save(tmp_path / "cmyk.jpg")
    deep = np.random.default_rng(0).integers(0, 65536, (20, 20), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "16_bit.png")
    (tmp_path / "truncated.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:500])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "animated.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "animated.gif").rename(tmp_path / "animated.png")
    good.resize((15, 30)).save(tmp_path / "small.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "1x1.png")
    Image.new("L", (20_000, 15)).save(tmp_path / "wide.png")
    # More pixels than Pillow and the default limit allow.
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    return tmp_path


_GOOD = {"good.jpg", "cmyk.jpg", "16_bit.png"}
_TOO_SMALL = {"small.png", "1x1.png", "wide.png"}
_DAMAGED = {"truncated.jpg", "empty.png", "text.png", "animated.png", "huge.png"}


def test_unusable_images_keep_their_row_with_weight_0_and_are_counted_once(
    partly_bad_folder, caplog
):
    source = folders.folder(partly_bad_folder)
    pipeline = Pipeline(source, _RANDOM, batch_size=11)
    with caplog.at_level("WARNING", logger="absl"):
        batches = _take(pipeline.training_batches(), 3)
    for batch in batches:
        np.testing.assert_array_equal(np.sort(batch["index"]), np.arange(11))
        good = np.isin([source[i].name for i in batch["index"]], list(_GOOD))
        np.testing.assert_array_equal(batch["weight"], good.astype(np.float32))
        assert not batch["high_resolution"][~good].any()
        assert batch["high_resolution"][good].any((1, 2, 3)).all()
    assert set(pipeline.skipped) == _DAMAGED | _TOO_SMALL
    assert [len(kind) for kind in pipeline.unusable] == [len(pipeline.skipped) - 3, 3]
    assert pipeline.skipped["small.png"] == "too small: 15x30, need at least 16"
    assert pipeline.skipped["wide.png"] == "too small: 20000x15, need at least 16"
    for name in pipeline.skipped:
        assert sum(f"image {name}: " in record.getMessage() for record in caplog.records) == 1


def test_more_damaged_images_than_allowed_end_the_run_with_their_names(partly_bad_folder):
    source = folders.folder(partly_bad_folder)
    allowed = Pipeline(source, _RANDOM, batch_size=11, max_bad_share=5 / 11)
    assert len(_take(allowed.training_batches(), 3)) == 3
    for batches in ("training_batches", "evaluation_batches"):
        pipeline = Pipeline(source, _RANDOM, batch_size=11, max_bad_share=4.9 / 11)
        with pytest.raises(TooManyBadError, match="5 of 11 images are damaged, more than") as info:
            _take(getattr(pipeline, batches)(), 3)
        assert all(name in str(info.value) for name in _DAMAGED)
        assert not any(name in str(info.value) for name in _TOO_SMALL)


def test_a_file_deleted_during_training_is_skipped_from_then_on(tmp_path):
    for i in range(4):
        Image.new("RGB", (20, 20), (i, i, i)).save(tmp_path / f"{i}.png")
    pipeline = Pipeline(folders.folder(tmp_path), _CENTRAL, batch_size=4, cache_bytes=0)
    batches = pipeline.training_batches()
    assert next(batches)["weight"].all()
    (tmp_path / "2.png").unlink()
    after = _take(batches, 8)[-1]  # past what was read ahead
    np.testing.assert_array_equal(after["weight"], after["index"] != 2)
    assert "no such file" in pipeline.skipped["2.png"]


@pytest.mark.parametrize("evaluation", [False, True])
def test_a_source_with_nothing_usable_is_an_error_that_says_so(partly_bad_folder, evaluation):
    for name in _GOOD:
        (partly_bad_folder / name).unlink()
    pipeline = Pipeline(folders.folder(partly_bad_folder), _CENTRAL, batch_size=2)
    batches = pipeline.evaluation_batches() if evaluation else pipeline.training_batches()
    with pytest.raises(ValueError, match=r"no usable image.*all 8 images tried of 8.*\.png: "):
        _take(batches, 20)


def test_other_errors_surface_as_they_are(source, tmp_path):
    # A folder where a file should be stands for any trouble with reading, such as the network.
    refs = [*source, sources.FileRef("folder", str(tmp_path))]
    with pytest.raises(IsADirectoryError):
        list(Pipeline(refs, _CENTRAL, batch_size=2).evaluation_batches())


def test_empty_sources_and_uneven_batches_are_refused(source):
    with pytest.raises(ValueError, match="no image"):
        Pipeline([], _CENTRAL, batch_size=2)
    with pytest.raises(ValueError, match="5.*multiple of.*2"):
        Pipeline(source, _CENTRAL, batch_size=5, process_count=2)


def test_a_program_ends_though_an_iterator_is_in_the_middle_of_its_stream():
    # Without a cache all threads are decoding when the program comes to its end.
    code = (
        "from sr3_jax.data import degrade, photos, pipeline\n"
        "options = degrade.DegradeOptions(16, 4, crop='random')\n"
        "batches = pipeline.Pipeline(\n"
        "    photos.photos('train'), options, batch_size=8, cache_bytes=0, num_threads=4\n"
        ").training_batches()\n"
        "next(batches)\n"
    )
    root = pathlib.Path(sources.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=120)


def test_held_out_photos_are_all_usable_at_128():
    pipeline = Pipeline(photos.photos("held_out"), degrade.DegradeOptions(128, 16), batch_size=4)
    batches = list(pipeline.evaluation_batches())
    assert [batch["weight"].sum() for batch in batches] == [4, 4]
    assert not pipeline.skipped


def test_other_numbers_come_in_the_units_of_the_network(tmp_path):
    """Thirteen bands with missing values; what is missing in the data is missing in the batch."""
    rng = np.random.default_rng(0)
    values = rng.normal(280, 10, (5, 16, 16, 13)).astype(np.float32)
    values[2, :9, :9] = np.nan
    np.save(tmp_path / "scenes.npy", values)
    elevation = rng.normal(size=(1, 16, 16, 1)).astype(np.float32)
    np.save(tmp_path / "elevation.npy", elevation)
    path, maps = str(tmp_path / "scenes.npy"), str(tmp_path / "elevation.npy")
    place = source_kinds.Place("train", path, maps_path=maps, channels=13, maps=1)
    source = array_source.open_source(place)
    channels = depth.Channels(13, 13, 1, may_miss=True)
    how = dict(batch_size=5, dtype=np.float32, channels=channels)
    measuring = scaling.Measuring(13, len(source))
    for picture in Pipeline(source, _CENTRAL, **how).usable_pictures():
        measuring.add(picture.image)
    units = scaling.make("standardise", measuring.statistics())
    how |= {"scalings": scaling.Scalings(units, units)}
    batch = next(Pipeline(source, _CENTRAL, **how).evaluation_batches())
    np.testing.assert_array_equal(batch["maps"], elevation.repeat(5, axis=0))
    high, low = batch["high_resolution"], batch["low_resolution"]
    assert high.shape == (5, 16, 16, 13) and low.shape == (5, 4, 4, 13)
    np.testing.assert_allclose(units.to_values(high), values, rtol=1e-5)
    assert abs(np.nanmean(high)) < 1e-3 and np.nanstd(high) == pytest.approx(0.5, rel=1e-3)
    assert np.isnan(low[2, 0, 0]).all() and np.isnan(low).sum() == 4 * 13
    known = np.delete(values, 2, axis=0)
    expected = degrade.resize_bicubic(known, 4)
    np.testing.assert_allclose(units.to_values(np.delete(low, 2, axis=0)), expected, rtol=1e-5)
    # An image of other channels is damaged, and so are pictures that are no numbers of this type.
    for wrong, why in (
        (depth.Channels(3, 3), "it has 13 channels, and 3 are asked for"),
        (depth.Channels(13, 13, 2), "its maps have 1 channels, and 2 are asked for"),
    ):
        with pytest.raises(ValueError, match=why):
            next(Pipeline(source, _CENTRAL, **how | {"channels": wrong}).evaluation_batches())
    whole = Pipeline(source, _CENTRAL, **how | {"channels": depth.Channels(13, 13, 1)})
    list(whole.evaluation_batches())
    assert whole.skipped == {
        "scenes.npy[2]": "it has missing values (NaN); set config.data.missing=true"
    }
    with pytest.raises(ValueError, match="its values are float32; set config.data.dtype=float32"):
        next(Pipeline(source, _CENTRAL, batch_size=5, dtype=np.uint8).evaluation_batches())


def test_grey_pictures_are_one_channel(tmp_path, source):
    grey = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    made = Pipeline(folders.folder(tmp_path), _CENTRAL, batch_size=1, channels=depth.Channels(1, 1))
    batch = next(made.evaluation_batches())
    np.testing.assert_array_equal(batch["high_resolution"][0, ..., 0], grey)
    assert batch["low_resolution"].shape == (1, 4, 4, 1)
    colours = Pipeline(source, _CENTRAL, batch_size=7, channels=depth.Channels(1, 1))
    with pytest.raises(ValueError, match="it has colours, and 1 are asked for"):
        next(colours.evaluation_batches())
