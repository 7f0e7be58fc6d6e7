"""The gallery of limits: its measures where the truth is known, and a small run of the script."""

import json
import os
import subprocess

import numpy as np
import pytest
import scipy.ndimage
import small_run
from PIL import Image

from launch import drawn_pictures
from launch.comparison import upscale
from launch.limits import __main__ as program
from launch.limits import measures, subjects, tables

_HAS_READER = (small_run.ROOT / ".venv/ocr/bin/python").exists()


def _small(image):
    """Takes every fourth pixel, as a camera without a filter would, and repeats it."""
    return image[2::4, 2::4].repeat(4, 0).repeat(4, 1)


@pytest.fixture(scope="module")
def bench():
    """A photograph with many straight lines."""
    found, _ = subjects.photographed([], tiny=True)
    return next(subject.image for subject in found if subject.kind == "windows")


@pytest.mark.parametrize(
    ("read", "text", "errors"),
    [
        ("STOP", "stop", 0),
        ("St0p", "stop", 1 / 4),
        ("top", "stop", 1 / 4),
        ("", "stop", 1),
        ("kitten", "sitting", 3 / 7),
        ("a longer text", "ab", 5),
        ("City  of.", "CITY OF", 0),
    ],
)
def test_character_errors_of_known_strings(read, text, errors):
    assert measures.character_errors(read, text) == errors


def test_a_text_without_letters_has_no_error_rate():
    with pytest.raises(ValueError, match=r"'--' has no letter or digit"):
        measures.character_errors("a", "--")


@pytest.mark.parametrize("angle", [7, 52, 142])
@pytest.mark.parametrize("wavelength", [1.5, 2.5, 4])
def test_the_frequency_of_stripes_is_found(wavelength, angle):
    subject = subjects.stripes("stripes", wavelength, [angle], 0)
    found = measures.spectrum(subject.image, subject.truth["vectors"])
    assert found.is_right and not found.is_alias and found.angle_error < 1 and found.false < 0.02
    # The same stripes turned by 45 degrees are other stripes.
    turned = subjects.stripes("stripes", wavelength, [angle + 45], 0)
    other = measures.spectrum(turned.image, subject.truth["vectors"])
    np.testing.assert_allclose(other.angle_error, 45, atol=1)
    assert not other.is_right and other.amplitude < 0.2 * found.amplitude and other.false > 0.8


def test_stripes_finer_than_the_input_become_their_alias():
    # Every fourth pixel shows stripes of 1.5 of them as stripes of 3 the other way.
    fine = subjects.stripes("stripes", 1.5, [7], 0)
    found = measures.spectrum(_small(fine.image), fine.truth["vectors"])
    assert found.is_alias and not found.is_right
    coarse = subjects.stripes("stripes", 4, [7], 0)
    found = measures.spectrum(_small(coarse.image), coarse.truth["vectors"])
    assert found.is_right and not found.is_alias


def test_a_grid_is_right_in_both_directions():
    grid = subjects.stripes("grids", 4, [30, 120], 0)
    for angle in (30, 120):
        stripes = subjects.stripes("stripes", 4, [angle], 0)
        assert measures.spectrum(stripes.image, grid.truth["vectors"]).is_right
    assert measures.spectrum(grid.image, grid.truth["vectors"]).false < 0.02
    assert measures.spectrum(grid.image, stripes.truth["vectors"]).false > 0.3, "the other bars"
    stripes = subjects.stripes("stripes", 4, [75], 0)
    assert not measures.spectrum(stripes.image, grid.truth["vectors"]).is_right


def test_gaps_and_shifts_of_a_line_are_measured():
    subject = subjects.line(1, 0, 0)
    whole = subject.image
    np.testing.assert_allclose(measures.line(whole, whole, **subject.truth), (1, 1, 0), atol=0.01)
    # The line runs along the row; 16 of the 80 pixels that are followed are gone.
    broken = whole.copy()
    broken[:, 40:56] = whole[0, 0]
    found = measures.line(broken, whole, **subject.truth)
    np.testing.assert_allclose(found[:2], 64 / 80, atol=0.03)
    shifted = measures.line(np.roll(whole, 1, axis=0), whole, **subject.truth)
    np.testing.assert_allclose(shifted.strays, 1, atol=0.05)
    assert measures.line(np.full_like(whole, 99), whole, **subject.truth).kept == 0


def test_lines_of_a_picture_are_found_in_itself_and_not_in_others(bench):
    lines = measures.segments(bench)
    assert measures.length(lines) > 500
    assert measures.share_found(lines, lines) == 1
    blurred = scipy.ndimage.gaussian_filter(bench, (6, 6, 0))
    assert measures.share_found(lines, measures.segments(blurred)) < 0.3
    turned = [((y, x), (v, u)) for (x, y), (u, v) in lines]
    assert measures.share_found(lines, turned) < 0.3
    assert measures.share_found(lines, []) == 0 and np.isnan(measures.share_found([], lines))
    # 10 of the 40 pixels of a line, one pixel beside it.
    assert measures.share_found([((0, 5), (39, 5))], [((0, 6), (9, 6))]) == pytest.approx(
        0.25, abs=0.05
    )


