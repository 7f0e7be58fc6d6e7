"""Tests of sr3_jax.data.records: TFRecord files, against TensorFlow's own reader and writer."""

import io
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sr3_jax.config import image_sets, read
from sr3_jax.data import degrade, folders, image_files, prepared, records
from sr3_jax.data.pipeline import Pipeline

from configs import default  # isort: skip

_SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data" / "ffhq_sample"


def _noise(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _bytes_feature(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _ints_feature(*values: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _example(**features: tf.train.Feature) -> bytes:
    names = {name.replace("__", "/"): value for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=names)).SerializeToString()


def _ffhq(image: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """Encodes an image as StyleGAN's exporter does."""
    data = image.transpose(2, 0, 1)
    return _example(
        shape=_ints_feature(*(shape or data.shape)), data=_bytes_feature(data.tobytes())
    )


def _write(path: pathlib.Path, contents: list[bytes]) -> str:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for content in contents:
            writer.write(content)
    return str(path)


def test_ffhq_records_come_back_as_they_went_in_in_any_order(tmp_path):
    images = [_noise(16, seed) for seed in range(5)]
    path = _write(tmp_path / "ffhq-r04.tfrecords", [_ffhq(image) for image in images])
    source = records.tfrecords([path])
    assert len(source) == 5
    for i in (3, 0, 4, 4, 1):
        np.testing.assert_array_equal(source[i].read().image, images[i])
        assert source[i].name == f"ffhq-r04.tfrecords#{i}"


@pytest.mark.parametrize(
    ("names", "label"),
    [(("image", "label"), 7), (("image__encoded", "image__class__label"), 7), (("image", ""), -1)],
)
def test_encoded_images_and_their_labels(tmp_path, names, label):
    image = _noise(12)
    features = {names[0]: _bytes_feature(_png(image))}
    if names[1]:
        features[names[1]] = _ints_feature(7)
    path = _write(tmp_path / "a.tfrecord", [_example(**features)])
    picture = records.tfrecords([path])[0].read()
    np.testing.assert_array_equal(picture.image, image)
    assert picture.label == label


def test_records_over_several_files_keep_their_order(tmp_path):
    counts = [3, 0, 2]
    files = [
        _write(tmp_path / f"{i}.tfrecord", [_ffhq(_noise(4, 10 * i + k)) for k in range(count)])
        for i, count in enumerate(counts)
    ]
    source = records.tfrecords(files)
    assert [ref.name for ref in source] == [f"0.tfrecord#{k}" for k in range(3)] + [
        f"2.tfrecord#{k}" for k in range(2)
    ]
    np.testing.assert_array_equal(source[4].read().image, _noise(4, 21))


def test_tensorflow_reads_what_is_written_here(tmp_path):
    contents = [b"", b"a", bytes(range(256)) * 300]
    path = tmp_path / "a.tfrecord"
    path.write_bytes(b"".join(map(records.write_record, contents)))
    assert list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()) == contents
    serialized = records.serialize_example({"image": b"abc", "label": -3})
    parsed = tf.train.Example.FromString(serialized).features.feature
    assert parsed["image"].bytes_list.value == [b"abc"]
    assert parsed["label"].int64_list.value == [-3]


def test_the_file_of_the_smallest_sufficient_resolution_is_taken(tmp_path):
    for level in (2, 5, 7):
        _write(tmp_path / f"ffhq-r{level:02d}.tfrecords", [])
    for size, level in [(4, 2), (5, 5), (32, 5), (33, 7), (128, 7)]:
        [found] = records.tfrecord_files(tmp_path, size)
        assert found.endswith(f"ffhq-r{level:02d}.tfrecords")
    with pytest.raises(ValueError, match=r"resolutions \[4, 32, 128\], all under the 256 pixels"):
        records.tfrecord_files(tmp_path, 256)
    assert len(records.tfrecord_files(tmp_path / "ffhq-r0*", 256)) == 3
    for missing in (tmp_path / "none", tmp_path / "none-*"):
        with pytest.raises(FileNotFoundError, match="no TFRecord file at .*none"):
            records.tfrecord_files(missing, 4)


@pytest.fixture
def damaged(tmp_path):
    """Seven records: good, flipped byte, wrong shape, no image, no example, good, cut off."""
    good = _ffhq(_noise(16))
    contents = [
        good,
        good,
        _ffhq(_noise(16), shape=(3, 16, 17)),
        _example(text=_bytes_feature(b"hello")),
        b"\xff" * 40,
        good,
        good,
    ]
    path = pathlib.Path(_write(tmp_path / "a.tfrecord", contents))
    data = bytearray(path.read_bytes())
    second = len(good) + 16
    data[second + 12 + 500] ^= 1
    path.write_bytes(data[:-100])
    return path


def test_damaged_records_are_named_and_the_others_are_read(damaged, caplog):
    source = records.tfrecords([str(damaged)])
    pipeline = Pipeline(source, degrade.DegradeOptions(16, 4), batch_size=7)
    with caplog.at_level("WARNING", logger="absl"):
        for batch in (next(pipeline.training_batches()), *pipeline.evaluation_batches()):
            np.testing.assert_array_equal(batch["weight"], np.isin(batch["index"], [0, 5]))
    reasons = pipeline.skipped
    assert set(reasons) == {f"a.tfrecord#{i}" for i in (1, 2, 3, 4, 6)}
    assert "not what its checksum says" in reasons["a.tfrecord#1"]
    assert "[3, 16, 17] does not describe the 768 bytes" in reasons["a.tfrecord#2"]
    assert "no image among its features ['text']" in reasons["a.tfrecord#3"]
    assert "no tf.train.Example" in reasons["a.tfrecord#4"]
    assert "ends in the middle" in reasons["a.tfrecord#6"]
    for name in reasons:
        assert sum(name in record.getMessage() for record in caplog.records) == 1


def test_a_damaged_header_ends_the_file_and_is_named(tmp_path):
    good = _ffhq(_noise(16))
    path = pathlib.Path(_write(tmp_path / "a.tfrecord", [good] * 3))
    data = bytearray(path.read_bytes())
    data[len(good) + 16] ^= 1
    path.write_bytes(data)
    source = records.tfrecords([str(path)])
    assert len(source) == 2
    source[0].read()
    with pytest.raises(image_files.BadImageError, match="after which nothing can be found"):
        source[1].read()
    path.write_bytes(b"some text that is no TFRecord file")
    with pytest.raises(ValueError, match="a.tfrecord is not a TFRecord file"):
        records.tfrecords([str(path)])


def test_prepared_squares_of_16_bits_keep_them(tmp_path):
    square = np.random.default_rng(0).integers(0, 65536, (16, 16, 3)).astype(np.uint16)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(image_files.encode_image(square))
    plan = prepared.Plan(folders.folder(tmp_path / "in"), str(tmp_path / "out"), 16, 4)
    assert [prepared.write_file(plan, part) for part in prepared.begin(plan)] == [(1, 0)]
    prepared.finish(plan)
    [ref] = prepared.open_prepared(plan.output, 16)
    np.testing.assert_array_equal(ref.read().image, square)


def test_a_file_that_goes_away_while_it_is_read(tmp_path):
    path = pathlib.Path(_write(tmp_path / "a.tfrecord", [_ffhq(_noise(16))]))
    source = records.tfrecords([str(path)])
    path.unlink()
    with pytest.raises(image_files.BadImageError, match="no such file"):
        source[0].read()


def test_held_out_records_are_of_the_size_that_is_evaluated(tmp_path):
    for level in (3, 4, 5):
        _write(tmp_path / f"ffhq-r{level:02d}.tfrecords", [_ffhq(_noise(2**level))] * 2)
    config = default.get_config()
    config.data.update(source="tfrecord", path=str(tmp_path), eval_path=str(tmp_path))
    config.data.update(image_size=8, low_resolution=2)
    config.evaluation.image_size = 32
    sizes = [
        images[0].read().image.shape[0]
        for images in (
            image_sets.training_source(read(config)),
            image_sets.evaluation_source(read(config)),
        )
    ]
    assert sizes == [8, 32]


@pytest.mark.skipif(not _SHARED.exists(), reason=f"no shared images in {_SHARED}")
def test_ffhqs_own_records_hold_the_faces_of_its_pictures():
    [path] = records.tfrecord_files(_SHARED / "tfrecords", 512)
    source = records.tfrecords([path])
    pictures = [np.asarray(Image.open(path)) for path in sorted(_SHARED.glob("*.png"))]
    assert len(source) == len(pictures) == 4
    for ref in source:
        assert any(np.array_equal(ref.read().image, picture) for picture in pictures)
    # And a smaller one holds the same faces, resized by area.
    [path] = records.tfrecord_files(_SHARED / "tfrecords", 64)
    for large, small in zip(source, records.tfrecords([path]), strict=True):
        by_area = degrade.resize_area(large.read().image, 64)
        # StyleGAN halves again and again, and rounds each time.
        assert np.abs(by_area - small.read().image).max() < 3
