"""TensorFlow's loader gives what Grain's gives; a user's own tf.data.Dataset is a source."""

import pathlib
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import small_run
from etils import epath
from PIL import Image

from sr3_jax import jobs
from sr3_jax.config import changed, read
from sr3_jax.data import degradations, folders, pairs, pipeline, source_kinds, windows

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed (no wheel for 3.14)")

from sr3_jax.data import tf_data_source, tf_pipeline  # noqa: E402

LOADERS = (pipeline.Pipeline, tf_pipeline.TfPipeline)
MODULE = """
import numpy as np
import tensorflow as tf

def images(half):
    count = {"train": 40, "eval": 6}[half]

    def element(i):
        i = tf.cast(i, tf.uint8)
        return {"image": tf.fill((20, 24, 3), i), "label": i % 3}

    made = tf.data.Dataset.range(count).map(element, num_parallel_calls=2)
    return made

def endless(half):
    return tf.data.Dataset.range(3).repeat()

def unknown(half):
    return tf.data.Dataset.range(9).filter(lambda i: i > 3)

def nothing(half):
    return [1, 2]

def failing(half):
    raise RuntimeError("no such folder")

def flat(half):
    return tf.data.Dataset.range(8).map(lambda i: tf.zeros((20, 20)))

def numbers(half):
    return tf.data.Dataset.range(8).map(lambda i: {"image": tf.zeros((20, 20, 3)), "name": i})
"""


