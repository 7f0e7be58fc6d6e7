"""Tests of sr3_jax.data.depth: pictures of 8 and 16 bits in batches, and the losses counted."""

import itertools
import re
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
from PIL import Image

from configs import default
from sr3_jax.config import image_sets, read
from sr3_jax.data import degrade, depth, folders, image_files, prepared, sources
from sr3_jax.data.pipeline import Pipeline

_ALL = np.arange(65536, dtype=np.uint16)
_OPTIONS = degrade.DegradeOptions(16, 4)


class _Ref(NamedTuple):
    """A picture in memory."""

    name: str
    picture: sources.Picture

    def read(self):
        return self.picture


def _refs(*images, **others):
    return [_Ref(f"{i}", sources.Picture(image, **others)) for i, image in enumerate(images)]


def _noise(dtype, size=16, levels=None, seed=0):
    levels = levels or int(np.iinfo(dtype).max) + 1
    return np.random.default_rng(seed).integers(0, levels, (size, size, 3)).astype(dtype)


def _high(pipeline):
    """Returns the high resolutions of all images in their order, by central crops."""
    batches = list(pipeline.evaluation_batches())
    return np.concatenate([b["high_resolution"][b["weight"] > 0] for b in batches])


def test_8_bits_come_back_from_16_and_16_bits_are_rounded_as_everywhere():
    levels = np.arange(256, dtype=np.uint8)
    wide = depth.convert(levels, np.uint16)
    np.testing.assert_array_equal(wide, 257 * np.arange(256))
    np.testing.assert_array_equal(depth.convert(wide, np.uint8), levels)
    np.testing.assert_array_equal(depth.convert(_ALL, np.uint8), image_files.to_8_bits(_ALL))


@pytest.mark.parametrize("white", [255, 4095, 16383, 65535])
def test_white_becomes_the_largest_value_and_no_level_is_lost(white):
    made = depth.convert(_ALL, np.uint16, white)
    assert made[0] == 0 and made[white] == 65535 and (made[white:] == 65535).all()
    assert len(np.unique(made)) == white + 1
    np.testing.assert_allclose(made[: white + 1] / 65535, _ALL[: white + 1] / white, atol=1e-5)
    assert len(np.unique(depth.convert(_ALL, np.uint8, white))) == 256
    # 8-bit pictures have a white of their own.
    np.testing.assert_array_equal(
        depth.convert(np.uint8([7, 255]), np.uint16, white), [1799, 65535]
    )


def test_degradation_is_that_of_8_bits_but_for_rounding():
    image = _noise(np.uint8, 61)
    narrow, wide = (degrade.make_pair(each, 20, 5) for each in (image, image * np.uint16(257)))
    # Rounding to 8 bits, once for the high resolution; twice, and by bicubic, for the low one.
    for small, large, most in zip(narrow, wide, (0.501, 1.5), strict=True):
        assert large.dtype == np.uint16 and len(np.unique(large)) > len(np.unique(small))
        assert np.abs(large / 257 - small).max() <= most
    exact = degrade.make_pair(image[:20, :20], 20, 5)[1]
    unrounded = degrade.make_pair(image[:20, :20] * np.uint16(257), 20, 5)[1] / 257
    assert np.abs(unrounded - exact).max() <= 0.501
    # Bicubic overshoots at this edge, beyond 0 and white.
    edge = np.repeat(np.uint16([0] * 16 + [65535] * 16), 3).reshape(1, 32, 3).repeat(32, 0)
    low = degrade.make_pair(edge, 32, 8)[1]
    assert low[:, :4].max() < 6000 and low[:, 4:].min() > 60000
    assert low.min() == 0 and low.max() == 65535


@pytest.fixture(scope="module")
def twelve_bits(tmp_path_factory):
    """A folder of 12-bit values in 16-bit files, grey PNG and RGB TIFF, and the values."""
    root, values = tmp_path_factory.mktemp("twelve"), []
    for i in range(4):
        image = _noise(np.uint16, levels=4096, seed=i)
        if i % 2:
            tifffile.imwrite(root / f"{i}.tif", image, photometric="rgb")
        else:
            image = np.repeat(image[..., :1], 3, axis=2)
            Image.fromarray(image[..., 0]).save(root / f"{i}.png")
        values.append(image)
    return root, np.stack(values)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_all_bits_of_files_are_in_the_batch(twelve_bits, cache_bytes):
    root, values = twelve_bits
    source = folders.folder(root)
    pipeline = Pipeline(source, _OPTIONS, batch_size=3, cache_bytes=cache_bytes)
    for _ in range(2):
        np.testing.assert_array_equal(_high(pipeline), values)
    white = Pipeline(source, _OPTIONS, batch_size=3, white_level=4095, cache_bytes=cache_bytes)
    high = _high(white)
    np.testing.assert_allclose(high, values * (65535 / 4095), atol=0.5)
    assert [len(np.unique(a)) for a in high] == [len(np.unique(a)) for a in values]
    batch = next(white.evaluation_batches())
    assert batch["low_resolution"].dtype == np.uint16
    assert len(np.unique(batch["low_resolution"])) > 64
    random = degrade.DegradeOptions(8, 4, crop="random")
    for batch in itertools.islice(Pipeline(source, random, batch_size=4).training_batches(), 4):
        assert batch["high_resolution"].dtype == np.uint16
        assert all(len(np.unique(image)) > 60 for image in batch["high_resolution"])


