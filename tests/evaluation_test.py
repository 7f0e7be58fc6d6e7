"""Evaluation: several samples of an image, files that are not made twice, and what it leaves."""

import json
import os
import signal
import time

import forked_run
import numpy as np
import pytest
import small_run
from etils import epath
from PIL import Image

from sr3_jax import SuperResolver, jobs
from sr3_jax.config import changed, read, run_file
from sr3_jax.evaluation import evaluator, outputs
from sr3_jax.evaluation.pretrained import common, resnet50
from sr3_jax.evaluation.report import grids

RNG = np.random.default_rng(0)
HIGH = RNG.integers(60, 196, (7, 16, 16, 3), dtype=np.uint8)
LOW = HIGH.reshape(7, 4, 4, 4, 4, 3).mean((2, 4)).round().astype(np.uint8)


def _batches(size):
    """The seven images; the last batch is filled up with rows of weight 0."""
    for first in range(0, 7, size):
        index = np.arange(first, first + size)
        real = index < 7
        rows = np.where(real, index, 0)
        yield {
            "low_resolution": LOW[rows] * real[:, None, None, None],
            "high_resolution": HIGH[rows] * real[:, None, None, None],
            "weight": real.astype(np.float32),
            "index": np.where(real, index, -1).astype(np.int32),
            "label": np.where(real, 10 + index, -1).astype(np.int32),
        }


def _off_by(*levels):
    """A method whose samples are the reference and so many levels."""

    def run(inputs):
        low, index = inputs.low, inputs.index
        samples = [(HIGH[index].astype(int) + level).astype(np.uint8) for level in levels]
        return np.stack(samples), 2.0 * len(levels) * len(low)

    return evaluator.Method(run, len(levels))


@pytest.fixture(scope="module")
def evaluated():
    methods = {"one": _off_by(3), "several": _off_by(-1, 5, 8)}
    return evaluator.evaluate(methods, _batches(4))


def test_several_samples_have_mean_deviation_best_and_diversity(evaluated):
    psnr = [20 * np.log10(255 / level) for level in (1, 5, 8)]
    means = evaluated.means["several"]
    assert means["psnr"] == pytest.approx(np.mean(psnr), abs=1e-3)
    assert means["psnr_std"] == pytest.approx(np.std(psnr, ddof=1), abs=1e-3)
    assert means["psnr_best"] == pytest.approx(psnr[0], abs=1e-3)
    assert means["ssim_best"] > means["ssim"]
    assert means["consistency_best"] < means["consistency"]
    assert means["diversity"] == pytest.approx(np.std([-1, 5, 8], ddof=1))
    assert means["seconds_per_image"] == pytest.approx(2.0)
    # Levels added everywhere do not change a gradient.
    assert means["gradient_energy"] == pytest.approx(1.0)
    one = evaluated.means["one"]
    assert one["psnr"] == pytest.approx(20 * np.log10(255 / 3), abs=1e-3)
    assert not any(key.endswith(("_std", "_best")) or key == "diversity" for key in one)


def test_the_table_shows_samples(evaluated):
    lines = evaluator.table(evaluated.means).splitlines()
    assert "diversity" in lines[0]
    assert lines[3].startswith("| several | ") and "±" in lines[3]
    assert lines[4].startswith(f"| several, best sample | {20 * np.log10(255):.2f} | ")


@pytest.mark.parametrize("size", [1, 3, 7])
def test_scores_do_not_depend_on_batches(evaluated, size):
    methods = {"one": _off_by(3), "several": _off_by(-1, 5, 8)}
    again = evaluator.evaluate(methods, _batches(size))
    for name, row in evaluated.means.items():
        # float32 rounds each image's number; several samples' deviation is a difference of them.
        assert again.means[name] == pytest.approx(row, rel=1e-5, abs=1e-6)
    np.testing.assert_array_equal(again.index, np.arange(7))
    np.testing.assert_array_equal(again.labels, 10 + np.arange(7))


