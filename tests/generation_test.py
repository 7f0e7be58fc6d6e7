"""Generation by cascades: stopped, resumed and shared jobs, and refused cascades."""

import csv
import dataclasses
import os
import pathlib
import signal
import socket
import time

import forked_run
import jax
import numpy as np
import pytest
import small_run
from etils import epath
from PIL import Image

from sr3_jax import parallel
from sr3_jax.config import cascades, changed, read, with_sampling
from sr3_jax.inference import cascade, generator, super_resolver
from sr3_jax.jobs import generating, upscaling

SIZES = (8, 16, 32)


def _config(size, low, classes, **changes):
    config = small_run.config()
    changes = {
        "data.image_size": size,
        "data.low_resolution": low,
        "evaluation.image_size": 0,
        "model.multipliers": (1, 1),
        "model.num_classes": classes,
        "train.source_noise": 0.3 if low else 0.0,
        "sampling.schedule": "karras",
        "sampling.num_steps": 3,
        "sampling.batch_size": 4,
        "sampling.tile_size": 0,
    } | changes
    config.update_from_flattened_dict(changes)
    return read(config)


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Makes three networks that chain; the first and the last are class-conditional."""
    root = epath.Path(tmp_path_factory.mktemp("cascade"))
    for size, low, classes in ((8, 0, 3), (16, 8, 0), (32, 16, 3)):
        small_run.write_workdir(root / str(size), _config(size, low, classes), noise=0.1)
    return root


def _stages(workdirs, sizes=SIZES, **sampling):
    return [cascade.open_stage(workdirs / str(size), **sampling) for size in sizes]


def _read(output, size=SIZES[-1]):
    paths = sorted((output / str(size)).glob("0*.png"))
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in paths}


def _assert_same(one, other):
    """Asserts that all stages' images are equal, up to the rounding of other batch sizes."""
    for size in SIZES:
        a, b = _read(one, size), _read(other, size)
        assert a.keys() == b.keys() and a
        for name in a:
            assert np.abs(a[name] - b[name]).max() <= 2, (size, name)
    assert (one / "labels.csv").read_text() == (other / "labels.csv").read_text()


@pytest.fixture(scope="module")
def made(workdirs, tmp_path_factory):
    """Seven images at once."""
    output = epath.Path(tmp_path_factory.mktemp("made"))
    generating.generate(_stages(workdirs), output, generating.GenerateOptions(7, seed=5))
    return output


def test_what_a_cascade_leaves(made, workdirs):
    names = {f"{k:06d}.png" for k in range(7)}
    for size in SIZES:
        images = _read(made, size)
        assert images.keys() == names
        assert all(image.shape == (size, size, 3) for image in images.values())
        # No two alike.
        assert len({image.tobytes() for image in images.values()}) == 7
    with open(made / "labels.csv") as file:
        assert [row["label"] for row in csv.DictReader(file)] == list("0120120")
    # A column for each class; and one for each stage.
    assert Image.open(made / "grid.png").width > Image.open(made / "grid.png").height
    assert Image.open(made / "stages.png").width == 6 + 3 * (192 + 6)
    # In Python, without files, the same.
    there = cascade.Cascade(_stages(workdirs)).generate(3, seed=5)
    for size, images in zip(SIZES, there, strict=True):
        for k, image in enumerate(images):
            assert np.abs(_read(made, size)[f"{k:06d}.png"] - image).max() <= 2


def test_an_image_is_the_same_on_any_number_of_devices(workdirs, made, tmp_path, monkeypatch):
    output = epath.Path(tmp_path)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    generating.generate(
        _stages(workdirs, batch_size=3), output, generating.GenerateOptions(7, seed=5)
    )
    _assert_same(made, output)


def test_it_goes_on_with_one_network_at_a_time(workdirs, made, tmp_path, monkeypatch):
    """And can be asked for more; when a network is loaded, no other is on the devices."""
    load, held = cascade.Stage.load, []

    def observed(stage):
        held.append(sum(array.nbytes for array in jax.live_arrays()))
        network = load(stage)
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(network.params)) > 10_000
        return network

    before = sum(array.nbytes for array in jax.live_arrays())
    monkeypatch.setattr(cascade.Stage, "load", observed)
    output = epath.Path(tmp_path)
    generating.generate(_stages(workdirs), output, generating.GenerateOptions(3, seed=5))
    (output / "16" / "000001.png").unlink()
    (output / "32" / "000001.png").unlink()
    kept = (output / "32" / "000002.png").stat().mtime
    generating.generate(_stages(workdirs), output, generating.GenerateOptions(7, seed=5))
    _assert_same(made, output)
    assert (output / "32" / "000002.png").stat().mtime == kept
    assert len(held) == 6 and max(held) < before + 10_000