def test_prepared_images_keep_their_bits(twelve_bits, tmp_path):
    root, values = twelve_bits
    plan = prepared.Plan(folders.folder(root), str(tmp_path / "prepared"), 16, 3)
    for part in prepared.begin(plan):
        prepared.write_file(plan, part)
    prepared.finish(plan)
    opened = prepared.open_prepared(plan.output, 16)
    np.testing.assert_array_equal(_high(Pipeline(opened, _OPTIONS, batch_size=2)), values)


def test_the_type_is_that_of_the_first_picture_that_can_be_read(tmp_path):
    (tmp_path / "0.png").write_text("no image")
    deep, flat = _noise(np.uint16), _noise(np.uint8)
    for name, image in (("1.tif", deep), ("2.tif", flat)):
        tifffile.imwrite(tmp_path / name, image, photometric="rgb")
    mixed = folders.folder(tmp_path)
    pipeline = Pipeline(mixed, _OPTIONS, batch_size=3)
    np.testing.assert_array_equal(_high(pipeline), [deep, flat * np.uint16(257)])
    assert not pipeline.reader.losses and not pipeline.reader.range_warning
    assert Pipeline(mixed[2:], _OPTIONS, batch_size=1).dtype == np.uint8
    assert Pipeline(mixed[:1], _OPTIONS, batch_size=1).dtype == np.uint8


def test_what_is_lost_is_counted_once_and_logged_with_one_name(caplog):
    source = _refs(
        *(_noise(np.uint16, seed=i) for i in range(3)), notes=("of two pages the first",)
    )
    source += [_Ref("flat", sources.Picture(_noise(np.uint8)))]
    options = {"dtype": np.uint8, "white_level": 40000, "cache_bytes": 0}
    pipeline = Pipeline(source, _OPTIONS, batch_size=2, **options)
    for _ in range(2):
        high = _high(pipeline)
        list(itertools.islice(pipeline.training_batches(), 5))
    assert high.dtype == np.uint8
    assert pipeline.reader.losses == {
        "16 bits, read at 8; config.data.dtype=uint16 keeps them": 3,
        "values above config.data.white_level=40000 are clipped": 3,
        "of two pages the first": 3,
    }
    for loss in pipeline.reader.losses:
        assert sum(loss in record.getMessage() for record in caplog.records) == 1
    assert any(re.match("image [0-9]+: 16 bits", r.getMessage()) for r in caplog.records)


def test_a_small_part_of_the_range_is_said_once_where_all_images_have_it(caplog):
    dark = [_noise(np.uint16, levels=4000, seed=i) for i in range(3)]
    dark[1][3, 4] = 4080
    message = "16-bit values reach 4080 of 65535: set config.data.white_level=4095"

    def warned(source, **options):
        caplog.clear()
        pipeline = Pipeline(source, _OPTIONS, batch_size=2, cache_bytes=0, **options)
        list(itertools.islice(pipeline.training_batches(), 6))
        assert all(pipeline.reader.range_warning in r.getMessage() for r in caplog.records)
        return pipeline.reader.range_warning, len(caplog.records)

    warning, count = warned(_refs(*dark))
    assert warning.startswith(message) and count == 1
    # Also where the source is far larger than what is read of it, but not of the first alone.
    assert warned(_refs(*dark * 100))[1] == 0
    for source, options in (
        (_refs(*dark, _noise(np.uint16)), {}),
        (_refs(*dark), {"white_level": 65535}),
        (_refs(*dark), {"white_level": 4095}),
        (_refs(_noise(np.uint8)), {}),
        (_refs(np.zeros((16, 16, 3), np.uint16)), {}),
    ):
        assert warned(source, **options) == ("", 0)


def test_a_pair_may_be_of_two_depths():
    high = _noise(np.uint8, 32)
    low = _noise(np.uint16, 8)
    [ref] = _refs(high, low_resolution=low)
    for dtype in (np.uint8, np.uint16):
        [batch] = Pipeline(
            [ref], degrade.DegradeOptions(32, 8), batch_size=1, dtype=dtype
        ).evaluation_batches()
        np.testing.assert_array_equal(batch["high_resolution"][0], depth.convert(high, dtype))
        np.testing.assert_array_equal(batch["low_resolution"][0], depth.convert(low, dtype))


def test_the_config_decides_and_older_ones_need_not(twelve_bits):
    config = default.get_config()
    config.data.update(path=str(twelve_bits[0]), image_size=16, low_resolution=4)
    config.data.num_eval_images = 1
    config.train.batch_size = 3

    def first():
        return next(image_sets.training_pipeline(read(config)).training_batches())[
            "high_resolution"
        ]

    assert first().dtype == np.uint16 and first().max() < 4096
    config.data.white_level = 4095
    assert first().max() > 65000
    config.data.dtype = "uint8"
    assert first().dtype == np.uint8 and first().max() > 250
    for key, value in (("dtype", "float32"), ("white_level", 65536), ("white_level", -1)):
        wrong = config.copy_and_resolve_references()
        wrong.data[key] = value
        with pytest.raises(ValueError, match=f"config.data.{key} = '?{value}"):
            image_sets.training_pipeline(read(wrong))
    with config.unlocked():
        del config.data.dtype, config.data.white_level
    assert first().dtype == np.uint16