def test_what_was_made_is_not_made_again(tmp_path):
    folder = epath.Path(tmp_path)
    calls = []

    def run(inputs):
        calls.append(inputs.index.tolist())
        return _off_by(-1, 5).run(inputs)

    def evaluate(fingerprint="a", low=LOW):
        del calls[:]
        method = outputs.kept(evaluator.Method(run, 2), "m", folder, fingerprint)
        parts = (np.arange(i, min(i + 3, 7)) for i in (0, 3, 6))
        made = [method.run(evaluator.Inputs(low[part], part, 10 + part)) for part in parts]
        images = np.concatenate([images for images, _ in made], axis=1)
        whole = evaluator.Inputs(LOW, np.arange(7), np.arange(7))
        np.testing.assert_array_equal(images, _off_by(-1, 5).run(whole)[0])
        assert sum(seconds for _, seconds in made) == pytest.approx(28.0)
        return calls

    assert evaluate() == [[0, 1, 2], [3, 4, 5], [6]]
    assert evaluate() == []
    # Damaged, lost, or of another origin: its batch is made again, and no other.
    damaged = tmp_path / "m" / "000004.png"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    assert evaluate() == [[3, 4, 5]]
    (tmp_path / "m_sample_1" / "000006.png").unlink()
    assert evaluate() == [[6]]
    Image.fromarray(HIGH[0]).save(tmp_path / "m" / "000000.png")
    assert evaluate() == [[0, 1, 2]]
    assert evaluate(fingerprint="b") == [[0, 1, 2], [3, 4, 5], [6]]
    changed = LOW.copy()
    changed[6] += 1
    assert evaluate("b", changed) == [[6]]
    # They are files like others, for other programs.
    image = np.array(Image.open(tmp_path / "m_sample_1" / "000005.png"))
    np.testing.assert_array_equal(image, HIGH[5] + 5)
    files = outputs.Files(folder / "m", [5, 0])
    np.testing.assert_array_equal(files[0], HIGH[5] - 1)
    assert len(files) == 2


def _wide(batches):
    for batch in batches:
        yield batch | {k: batch[k] * np.uint16(257) for k in ("low_resolution", "high_resolution")}


def test_16_bits_score_as_8_where_they_hold_the_same_and_stay_16_in_files(evaluated, tmp_path):
    def deep(levels):
        method = _off_by(*levels)

        def run(inputs):
            assert inputs.low.dtype == np.uint16
            samples, seconds = method.run(inputs)
            return samples * np.uint16(257), seconds

        return evaluator.Method(run, len(levels))

    folder = epath.Path(tmp_path)
    methods = {"one": deep([3]), "several": outputs.kept(deep([-1, 5, 8]), "several", folder, "")}
    batches = outputs.with_inputs(_wide(_batches(4)), folder)
    found = evaluator.evaluate(methods, batches)
    for name, row in evaluated.means.items():
        assert found.means[name] == pytest.approx(row, rel=1e-4, abs=1e-6)
    for name, images in (("input", LOW), ("reference", HIGH), ("several_sample_1", HIGH + 5)):
        files = outputs.Files(folder / name, range(7))
        np.testing.assert_array_equal(list(files), images * np.uint16(257))
    made = {"m": outputs.kept(evaluator.Method(None, 3), "several", folder, "")}
    again = evaluator.evaluate(made, _wide(_batches(4)))  # from the files alone
    assert again.means["m"] == pytest.approx(found.means["several"])


def test_what_shows_or_judges_8_bits_rounds_16():
    deep = HIGH * np.uint16(257) + np.uint16(100)
    for draw in (lambda images: grids.grid({"a": images}), grids.mosaic):
        np.testing.assert_array_equal(draw(deep), draw(HIGH))
    np.testing.assert_array_equal(list(common.checked(deep)), HIGH)
    [(_, batch)] = resnet50._batches(np.zeros((1, 224, 224, 3), np.uint16) + 65535)
    assert (batch == 255).all()


