"""Folders of images that other programs made, scored by --mode=score."""

import json
import math
import pathlib

import forked_run
import numpy as np
import pytest
import skimage.metrics
from etils import epath
from PIL import Image

from sr3_jax import jobs
from sr3_jax.data import folders, image_files
from sr3_jax.evaluation import scoring
from sr3_jax.metrics import registry


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """References of two sizes, what they were made from, and two methods' images."""
    root = pathlib.Path(tmp_path_factory.mktemp("scored"))
    rng = np.random.default_rng(0)
    for i in range(4):
        smooth = rng.integers(0, 256, (4, 4 + i % 2, 3))
        high = np.kron(smooth, np.ones((8, 8, 1))).astype(np.uint8)
        height, width = high.shape[:2]
        low = high.reshape(height // 4, 4, width // 4, 4, 3).mean((1, 3)).round().astype(np.uint8)
        noise = rng.normal(size=high.shape)
        pictures = {
            "reference": (f"a/{i}.png", high),
            "low": (f"a/{i}.bmp", low),
            "good": (f"a/{i}.png", (high + 4 * noise).clip(0, 255).astype(np.uint8)),
            "poor": (f"a/{i}.tiff", (high + 40 * noise).clip(0, 255).astype(np.uint8)),
        }
        for folder, (name, image) in pictures.items():
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / folder / name)
    return root


def test_the_command_scores_each_folder_as_skimage_does(made, tmp_path):
    flags = [
        "--mode=score",
        f"--workdir={tmp_path / 'report'}",
        f"--reference={made / 'reference'}",
        f"--low_resolution={made / 'low'}",
        f"--outputs=GOOD={made / 'good'},POOR={made / 'poor'}",
    ]
    status = forked_run.run(flags, tmp_path / "said.txt")
    said = (tmp_path / "said.txt").read_text()
    assert status == 0, said
    scores = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert list(scores) == ["bicubic", "GOOD", "POOR"]
    for name, folder in (("GOOD", "good"), ("POOR", "poor")):
        pairs = [
            [np.array(Image.open(path)) for path in sorted((made / kind).glob("a/*"))]
            for kind in ("reference", folder)
        ]
        psnr = [skimage.metrics.peak_signal_noise_ratio(a, b) for a, b in zip(*pairs, strict=True)]
        np.testing.assert_allclose(scores[name]["psnr"], np.mean(psnr), atol=1e-4)
        assert scores[name]["n"] == 4
    assert scores["GOOD"]["consistency"] < scores["POOR"]["consistency"]
    assert f"| GOOD | {scores['GOOD']['psnr']:.2f} |" in said
    each = json.loads((tmp_path / "report" / "images.json").read_text())
    assert each["names"] == [f"a/{i}.png" for i in range(4)]
    assert np.mean(each["scores"]["POOR"]["ssim"]) == pytest.approx(scores["POOR"]["ssim"])
    page = (tmp_path / "report" / "report.html").read_text()
    assert "GOOD" in page and f"{scores['GOOD']['psnr']:.2f}" in page
    assert f"{scores['POOR']['psnr']:.2f}" in (tmp_path / "report" / "report.md").read_text()


