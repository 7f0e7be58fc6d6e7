"""Tests of sr3_jax.data.sources."""

import hashlib
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest
from PIL import Image

from sr3_jax.data import folders, photos, source_kinds, sources


def _write_image(path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def _hash(path: str) -> str:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def test_photo_splits_share_no_photograph():
    train = photos.photos("train")
    held_out = photos.photos("held_out")
    assert not {_hash(ref.path) for ref in train} & {_hash(ref.path) for ref in held_out}
    # Left and right are one scene: alike, though not byte for byte.
    assert sum("motorcycle" in ref.name for ref in train) == 2
    assert not any("motorcycle" in ref.name for ref in held_out)


def test_photos_are_colour_photographs_of_a_useful_size():
    train = photos.photos("train")
    assert len({_hash(ref.path) for ref in train}) == len(train) == 7
    for ref in train:
        with Image.open(ref.path) as image:
            assert image.mode == "RGB" and min(image.size) >= 400, ref.name
            assert ref.box is None


def test_held_out_boxes_are_squares_inside_the_picture():
    held_out = photos.photos("held_out")
    assert len({ref.name for ref in held_out}) == len({(r.path, r.box) for r in held_out}) == 8
    for ref in held_out:
        left, top, right, bottom = ref.box
        with Image.open(ref.path) as image:
            assert 0 <= left < right <= image.width and 0 <= top < bottom <= image.height
        assert right - left == bottom - top >= 128


def test_first_held_out_box_of_each_photograph_is_its_largest_central_square():
    first = {}
    for ref in photos.photos("held_out"):
        first.setdefault(ref.path, ref.box)
    assert len(first) == 2
    for path, (left, top, right, bottom) in first.items():
        with Image.open(path) as image:
            width, height = image.size
        assert right - left == min(width, height)
        assert abs(left - (width - right)) <= 1 and abs(top - (height - bottom)) <= 1


def test_unknown_split_names_it_and_the_valid_ones():
    # TypeError where the tests run with type checking, which comes first for the Literal.
    with pytest.raises((ValueError, TypeError), match="(?s)'test'.*'train'.*'held_out'"):
        photos.photos("test")


def test_sources_import_without_tensorflow_or_network():
    code = (
        "import sys, socket\n"
        "sys.modules['tensorflow'] = None\n"
        "socket.socket.connect = None\n"
        "from sr3_jax.data import folders, photos\n"
        "assert len(photos.photos('held_out')) == 8\n"
    )
    root = pathlib.Path(sources.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60)


def test_folder_finds_images_at_any_depth_in_the_order_of_their_names(tmp_path):
    for name in ["b.png", "a/z.JPG", "a/b/c.TiFF", "a.webp", "a/y.jpeg", "z.bmp", "q.tif"]:
        _write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    for name in [".hidden.png", ".git/x.png", "a/.thumbs/deep/x.png"]:
        _write_image(tmp_path / name)
    refs = folders.folder(tmp_path)
    names = [ref.name for ref in refs]
    assert names == sorted(
        ["b.png", "a/z.JPG", "a/b/c.TiFF", "a.webp", "a/y.jpeg", "z.bmp", "q.tif"]
    )
    for ref in refs:
        assert os.path.samefile(ref.path, tmp_path / ref.name)
        assert ref.box is None


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.*does not exist"):
        folders.folder(tmp_path / "nowhere")


def test_file_instead_of_folder_is_named_with_its_folder(tmp_path):
    _write_image(tmp_path / "a.png")
    with pytest.raises(NotADirectoryError, match=r"a\.png.*is a file"):
        folders.folder(tmp_path / "a.png")
    for name, hint in {"a.png": "", "b.tar": "tar", "c.TFRecord-00": "tfrecord"}.items():
        (tmp_path / name).touch()
        kind, place = source_kinds.KINDS["folder"], source_kinds.Place("eval", str(tmp_path / name))
        said = f", or add --config.data.eval_source={hint}" if hint else ""
        (fault,) = kind.faults(place)
        assert fault.endswith(f"{name}' is a file; give the path of a folder of images{said}")


def test_folder_without_images_says_what_it_holds(tmp_path):
    with pytest.raises(ValueError, match="found no file at all"):
        folders.folder(tmp_path)
    for name in ["a.npy", "b.npy", "c.txt", ".d.png"]:
        (tmp_path / name).write_text("x")
    with pytest.raises(
        ValueError, match=r"4 other files \(2 \.npy, 1 \S+, 1 \S+\).*\.webp"
    ) as info:
        folders.folder(tmp_path)
    assert str(tmp_path) in str(info.value)


def test_the_new_source_of_contributing_is_a_module_and_a_line(tmp_path):
    """The page's example gives the pictures of a zip file, and says where there is none."""
    page = (pathlib.Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    section = page.partition("## A new data source")[2].partition("\n## ")[0]
    line, module = re.findall(r"```(?:python)?\n(.*?)```", section, re.DOTALL)
    (tmp_path / "zips.py").write_text(module)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as packed:
        for number in range(5):
            _write_image(tmp_path / f"{number}.png")
            packed.write(tmp_path / f"{number}.png", f"a/{number}.png")
    code = (
        "from sr3_jax.data import source_kinds\n"
        "from sr3_jax.data.source_kinds import Kind\n"
        f"new = {{{line.replace('sr3_jax.data.zips', 'zips')}}}\n"
        "source_kinds.KINDS = source_kinds.KINDS | new\n"
        "from sr3_jax import config\n"
        "from sr3_jax.config import image_sets\n"
        "options = dict(source='zip', path='images.zip', image_size=8, low_resolution=4)\n"
        "images = config.read({'data': {**options, 'num_eval_images': 2}})\n"
        "held_out = image_sets.evaluation_source(images)\n"
        "others = image_sets.training_source(images)\n"
        "print(sorted(ref.name for ref in (*held_out, *others)), others[0].read().image.shape)\n"
        "image_sets.training_source(config.read({'data': {**options, 'path': 'none.zip'}}))\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(pathlib.Path(sources.__file__).parents[2])])
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.stdout.startswith(str([f"a/{number}.png" for number in range(5)]))
    assert ran.stderr.endswith(
        "config.data.path = 'none.zip' does not exist; give the path of a zip file\n"
    ), ran.stderr
