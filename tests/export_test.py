"""Exports: what they leave, and that jax alone makes of it what SuperResolver makes."""

import hashlib
import json
import pathlib
import re
import runpy
import subprocess
import sys
import textwrap

import fsspec
import jax
import numpy as np
import pytest
import small_run
from absl import flags
from etils import epath
from jax import export as jax_export
from PIL import Image

from sr3_jax import SuperResolver, command_line, models
from sr3_jax.checkpoints import Checkpointer
from sr3_jax.config import changed, networks, read, run_file, save, with_sampling
from sr3_jax.tools import export

SIZE = (5, 7)  # times the factor, 3, no multiple of the network's stride, 2
SEEDS = [3, 2**32 - 1, 5, 6]
# All that has to be installed where an export runs.
NEEDED = (
    "jax",
    "jaxlib",
    "numpy",
    "scipy",
    "ml_dtypes",
    "opt_einsum",
    "flatbuffers",
    "PIL",
    "pillow",
)


def _params(config):
    """Random weights, of layers that start at zero too; drawn here, where nothing is compiled."""
    model, rng = networks.model(read(config)), np.random.default_rng(0)
    inputs = models.example_inputs(model, config.data.image_size)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    draw = lambda a: rng.normal(0, np.prod(a.shape[:-1]) ** -0.5, a.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Makes an untrained run, with a tuned sampler that uses all options of samplers."""
    config = small_run.config()
    config.data.update(image_size=12, low_resolution=4)
    config.evaluation.image_size = 0
    config.model.update(multipliers=(1, 1), num_blocks=0, bottleneck_attention=True)
    path = epath.Path(tmp_path_factory.mktemp("run"))
    save(read(config), path / "config.json")
    tuned = dict(sampler="dpmpp_2m", eta=1.0, schedule="respaced", num_steps=3)
    (path / run_file.INFERENCE).write_text(json.dumps({"sampling": tuned}))
    checkpointer = Checkpointer(path / "checkpoints")
    checkpointer.save(7, {"ema_params": _params(config)}, {"validation_loss": 1.0})
    checkpointer.close()
    return path


def _command(*arguments):
    """`python -m sr3_jax.tools.export`, in this process."""
    values = flags.FlagValues()
    export.define_flags(values)
    export.main(values(["export", *map(str, arguments)]), values)


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
    output = pathlib.Path(tmp_path_factory.mktemp("export")) / "sampler"
    _command(f"--workdir={workdir}", f"--output={output}", f"--size={SIZE[0]}x{SIZE[1]}")
    return output


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, *SIZE, 3), dtype=np.uint8)


def _close(a, b):
    """Equal up to rounding."""
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_jax_alone_makes_the_same_of_it(workdir, folder, images, tmp_path):
    """As a command and, for three images at once, as a module, where nothing else is installed."""
    (tmp_path / "packages").mkdir()
    for name in NEEDED:
        for path in pathlib.Path(jax.__file__).parents[1].glob(f"{name}*"):
            if path.name in (name, f"{name}.libs"):
                (tmp_path / "packages" / path.name).symlink_to(path)
    code = f"""
        import importlib.util, runpy, sys

        sys.path.append("packages")
        assert not any(map(importlib.util.find_spec, ("sr3_jax", "flax", "absl", "jaxtyping")))
        import numpy as np

        script = {str(folder / "run.py")!r}
        sys.argv = [script, "in.png", "out.png", "--seed={SEEDS[0]}"]
        runpy.run_path(script, run_name="__main__")
        run = runpy.run_path(script)
        about = run["json"].load(open(run["FOLDER"] / "sampler.json"))
        images, seeds = (np.load(name + ".npy") for name in ("images", "seeds"))
        np.save("made.npy", run["load"](about)(images, seeds))
    """
    Image.fromarray(images[0]).save(tmp_path / "in.png")
    np.save(tmp_path / "images.npy", images[1:])
    np.save(tmp_path / "seeds.npy", np.array(SEEDS[1:], np.uint32))
    command = [sys.executable, "-I", "-S", "-c", textwrap.dedent(code)]
    subprocess.run(command, check=True, cwd=tmp_path)

    wanted = SuperResolver.from_workdir(workdir).upscale(images, seed=SEEDS)
    assert wanted.shape == (4, 15, 21, 3)
    _close(np.asarray(Image.open(tmp_path / "out.png")), wanted[0])
    _close(np.load(tmp_path / "made.npy"), wanted[1:])


def test_the_description_is_true(workdir, folder):
    about = json.loads((folder / "sampler.json").read_text())
    assert (about["low_resolution"], about["high_resolution"]) == ([5, 7], [15, 21])
    assert (about["factor"], about["steps"], about["network_calls"]) == (3, 3, 3)
    assert (about["sampler"], about["consistent"]) == ("dpmpp_2m (eta 1)", False)
    assert (about["checkpoint_step"], about["platforms"]) == (7, ["cpu", "cuda", "tpu"])
    assert about["config"]["sampling"]["sampler"] == "dpmpp_2m"
    assert about["versions"]["jax"] == jax.__version__
    names = {path.name for path in folder.iterdir()}
    assert names == {"sampler.stablehlo", "params.npz", "sampler.json", "run.py"}
    for name, file in about["files"].items():
        data = (folder / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
    exported = jax_export.deserialize(bytearray((folder / "sampler.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert about["versions"]["calling_convention"] == exported.calling_convention_version
    *weights, low, seeds = exported.in_avals
    assert [(list(w.shape), str(w.dtype)) for w in weights] == [
        (w["shape"], w["dtype"]) for w in about["weights"]
    ]
    assert (low.shape[1:], low.dtype, seeds.dtype) == ((5, 7, 3), np.uint8, np.uint32)
    stored = np.load(folder / "params.npz")
    averaged = jax.tree.leaves(small_run.read_checkpoint(workdir, 7)["ema_params"])
    for weight, kept in zip(about["weights"], averaged, strict=True):
        np.testing.assert_array_equal(stored[weight["name"]], kept)
    # They are arguments: the program is no larger than its operations.
    assert exported.mlir_module().count("dense<") < 400


def test_steps_platforms_and_a_bucket(workdir, folder):
    """Another sampler for TPUs alone, of the same weights."""
    flags = "--size=5x7", "--steps=2", "--platforms=tpu", "--which=7"
    _command(f"--workdir={workdir}", "--output=memory://bucket/export/", *flags)
    files = fsspec.filesystem("memory")
    read = lambda name: files.cat_file(f"/bucket/export/{name}")  # noqa: E731
    about = json.loads(read("sampler.json"))
    assert (about["steps"], about["platforms"]) == (2, ["tpu"])
    assert about["config"]["sampling"]["num_steps"] == 2
    for name in ("run.py", "params.npz"):
        assert read(name) == (folder / name).read_bytes()
    exported = jax_export.deserialize(bytearray(read("sampler.stablehlo")))
    assert (exported.platforms, exported.out_avals[0].shape[1:]) == (("tpu",), (15, 21, 3))
    assert export.make_plan(run_file.load(workdir / "config.json")).size == (4, 4)


def test_packed_as_tpus_want_it(workdir, images, monkeypatch):
    """For TPUs alone, and there beside the plain network; here the packed one is run on the CPU."""
    config = run_file.load(workdir / "config.json")
    monkeypatch.setattr(networks, "TPU_LANES", 32)
    resolver = SuperResolver.from_config(config, workdir / "checkpoints")
    shapes = {}
    for platforms in (("cpu",), ("cpu", "tpu"), ("tpu",)):
        plan = export.make_plan(config, SIZE, 2, platforms)
        text = export.export_sampler(plan, resolver.params).mlir_module()
        found = set(re.findall(r"convolution.*-> tensor<\?x16x(\w+)xf32>", text))
        shapes[platforms] = [shape for shape in ("32x8", "8x32") if shape in found]
    assert shapes == {
        ("cpu",): ["32x8"],
        ("cpu", "tpu"): ["32x8", "8x32"],
        ("tpu",): ["8x32"],
    }
    packed = changed(config, {"model.packed_channels": 32})
    plan = export.make_plan(packed, SIZE, 2, ("cpu",))
    exported = export.export_sampler(plan, resolver.params)
    made = exported.call(*jax.tree.leaves(resolver.params), images, np.array(SEEDS, np.uint32))
    _close(np.asarray(made), resolver.upscale(images, 2, seed=SEEDS))


def test_a_consistent_baseline_in_bfloat16(tmp_path, images):
    """Which has no noise, and weights in a type that numpy does not know."""
    config = small_run.config()
    config.model.dtype, config.method = "bfloat16", "srcnn"
    config.data.update(image_size=12, low_resolution=4)
    config.evaluation.image_size = 0
    config = with_sampling(read(config), {"consistent": True})
    resolver = SuperResolver.from_params(config, _params(config))
    plan = export.make_plan(config, SIZE, platforms=("cpu", "tpu"))
    exported = export.export_sampler(plan, resolver.params)
    about = export.write(str(tmp_path), plan, resolver.params, exported)
    assert {w["dtype"] for w in about["weights"]} == {"bfloat16", "float32"}
    assert (about["sampler"], about["steps"], about["consistent"]) == (None, 1, True)
    stored = np.load(tmp_path / "params.npz")
    assert {stored[name].dtype.name for name in stored} == {"uint16", "float32"}
    sample = runpy.run_path(str(tmp_path / "run.py"))["load"](about)
    _close(sample(images, np.zeros(4, np.uint32)), resolver.upscale(images))
    with pytest.raises(ValueError, match="2 steps with config.method"):
        export.make_plan(config, SIZE, 2)


def test_a_machine_of_another_kind_is_named(folder):
    run = runpy.run_path(str(folder / "run.py"))
    about = json.loads((folder / "sampler.json").read_text())
    with pytest.raises(ValueError, match="the sampler is for tpu and jax here for cpu"):
        run["load"](about | {"platforms": ["tpu"]})


@pytest.fixture
def run(folder, tmp_path):
    """The example beside files of its own: takes arguments, returns what it says and its status."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())

    def run(capsys, *arguments):
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(tmp_path / "run.py"))["main"](list(map(str, arguments)))
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


