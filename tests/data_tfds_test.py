"""Tests of sr3_jax.data.tfds_source, with data sets that TFDS builds from their archives."""

import importlib.util
import io
import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sr3_jax.config import authoring, image_sets, read, resolve
from sr3_jax.data import tfds_source
from sr3_jax.data.image_files import decode_rgb

SYNSETS = ("n01440764", "n01443537", "n02105855")  # tench, goldfish, Shetland sheepdog
LABELS = dict(zip(SYNSETS, (0, 1, 230), strict=True))


def _encoded(seed: int, file_format: str, size: tuple[int, int]) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(data, file_format)
    return data.getvalue()


def _tar(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


IMAGENET = {
    synset: {f"{synset}_{i}.JPEG": _encoded(10 * k + i, "JPEG", (40, 30 + i)) for i in range(4)}
    for k, synset in enumerate(SYNSETS)
}
VALIDATION = {
    f"ILSVRC2012_val_{i:08d}.JPEG": _encoded(100 + i, "JPEG", (36, 36)) for i in range(1, 4)
}
CELEBA = {f"{i:05d}.png": _encoded(200 + i, "PNG", (64, 64)) for i in range(5)}


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def data_dir(request, tmp_path_factory) -> str:
    """The folder of both data sets, prepared from archives like those that are downloaded."""
    root = pathlib.Path(tmp_path_factory.mktemp(request.param))
    manual = root / "manual"
    manual.mkdir()
    inner = {f"{synset}.tar": _tar(files) for synset, files in IMAGENET.items()}
    (manual / "ILSVRC2012_img_train.tar").write_bytes(_tar(inner))
    (manual / "ILSVRC2012_img_val.tar").write_bytes(_tar(VALIDATION))
    (manual / "data64x64.tar").write_bytes(_tar(CELEBA))
    for name in ("imagenet2012", "celeb_a_hq/64"):
        builder = tfds.builder(name, data_dir=str(root / "data"), file_format=request.param)
        download = tfds.download.DownloadConfig(manual_dir=str(manual))
        builder.download_and_prepare(download_config=download)
    return str(root / "data")


def test_imagenet_has_every_image_once_with_its_label(data_dir):
    source = tfds_source.tfds_split("imagenet2012", "train", data_dir)
    found = {}
    for ref in source:
        picture = ref.read()
        found[picture.image.tobytes()] = picture.label
    expected = {
        decode_rgb(data).tobytes(): LABELS[synset]
        for synset, files in IMAGENET.items()
        for data in files.values()
    }
    assert found == expected
    assert len({ref.name for ref in source}) == len(source) == 12
    assert len(tfds_source.tfds_split("imagenet2012", "validation", data_dir)) == 3


def test_slices_of_a_split(data_dir):
    def images(split):
        source = tfds_source.tfds_split("celeb_a_hq/64", split, data_dir)
        return [ref.read().image.tobytes() for ref in source]

    whole = images("train")
    assert set(whole) == {decode_rgb(data).tobytes() for data in CELEBA.values()}
    assert images("train[:2]") == whole[:2]
    assert images("train[3:]") == whole[3:]


def test_several_data_sets_are_one_source_without_labels(data_dir):
    config = authoring.based_on("imagenet_64_base")
    config.data.update(tfds_dir=data_dir, source="tfds")
    config.data.path = "imagenet2012:validation[1:],celeb_a_hq/64:train, imagenet2012:train"
    config.data.eval_path = "imagenet2012:validation"
    source = image_sets.training_source(read(config))
    assert len(source) == 2 + 5 + 12 == len({ref.name for ref in source})
    parts = [("imagenet2012", "validation[1:]"), ("celeb_a_hq/64", "train")]
    parts = [ref for part in parts for ref in tfds_source.tfds_split(*part, data_dir)]
    for ref, expected in zip(source, parts, strict=False):
        assert ref.name == expected.name and ref.read().label == -1
        np.testing.assert_array_equal(ref.read().image, expected.read().image)
    config.data.path = "imagenet2012:tset,celeb_a_hq:train,,celeb_a_hq/64:train"
    found = list(resolve.faults(read(config), trains=True))
    assert ["'tset'" in found[0], "celeb_a_hq" in found[1], "needs the name" in found[2]] == [
        True
    ] * 3


def test_a_config_trains_on_imagenet_and_is_scored_on_its_validation(data_dir):
    """Which is what the paper's config does where no images are given."""
    config = authoring.based_on("imagenet_64_base")
    config.data.update(tfds_dir=data_dir, image_size=16, low_resolution=4)
    config.model.attention_resolutions = ()
    config.train.batch_size = 6
    assert not list(resolve.faults(read(config), trains=True))
    batches = image_sets.training_pipeline(read(config)).training_batches()
    epoch = [next(batches) for _ in range(2)]
    labels = np.concatenate([batch["label"] for batch in epoch])
    np.testing.assert_array_equal(np.sort(labels), np.repeat([0, 1, 230], 4))
    assert all((batch["weight"] == 1).all() for batch in epoch)
    assert image_sets.evaluation_pipeline(read(config), 4).num_images == 3


def test_what_is_missing_is_named_with_the_command_that_makes_it(data_dir):
    with pytest.raises(FileNotFoundError, match="builder.*celeb_a_hq/128.*array_record.*prepare"):
        tfds_source.tfds_split("celeb_a_hq/128", "train", data_dir)
    with pytest.raises(ValueError, match=r"has splits \['train', 'validation'\], not 'tset'"):
        tfds_source.tfds_split("imagenet2012", "tset", data_dir)
    with pytest.raises(ValueError, match="no data set 'imagenet2013'"):
        tfds_source.tfds_split("imagenet2013", "train", data_dir)
    config = authoring.based_on("imagenet_64_256")
    config.data.update(source="tfds", path="imagenet2012", tfds_dir=data_dir)
    with pytest.raises(ValueError, match="needs the name of a data set and its split"):
        image_sets.training_source(read(config))
    config.data.update(path="", tfds_dir=data_dir + "/elsewhere")
    first, second = resolve.faults(read(config), trains=True)
    assert "config.data.path = 'imagenet2012:train': TFDS's imagenet2012 is not prepared" in first
    # The ways to give images are told once.
    assert "config.data.eval_path = 'imagenet2012:validation'" in second
    for way in ("tfds.builder('imagenet2012'", "path=ILSVRC2012_img_train.tar", "path=IMAGES "):
        assert way in second and way not in first


def test_a_data_set_is_found_where_tfds_looks(data_dir):
    code = (
        "from sr3_jax.config import authoring, read, resolve\n"
        "config = read(authoring.based_on('imagenet_64_256'))\n"
        "print(len(list(resolve.faults(config, trains=True))))"
    )
    for place, missing in ((data_dir, "0"), (data_dir + "/elsewhere", "2")):
        environment = os.environ | {"TFDS_DATA_DIR": place}
        command = [sys.executable, "-c", code]
        assert subprocess.check_output(command, env=environment, text=True).strip() == missing


def test_other_things_that_are_missing_are_named_at_once(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.tfrecords").write_bytes(b"")
    config = authoring.default()
    config.data.update(path=str(tmp_path / "records"), eval_path="/no/such", eval_source="tar")
    config.evaluation.update(feature_metrics=("fid",), inception_weights="/no/weights.pth")
    found = "\n".join(resolve.faults(read(config), trains=True))
    assert "is a folder of TFRecord files" in found
    assert "add --config.data.source=tfrecord" in found
    assert "config.data.eval_path = '/no/such' does not exist; give the path of a tar" in found
    assert "config.evaluation.inception_weights = '/no/weights.pth' does not exist" in found
    assert "needs torch_fidelity" in found or importlib.util.find_spec("torch_fidelity")