def test_texture_of_a_picture_and_of_others(bench):
    blurred = scipy.ndimage.gaussian_filter(bench, (3, 3, 0))
    same = measures.texture(bench, bench, blurred)
    np.testing.assert_allclose(same, (1, 0, 1), atol=1e-6)
    assert np.isnan(measures.texture(blurred, bench, blurred).detail)
    stripes, others = (subjects.stripes("", 3, [angle], 0).image for angle in (10, 40))
    turned = measures.texture(stripes, others, np.zeros_like(stripes))
    np.testing.assert_allclose(turned.turned, 30, atol=2)
    noise = np.random.default_rng(0).normal(0, 40, size=bench.shape)
    noisy = np.clip(blurred + noise, 0, 255).astype(np.uint8)
    found = measures.texture(noisy, bench, blurred)
    assert found.coherence < 0.6 and 20 < found.turned < 60 and abs(found.detail) < 0.1


def test_subjects_are_the_same_each_time_and_fit_the_factor():
    first = list(subjects.drawn())
    assert len({subject.name for subject in first}) == len(first) > 100
    of_name = {subject.name: subject for subject in first}
    for subject in subjects.drawn(tiny=True):
        np.testing.assert_array_equal(subject.image, of_name[subject.name].image)
    for subject in first:
        assert not any(side % upscale.FACTOR for side in subject.image.shape[:2])
        for line in subject.truth.get("lines", ()):
            left, top, right, bottom = line["box"]
            inside = subject.image[top:bottom, left:right]
            assert len(line["text"]) == 4 and inside.std() > 20, "letters are in their box"
    heights = {s.group for s in first if s.kind == "letters"}
    assert heights == {"2", "3", "4", "6", "8", "12"}


def test_a_photograph_is_taken_from_the_folder_that_has_it(tmp_path):
    within, without = (subjects.photographed(folders) for folders in ([tmp_path], []))
    assert within[1] == without[1] and "test/223060.jpg" in without[1]
    (tmp_path / "test").mkdir()
    image = np.random.default_rng(0).integers(256, size=(321, 481, 3), dtype=np.uint8)
    upscale.write(image, tmp_path / "test/223060.png")
    (tmp_path / "test/223060.png").rename(tmp_path / "test/223060.jpg")
    found, missing = subjects.photographed([tmp_path])
    assert "test/223060.jpg" not in missing
    taken = next(subject for subject in found if subject.name == "windows_test_223060")
    np.testing.assert_array_equal(taken.image, image[60:252, 150:342])


def _run(tmp_path, *flags):
    return subprocess.run(
        ["bash", "launch/limits.sh", "--tiny", *flags],
        cwd=small_run.ROOT,
        env=os.environ | {"WORKDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )


def test_a_small_gallery_is_made_by_the_whole_script(tmp_path):
    flags = ["--networks=quick=photos_4x_quick", *([] if _HAS_READER else ["--no_ocr"])]
    run = _run(tmp_path, *flags)
    assert run.returncode == 0, run.stdout + run.stderr
    folder = tmp_path / "tiny"
    text = (folder / "tables.md").read_text()
    for kind in ("Stripes", "Lines", "Windows", "Fur and hair"):
        assert f"## {kind}" in text
    assert "| quick, 1 call |" in text and "| bicubic |" in text
    rows = json.loads((folder / "scores.json").read_text())
    right = [row["is_right"] for row in rows if row["kind"] == "stripes"]
    assert len(right) == 12 and all(right), "2.5 and 4 pixels are coarse enough for all"
    energy = {r["method"]: r["gradient_energy"] for r in rows if r["subject"] == "fur_chelsea"}
    assert 0 < energy["bicubic"] < energy["quick"], "the network draws, bicubic does not"
    assert (folder / "pictures.jpg").stat().st_size > 1000
    if _HAS_READER:
        errors = {name: [] for name in ("bicubic", "quick", "reference")}
        for row in rows:
            if row["kind"] == "letters":
                errors[row["method"]].append(row["errors"])
        means = {name: np.mean(values) for name, values in errors.items()}
        assert means["reference"] < 0.1 < means["bicubic"], means
    # Nothing is made twice, and the tables come out the same.
    run = _run(tmp_path, *flags)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count(": 0 made") == 2
    assert (folder / "tables.md").read_text() == text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--networks=a=photos_4x", "--steps=b=5"], "--networks has no b (there is a)"),
        (["--networks=a=photos_4x", "--steps=a=0"], "give a number of calls, 1 or more"),
        (["--networks=bicubic=photos_4x"], "bicubic is there anyway"),
        (["--networks=a=/no/such"], "a=/no/such"),
        (["/no/such/folder"], "/no/such/folder is no folder"),
    ],
)
def test_faults_are_named_before_anything_is_made(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.setenv("WORKDIR", str(tmp_path / "out"))
    with pytest.raises(SystemExit) as ended:
        program.main(program.parser().parse_args([*flags, "--tiny"]))
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_table_has_means_with_intervals_and_counts():
    assert (
        tables.table(["a"], {"x": ["1"], "y": ["2"]})
        == "| | x | y |\n|---|---|---|\n| a | 1 | 2 |\n"
    )


def test_drawn_pictures_depend_on_their_number_and_share_no_font_with_the_gallery(tmp_path):
    """Else a network would be measured by what it was trained on."""
    assert not set(drawn_pictures.FONTS) & set(subjects.FONTS)
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.png"):
        pixels = rng.integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    photographs = sorted(tmp_path.glob("*.png"))
    made = [drawn_pictures.picture(number, photographs) for number in range(12)]
    for number in (11, 3):
        again = drawn_pictures.picture(number, photographs)
        np.testing.assert_array_equal(again, made[number])
    # Ink is seen on its ground: brightness differs by more than ground of little contrast does.
    assert len({image.tobytes() for image in made}) == 12
    assert min(np.ptp(image.mean(axis=-1)) for image in made) > 40
