"""Tests of sr3_jax.data.folders (classes, pairs) and sr3_jax.data.index_file."""

import gc
import os
import pathlib
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from sr3_jax.config import image_sets, read
from sr3_jax.data import degrade, folders, index_file, pairs, sources
from sr3_jax.data.pipeline import Pipeline

from configs import default  # isort: skip


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _save(path: pathlib.Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _labels(root: pathlib.Path) -> dict[str, int]:
    return {ref.name: ref.read().label for ref in folders.folder(root)}


def test_subfolders_are_classes_in_alphabetical_order(tmp_path):
    for name in ("n02/b.png", "n01/a.png", "n02/deep/c.png", "n10/d.png"):
        _save(tmp_path / name, _noise(4, 4))
    assert _labels(tmp_path) == {
        "n01/a.png": 0,
        "n02/b.png": 1,
        "n02/deep/c.png": 1,
        "n10/d.png": 2,
    }
    # One image outside, and the subfolders are no classes.
    _save(tmp_path / "e.png", _noise(4, 4))
    assert set(_labels(tmp_path).values()) == {sources.NO_LABEL}


def test_other_files_are_counted_and_unread_pictures_named(tmp_path):
    for name in ("a.png", "b/c.JFIF", "b/d.heic", "e.gif", "f.avif", "g.HIF"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    others = ("notes.txt", "b/list.json", "README", ".hidden.psd", "z.psd", "b/raw.CR2", "s.svg")
    for name in (*others, "j.jxl"):
        (tmp_path / name).touch()
    source = folders.folder(tmp_path)
    assert [ref.name for ref in source] == sorted(
        ["a.png", "b/c.JFIF", "b/d.heic", "e.gif", "f.avif", "g.HIF"]
    )
    assert source.unread == ("b/raw.CR2", "j.jxl", "s.svg", "z.psd")
    assert source.others == {
        ".txt": 1, ".json": 1, "no extension": 1, "hidden": 1, ".psd": 1, ".cr2": 1, ".svg": 1,
        ".jxl": 1,
    }  # fmt: skip
    assert not set(folders.IMAGE_SUFFIXES) & folders.UNREAD_SUFFIXES


def test_slices_and_indices_of_a_lazy_source(tmp_path):
    for i in range(6):
        _save(tmp_path / f"{i}.png", _noise(4, 4))
    source = folders.folder(tmp_path)
    assert [ref.name for ref in source[1:6:2]] == ["1.png", "3.png", "5.png"]
    assert [ref.name for ref in source[1:][::2][1:]] == ["3.png", "5.png"]
    assert source[-1].name == "5.png" and source[1:][-1].name == "5.png"
    for index in (6, -7):
        with pytest.raises(IndexError):
            source[index]


@pytest.fixture
def two_folders(tmp_path):
    """Two folders of a camera that adds 7 to every level of the low resolution."""
    for i in range(3):
        high = _noise(32 + 8 * i, 48, seed=i)
        low = degrade.to_levels(high.reshape(8 + 2 * i, 4, 12, 4, 3).mean((1, 3)) + 7, np.uint8)
        _save(tmp_path / "high" / "a" / f"{i}.png", high)
        _save(tmp_path / "low" / "a" / f"{i}.bmp", low)
    return tmp_path / "high", tmp_path / "low"


def _config(two_folders):
    config = default.get_config()
    high, low = map(str, two_folders)
    config.data.update(source="folder_pairs", path=high, low_path=low)
    config.data.update(num_eval_images=1, image_size=16, low_resolution=4)
    config.train.batch_size = 2
    return config


@pytest.mark.parametrize("crop_scale", [(0.0, 0.01), (0.0, 1.0)])
def test_pairs_are_cut_from_the_same_square(two_folders, crop_scale):
    source = pairs.Pairs(*map(folders.folder, two_folders))
    options = degrade.DegradeOptions(16, 4, crop="random", crop_scale=crop_scale)
    pipeline = Pipeline(source, options, batch_size=3)
    batches = pipeline.training_batches()
    errors = []
    for _ in range(10):
        batch = next(batches)
        assert batch["weight"].all()
        made = batch["high_resolution"].reshape(3, 4, 4, 4, 4, 3).mean((2, 4)) + 7
        errors.append(np.abs(batch["low_resolution"] - np.minimum(made, 255)))
    # Exact but for rounding where nothing is resized; else two means of nearly the same pixels,
    # where means of other pixels would differ by 20.
    assert np.max(errors) <= 0.51 if crop_scale[1] < 1 else np.mean(errors) < 6


def test_pairs_by_config(two_folders):
    batch = next(image_sets.training_pipeline(read(_config(two_folders))).training_batches())
    made = batch["high_resolution"].reshape(2, 4, 4, 4, 4, 3).mean((2, 4))
    assert 6 < (batch["low_resolution"] - made).mean() < 8


def test_missing_partners_are_listed(two_folders):
    high, low = two_folders
    _save(high / "lone.png", _noise(16, 16))
    _save(low / "a" / "only.png", _noise(4, 4))
    with pytest.raises(ValueError, match="(?s)1 of .*high.*: lone; .*1 of .*low.*: a/only"):
        image_sets.training_source(read(_config(two_folders)))
    (high / "lone.png").unlink()
    (low / "a" / "only.png").unlink()
    _save(low / "a" / "1.png", _noise(4, 4))
    with pytest.raises(ValueError, match=r"two images of one name, a/1\.bmp and a/1\.png"):
        image_sets.training_source(read(_config(two_folders)))


def test_names_of_partners_may_have_an_ending(two_folders):
    high, low = two_folders
    before = [ref.read().low_resolution for ref in pairs.Pairs(*map(folders.folder, two_folders))]
    for path in low.rglob("*.*"):
        path.rename(path.with_name(f"{path.stem}x4{path.suffix}"))
    after = pairs.Pairs(folders.folder(high), folders.folder(low))
    assert all(ref.low.name.endswith("x4.bmp") for ref in after)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other.read().low_resolution)
    (low / "a" / "1x4.bmp").rename(low / "a" / "1x2.bmp")
    with pytest.raises(ValueError, match="without a partner"):
        pairs.Pairs(folders.folder(high), folders.folder(low))


def test_a_pair_of_wrong_sizes_is_skipped_with_both(two_folders):
    high, low = two_folders
    _save(low / "a" / "1.bmp", _noise(10, 11))
    (low / "a" / "2.bmp").write_bytes(b"")
    source = pairs.Pairs(folders.folder(high), folders.folder(low))
    pipeline = Pipeline(source, degrade.DegradeOptions(16, 4), batch_size=3)
    [batch] = pipeline.evaluation_batches()
    np.testing.assert_array_equal(batch["weight"], [1, 0, 0])
    assert "48x40 pixels and its low resolution 11x10" in pipeline.skipped["a/1.png"]
    assert "its low resolution a/2.bmp: empty file" in pipeline.skipped["a/2.png"]


def test_a_run_goes_on_with_the_list_it_began_with(tmp_path):
    images, index = tmp_path / "images", tmp_path / "run" / "index"
    for i in range(5):
        _save(images / f"{i}.png", _noise(16, 16, seed=i))
    (images / "0.png").rename(images / os.fsdecode(b"\xff0.png"))  # no text in UTF-8
    config = default.get_config()
    config.data.update(path=str(images), num_eval_images=1, image_size=16, low_resolution=4)

    def names():
        halves = (image_sets.training_source, image_sets.evaluation_source)
        return [[ref.name for ref in half(read(config), index)] for half in halves]

    first = names()
    assert len(first[0]) == 4 and len(first[1]) == 1
    _save(images / "1b.png", _noise(16, 16))
    assert names() == first
    assert image_sets.training_source(read(config), index)[0].read().image.shape == (16, 16, 3)
    [file] = index.iterdir()
    file.unlink()
    assert len(names()[0]) == 5
    # The list of another folder is not taken for this one's.
    config.data.path = str(tmp_path / "others")
    _save(tmp_path / "others" / "x.png", _noise(16, 16))
    _save(tmp_path / "others" / "y.png", _noise(16, 16))
    assert {name for half in names() for name in half} == {"x.png", "y.png"}


def test_a_damaged_list_is_named_and_not_made_anew(tmp_path):
    path = tmp_path / "train.npz"
    index_file.load_or_make(path, "a", lambda: {"n": np.arange(3)})
    whole = path.read_bytes()
    for data in (b"", whole[: len(whole) // 2], b"x" * 100):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"train\.npz.*is damaged.*remove it"):
            index_file.load_or_make(path, "a", lambda: {"n": np.arange(4)})


@pytest.mark.parametrize("of_pairs", [False, True])
def test_what_is_cached_does_not_keep_whole_pictures(tmp_path, of_pairs):
    for i in range(20):
        _save(tmp_path / "high" / f"{i}.png", _noise(16, 4000, seed=i))
        _save(tmp_path / "low" / f"{i}.png", _noise(4, 1000, seed=i))
    source = folders.folder(tmp_path / "high")
    if of_pairs:
        source = pairs.Pairs(source, folders.folder(tmp_path / "low"))
    pipeline = Pipeline(source, degrade.DegradeOptions(16, 4), batch_size=4)
    for _ in pipeline.evaluation_batches():  # imports and tables, once
        pass
    pipeline = Pipeline(source, degrade.DegradeOptions(16, 4), batch_size=4)
    tracemalloc.start()
    assert all(batch["weight"].all() for batch in pipeline.evaluation_batches())
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 20 * 16 * 4000 * 3 / 4  # all pictures have four times as much