def test_numbers_that_json_lacks_are_text(tmp_path):
    evaluator.write_json({"a": [1.5, float("inf"), float("nan")]}, tmp_path / "x.json")

    def refuse(name):
        raise AssertionError(name)

    found = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert found == {"a": [1.5, "Infinity", "NaN"]}
    assert np.isposinf(float(found["a"][1]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("trained"))
    config = small_run.config()
    config.train.num_steps = 4
    jobs.train(read(config), workdir)
    return workdir


def _evaluate(workdir, **changes):
    config = run_file.load(workdir / "config.json")
    values = {f"evaluation.{key}": value for key, value in changes.items()}
    jobs.evaluate(changed(config, values), workdir)
    return json.loads((workdir / "evaluation" / "metrics.json").read_text())


def _without_times(scores):
    return {
        name: {key: value for key, value in row.items() if key != "seconds_per_image"}
        for name, row in scores.items()
    }


def _files(workdir):
    found = (workdir / "evaluation" / "images").glob("*/*.png")
    return {f"{path.parent.name}/{path.name}": path.stat().mtime for path in found}


def test_an_evaluation_that_was_killed_goes_on(trained, tmp_path):
    """Killed outright after its first batch; the second run makes the rest alone."""
    scores = json.loads((trained / "evaluation" / "metrics.json").read_text())
    files = _files(trained)
    assert sorted(files) == sorted(
        f"{name}/{i:06d}.png" for name in ("input", "reference", "sr3") for i in range(8)
    )
    for name in ("config.json", "checkpoints"):
        os.symlink(trained / name, tmp_path / name)
    flags = ["--mode=evaluate", f"--workdir={tmp_path}"]
    process = forked_run.start(flags, tmp_path / "said.txt")
    first_batch = [tmp_path / f"evaluation/images/sr3/{i:06d}.png" for i in range(4)]
    for _ in range(1200):
        if all(path.exists() for path in first_batch) or not process.is_alive():
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    made = _files(epath.Path(tmp_path))
    assert "sr3/000003.png" in made, (tmp_path / "said.txt").read_text()
    assert not (tmp_path / "evaluation" / "metrics.json").exists()
    assert forked_run.run(flags, tmp_path / "said.txt") == 0, (tmp_path / "said.txt").read_text()
    again = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert _without_times(again) == _without_times(scores)
    now = _files(epath.Path(tmp_path))
    assert {name: now[name] for name in made} == made and now.keys() == files.keys()
    # Neither does it show: the first images' refinement, whichever batch was made last.
    strip, original = (w / "evaluation" / "refinement.png" for w in (tmp_path, trained))
    assert strip.read_bytes() == original.read_bytes()
    strip.unlink()
    (tmp_path / "evaluation" / "images" / "sr3" / "000006.png").unlink()
    _evaluate(epath.Path(tmp_path))
    assert strip.read_bytes() == original.read_bytes()


def test_samples_differ_and_the_first_is_the_one(trained):
    one = _without_times(_evaluate(trained))["sr3"]
    several = _evaluate(trained, num_samples=2)["sr3"]
    each = json.loads((trained / "evaluation" / "images.json").read_text())
    assert several["diversity"] > 0 and several["psnr_std"] > 0
    assert np.mean(each["scores"]["sr3"]["psnr"]) == pytest.approx(several["psnr"])
    assert each["names"][0] == "astronaut" and each["files"][0] == "000000.png"
    folders = {path.name for path in (trained / "evaluation" / "images").iterdir()}
    assert folders == {"input", "reference", "sr3", "sr3_sample_1"}
    means = [several["psnr"] + sign * several["psnr_std"] / np.sqrt(2) for sign in (-1, 1)]
    assert one["psnr"] == pytest.approx(means[0]) or one["psnr"] == pytest.approx(means[1])
    # The figures of one sample are back when one is asked for.
    assert _without_times(_evaluate(trained))["sr3"] == one


def test_inputs_can_be_brought_to_the_networks_size(trained):
    """As in Table 3: 6 pixels brought to 8, refined to 32, and brought to 24."""
    scores = _evaluate(trained, image_size=24, network_input=8, num_images=2)
    assert scores["sr3"]["n"] == 2
    image = Image.open(trained / "evaluation" / "images" / "sr3" / "000001.png")
    assert image.size == (24, 24)
    direct = _evaluate(trained, image_size=24, num_images=2)
    assert direct["sr3"]["psnr"] != scores["sr3"]["psnr"]
    assert direct["bicubic"]["psnr"] == scores["bicubic"]["psnr"]


def test_other_weights_make_other_images(trained):
    before = _evaluate(trained)["sr3"]["psnr"]
    config = run_file.load(trained / "config.json")
    jobs.train(changed(config, {"train.num_steps": 6}), trained)
    after = json.loads((trained / "evaluation" / "metrics.json").read_text())["sr3"]["psnr"]
    assert after != before


def test_a_class_conditional_network_is_told_the_classes(tmp_path):
    """One picture in two classes: the second output is what upscaling with its class gives."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
    for name in ("cats", "dogs"):
        (tmp_path / "images" / name).mkdir(parents=True)
        picture.save(tmp_path / "images" / name / f"{name}.png")
    config, workdir = small_run.config(), epath.Path(tmp_path) / "run"
    config.model.num_classes, config.train.label_dropout = 2, 0.0
    config.data.source = "folder"
    config.data.eval_path = config.data.path = str(tmp_path / "images")
    small_run.write_workdir(workdir, config, noise=0.3)
    jobs.evaluate(run_file.load(workdir / "config.json"), workdir)
    images = workdir / "evaluation" / "images"
    low, *made = (
        np.asarray(Image.open(images / name))
        for name in ("input/000001.png", "sr3/000000.png", "sr3/000001.png")
    )
    network = SuperResolver.from_workdir(workdir)
    dog, cat = (network.upscale(low[None], seed=[1], label=label)[0] for label in (1, 0))
    np.testing.assert_array_equal(made[1], dog)
    assert (cat != dog).any()
    (workdir / "index" / "eval.npz").unlink()
    picture.save(tmp_path / "images" / "stray.png")  # in no folder of a class
    with pytest.raises(ValueError, match=r"is of no class, and .*num_classes = 2 knows 0 to 1"):
        jobs.evaluate(run_file.load(workdir / "config.json"), workdir)
