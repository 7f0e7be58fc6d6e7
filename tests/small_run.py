"""A training run small enough for tests, from the quickstart's config."""

import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import linen as nn
from ml_collections import config_dict

from sr3_jax.checkpoints import Checkpointer
from sr3_jax.config import Config, Train, networks, optimizers, read, save
from sr3_jax.training.state import init_state

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for configs/

from configs import quickstart  # noqa: E402

OVERRIDES = {
    "data.image_size": 16,
    "data.low_resolution": 4,
    "model.channels": 8,
    "model.prediction": "eps",  # the paper's
    "model.multipliers": (1,),
    "model.dropout": 0.1,
    "sampling.num_steps": 4,
    "sampling.batch_size": 4,
    "sampling.tile_size": 32,
    "train.num_steps": 8,
    "train.batch_size": 8,
    "train.num_warmup_steps": 2,
    "train.num_decay_steps": 2,
    "train.log_every_steps": 2,
    "train.sample_every_steps": 8,
    "checkpoint.every_steps": 2,
    "checkpoint.keep_last": 2,
    "evaluation.image_size": 32,
    "evaluation.num_pictures": 3,
}


class Network(nn.Module):
    """Inputs of an SR3 network, for networks that tests make up."""

    has_source = has_y_t = True
    num_classes = 0
    source_noise = False
    image_channels = source_channels = 3
    dtype = jnp.float32


def config() -> config_dict.ConfigDict:
    """The config in Python."""
    small = quickstart.get_config()
    small.update_from_flattened_dict(OVERRIDES)
    return small


def options(seed: int = 0, **train: Any) -> Config:
    """A config of a training step."""
    return Config(seed=seed, train=Train(**train))


def flags() -> list[str]:
    """The same config on the command line."""
    values = {
        key: ",".join(map(str, value)) + "," if isinstance(value, tuple) else value
        for key, value in OVERRIDES.items()
    }
    return ["--config=configs/quickstart.py", *(f"--config.{k}={v}" for k, v in values.items())]


def write_workdir(
    root: epath.Path, small: config_dict.ConfigDict | None = None, noise: float = 0.0
) -> Config:
    """Writes the files of a training run with random weights of step 3; returns the config.

    `noise` is added to them, away from the layers that begin at zero.
    """
    small = read(config() if small is None else small)
    model, optimizer = networks.model(read(small)), optimizers.optimizer(read(small))

    @jax.jit
    def make():
        state = init_state(model, optimizer, 0, small.data.image_size)
        keys = iter(range(10**6))
        noisy = jax.tree.map(
            lambda p: p + noise * jax.random.normal(jax.random.key(next(keys)), p.shape),
            state.ema_params,
        )
        return state.replace(ema_params=noisy)

    state = make()
    checkpointer = Checkpointer(root / "checkpoints")
    checkpointer.save(3, state, {})
    checkpointer.wait()
    checkpointer.close()
    save(small, root / "config.json")
    return small


def read_checkpoint(workdir, step: int) -> Any:
    """A checkpoint's arrays as Orbax alone reads them, on whatever devices they were."""
    path = pathlib.Path(str(workdir)) / "checkpoints" / str(step) / "default"
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(path).item_metadata.tree
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=how))


def assert_same_arrays(a: Any, b: Any, atol: float = 0.0) -> None:
    """Asserts that two checkpoints are equal, bit for bit unless `atol` is above 0."""
    pairs = list(zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True))
    assert len(pairs) > 50
    for (path, x), y in pairs:
        np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))
