"""Tests of sr3_jax.tools.prepare_data: the same batches as from the folder, whatever happens."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sr3_jax.config import image_sets, read
from sr3_jax.data import folders, locks, prepared
from sr3_jax.tools import prepare_data

from configs import default  # isort: skip

ROOT = pathlib.Path(__file__).resolve().parent.parent
COUNT = 23


def _command(images, output, *flags):
    return [
        *(sys.executable, "-m", "sr3_jax.tools.prepare_data"),
        *(f"--input={images}", f"--output={output}", "--images_per_file=4", *flags),
    ]


def _run(images, output, *flags):
    return subprocess.run(
        _command(images, output, *flags), cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes of pictures of many sizes and formats; one too small, two damaged."""
    root = pathlib.Path(tmp_path_factory.mktemp("images"))
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        path = root / "ab"[i % 2] / f"{i:02d}.{('jpg', 'png')[i % 3 % 2]}"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (16 + i, 50 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    Image.new("RGB", (15, 40)).save(root / "a" / "small.png")
    (root / "a" / "empty.jpg").write_bytes(b"")
    (root / "b" / "text.png").write_text("no image")
    return root


@pytest.fixture(scope="module")
def squares(images, tmp_path_factory):
    """The folder that the command made at 16 pixels, and its output."""
    output = pathlib.Path(tmp_path_factory.mktemp("prepared")) / "squares"
    done = _run(images, output, "--image_size=16")
    assert done.returncode == 0, done.stderr
    return output, done.stdout


def _batches(source: str, path, crop: str):
    config = default.get_config()
    config.data.update(source=source, path=str(path), crop=crop, max_bad_share=0.5)
    config.data.update(image_size=16, low_resolution=4, eval_source="photos")
    config.train.batch_size = COUNT
    pipeline = image_sets.training_pipeline(read(config))
    batches = pipeline.training_batches()
    found = {}
    for _ in range(3):
        batch = next(batches)
        for high, low, label, weight in zip(
            *(batch[k] for k in ("high_resolution", "low_resolution", "label", "weight")),
            strict=True,
        ):
            if weight:
                found[high.tobytes(), low.tobytes()] = int(label)
    return found


@pytest.mark.parametrize("image_size", [16, 0])
def test_prepared_images_give_the_same_pairs_and_labels(images, squares, tmp_path, image_size):
    output, printed = squares
    if not image_size:
        output = tmp_path / "out"
        printed = _run(images, output).stdout
    small = 0 if image_size else 1
    assert f"{COUNT + small} images in 7 files" in printed
    assert f"left out: {1 - small} too small, 2 damaged" in printed
    expected = _batches("folder", images, "central")
    assert set(expected.values()) == {0, 1}
    assert _batches("tfrecord", output, "central") == expected
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["classes"] == ["a", "b"] and manifest["count"] == COUNT + small
    skipped = (output / "skipped.txt").read_text()
    assert "a/empty.jpg\tempty file" in skipped and "b/text.png\tnot a JPEG" in skipped
    # TensorFlow reads the files, too, and finds where each image came from.
    files = sorted(str(path) for path in output.glob("*.tfrecord"))
    examples = map(tf.train.Example.FromString, tf.data.TFRecordDataset(files).as_numpy_iterator())
    names = {e.features.feature["filename"].bytes_list.value[0].decode() for e in examples}
    whole = {ref.name for ref in folders.folder(images)}
    assert names == whole - {"a/empty.jpg", "b/text.png"} - (
        {"a/small.png"} if small == 0 else set()
    )


def test_where_it_is_killed_again_and_again_it_goes_on_to_the_same_files(images, squares, tmp_path):
    """SIGKILL of the command ends its workers, too; Ctrl-C goes to all, as in a terminal."""
    output = tmp_path / "killed"
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        begun = len(list(output.glob("*.tfrecord")))
        process = subprocess.Popen(
            _command(images, output, "--image_size=16", "--num_workers=1"),
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 120
        if number == signal.SIGKILL:
            while len(list(output.glob("*.tfrecord"))) == begun and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            process.kill()
        else:
            process.stderr.read(1)  # of the progress bar: Python itself has started
            os.killpg(process.pid, number)
        said = process.communicate()[1]
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(process.pid, 0)  # whether any process of the command is left
                time.sleep(0.01)
        assert process.returncode == (130 if number == signal.SIGINT else -number), said
        assert "Traceback" not in said and ("interrupted" in said or number == signal.SIGKILL)
    done = _run(images, output, "--image_size=16")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in squares[0].iterdir()}
    assert {path.name for path in output.iterdir() if not path.name.startswith(".")} == names
    for name in names:
        assert (output / name).read_bytes() == (squares[0] / name).read_bytes(), name
    again = _run(images, output, "--image_size=16")
    assert again.returncode == 0 and again.stdout == done.stdout


def test_other_options_other_images_and_other_files_are_refused(images, squares, tmp_path):
    output, _ = squares
    wrong = _run(images, output, "--image_size=8")
    assert wrong.returncode == 2 and "other images or with other options" in wrong.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("do not touch")
    wrong = _run(images, tmp_path / "full")
    assert wrong.returncode == 2 and "full is not empty" in wrong.stderr
    plan = prepared.Plan(folders.folder(images), str(tmp_path / "new"), 0, 4)
    with locks.hold(plan.output, "another"), pytest.raises(locks.HeldError, match="another on"):
        prepare_data.prepare(plan, 1)
    (tmp_path / "link").symlink_to(images)
    for inside in (images, images / "made", tmp_path / "link" / "a"):
        plan = prepared.Plan(folders.folder(images), str(inside), 0, 4)
        with pytest.raises(ValueError, match="is, or lies within, --input=.* a folder beside it"):
            prepare_data.prepare(plan, 1)
    assert not (images / "made").exists()
    with pytest.raises(ValueError, match="prepared with --image_size=16, and .* is 32"):
        config = default.get_config()
        config.data.update(source="tfrecord", path=str(output), image_size=32, low_resolution=8)
        image_sets.training_source(read(config))


def test_check_names_the_file_that_changed(squares, tmp_path):
    output = pathlib.Path(shutil.copytree(squares[0], tmp_path / "out"))
    command = [sys.executable, "-m", "sr3_jax.tools.prepare_data", f"--output={output}", "--check"]

    def check():
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert check().returncode == 0
    path = output / "images-00003-of-00007.tfrecord"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    (output / "images-00005-of-00007.tfrecord").unlink()
    done = check()
    assert done.returncode == 1
    assert "images-00003-of-00007.tfrecord has checksum" in done.stdout
    assert "images-00005-of-00007.tfrecord is missing" in done.stdout
