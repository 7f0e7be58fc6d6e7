"""Networks of other programs, held against what those programs computed.

tests/other_programs/janspiry was recorded by the port's own code, commit 01d27a7 of
github.com/Janspiry/Image-Super-Resolution-via-Iterative-Refinement, under torch 2.15 on a CPU:

* `model.networks.define_G` made a network of each config.json, normal noise of 0.1 was added to its
  parameters, and `torch.save(network.state_dict(), "I3_E1_gen.pth")` wrote it;
* expected.npz has the output of its `denoise_fn` for the images `y` (and `x`) at the levels of
  `gammas`, `outputs`, and the picture that its `super_resolution` or `sample` made of `noises`, in
  place of torch.randn: noises[T + 1] is the start and noises[t] that of step t;
* schedules.npz has the products of 1 - beta of its `make_beta_schedule(name, 60, 1e-3, 0.3)`.

tests/other_programs/diffusers and diffusers_ddpm were recorded likewise by diffusers 0.42.1: a
`UNet2DModel` in float16, written by `save_pretrained`, with the outputs of the same numbers in
float32 and the image of `DDPMPipeline`.
"""

import json
import os
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from etils import epath
from torch_file_test import rewritten

from sr3_jax import Generator, SuperResolver, diffusion
from sr3_jax.checkpoints import torch_file
from sr3_jax.config import checks, networks, run_file, schedules
from sr3_jax.diffusion import sampling
from sr3_jax.jobs import releasing
from sr3_jax.tools.import_weights import __main__ as importing
from sr3_jax.tools.import_weights import diffusers_unet, janspiry

PROGRAMS = pathlib.Path(__file__).parent / "other_programs"
RECORDED = PROGRAMS / "janspiry"
KINDS = ("janspiry/sr3", "janspiry/ddpm", "diffusers", "diffusers_ddpm")
WEIGHTS = "I3_E1_gen.pth"


def _description(kind="sr3"):
    return json.loads((RECORDED / kind / "config.json").read_text())


def _network(kind):
    folder = PROGRAMS / kind
    if "janspiry" in kind:
        config = janspiry.read_config((folder / "config.json").read_text())
        params = janspiry.read_params(config, torch_file.read(folder / WEIGHTS))
    else:
        config, params = diffusers_unet.read_folder(str(folder))
    recorded = np.load(folder / "expected.npz")
    return config, params, {name: jnp.asarray(recorded[name]) for name in recorded.files}


def _run_import(kind, workdir, weights=None):
    command = [
        *("-m", "sr3_jax.tools.import_weights", "--from=janspiry", f"--workdir={workdir}"),
        f"--config={RECORDED / kind / 'config.json'}",
        f"--weights={weights or RECORDED / kind / WEIGHTS}",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, *command],
        cwd=small_run.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_theirs_at_every_noise_level(kind):
    config, params, recorded = _network(kind)
    denoiser = networks.denoiser(config)
    x, y = recorded.get("x"), recorded["y"]
    assert (x is not None) == config.has_source

    @jax.jit
    def predict(gamma):
        return denoiser.output(params, x, y, jnp.full(len(y), gamma)).prediction

    outputs = np.stack([predict(gamma) for gamma in recorded["gammas"]])
    np.testing.assert_allclose(outputs, recorded["outputs"], rtol=0, atol=1e-4)
    # The levels make a difference that is far larger.
    assert np.abs(np.diff(recorded["outputs"], axis=0)).max(axis=(1, 2, 3, 4)).min() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_is_theirs_from_the_same_noise(kind, monkeypatch):
    config, params, recorded = _network(kind)
    noises, picture = recorded["noises"], recorded["picture"]
    monkeypatch.setattr(sampling, "_normal", lambda keys, t, shape: noises[t])
    denoiser, sampler = networks.denoiser(config), schedules.sampler(config)
    x = recorded["x"][:1] if config.has_source else None

    @jax.jit
    def sample():
        keys = jax.random.split(jax.random.key(0), 1)
        denoise = lambda y_t, gamma: denoiser(params, x, y_t, gamma)  # noqa: E731
        return diffusion.sample(denoise, sampler, keys, picture.shape[1:])

    assert sampler.nfe == len(noises) - 2
    np.testing.assert_allclose(sample(), picture, rtol=0, atol=1e-4)
    assert np.std(picture) > 0.1


def test_schedules_are_the_ports():
    recorded = np.load(RECORDED / "schedules.npz")
    assert len(recorded.files) == 6
    for name in recorded.files:
        description = _description()
        for phase in ("train", "val"):
            description["model"]["beta_schedule"][phase] = {
                "schedule": name,
                "n_timestep": 60,
                "linear_start": 1e-3,
                "linear_end": 0.3,
            }
        config = janspiry.read_config(json.dumps(description))
        for made in (schedules.training_schedule(config), schedules.sampling_schedule(config)):
            np.testing.assert_allclose(made.gamma[1:], recorded[name], rtol=1e-4)