@pytest.mark.parametrize("name", ["sampler.stablehlo", "params.npz"])
def test_a_damaged_file_is_named(run, tmp_path, images, capsys, name):
    Image.fromarray(images[0]).save(tmp_path / "in.png")
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    assert f"{name} is damaged" in run(capsys, tmp_path / "in.png", tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_pictures_that_do_not_fit_are_named(run, tmp_path, images, capsys):
    Image.fromarray(images[0].swapaxes(0, 1)).save(tmp_path / "in.png")
    said = run(capsys, tmp_path / "in.png", tmp_path / "out.png")
    assert "in.png is 7x5 (height x width); this takes 5x7 only" in said
    Image.fromarray(images[0]).convert("RGBA").save(tmp_path / "alpha.png")
    said = run(capsys, tmp_path / "alpha.png", tmp_path / "out.png")
    assert "alpha.png is of mode RGBA; this takes RGB and grey of 8 bits only" in said
    assert "none.png" in run(capsys, tmp_path / "none.png", tmp_path / "out.png")


@pytest.mark.parametrize(
    "wrong, said",
    [
        ("--size=8", "--size=8 is no size; give height x width"),
        ("--size=0x8", "--size=0x8 is no size"),
        ("--size=4x13", "larger than a tile: config.sampling.tile_size = 32"),
        ("--platforms=cpu,gpu", "platform = 'gpu' is unknown; use one of cpu, cuda, rocm, tpu"),
        ("--platforms=", "platform = '' is unknown"),
        ("--steps=0", "num_steps = 0; it must be at least 1"),
        ("--steps=2001", "cannot take 2001 steps"),
        ("--which=newest", "--which=newest is unknown"),
        ("--which=5", "no checkpoint 5 in"),
        ("--output=", "--output=FOLDER are needed"),
        (f"--output={__file__}", "export_test.py takes no files: Not a directory; give"),
    ],
)
def test_wrong_use_is_one_line(workdir, tmp_path, wrong, said):
    with pytest.raises((ValueError, OSError)) as error:
        _command(f"--workdir={workdir}", f"--output={tmp_path / 'out'}", wrong)
    status, line = command_line.ending(error.value)
    assert status == 2 and line.startswith("error: ") and said in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["run.py", "params.npz", "sampler.json"])
def test_files_that_are_none_of_an_export_are_left_alone(workdir, folder, tmp_path, name):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / name).write_text("{}")
    with pytest.raises(
        FileExistsError, match=rf"mine has files .* did not make .*: {name}; remove"
    ):
        _command(f"--workdir={workdir}", f"--output={mine}")
    assert [path.name for path in mine.iterdir()] == [name] and (mine / name).read_text() == "{}"
    export.check_output(str(folder))  # may be made anew


def test_the_command_without_a_run(tmp_path):
    command = [sys.executable, "-m", "sr3_jax.tools.export", f"--workdir={tmp_path}/none"]
    done = subprocess.run(
        [*command, f"--output={tmp_path}"], cwd=small_run.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "none/config.json does not exist" in line
