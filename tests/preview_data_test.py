"""Tests of sr3_jax.tools.preview_data: it shows what training sees, and counts it."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import small_run
from PIL import Image

from sr3_jax.config import read
from sr3_jax.data import degrade, image_files
from sr3_jax.tools import preview_data

# The sheet's measures: a gap, tiles, a gap; a title above, a name under each row.
_GAP, _TITLE, _LINE, _TILE = 6, 28, 20, 192


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eight pictures in two classes, besides one too small and two damaged."""
    root = pathlib.Path(tmp_path_factory.mktemp("images"))
    rng = np.random.default_rng(0)
    for i in range(8):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    Image.new("RGB", (15, 40)).save(root / "a" / "small.png")
    (root / "a" / "empty.jpg").write_bytes(b"")
    (root / "b" / "text.png").write_text("no image")
    return root


def _config(images, **data):
    config = small_run.config()
    config.data.update(source="folder", path=str(images), crop="central", num_eval_images=1, **data)
    return config


def _tile(sheet, row, column):
    top, left = _TITLE + row * (_TILE + _LINE), _GAP + column * (_TILE + _GAP)
    return sheet[top : top + _TILE, left : left + _TILE]


def _is(tile, image):
    factor = _TILE // len(image)
    return np.array_equal(tile, image.repeat(factor, axis=0).repeat(factor, axis=1))


def test_the_sheet_shows_pairs_mirrored_together(images):
    made = preview_data.preview(read(_config(images)), num_images=6, num_read=0)
    pictures = [image_files.read_rgb(str(p)) for p in sorted(images.glob("?/[0-9].png"))]
    mirrored = 0
    for row in range(6):
        pairs = [
            degrade.make_pair(p[:, ::step], 16, 4)
            for p in pictures
            for step in (1, -1)
            if _is(_tile(made.sheet, row, 2), p[:, ::step])
        ]
        [(high, low)] = pairs
        mirrored += not any(np.array_equal(high, p) for p in pictures)
        # Which of a picture and its mirror image is made small does not matter but for rounding.
        found = _tile(made.sheet, row, 0)[::48, ::48].astype(int)
        assert np.abs(found - low).max() <= 1
    assert 0 < mirrored < 6


def test_a_network_without_a_source_sees_the_pictures_alone(images):
    config = _config(images, low_resolution=0)
    config.train.flip = False
    made = preview_data.preview(read(config), num_images=6, num_read=0)
    assert made.sheet.shape[1] == 2 * _GAP + _TILE
    pictures = [image_files.read_rgb(str(p)) for p in sorted(images.glob("?/[0-9].png"))]
    for row in range(6):
        assert any(_is(_tile(made.sheet, row, 0), picture) for picture in pictures)


def test_what_cannot_be_used_is_counted_and_named(images):
    config = _config(images)
    config.data.eval_source = "photos"  # so that nothing is held out
    made = preview_data.preview(read(config), num_images=2, num_read=0)
    assert made.counts == [
        "11 images; 11 read, of which 8 usable",
        "1 too small (under 16 pixels), 2 damaged (18.18%)",
        "more damaged than max_bad_share, 1.00%: training would stop",
        "2 classes among them, 0 to 1",
    ]
    assert set(made.skipped) == {"a/empty.jpg", "a/small.png", "b/text.png"}
    few = preview_data.preview(read(config), num_images=2, num_read=4).counts[0]
    assert few.startswith("11 images; 4 read, of which ")


def test_16_bits_and_a_white_level_are_shown_as_the_network_sees_them(tmp_path):
    values = np.random.default_rng(0).integers(0, 4000, (3, 16, 16), dtype=np.uint16)
    values[:, 0, 0] = 4095
    for i, image in enumerate(values):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "3.png")
    config = _config(tmp_path, eval_source="photos")
    config.train.flip = False

    def preview(**data):
        config.data.update(data)
        made = preview_data.preview(read(config), num_images=4, num_read=0)
        brightest = max(_tile(made.sheet, row, 2).max() for row in range(4))
        return made.counts[2:], brightest

    hint = "16-bit values reach 4095 of 65535: set config.data.white_level=4095 (65535 keeps them)"
    depth = "16 bits a channel; shown here in 8"
    assert preview() == ([depth, hint], 16)
    assert preview(white_level=4095) == ([depth], 255)
    clipped = "3 of 4: values above config.data.white_level=4094 are clipped"
    assert preview(white_level=4094) == ([depth, clipped], 255)
    rounded = "3 of 4: 16 bits, read at 8; config.data.dtype=uint16 keeps them"
    assert preview(white_level=4095, dtype="uint8") == ([rounded], 255)


def test_the_command_writes_the_picture_and_prints_the_counts(images, tmp_path):
    """The images are held out: not mirrored, and of the size of evaluation."""
    command = [sys.executable, "-m", "sr3_jax.tools.preview_data", *small_run.flags()]
    flags = [f"--config.data.path={images}", "--config.data.source=folder"]
    output = tmp_path / "preview.png"
    run = {"cwd": small_run.ROOT, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(
        [*command, *flags, "--config.data.num_eval_images=10", "--config.evaluation.image_size=16"]
        + ["--config.data.max_bad_share=0.5", "--held_out", f"--output={output}"],
        **run,
    )
    assert done.returncode == 0, done.stderr
    assert "10 images; 10 read, of which" in done.stdout
    assert "  a/empty.jpg: empty file (0 bytes)\n" in done.stdout
    sheet = np.array(Image.open(output))
    pictures = [image_files.read_rgb(str(p)) for p in images.glob("?/[0-9].png")]
    for row in range(6):
        assert any(_is(_tile(sheet, row, 2), p) for p in pictures)

    config = read(_config(images))
    preview_data.check_output(config, str(output))  # may be made anew
    (tmp_path / "link").symlink_to(images / "a")
    for mine in (images / "a" / "0.png", images / "new.png", tmp_path / "link" / "0.png"):
        with pytest.raises(ValueError, match="is among the images of config.data.path"):
            preview_data.check_output(config, str(mine))
    Image.new("RGB", (2, 2)).save(tmp_path / "mine.png")
    with pytest.raises(FileExistsError, match="mine.png is there, and is no preview"):
        preview_data.check_output(config, str(tmp_path / "mine.png"))

    wrong = subprocess.run([*command, "--config.data.path=/nowhere", flags[1]], **run)
    assert wrong.returncode == 2
    assert "'/nowhere' does not exist" in wrong.stderr
