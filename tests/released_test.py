"""Released networks: files of weights, networks of the package, and those of the hub."""

import json
import os
import subprocess
import sys

import hub_stand_in
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from etils import epath
from PIL import Image

from sr3_jax import SuperResolver, released
from sr3_jax.checkpoints import CheckpointError, weights_file
from sr3_jax.config import Config, read, run_file
from sr3_jax.inference import loading
from sr3_jax.jobs import evaluate, initial_weights, releasing, train

# The files of a network that was not calibrated.
_FILES = tuple(name for name in released.FILES if name != "calibration.json")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    root = epath.Path(tmp_path_factory.mktemp("run"))
    config = small_run.config()
    config.data.path, config.data.eval_path = "/somewhere/train", "/somewhere/val"
    config.evaluation.lpips_weights = "/somewhere/lpips.pth"
    small_run.write_workdir(root, config, noise=0.1)
    (root / run_file.INFERENCE).write_text('{"sampling": {"num_steps": 3}, "found": "elsewhere"}')
    return root


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
    made = epath.Path(tmp_path_factory.mktemp("shipped")) / released.DEFAULT
    releasing.push(workdir, str(made))
    return made


@pytest.fixture
def shipped(folder, monkeypatch):
    """The package, with the network."""
    monkeypatch.setattr(released, "_FOLDER", folder.parent)


IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def test_the_network_is_the_same_in_its_folder(workdir, tmp_path):
    """Weights of 32 bits are the same to the bit, and sampling is the same."""
    releasing.push(workdir, str(tmp_path / "made"), dtype="float32")
    there = SuperResolver.from_workdir(tmp_path / "made")
    here = SuperResolver.from_workdir(workdir)
    assert there.nfe() == here.nfe() == 3 and there.checkpoint_step == 3
    np.testing.assert_array_equal(there.upscale(IMAGE), here.upscale(IMAGE))
    # Pushed on, it stays what it is.
    releasing.push(epath.Path(tmp_path / "made"), str(tmp_path / "again"), dtype="float32")
    both = [(tmp_path / name / released.WEIGHTS).read_bytes() for name in ("made", "again")]
    assert both[0] == both[1]


def test_weights_of_16_bits_are_the_rounded_ones(workdir, folder):
    config = run_file.load(workdir / "config.json")
    _, whole = loading.restore(config, workdir / "checkpoints", None)
    _, rounded = loading.restore(config, folder / "checkpoints", None)
    for array, expected in zip(*map(_leaves, (rounded, whole)), strict=True):
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, jnp.asarray(expected, jnp.bfloat16), strict=False)
    content = (folder / released.WEIGHTS).stat().length
    assert content < 2.2 * sum(array.size for array in _leaves(whole)) + 20_000


def _leaves(params):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def test_numbers_that_a_type_cannot_hold_are_named(tmp_path):
    large = {"kernel": np.array([1.0, 70_000.0], np.float32)}  # float16 ends at 65,504
    with pytest.raises(ValueError, match="kernel has numbers that float16 cannot hold"):
        weights_file.write(tmp_path / "weights.safetensors", large, 1, "float16")
    assert not any(tmp_path.iterdir())


def test_it_names_no_path_of_the_machine_and_has_a_card(folder):
    for name in _FILES:
        assert b"/somewhere" not in (folder / name).read_bytes(), name
    assert json.loads((folder / run_file.INFERENCE).read_text()) == {"sampling": {"num_steps": 3}}
    assert "Not stated: the training data" in (folder / "README.md").read_text()


def test_nothing_is_replaced_unasked(workdir, folder):
    before = {name: (folder / name).read_bytes() for name in _FILES}
    with pytest.raises(FileExistsError, match="has config.json, .*--overwrite"):
        releasing.push(workdir, str(folder))
    with pytest.raises(FileExistsError, match="is the workdir of a training run"):
        releasing.push(folder, str(workdir), overwrite=True)
    releasing.push(workdir, str(folder), overwrite=True)
    assert before == {name: (folder / name).read_bytes() for name in _FILES}