def test_the_number_of_a_step_is_found_from_its_gamma():
    """Also between the steps of training, where other schedules sample, and beyond them."""
    config, *_ = _network("janspiry/ddpm")
    network = networks.model(config)
    gamma = jnp.asarray(schedules.training_schedule(config).gamma[1:])
    np.testing.assert_array_equal(network._time(gamma), np.arange(12))
    between = jnp.array([1.0, *(gamma[1:] + gamma[:-1]) / 2, 0.0])
    np.testing.assert_allclose(network._time(between), [0, *np.arange(0.5, 11), 11], atol=1e-4)


def test_the_workdir_is_like_any_other(tmp_path):
    """The network upscales by its config, and is pushed and read again."""
    done = _run_import("sr3", tmp_path / "made")
    assert done.returncode == 0, done.stderr
    assert "janspiry_sr3, 4 to 16 pixels" in done.stdout and "step 3" in done.stdout
    resolver = SuperResolver.from_workdir(tmp_path / "made")
    assert resolver.checkpoint_step == 3 and resolver.nfe() == 12
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert resolver.upscale(image).shape == (16, 24, 3)
    releasing.push(epath.Path(tmp_path / "made"), str(tmp_path / "pushed"), dtype="float32")
    again = SuperResolver.from_workdir(tmp_path / "pushed")
    jax.tree.map(np.testing.assert_array_equal, again.params, resolver.params)
    with pytest.raises(
        FileExistsError, match="--workdir=.* has config.json, .*; give another folder$"
    ):
        importing.import_weights("janspiry", "", "", str(tmp_path / "made"))


def test_a_network_without_a_source_makes_images(tmp_path):
    said = importing.import_weights(
        "diffusers", "", str(PROGRAMS / "diffusers"), str(tmp_path / "made")
    )
    assert "diffusers, 8 pixels" in said
    images = Generator.from_workdir(tmp_path / "made").generate(2, steps=2)
    assert images.shape == (2, 8, 8, 3)
    # Nor does it take what is the paper's network's.
    config = run_file.load(tmp_path / "made" / "config.json")
    wrong = {"norm": "pixel", "num_classes": 3, "channels": 5}
    model = config.model.__class__(**{**vars(config.model), **wrong})
    faults = " ".join(checks.faults(config.__class__(**{**vars(config), "model": model})))
    assert all(f"config.model.{key} = " in faults for key in (*wrong, "num_groups"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.unet.inner_channel": None, "model.diffusion.channels": None}, "channels is miss"),
        ({"model.unet.attn_res": 16}, "attn_res is 16; it must be a list of whole numbers"),
        ({"model.unet.in_channel": 3}, "in_channel = 3, .* where it is 6"),
        ({"model.which_model_G": "sr4"}, "'sr4'; it must be sr3 or ddpm"),
        ({"model.beta_schedule.train.schedule": "jsd"}, "train.schedule = 'jsd' cannot be sampled"),
        ({"model.beta_schedule.val.schedule": "quad"}, "val.schedule = 'quad' differs from train"),
        ({"model.unet.norm_groups": 3}, "num_groups = 3 does not divide the 4 channels"),
        ({"model.beta_schedule.train.n_timestep": 5}, "never reaches"),
    ],
)
def test_what_a_config_lacks_is_named(change, message):
    description = _description()
    for key, value in change.items():
        *path, name = key.split(".")
        place = description
        for part in path:
            place = place[part]
        place[name] = value
    with pytest.raises(ValueError, match=message):
        janspiry.read_config(json.dumps(description))


def test_comments_and_the_schedule_of_sampling_are_read():
    description = _description()
    description["model"]["beta_schedule"]["val"] |= {"n_timestep": 15, "linear_end": 0.7}
    text = json.dumps(description, indent=1).replace("{", "{ // as it has them", 3)
    config = janspiry.read_config(text)
    assert config.diffusion.num_steps == 12
    np.testing.assert_allclose(
        schedules.sampling_schedule(config).beta[1:], np.linspace(1e-3, 0.7, 15), rtol=1e-5
    )


def test_weights_of_another_network_are_named():
    config, *_ = _network("janspiry/sr3")
    state = torch_file.read(RECORDED / "sr3" / WEIGHTS)
    wrong = dict(state)
    wrong["denoise_fn.downs.7.weight"] = wrong.pop("denoise_fn.downs.0.weight")
    wrong["denoise_fn.final_conv.block.3.bias"] = np.zeros(4)
    wrong["denoise_fn.mid.0.attn.norm.bias"] = np.full(8, np.nan)
    with pytest.raises(ValueError) as raised:
        janspiry.read_params(config, wrong)
    for part in (
        "of another shape or type: denoise_fn.final_conv.block.3.bias [4] and not [3]",
        "missing in it: denoise_fn.downs.0.weight",
        "not of the network: denoise_fn.downs.7.weight",
        "not finite: denoise_fn.mid.0.attn.norm.bias",
    ):
        assert part in str(raised.value)
    with pytest.raises(ValueError, match="12 steps from beta 0.002 to 0.8"):
        janspiry.read_params(config, state | {"betas": np.linspace(2e-3, 0.8, 12)})
    with pytest.raises(ValueError, match=r"give the file \*_gen.pth"):
        janspiry.read_params(config, {"epoch": 1, "optimizer": {}})


