"""Makes a workdir of a network of another program: `python -m sr3_jax.tools.import_weights`.

    python -m sr3_jax.tools.import_weights --from=janspiry --config=sr_sr3_16_128.json \
        --weights=I640000_E37_gen.pth --workdir=DIR

Upscaling, evaluation, tuning, export and `sr3 push` then take `--workdir=DIR`. No code of the file
runs, and torch is not needed. docs/models.md says which networks are read.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import jax
from absl import flags, logging

from sr3_jax import command_line, released
from sr3_jax.checkpoints import torch_file, weights_file
from sr3_jax.config import run_file
from sr3_jax.data import storage
from sr3_jax.tools.import_weights import janspiry


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


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; to `command_line.parse_flags` --config is a config of this package."""
    try:
        return flags.FLAGS(argv)
    except SystemExit:
        sys.exit(0)  # for --help, where absl exits with 1


def define_flags() -> None:
    """Defines the flags; not on import, so that the module can be used beside other tools."""
    flags.DEFINE_enum("from", None, ["janspiry"], "The program that made the weights.")
    for name, meaning in (
        ("config", "Its config, a JSON file."),
        ("weights", "Its weights, a file *_gen.pth."),
        ("workdir", "Folder for the network; local or a URL."),
    ):
        flags.DEFINE_string(name, None, meaning)


def main(_: list[str]) -> None:
    """Imports, and prints a summary."""
    given = [flags.FLAGS[name].value for name in ("from", "config", "weights", "workdir")]
    if not all(given):
        raise ValueError(
            "--from=janspiry, --config=JSON, --weights=FILE_gen.pth and --workdir=DIR are needed"
        )
    print(import_janspiry(*(os.path.expanduser(path) for path in given[1:])))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    define_flags()
    command_line.run(main, _parse)