def _damaged(folder, tmp_path, change) -> epath.Path:
    made = epath.Path(tmp_path / "damaged")
    made.mkdir()
    for name in _FILES:
        (made / name).write_bytes((folder / name).read_bytes())
    (made / released.WEIGHTS).write_bytes(change((folder / released.WEIGHTS).read_bytes()))
    return made


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1000] + bytes([data[-1000] ^ 4]) + data[-999:],
        lambda data: data[:-7],
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"arrays", b"arrayz"),
        lambda data: b"",
        lambda data: b"\x80\x04K\x01.",  # a pickle
    ],
    ids=["bit", "end", "half", "metadata", "empty", "pickle"],
)
def test_damage_is_named(folder, tmp_path, change):
    made = _damaged(folder, tmp_path, change)
    with pytest.raises(CheckpointError, match=f"{made / released.WEIGHTS}.*fetch it again"):
        SuperResolver.from_workdir(made)


def test_weights_of_another_network_or_step_are_named(folder, tmp_path):
    made = _damaged(folder, tmp_path, lambda data: data)
    config = json.loads((made / "config.json").read_text())
    config["model"]["channels"] = 16
    (made / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="of another network than config.json beside it"):
        SuperResolver.from_workdir(made)
    with pytest.raises(FileNotFoundError, match="holds the weights of step 3 alone"):
        SuperResolver.from_workdir(folder, 8)


def test_a_moved_network_is_the_same_one_to_jobs(folder, tmp_path):
    """So an upscaling goes on where it was stopped."""
    config = run_file.load(folder / "config.json")
    moved = _damaged(folder, tmp_path, lambda data: data)
    digests = [loading.weights_digest(config, at / "checkpoints", 3) for at in (folder, moved)]
    assert digests[0] == digests[1]


def test_the_package_brings_networks(shipped, folder, monkeypatch, tmp_path):
    assert released.names() == [released.DEFAULT]
    made = SuperResolver.pretrained(num_steps=2)
    assert made.nfe() == 2
    np.testing.assert_array_equal(
        made.upscale(IMAGE), SuperResolver.from_workdir(folder, num_steps=2).upscale(IMAGE)
    )
    with pytest.raises(ValueError, match="no network 'photos' comes .*photos_4x does"):
        SuperResolver.pretrained("photos")
    # A folder of the user's goes first where a path is meant.
    monkeypatch.chdir(tmp_path)
    assert released.locate(released.DEFAULT) == folder
    (tmp_path / released.DEFAULT).mkdir()
    assert released.locate(released.DEFAULT) == epath.Path(released.DEFAULT)


def _run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "sr3_jax.main", *map(str, arguments)],
        cwd=small_run.ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_a_network_goes_to_the_hub_and_comes_back(workdir, tmp_path):
    hub, address = hub_stand_in.Hub(), "hf://someone/flowers"
    known = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "HF_TOKEN": hub_stand_in.TOKEN}
    card = tmp_path / "card.md"
    card.write_text("---\nlicense: cc-by-4.0\n---\n# Flowers\n")
    push = ["--mode=push", f"--workdir={workdir}", f"--to={address}", f"--card={card}"]
    refused = _run(*push, **known | {"HF_TOKEN": "hf_wrong"})
    assert refused.returncode == 1 and "hf auth login" in refused.stderr, refused.stderr
    done = _run(*push, **known)
    assert done.returncode == 0 and f"use it with --workdir={address}" in done.stdout, done.stderr
    ((_, files),) = hub.commits["someone/flowers"]
    assert set(files) == set(_FILES)
    assert files["README.md"] == card.read_bytes()

    Image.fromarray(IMAGE).save(tmp_path / "picture.png")
    upscale = ["--mode=upscale", f"--input={tmp_path / 'picture.png'}", f"--workdir={address}"]
    done = _run(*upscale, f"--output={tmp_path / 'out'}", **known)
    assert done.returncode == 0, done.stderr
    made = np.asarray(Image.open(tmp_path / "out" / "picture.png"))
    assert made.shape == (24, 32, 3)
    # The downloaded files are kept, so that the address works without the hub.
    hub.shutdown()
    hub.server_close()
    done = _run(*upscale, f"--output={tmp_path / 'offline'}", **known)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(made, Image.open(tmp_path / "offline" / "picture.png"))
    refused = _run("--mode=evaluate", f"--workdir={address}", **known)
    assert refused.returncode == 2 and "is for reading" in refused.stderr
    refused = _run(*upscale[:2], "--output=x", "--workdir=hf://someone/else", **known)
    assert refused.returncode == 2 and "hf://someone/else: " in refused.stderr