def test_a_job_of_two_processes_is_killed_and_goes_on_as_one(workdirs, made, tmp_path):
    """By the command line; SIGKILL as the second stage's first images appear."""
    output, said = pathlib.Path(tmp_path / "out"), tmp_path / "said.txt"
    config = tmp_path / "cascade.py"
    config.write_text(
        "from configs import default\n"
        "def get_config():\n"
        "    return default.cascade('unused', *(\n"
        f"        default.stage(f'{workdirs}/{{size}}', batch_size=4) for size in {SIZES}))\n"
    )
    flags = [
        "--mode=generate",
        f"--config={config}",
        f"--output={output}",
        "--num_images=7",
        "--seed=5",
    ]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        together = [f"--coordinator=localhost:{free.getsockname()[1]}", "--num_processes=2"]
    processes = [
        forked_run.start([*flags, *together, f"--process_index={i}"], said) for i in range(2)
    ]
    deadline = time.monotonic() + 200
    # Each has its own share of the images.
    while {int(path.stem) % 2 for path in (output / "16").glob("*.png")} != {0, 1}:
        assert all(p.is_alive() for p in processes), said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.005)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert not (output / "grid.png").exists()
    assert _read(output, 8).keys() == _read(made, 8).keys()
    assert forked_run.run(flags, said) == 0, said.read_text()
    assert f"7 of 7 images are in {output}/8" in said.read_text()
    _assert_same(made, epath.Path(output))


def test_a_signal_stops_it(workdirs, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel.StopSignal, "asked", lambda self, step: signal.SIGTERM)
    with pytest.raises(generating.shared.StoppedError, match="SIGTERM"):
        generating.generate(_stages(workdirs), epath.Path(tmp_path), generating.GenerateOptions(2))


def test_labels_and_seeds_make_other_images(workdirs, made, tmp_path):
    output, both = epath.Path(tmp_path), _stages(workdirs, SIZES[:2])
    twos = generating.GenerateOptions(3, labels=(2,), seed=5)
    generating.generate(both, output, twos)
    same, others = _read(output, 8), _read(made, 8)
    # Image 2 is of class 2 in both.
    assert np.abs(same["000002.png"] - others["000002.png"]).max() <= 2
    assert np.abs(same["000000.png"] - others["000000.png"]).max() > 2
    with pytest.raises(ValueError, match="labels was .2. and is .1..*--overwrite"):
        generating.generate(both, output, generating.GenerateOptions(3, (1,), 5))
    with pytest.raises(ValueError, match="seed was 5 and is 6"):
        generating.generate(both, output, generating.GenerateOptions(3, (2,), 6))
    # Of another last stage alone nothing but its own folder is refused, and renewed.
    changed = [both[0], cascade.open_stage(workdirs / "16", num_steps=2)]
    with pytest.raises(ValueError, match=r"16 has outputs.*stage_2.num_steps was 3 and is 2"):
        generating.generate(changed, output, twos)
    (output / "16" / "mine.png").write_text("not of the job")
    before = (output / "8" / "000000.png").stat().mtime, _read(output, 16)
    generating.generate(changed, output, generating.GenerateOptions(3, (2,), 5, renew=True))
    after = (output / "8" / "000000.png").stat().mtime, _read(output, 16)
    assert (output / "16" / "mine.png").exists()
    assert before[0] == after[0] and (before[1]["000000.png"] != after[1]["000000.png"]).any()