def test_16_bits_are_scored_in_full(made, tmp_path):
    """Steps of less than a level of 8 bits, in PNG and TIFF; also against an 8-bit output."""
    rng = np.random.default_rng(0)
    kinds = {"reference": ".png", "deep": ".tif", "flat": ".png", "low": ".png"}
    expected: dict[str, list[float]] = {"deep": [], "flat": []}
    for name in kinds:
        (tmp_path / name).mkdir()
    for i in range(2):
        high = np.kron(rng.integers(200, 65000, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint16)
        images = {
            "reference": high,
            "deep": high + rng.integers(0, 100, high.shape, dtype=np.uint16),
            "flat": np.rint(high / 257).astype(np.uint8),
            "low": high[::4, ::4],
        }
        for name, image in images.items():
            image_files.write_image(image, epath.Path(tmp_path / name / f"{i}{kinds[name]}"))
        images["flat"] = images["flat"] * np.uint16(257)
        for name, found in expected.items():
            found.append(
                skimage.metrics.peak_signal_noise_ratio(high, images[name], data_range=65535)
            )
    here = {name: folders.folder(tmp_path / name) for name in kinds}
    reference, low = here.pop("reference"), here.pop("low")
    scores = scoring.score_folders(reference, here, low)
    for name, found in expected.items():
        assert min(found) > 55
        assert scores.of_images[name]["psnr"] == pytest.approx(found, abs=0.01)
    assert scores.bits == {"reference": [16], "deep": [16], "flat": [8], "input": [16]}
    # The baseline is as deep as what it is compared with.
    assert scores.images["bicubic"][0].dtype == np.uint16


def test_without_low_resolutions_there_is_no_consistency(made):
    here = {name: folders.folder(made / name) for name in ("reference", "good", "low")}
    alone = scoring.score_folders(here["reference"], {"GOOD": here["good"]})
    assert set(alone.means["GOOD"]) == {"psnr", "ssim", "gradient_energy", "n"}
    with_low = scoring.score_folders(here["reference"], {"GOOD": here["good"]}, here["low"])
    for metric, value in alone.means["GOOD"].items():
        assert with_low.means["GOOD"][metric] == value


def darkness(images, reference):
    return (reference.astype("float32") - images.astype("float32")).mean((1, 2, 3))


def test_a_new_metric_is_a_function_and_a_line(made, tmp_path, monkeypatch):
    """It is computed, and shown wherever metrics are."""
    where, needs = f"{__name__}:darkness", ("reference",)
    toy = registry.Metric("darkness", "darkness", "image", where, needs, -math.inf, "levels")
    monkeypatch.setitem(registry.METRICS, "darkness", toy)
    assert "darkness" in registry.tunable()
    outputs = {name.upper(): str(made / name) for name in ("good", "poor")}
    jobs.score(None, epath.Path(tmp_path), str(made / "reference"), outputs)
    scores, each = (
        json.loads((tmp_path / name).read_text()) for name in ("metrics.json", "images.json")
    )
    for method, folder in outputs.items():
        means = [
            np.mean([np.array(Image.open(path), float).mean() for path in kind.glob("a/*")])
            for kind in (made / "reference", pathlib.Path(folder))
        ]
        assert scores[method]["darkness"] == pytest.approx(means[0] - means[1], abs=1e-3)
        assert np.mean(each["scores"][method]["darkness"]) == scores[method]["darkness"]
        for report in ("report.md", "report.html"):
            assert toy.write(scores[method]["darkness"]) in (tmp_path / report).read_text()
    assert "darkness (levels) ↓" in (tmp_path / "report.md").read_text()
    assert "Histograms of darkness (levels)" in (tmp_path / "report.html").read_text()


def test_luminance_and_border_reach_the_metrics(made):
    reference, good = (folders.folder(made / name) for name in ("reference", "good"))
    plain, seen = (
        scoring.score_folders(reference, {"GOOD": good}, **options).means["GOOD"]
        for options in ({}, {"luminance": True, "border": 2})
    )
    # The noise of three channels is averaged, and its range is 219 of 255 levels.
    weights = np.array([65.481, 128.553, 24.966]) / 255
    gain = -10 * np.log10((weights**2).sum())
    assert seen["psnr"] - plain["psnr"] == pytest.approx(gain, abs=0.3)


def test_what_does_not_fit_is_named(made, tmp_path):
    reference, good = (folders.folder(made / name) for name in ("reference", "good"))
    for folder in ("few", "wrong"):
        for i in range(4):
            (tmp_path / folder / "a").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32)).save(tmp_path / folder / "a" / f"{i}.png")
    (tmp_path / "few" / "a" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"1 of .*reference have none in .*few: a/2"):
        scoring.score_folders(reference, {"X": folders.folder(tmp_path / "few")})
    (tmp_path / "wrong" / "a" / "2.png").write_bytes(b"no image")
    message = (
        r"3 of 4 images cannot be scored: a/1.png: 32x32 by X, where the reference has 40x32; "
        r"a/2.png: not a .*; a/3.png: 32x32 by X"
    )
    with pytest.raises(ValueError, match=message):
        scoring.score_folders(reference, {"X": folders.folder(tmp_path / "wrong")})
    with pytest.raises(ValueError, match="call the method otherwise"):
        scoring.score_folders(reference, {"bicubic": good}, folders.folder(made / "low"))


@pytest.mark.parametrize("name", ["metrics.json", "report.html", "report"])
def test_files_that_are_of_no_scoring_are_left_alone(made, tmp_path, name):
    (tmp_path / name).write_text("[1]")
    with pytest.raises(ValueError, match=f"{name} would be replaced, and it is of no scoring"):
        jobs.score(None, epath.Path(tmp_path), str(made / "reference"), {"A": str(made / "good")})
    with pytest.raises(ValueError, match="lies in .*good.*give a folder outside"):
        inside = epath.Path(made / "good" / "report")
        jobs.score(None, inside, str(made / "reference"), {"A": str(made / "good")})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "[1]"


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ("folder", "NAME=VALUE"),
        ("A=x,A=y", "--outputs has 'A' twice"),
        ("", "needs --outputs"),
    ],
)
def test_wrong_flags_are_named(outputs, message, tmp_path):
    flags = ["--mode=score", "--workdir=/nonexistent", "--reference=x", f"--outputs={outputs}"]
    assert forked_run.run(flags, tmp_path / "said.txt") == 2
    assert message in (tmp_path / "said.txt").read_text()


def test_bicubic_is_pillows(made, tmp_path):
    for path in (made / "low").glob("a/*"):
        low = np.array(Image.open(path)).astype(np.float32)
        size = (4 * low.shape[1], 4 * low.shape[0])
        channels = [
            np.array(Image.fromarray(low[..., c]).resize(size, Image.Resampling.BICUBIC))
            for c in range(3)
        ]
        high = np.stack(channels, axis=-1).round().clip(0, 255).astype(np.uint8)
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(high).save(tmp_path / "a" / f"{path.stem}.png")
    reference, low = (folders.folder(made / name) for name in ("reference", "low"))
    means = scoring.score_folders(reference, {"pillow": folders.folder(tmp_path)}, low).means
    assert means["bicubic"] == pytest.approx(means["pillow"], rel=1e-3)