def test_a_copy_of_a_released_network_is_evaluated(folder, tmp_path):
    copy = _damaged(folder, tmp_path, lambda data: data)
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(2):
        noise = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / f"{seed}.png")
    config = json.loads((copy / "config.json").read_text())
    config["data"]["eval_path"] = str(images)
    (copy / "config.json").write_text(json.dumps(config))
    evaluate(run_file.load(copy / "config.json"), copy)
    assert (copy / "evaluation" / "report.html").exists()


def test_training_begins_with_its_weights(workdir, folder, shipped, tmp_path):
    """At a rate of almost 0 they stay what they were, also where each device keeps a part."""
    config = small_run.config()
    config.train.update(num_steps=2, num_warmup_steps=0, num_decay_steps=0, learning_rate=1e-12)
    config.train.sample_every_steps, config.evaluation.num_images = 0, 1
    config.train.initial_weights, config.parallel.layout = released.DEFAULT, "zero1"
    train(read(config), epath.Path(tmp_path))
    state = small_run.read_checkpoint(tmp_path, 2)
    weights = _leaves(SuperResolver.from_workdir(folder).params)
    for part in ("params", "ema_params"):
        for array, expected in zip(_leaves(state[part]), weights, strict=True):
            np.testing.assert_allclose(array, expected, rtol=0, atol=1e-6)
    # A release keeps the name, and no path of the machine.
    for given, kept in ((released.DEFAULT, released.DEFAULT), (str(workdir), "")):
        config.train.initial_weights = given
        run_file.save(read(config), tmp_path / "config.json")
        releasing.push(epath.Path(tmp_path), str(tmp_path / "again"), overwrite=True)
        assert run_file.load(tmp_path / "again" / "config.json").train.initial_weights == kept


def test_training_does_not_begin_with_another_network(folder, tmp_path):
    config = small_run.config()
    config.train.initial_weights = str(folder)
    config.model.sigma_data, config.model.prediction = 0.3, "v"
    with pytest.raises(ValueError, match=r"prediction was 'eps' .*'v'; config.model.sigma_"):
        train(read(config), epath.Path(tmp_path) / "run")
    # The weights mean something with their own sigma_data alone, which is not measured anew then.
    config = small_run.config()
    config.train.initial_weights = str(folder)
    config.model.sigma_data, config.model.measure_sigma_data = Config().model.sigma_data, True
    found, network = initial_weights.find(read(config), "train.initial_weights")
    assert network.folder == folder
    assert found.model.sigma_data == run_file.load(folder / "config.json").model.sigma_data
    # Attention at 8 pixels is at another level of an image of 32 pixels.
    other = small_run.config()
    other.model.multipliers, other.model.attention_resolutions = (1, 1, 1), (8,)
    other.data.image_size = 16
    small_run.write_workdir(epath.Path(tmp_path) / "16", other)
    other.data.image_size, other.train.initial_weights = 32, str(tmp_path / "16")
    with pytest.raises(ValueError, match="image_size is 16, and here it is 32"):
        train(read(other), epath.Path(tmp_path) / "run")
    (tmp_path / "empty").mkdir()
    run_file.save(run_file.load(folder / "config.json"), tmp_path / "empty" / "config.json")
    for missing, message in (("nothing", "nothing"), ("empty", "checkpoints does not exist")):
        config.train.initial_weights = str(tmp_path / missing)
        with pytest.raises(FileNotFoundError, match=message):
            train(read(config), epath.Path(tmp_path) / "run")
    assert not (tmp_path / "run" / "config.json").exists()
