"""The comparison with other programs: what all of them share, and a run with bicubic alone."""

import json
import os
import subprocess

import numpy as np
import pytest
import small_run

from launch.comparison import tables, upscale


def test_results_of_the_same_program_and_input_are_kept(tmp_path):
    source, target, calls = tmp_path / "in", tmp_path / "out", []

    def repeat(image):
        calls.append(image.shape)
        return image.repeat(4, 0).repeat(4, 1)

    def run(version="1"):
        calls.clear()
        return upscale.upscale_folder(upscale.Started(repeat, version), source, target)

    with pytest.raises(ValueError, match="no PNG"):
        run()
    source.mkdir()
    random = np.random.default_rng(0)
    images = {f"{i}.png": random.integers(256, size=(3 + i, 5, 3), dtype=np.uint8) for i in (0, 1)}
    for name, image in images.items():
        upscale.write(image, source / name)
    assert run() == 2 and run() == 0 and not calls
    for name, image in images.items():
        np.testing.assert_array_equal(upscale.read(target / name)[1::4, 2::4], image)
    # Half a file, as a full disk would leave it.
    whole = (target / "0.png").read_bytes()
    (target / "0.png").write_bytes(whole[: len(whole) // 2])
    upscale.write(255 - images["1.png"], source / "1.png")
    assert run() == 2, "a damaged result, and another input"
    assert run() == 0 and run("2") == 2, "another version of the program"
    assert sorted(path.name for path in target.iterdir()) == sorted(images)
    with pytest.raises(ValueError, match=r"0\.png became .*\(3, 5, 3\), where .*\(12, 20, 3\)"):
        upscale.upscale_folder(upscale.Started(lambda image: image, "3"), source, target)


def test_frechet_distance_of_normal_distributions_in_closed_form():
    random = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(random.normal(size=(5, 5)))
    mean, other = random.normal(size=(2, 5))
    a, b = random.uniform(0.1, 4, size=(2, 5))
    # Of covariances that commute it is that of their deviations.
    covariances = [(rotation * variances) @ rotation.T for variances in (a, b)]
    found = tables.frechet_distance(mean, covariances[0], other, covariances[1])
    expected = np.square(mean - other).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    np.testing.assert_allclose(found, expected)
    same = tables.frechet_distance(mean, covariances[0], mean, covariances[0])
    np.testing.assert_allclose(same, 0, atol=1e-9)


def test_bicubic_runs_through_the_whole_script(tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    random = np.random.default_rng(0)
    for name, size in (("wide", (65, 131)), ("high", (96, 70))):
        upscale.write(
            random.integers(256, size=(*size, 3), dtype=np.uint8), photographs / f"{name}.png"
        )
    command = ["bash", "launch/comparison.sh", photographs, "--only=bicubic", "--no_features"]
    run = subprocess.run(
        command,
        cwd=small_run.ROOT,
        env=os.environ | {"WORKDIR": str(tmp_path / "out")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    folder = tmp_path / "out" / "photographs_2"
    shapes = [upscale.read(folder / f"{name}/wide.png").shape for name in ("input", "made/bicubic")]
    assert shapes == [(16, 32, 3), (64, 128, 3)]
    # --mode=score makes bicubic itself, of the same inputs.
    means = json.loads((folder / "score" / "metrics.json").read_text())
    assert means["bicubic"] == means["bicubic_files"] and means["bicubic"]["n"] == 2
    text = (folder / "tables.md").read_text()
    assert f"| bicubic | {means['bicubic']['psnr']:.2f} (" in text and "energy score" in text
    assert (folder / "pictures.jpg").stat().st_size > 1000