def _picture(random, height, width):
    small = random.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3)).astype(np.uint8)
    noise = random.normal(0, 6, (height, width, 3))
    large = np.asarray(Image.fromarray(small).resize((width, height), Image.BICUBIC))
    return Image.fromarray(np.clip(large + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files that TensorFlow decodes itself, that it would decode otherwise, and broken ones."""
    root, random = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    made = {name: _picture(random, 61 + i, 70) for i, name in enumerate("abcdefghijk")}
    made["a"].save(root / "a.jpg", quality=92)
    made["b"].save(root / "b.jpg", quality=60, subsampling=2, progressive=True)
    made["c"].convert("L").save(root / "c_grey.jpg")
    made["d"].save(root / "d.png")
    made["e"].convert("P").save(root / "e_palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    made["f"].save(root / "f_turned.jpg", exif=exif)
    clear = made["g"].copy()
    clear.putalpha(100)
    clear.save(root / "g_clear.png")
    made["h"].save(root / "h.webp")
    made["i"].convert("CMYK").save(root / "i_cmyk.jpg")
    Image.fromarray(np.asarray(made["j"])[..., 0].astype(np.uint16) * 200).save(root / "j_16.png")
    content = (root / "a.jpg").read_bytes()
    (root / "k_truncated.jpg").write_bytes(content[: len(content) // 2])
    (root / "l_none.jpg").write_bytes(b"no picture")
    made["k"].resize((30, 30)).save(root / "m_small.png")
    return folders.folder(str(root))


def _both(source, options, **given):
    given = {"batch_size": 4, "seed": 5, "num_threads": 2, "cache_bytes": 0} | given
    return [make(source, options, **given) for make in LOADERS]


def _assert_alike(one, other, most=1):
    for name in one:
        if name in ("high_resolution", "low_resolution"):
            off = np.abs(one[name].astype(int) - other[name])
            assert off.max(initial=0) <= most, name
        else:
            np.testing.assert_array_equal(one[name], other[name], name)


@pytest.mark.parametrize(
    "options",
    [
        windows.DegradeOptions(32, 8, "random", (0.3, 1.0)),
        windows.DegradeOptions((24, 48), (16, 32)),
        windows.DegradeOptions(48, 12, "random", (0.0, 0.0), "matlab"),
        windows.DegradeOptions(32, 0),
    ],
)
def test_both_loaders_give_the_same_examples(folder, options):
    ours, its = _both(folder, options)
    for start in (0, 7):
        batches = [images.training_batches(start) for images in (ours, its)]
        for _ in range(6):
            _assert_alike(*(next(stream) for stream in batches))
        for stream in batches:
            stream.close()
    _assert_all_alike(ours, its)
    assert ours.skipped == its.skipped and len(its.skipped) == 3
    assert ours.reader.losses == its.reader.losses and len(its.reader.losses) > 1


def _assert_all_alike(ours, its):
    number = 0
    for one, other in zip(ours.evaluation_batches(), its.evaluation_batches(), strict=True):
        _assert_alike(one, other)
        number += int(other["weight"].sum())
    assert number == 10


def test_degradations_are_the_same(folder):
    of = degradations.Options(blur=(0.5, 1.0), noise=(2.0, 9.0), jpeg=(40, 90), share=0.7)
    ours, its = _both(folder, windows.DegradeOptions(32, 8, degradation=of))
    one, other = (next(images.training_batches(2)) for images in (ours, its))
    _assert_alike(one, other, most=12)  # JPEG makes more of a level
    plain = np.abs(one["low_resolution"].astype(int) - other["low_resolution"])
    assert (plain <= 1).mean() > 0.9


def test_pairs_are_the_same(folder, tmp_path):
    random = np.random.default_rng(3)
    for name in ("high", "low"):
        (tmp_path / name).mkdir()
    for i in range(6):
        picture = _picture(random, 60, 90 + i % 2)
        picture.save(tmp_path / "high" / f"{i}.png")
        suffix = ("png", "jpg", "webp")[i % 3]  # of which TensorFlow does not decode the last
        picture.resize((40, 60)[::-1]).save(tmp_path / "low" / f"{i}.{suffix}")
    place = source_kinds.Place("train", str(tmp_path / "high"), str(tmp_path / "low"))
    ours, its = _both(pairs.open_source(place), windows.DegradeOptions(24, 16, "random"))
    streams = ours.training_batches(), its.training_batches()
    for _ in range(3):
        _assert_alike(*map(next, streams))


def test_processes_share_a_batch(folder):
    options = windows.DegradeOptions(32, 8, "random")
    whole = next(_both(folder, options)[1].training_batches(3))
    parts = [
        next(_both(folder, options, process_index=i, process_count=2)[1].training_batches(3))
        for i in range(2)
    ]
    for name in whole:
        np.testing.assert_array_equal(whole[name], np.concatenate([p[name] for p in parts]))


def test_too_many_damaged_images_end_it(folder):
    its = _both(folder, windows.DegradeOptions(32, 8), max_bad_share=0.1)[1]
    with pytest.raises(pipeline.TooManyBadError, match="2 of 13 images are damaged"):
        for _ in its.training_batches():
            pass


def test_a_program_ends_in_the_middle_of_a_stream(folder):
    program = f"""
        from sr3_jax.data import folders, tf_pipeline, windows
        source = folders.folder({folder.root!r})
        images = tf_pipeline.TfPipeline(source, windows.DegradeOptions(32, 8), batch_size=4)
        stream = images.training_batches()
        next(stream)
        print("done")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=small_run.ROOT)
    assert ended.stdout.strip() == "done" and ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    path = tmp_path_factory.mktemp("module") / "mine.py"
    path.write_text(MODULE)
    return str(path)


def _open(module, function, half="train"):
    place = source_kinds.Place(half, f"{module}:{function}")
    return source_kinds.KINDS["tf_data"].open(place)


def test_a_dataset_is_a_source(module, monkeypatch):
    monkeypatch.setattr(tf_data_source.TfData, "neighbours", 8)
    monkeypatch.setattr(tf_data_source, "_NEIGHBOURS", 8)
    monkeypatch.setattr(tf_data_source, "_KEPT", 16)
    source = _open(module, "images")
    assert len(source) == 40 and len(_open(module, "images", "eval")) == 6
    for make in LOADERS:
        images = make(source, windows.DegradeOptions(16, 4), batch_size=4, seed=1)
        stream, seen = images.training_batches(), []
        for _ in range(20):  # two epochs
            batch = next(stream)
            assert batch["weight"].all()
            # Position in the dataset, pixels and labels belong together.
            np.testing.assert_array_equal(batch["index"], batch["high_resolution"][:, 0, 0, 0])
            np.testing.assert_array_equal(batch["index"] % 3, batch["label"])
            seen += batch["index"].tolist()
        first, second = np.array(seen[:40]), np.array(seen[40:])
        assert sorted(first) == sorted(second) == list(range(40)) and (first != second).any()
        assert (np.abs(first - np.arange(40)) < 8).all()
        resumed = next(images.training_batches(13))
        np.testing.assert_array_equal(resumed["index"], seen[52:56])
        half = make(
            source,
            windows.DegradeOptions(16, 4),
            batch_size=4,
            seed=1,
            process_index=1,
            process_count=2,
        )
        np.testing.assert_array_equal(next(half.training_batches(13))["index"], seen[54:56])


@pytest.mark.parametrize(
    ("function", "why"),
    [
        ("endless", "has no end; return it without repeat"),
        ("unknown", "does not know its length; apply tf.data.experimental.assert_cardinality"),
        ("nothing", "returned list, not a tf.data.Dataset"),
        ("missing", "has no function missing"),
        ("failing", "failing, called with 'train' .*, failed: RuntimeError\\('no such folder'\\)"),
    ],
)
def test_what_is_no_dataset_is_told(module, function, why):
    with pytest.raises(ValueError, match=why):
        _open(module, function)


@pytest.mark.parametrize(
    ("function", "why"),
    [("flat", "has shape \\(20, 20\\)"), ("numbers", "without name")],
)
def test_elements_that_are_no_images_are_told(module, function, why):
    images = pipeline.Pipeline(_open(module, function), windows.DegradeOptions(16, 4), batch_size=2)
    with pytest.raises(ValueError, match=why):
        list(images.evaluation_batches())


def test_paths_that_name_no_function_are_told(tmp_path):
    for path, why in (("nowhere", "give MODULE:FUNCTION"), ("no_module:f", "cannot be imported")):
        (fault,) = tf_data_source.faults(source_kinds.Place("train", path))
        assert why in fault and path in fault


def test_it_trains_and_goes_on_to_the_bit(module, tmp_path):
    """With both: a dataset of the user's, in TensorFlow's loader."""
    values = small_run.OVERRIDES | {
        "data.source": "tf_data",
        "data.path": f"{module}:images",
        "data.eval_path": f"{module}:images",
        "data.loader": "tf",
        "train.num_steps": 4,
        "train.sample_every_steps": 0,
        "evaluation.image_size": 16,
    }
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    config = changed(read(small_run.config()), values)
    whole, again = (epath.Path(tmp_path) / name for name in ("whole", "again"))
    jobs.train(config, whole)
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoints" / "4")
    jobs.train(config, again)
    small_run.assert_same_arrays(*(small_run.read_checkpoint(run, 4) for run in (whole, again)))
    assert (pathlib.Path(whole) / "evaluation" / "metrics.json").exists()