def _configs_of_diffusers():
    folder = PROGRAMS / "diffusers"
    names = ("unet/config.json", "scheduler/scheduler_config.json")
    return [json.loads((folder / name).read_text()) for name in names]


@pytest.mark.parametrize(
    ("of_network", "of_scheduler", "message"),
    [
        ({"act_fn": "gelu", "in_channels": 1}, {}, r"2 faults.* in_channels = 1.*act_fn = 'gelu'"),
        ({"freq_shift": 1}, {}, "freq_shift = 1, downsample_padding = 1.*networks here have"),
        ({"down_block_types": ["DownBlock2D"] * 2}, {}, "must mirror each other"),
        ({"block_out_channels": [8, 12]}, {}, r"\[8, 12\]; they must be multiples"),
        ({"_class_name": "UNet2DConditionModel"}, {}, "UNet2DModel alone"),
        ({"sample_size": None}, {}, "sample_size = None"),
        ({}, {"beta_schedule": "sigmoid"}, "beta_schedule = 'sigmoid' of the scheduler"),
        ({}, {"thresholding": True}, "thresholding = True, but it is always False here"),
    ],
)
def test_what_is_not_supported_of_diffusers_is_named(of_network, of_scheduler, message):
    network, scheduler = _configs_of_diffusers()
    with pytest.raises(ValueError, match=message):
        diffusers_unet.read_config(network | of_network, scheduler | of_scheduler)


def test_older_names_of_attention_are_read():
    config, params, _ = _network("diffusers_ddpm")
    path = PROGRAMS / "diffusers_ddpm" / "diffusion_pytorch_model.bin"
    older = {}
    for name, array in torch_file.read(path).items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
            name = name.replace(new, old)
        older[name.replace("to_out.0", "proj_attn")] = array
    assert any("proj_attn" in name for name in older)
    read = diffusers_unet.read_params(config, older, is_flipped=False)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    with pytest.raises(FileNotFoundError, match="no scheduler/scheduler_config.json and no"):
        diffusers_unet.read_folder(str(PROGRAMS / "diffusers" / "unet"))


class _Runs:
    """A value whose pickle runs a program."""

    def __init__(self, path):
        self.command = f"touch {path}"

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_file_that_runs_a_program_is_refused_by_name(tmp_path):
    trap = pickle.dumps({"denoise_fn.downs.0.weight": _Runs(tmp_path / "ran")}, protocol=2)
    path = rewritten(tmp_path / "evil.pth", **{"data.pkl": trap})
    done = _run_import("sr3", tmp_path / "made", path)
    assert done.returncode == 2 and f"{path} asks for posix.system" in done.stderr
    assert not (tmp_path / "ran").exists() and not (tmp_path / "made").exists()


def test_what_is_no_dictionary_of_numbers_by_name_is_refused(tmp_path):
    config, *_ = _network("janspiry/sr3")
    for content, message in (
        ([1, 2], "it holds a list and not a dictionary of tensors by name"),
        (None, "it holds a NoneType"),
        ({3: np.zeros(1)}, "it holds 3, which is no name"),
        ({"state_dict": {}}, "it holds a dictionary under 'state_dict'"),
    ):
        with pytest.raises(ValueError, match=message):
            janspiry.read_params(config, content)
    state = dict(torch_file.read(RECORDED / "sr3" / WEIGHTS))
    state["denoise_fn.downs.0.weight"] = state["denoise_fn.downs.0.weight"].astype(np.int64)
    with pytest.raises(ValueError, match="downs.0.weight of whole numbers .int64."):
        janspiry.read_params(config, state)
    with pytest.raises(FileNotFoundError, match="--weights=nowhere does not exist"):
        config_path = str(next((RECORDED / "sr3").glob("*.json")))
        importing.import_weights("janspiry", config_path, "nowhere", str(tmp_path / "made"))


def test_such_a_network_can_be_trained_on():
    """Every parameter has a gradient, and dropout belongs to the image."""
    config, params, recorded = _network("janspiry/ddpm")
    network = networks.model(config)
    y, gamma = jnp.repeat(recorded["y"][:1], 2, axis=0), jnp.full(2, 0.3)

    @jax.jit
    def gradient(params, keys):
        def loss(params):
            out = network.apply({"params": params}, None, y, gamma, dropout_keys=keys)
            return jnp.mean(jnp.square(out)), out

        return jax.grad(loss, has_aux=True)(params)

    keys = jax.random.split(jax.random.key(0), 2)
    of_params, out = gradient(params, keys)
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(of_params)) > 0
    np.testing.assert_allclose(out, gradient(params, keys[::-1])[1][::-1], atol=1e-5)
    assert np.abs(out[0] - out[1]).max() > 1e-3