def test_what_cannot_be_is_said_before_anything_is_sampled(workdirs, tmp_path, monkeypatch):
    monkeypatch.setattr(cascade.Stage, "load", None)
    base, middle, last = _stages(workdirs)

    def fails(stages, match, labels=()):
        output = epath.Path(tmp_path / "out")
        with pytest.raises(ValueError, match=match):
            generating.generate(stages, output, generating.GenerateOptions(2, labels))
        assert not output.exists()

    fails([base, last], "stage 2, .*32, takes 16 pixels, but stage 1, .*8, makes 8")
    fails([middle, last], "stage 1, .*16, makes 16 pixels of 8; the first must make images from")
    fails([base, base], "stage 2, .*8, makes images from nothing")
    fails([base, middle], "label 3 is none of the classes 0 to 2", (1, 3))
    plain = cascade.Stage("plain", _config(8, 0, 0), 1)
    fails([plain, middle], "stage 1, plain, is unconditional.*label 1", (1,))
    fails([plain, middle, last], "32 needs a class label, but stage 1, plain, makes images without")
    many = cascade.Stage("many", _config(8, 0, 5), 1)
    fails([many, middle, last], "different numbers of classes: many 5, .*32 3")

    with pytest.raises(FileNotFoundError, match=r"/absent: .*config\.json does not exist"):
        cascade.open_stage(workdirs / "absent")
    with pytest.raises(FileNotFoundError, match="no checkpoint 7 in"):
        cascade.open_stage(workdirs / "8", 7)
    other = _config(8, 0, 3, **{"model.channels": 16})
    with pytest.raises(ValueError, match="/8: .*config.model.channels was 8 and is now 16"):
        cascade.open_stage(workdirs / "8", config=other)
    with pytest.raises(ValueError, match="guidance = 2.0, but the network is unconditional"):
        cascade.open_stage(workdirs / "16", guidance=2.0)
    with pytest.raises(ValueError, match=r"source_noise = 0.5 is not within \[0, 0.3\]"):
        cascade.open_stage(workdirs / "16", source_noise=0.5)
    with pytest.raises(ValueError, match="no input to be consistent with"):
        cascade.open_stage(workdirs / "8", consistent=True)
    unguided = _config(8, 0, 3, **{"train.label_dropout": 0.0})
    with pytest.raises(ValueError, match="label_dropout = 0, so that it has no unconditional"):
        with_sampling(unguided, {"guidance": 2.0})
    with pytest.raises(ValueError, match="makes images from nothing: use Generator"):
        super_resolver.SuperResolver.from_workdir(workdirs / "8")
    picture = epath.Path(tmp_path / "small.png")
    Image.new("RGB", (8, 8)).save(str(picture))
    with pytest.raises(ValueError, match="makes images from nothing, so it upscales none"):
        upscaling.upscale(workdirs / "8", picture, epath.Path(tmp_path / "out"))
    with pytest.raises(ValueError, match="from smaller ones: use SuperResolver"):
        generator.Generator.from_workdir(workdirs / "16")


def test_a_cascades_config_says_where_stages_are_and_how_they_sample(workdirs):
    from configs import default

    def config(*stages, **evaluation):
        made = default.cascade("out", *stages)
        made.evaluation.update(evaluation)
        return made

    def stages(config, **given):
        return generating.stages_of(cascades.read(config), **given)

    given = config(
        default.stage(str(workdirs / "8"), num_steps=9, sampler="ddim"),
        default.stage(str(workdirs / "16")),
    )
    given.stage_2.checkpoint = "3"
    first, second = stages(given, guidance=1.5)
    assert (first.config.sampling.num_steps, first.config.sampling.sampler) == (9, "ddim")
    # Where nothing is given, as the run's config says; guidance only where classes are known.
    assert (second.config.sampling.num_steps, second.step) == (3, 3)
    assert (first.config.sampling.guidance, second.config.sampling.guidance) == (1.5, 1.0)
    with pytest.raises(ValueError, match="guidance = 2.0, but no stage knows classes"):
        stages(config(default.stage(str(workdirs / "16"))), guidance=2.0)
    with pytest.raises(ValueError, match="stage_1.workdir is empty"):
        stages(config(default.stage("")))
    with pytest.raises(ValueError, match="no section stage_1, so it is of a network"):
        stages(small_run.config())

    assert generating.measure_of(cascades.read(given), [first, second]) is None
    for wanted, match in (
        ({"feature_metrics": ("fid",)}, "fid_reference is empty"),
        (
            {"feature_metrics": ("fid",), "fid_reference": "/absent.npz"},
            "absent.npz' does not",
        ),
    ):
        measured = config(default.stage(str(workdirs / "8")), **wanted)
        measure = generating.measure_of(cascades.read(measured), [first])
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            generating.generate(
                [first], epath.Path("/unused"), generating.GenerateOptions(20), measure
            )
    with pytest.raises(ValueError, match="num_images = 9: FID and IS need at least 10"):
        config_ = changed(measure.config, {"evaluation.fid_reference": "train"})
        measure = dataclasses.replace(measure, config=config_)
        generating.generate([first], epath.Path("/unused"), generating.GenerateOptions(9), measure)
