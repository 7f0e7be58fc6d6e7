"""Makes a workdir of a network of another program: `python -m sr3_jax.tools.import_weights`.

    python -m sr3_jax.tools.import_weights --from=janspiry --config=sr_sr3_16_128.json \
        --weights=I640000_E37_gen.pth --workdir=DIR

Upscaling, evaluation, tuning, export and `sr3 push` then take `--workdir=DIR`. No code of the file
runs, and torch is not needed. docs/models.md says which networks are read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import jax
from absl import flags, logging

from sr3_jax import command_line, released
from sr3_jax.checkpoints import torch_file, weights_file
from sr3_jax.config import run_file
from sr3_jax.data import storage
from sr3_jax.tools.import_weights import janspiry

_FROM = flags.DEFINE_enum("from", None, ["janspiry"], "The program that made the weights.")
_CONFIG = flags.DEFINE_string("config", None, "Its config, a JSON file.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Its weights, a file *_gen.pth.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the network; local or a URL.")


def import_janspiry(config_path: str, weights_path: str, workdir: str) -> str:
    """Writes the network of a config and its weights; returns a summary in words.

    Raises:
      FileNotFoundError: a file is missing.
      FileExistsError: the workdir has a network.
      ValueError: a file is damaged, the network is not supported, or the two do not fit; names all
        that is wrong.
    """
    if there := [
        name
        for name in ("config.json", released.WEIGHTS, "checkpoints")
        if storage.exists(f"{workdir}/{name}")
    ]:
        raise FileExistsError(
            f"--workdir={workdir} has a network already ({', '.join(there)}); give another folder"
        )
    storage.check_writable(workdir, "--workdir")
    with _named(config_path):
        config = janspiry.read_config(storage.read(config_path).decode())
    arrays = torch_file.read(weights_path)
    with _named(weights_path):
        params = janspiry.read_params(config, arrays)
    step = janspiry.step_of(os.path.basename(weights_path))
    weights_file.write(f"{workdir}/{released.WEIGHTS}", params, step, "float32")
    run_file.save(config, f"{workdir}/config.json")
    data = config.data
    sizes = f"{data.low_resolution} to {data.image_size}" if config.has_source else data.image_size
    return (
        f"{workdir}: {config.model.architecture}, {sizes} pixels, "
        f"{sum(array.size for array in jax.tree.leaves(params)):,} parameters, step {step}, not "
        f"averaged; it samples with {config.sampling.num_steps} calls of the network"
    )


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Adds the name of a file to errors about its content."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def main(_: list[str]) -> None:
    """Imports, and prints a summary."""
    given = [_FROM.value, _CONFIG.value, _WEIGHTS.value, _WORKDIR.value]
    if not all(given):
        raise ValueError(
            "--from=janspiry, --config=JSON, --weights=FILE_gen.pth and --workdir=DIR are needed"
        )
    print(import_janspiry(*(os.path.expanduser(path) for path in given[1:])))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    command_line.run(main)
