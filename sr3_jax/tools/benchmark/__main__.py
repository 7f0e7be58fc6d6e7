"""How fast the network runs: `python -m sr3_jax.tools.benchmark`.

Times the compiled forward pass, training step (gradient and Adam update) and, with
`--sample_steps`, sampling; with `--peer=diffusers` also PyTorch's `diffusers.UNet2DModel` of the
same size (on GPUs under `torch.compile`), in turn with ours, so that other load of the machine
affects both. All JAX devices share the batch. `--what=peers` does so for three networks and prints
a table: docs/cpu.md, which has the settings for CPUs, too. launch/gpu_benchmark.sh makes the
measurements of docs/gpu.md.

`--what=data --config=FILE` times the reading of a config's images (docs/data.md), `--what=upscale
--workdir=DIR` upscaling from file to file (docs/upscaling.md). `--what=options --workdir=DIR`
scores the options of upscaling on held-out images, and `--what=samplers` gives the errors of
samplers in few steps in closed form (docs/sampling.md).
"""

from __future__ import annotations

import json
import sys
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from sr3_jax import command_line
from sr3_jax.checkpoints import quiet_orbax
from sr3_jax.config import read
from sr3_jax.data import storage
from sr3_jax.tools.benchmark import data, network, options, samplers, upscaling

_WHAT = flags.DEFINE_enum(
    "what",
    "model",
    ["model", "peers", "data", "samplers", "upscale", "options"],
    "What to measure: the network; the networks of docs/cpu.md beside their peer; reading a "
    "config's images; errors of samplers in few steps; upscaling from file to file; scores of its "
    "options.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Of a trained network (--what=upscale, options).")
_SIZE = flags.DEFINE_string("size", "64x64", "Height x width of inputs (--what=upscale).")
_STEPS = flags.DEFINE_integer("steps", None, "Refinement steps (--what=upscale, options).", 1)
_CONFIG = config_flags.DEFINE_config_file("config", None, "Of the images (--what=data).")
_IMAGES = flags.DEFINE_integer(
    "images", 512, "For each run (--what=data, upscale, options).", lower_bound=1
)
_CHANNELS = flags.DEFINE_integer("channels", 32, "Channels of the first level.", lower_bound=1)
_MULTIPLIERS = flags.DEFINE_list("multipliers", ["1", "2", "2"], "Multiple of them by level.")
_NUM_BLOCKS = flags.DEFINE_integer("num_blocks", 2, "Residual blocks a level.", lower_bound=1)
_ATTENTION = flags.DEFINE_list("attention_levels", [], "Levels with attention, such as 3,4.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 32, "Pixels a side.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images, on all devices.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", list(network.DTYPES), "Type of the computation.")
_SAMPLE_STEPS = flags.DEFINE_integer(
    "sample_steps", 0, "Also time sampling in so many refinement steps.", lower_bound=0
)
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed runs; the median counts.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "File to write the results to.")
_PICTURE = flags.DEFINE_string("picture", None, "PNG to draw samples in (--what=options).")
_PEER = flags.DEFINE_enum("peer", None, ["diffusers"], "What to compare with.")
_PEER_PYTHON = flags.DEFINE_string(
    "peer_python", sys.executable, "Interpreter that has torch and diffusers."
)


def _whole_numbers(flag: flags.FlagHolder[Any], least: int) -> tuple[int, ...]:
    """Returns the numbers of a flag.

    Raises:
      ValueError: one is no whole number, or less than `least`.
    """
    given = ",".join(flag.value)
    if not all(number.isdecimal() and int(number) >= least for number in flag.value):
        raise ValueError(f"--{flag.name}={given}; give whole numbers from {least} on, with commas")
    return tuple(map(int, flag.value))


def _described() -> dict[str, Any]:
    """Returns the network of the flags."""
    multipliers, attention = _whole_numbers(_MULTIPLIERS, 1), _whole_numbers(_ATTENTION, 0)
    if max(attention, default=0) >= len(multipliers):
        raise ValueError(
            f"--attention_levels={','.join(_ATTENTION.value)}: the network has the levels 0 to "
            f"{len(multipliers) - 1}, by --multipliers"
        )
    return {
        "channels": _CHANNELS.value,
        "multipliers": multipliers,
        "num_blocks": _NUM_BLOCKS.value,
        "attention_levels": attention,
        "image_size": _IMAGE_SIZE.value,
        "batch_size": _BATCH_SIZE.value,
        "dtype": _DTYPE.value,
        "sample_steps": _SAMPLE_STEPS.value,
    }


def _measure() -> tuple[dict[str, Any], str]:
    """Measures what --what says; returns the results, and as text."""
    what, images, steps, repeats = _WHAT.value, _IMAGES.value, _STEPS.value, _REPEATS.value
    peer_python = _PEER_PYTHON.value if _PEER.value else None
    if what == "model":
        return (found := network.measure(_described(), repeats, peer_python)), network.report(found)
    if what == "peers":
        found = {
            name: network.measure(
                described | {"sample_steps": _SAMPLE_STEPS.value, "dtype": _DTYPE.value},
                repeats,
                _PEER_PYTHON.value,
            )
            for name, described in network.NETWORKS.items()
        }
        return found, network.peers_table(found)
    if what == "samplers":
        return {"table": (table := samplers.table())}, table
    if what == "data":
        if _CONFIG.value is None:
            raise ValueError("--what=data needs --config=FILE; keys can be overridden")
        return (found := data.measure(read(_CONFIG.value), images, repeats)), data.report(found)
    if _WORKDIR.value is None:
        raise ValueError(f"--what={what} needs --workdir=DIR of a trained network")
    if what == "options":
        found = options.measure(_WORKDIR.value, images, steps, picture=_PICTURE.value)
        return found, options.report(found)
    try:
        height, width = (int(n) for n in _SIZE.value.split("x"))
    except ValueError:
        raise ValueError(f"--size={_SIZE.value}; give HEIGHTxWIDTH, such as 64x64") from None
    found = upscaling.measure(_WORKDIR.value, (height, width), images, steps, repeats)
    return found, upscaling.report(found)


def main(_: list[str]) -> None:
    """Prints the results, and writes them as JSON if --json is given."""
    logging.set_verbosity(logging.WARNING)  # hides jax's search for platforms
    quiet_orbax()
    for flag in (_JSON, _PICTURE):
        if flag.value:
            storage.check_takes_file(flag.value, f"--{flag.name}")
    results, text = _measure()
    print(text)
    if _JSON.value:
        storage.write_whole(_JSON.value, json.dumps(results, indent=2).encode())


if __name__ == "__main__":
    command_line.run(main)
