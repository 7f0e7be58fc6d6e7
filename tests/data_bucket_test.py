"""Tests of images in a bucket: Google's own client, against an emulator of its server."""

import itertools
import os
import pathlib
import socket
import subprocess
import sys
import tarfile

import fsspec
import numpy as np
import pytest
import small_run
import tensorflow_datasets as tfds
from etils import epath
from gcp_storage_emulator import server
from PIL import Image

from sr3_jax.config import image_sets, read
from sr3_jax.data import folders, index_file, records, storage

COUNT = 11


@pytest.fixture(scope="module")
def bucket():
    """A filesystem with the bucket `images`, which is gs:// for this process and its children."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    emulator = server.create_server("127.0.0.1", port, in_memory=True)
    emulator.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        # Otherwise the client asks for the kind of bucket by gRPC, which the emulator has not.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        filesystem = fsspec.filesystem("gs")
        filesystem.mkdir("images")
        yield filesystem
        fsspec.get_filesystem_class("gs").clear_instance_cache()
    emulator.stop()


@pytest.fixture(scope="module")
def images(tmp_path_factory, bucket):
    """The same pictures in a local folder and in the bucket: two classes, two unusable."""
    root = pathlib.Path(tmp_path_factory.mktemp("images"))
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        path = root / "ab"[i % 2] / "deeper" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(path)
    Image.new("RGB", (15, 40)).save(root / "a" / "small.png")
    (root / "b" / "empty.jpg").write_bytes(b"")
    (root / "b" / "notes.txt").write_text("no image")
    (root / "b" / ".hidden").mkdir()
    Image.new("RGB", (40, 40)).save(root / "b" / ".hidden" / "c.png")
    for path in root.rglob("*"):
        if path.is_file():
            name = path.relative_to(root).as_posix()
            bucket.pipe_file(f"images/set/{name}", path.read_bytes())
    return root


def _batches(path, source, count=4):
    config = small_run.config()
    config.data.update(source=source, path=str(path), eval_source="photos", max_bad_share=1.0)
    config.data.cache_gb = 0.0
    stream = image_sets.training_pipeline(read(config)).training_batches()
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches


def _assert_equal(first, second):
    for a, b in zip(first, second, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_a_folder_in_a_bucket_gives_the_batches_of_a_local_one(images):
    here, there = folders.folder(images), folders.folder("gs://images/set/")
    assert [ref.name for ref in there] == [ref.name for ref in here]
    assert len(here) == COUNT + 2 and there.classes == here.classes == ("a", "b")
    _assert_equal(_batches("gs://images/set", "folder"), _batches(images, "folder"))


def test_a_folder_that_is_not_there_is_an_error_that_names_it(bucket):
    for path in ("gs://images/nothing", "gs://no_bucket/images"):
        with pytest.raises((ValueError, OSError), match=path.removeprefix("gs://")):
            folders.folder(path)


def test_an_image_removed_during_training_is_skipped(images, bucket):
    bucket.pipe_file("images/few/a.png", (images / "a/deeper/0.png").read_bytes())
    bucket.pipe_file("images/few/b.png", (images / "a/deeper/2.png").read_bytes())
    config = small_run.config()
    config.data.update(source="folder", path="gs://images/few", eval_source="photos")
    config.data.update(max_bad_share=1.0, num_threads=1, cache_gb=0.0)
    config.train.batch_size = 2
    pipeline = image_sets.training_pipeline(read(config))
    bucket.rm("images/few/b.png")
    stream = pipeline.training_batches()
    batch = next(stream)
    stream.close()
    assert sorted(batch["weight"]) == [0, 1]
    assert pipeline.skipped == {"b.png": "no such file: gs://images/few/b.png"}


def test_a_record_is_read_by_its_own_bytes(images, bucket):
    contents = [bytes([i]) * (1000 + i) for i in range(5)]
    bucket.pipe_file("images/some.tfrecord", b"".join(map(records.write_record, contents)))
    found = records.tfrecords(records.tfrecord_files("gs://images/*.tfrecord", 1))
    assert len(found) == 5
    assert [records.read_record(ref.path, ref.offset, ref.size) for ref in found] == contents
    url = "gs://images/some.tfrecord"
    assert storage.read(url) == b"".join(map(records.write_record, contents))
    assert storage.read(url, 12, 7) == contents[0][:7]


def test_a_tar_in_a_bucket_gives_the_batches_of_a_local_one(images, bucket, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as inner:
        inner.add(images / "a", ".")
    with tarfile.open(tmp_path / "outer.tar", "w") as outer:
        outer.add(tmp_path / "a.tar", "a.tar")
        outer.add(images / "b", "b")
    bucket.pipe_file("images/outer.tar", (tmp_path / "outer.tar").read_bytes())
    there = _batches("gs://images/outer.tar", "tar")
    assert sum(batch["weight"].sum() for batch in there) > 4
    _assert_equal(there, _batches(tmp_path / "outer.tar", "tar"))
    _assert_equal(there, _batches(images, "folder"))


def test_what_prepare_data_moves_between_buckets_trains_alike(images):
    command = [sys.executable, "-m", "sr3_jax.tools.prepare_data", "--image_size=16"]
    flags = ["--input=gs://images/set", "--output=gs://images/prepared", "--images_per_file=4"]
    run = {"cwd": small_run.ROOT, "env": os.environ, "capture_output": True, "text": True}
    done = subprocess.run([*command, *flags], timeout=300, **run)
    assert done.returncode == 0, done.stderr
    assert f"{COUNT} images in 4 files" in done.stdout
    assert "1 too small, 1 damaged" in done.stdout
    check = [*command[:3], "--check", flags[1]]
    assert subprocess.run(check, timeout=300, **run).returncode == 0
    there = _batches("gs://images/prepared", "tfrecord")
    assert all(batch["weight"].all() for batch in there)
    local = subprocess.run([*command, f"--input={images}", f"--output={images.parent / 'here'}"])
    assert local.returncode == 0
    _assert_equal(there, _batches(images.parent / "here", "tfrecord"))


def test_the_list_of_images_is_kept_in_a_bucket(images):
    path = "gs://images/run/index/train.npz"
    first = index_file.load_or_make(path, "x", lambda: {"a": np.arange(3)})
    again = index_file.load_or_make(path, "x", lambda: pytest.fail("made anew"))
    np.testing.assert_array_equal(again["a"], first["a"])


def test_a_file_that_fails_while_it_is_written_is_not_there(bucket, tmp_path):
    for path in ("gs://images/half", str(tmp_path / "half")):
        storage.write_whole(path, b"before")
        with pytest.raises(RuntimeError), storage.open_whole(path) as file:
            file.write(b"x" * (1 << 20))
            raise RuntimeError
        assert storage.read(path) == b"before"
        with storage.open_whole(path) as file:
            file.write(b"x" * (1 << 20))
        assert len(storage.read(path)) == 1 << 20


# As where TensorFlow is not installed: if it is, TFDS and epath open buckets by it, not by gcsfs,
# and it knows no emulator.
WITHOUT_TENSORFLOW = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda *name: None if name == ("tensorflow",) else find_spec(*name)
"""
READ_BY_TFDS = """
from sr3_jax.data import tfds_source
try:
    source = tfds_source.tfds_split("celeb_a_hq/64", "train[1:]", "gs://images/tfds")
    print([int(ref.read().image[0, 0, 0]) for ref in source])
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_data_set_of_tfds_in_a_bucket(bucket, tmp_path, file_format):
    with tarfile.open(tmp_path / "data64x64.tar", "w") as archive:
        for i in range(4):
            Image.new("RGB", (64, 64), (i, i, i)).save(tmp_path / f"{i:05d}.png")
            archive.add(tmp_path / f"{i:05d}.png", f"{i:05d}.png")
    data = tmp_path / "data"
    builder = tfds.builder("celeb_a_hq/64", data_dir=str(data), file_format=file_format)
    download = tfds.download.DownloadConfig(manual_dir=str(tmp_path))
    builder.download_and_prepare(download_config=download)
    for path in filter(pathlib.Path.is_file, data.rglob("*")):
        bucket.pipe_file(f"images/tfds/{path.relative_to(data).as_posix()}", path.read_bytes())
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW + READ_BY_TFDS]
    said = subprocess.check_output(command, cwd=small_run.ROOT, text=True, timeout=100)
    if file_format == "tfrecord":
        assert len(eval(said)) == 3 and set(eval(said)) < set(range(4))
    else:
        assert "as ArrayRecord files, which can only be read from a disk" in said
    bucket.rm("images/tfds", recursive=True)


RELEASE = """
import sys
import numpy as np
from etils import epath
from sr3_jax import SuperResolver
from sr3_jax.jobs import releasing
run, there = sys.argv[1], "gs://images/network"
releasing.push(epath.Path(run), there, dtype="float32")
image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
made = [SuperResolver.from_workdir(folder).upscale(image) for folder in (run, there)]
np.testing.assert_array_equal(*made)
for again in (lambda: releasing.push(epath.Path(run), there),
              lambda: SuperResolver.from_workdir("gs://images/nothing")):
    try:
        again()
    except OSError as error:
        print(type(error).__name__, error)
releasing.push(epath.Path(run), there, overwrite=True)
"""


def test_a_network_is_released_into_a_bucket_and_read_there(bucket, tmp_path):
    small_run.write_workdir(epath.Path(tmp_path), noise=0.1)
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW + RELEASE, str(tmp_path)]
    said = subprocess.check_output(command, cwd=small_run.ROOT, text=True, timeout=300)
    refused, missing = said.splitlines()
    assert refused.startswith("FileExistsError --to=gs://images/network has config.json")
    assert missing.startswith("FileNotFoundError gs://images/nothing/config.json")
    assert {path.rpartition("/")[2] for path in bucket.ls("images/network")} == {
        *("config.json", "weights.safetensors", "README.md")
    }
