r"""Makes a workdir of a network of another program: `python -m sr3_jax.tools.import_weights`.

    python -m sr3_jax.tools.import_weights --from=janspiry --config=sr_sr3_16_128.json \
        --weights=I640000_E37_gen.pth --workdir=DIR
    python -m sr3_jax.tools.import_weights --from=diffusers --weights=FOLDER --workdir=DIR

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
from sr3_jax.tools.import_weights import diffusers_unet, janspiry

PROGRAMS = ("janspiry", "diffusers")


def import_weights(program: str, config_path: str, weights_path: str, workdir: str) -> str:
    """Writes the network of another program to a workdir; returns a summary in words.

    Args:
      program: one of `PROGRAMS`.
      config_path: the config of the port; empty for diffusers, whose folders have one.
      weights_path: its weights; for diffusers the folder.
      workdir: the folder to write, local or a URL.

    Raises:
      FileNotFoundError: a file is missing.
      IsADirectoryError: a file is a folder.
      FileExistsError: the workdir has a network.
      ValueError: a file is damaged, the network is not supported, or config and weights do not fit;
        names all that is wrong.
    """
    released.check_free(workdir, "--workdir")
    for flag, path in (("config", config_path), ("weights", weights_path)):
        if path and not storage.exists(path):
            raise FileNotFoundError(f"--{flag}={path} does not exist")
        if path and program != "diffusers" and storage.is_folder(path):
            raise IsADirectoryError(f"--{flag}={path} is a folder; give a file")
    step = 0
    if program == "diffusers":
        with _named(weights_path):
            config, params = diffusers_unet.read_folder(weights_path)
    else:
        with _named(config_path):
            config = janspiry.read_config(storage.read(config_path).decode())
        with _named(weights_path):
            params = janspiry.read_params(config, torch_file.read(weights_path))
        step = janspiry.step_of(os.path.basename(weights_path))
    weights_file.write(f"{workdir}/{released.WEIGHTS}", params, step, "float32")
    run_file.save(config, f"{workdir}/config.json")
    data = config.data
    sizes = f"{data.low_resolution} to {data.image_size}" if config.has_source else data.image_size
    count = sum(array.size for array in jax.tree.leaves(params))
    return (
        f"{workdir}: {config.model.architecture}, {sizes} pixels, {count:,} parameters, step "
        f"{step or 'unknown'}; it samples with {config.sampling.num_steps} calls of the network"
    )


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Adds the name of a file to errors about its content."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(text if path in text else f"{path}: {text}") from error


def define_flags() -> None:
    """Defines the flags; not on import, so that the module can be used beside other tools."""
    flags.DEFINE_enum("from", None, PROGRAMS, "The program that made the weights.")
    for name, meaning in (
        ("config", "janspiry: its config, a JSON file."),
        ("weights", "janspiry: a file *_gen.pth; diffusers: the folder of a model or a pipeline."),
        ("workdir", "Folder for the network; local or a URL."),
    ):
        flags.DEFINE_string(name, "", meaning)


def main(_: list[str]) -> None:
    """Imports, and prints a summary."""
    given = {name: flags.FLAGS[name].value for name in ("from", "config", "weights", "workdir")}
    is_diffusers = given["from"] == "diffusers"
    needed = [name for name in given if not (is_diffusers and name == "config")]
    if missing := [f"--{name}" for name in needed if not given[name]]:
        raise ValueError(f"needed: {', '.join(missing)}; see --help")
    if is_diffusers and given["config"]:
        raise ValueError("--config is of janspiry; a folder of diffusers has its own")
    print(import_weights(given.pop("from"), *map(os.path.expanduser, given.values())))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    define_flags()
    command_line.run(main)
