"""Lists the networks that come with sr3_jax.

sr3 models
"""

from __future__ import annotations

from absl import flags

from sr3_jax import command_line, released
from sr3_jax import config as configs
from sr3_jax.commands import shared
from sr3_jax.config import run_file


def define_flags(values: flags.FlagValues) -> None:
    """Defines no flags."""


def prepare(values: flags.FlagValues) -> shared.Job:
    """Shows the list, and ends the process."""
    lines = []
    for name in released.names():
        folder = released.shipped(name)
        config = configs.load(folder / "config.json")
        calls = configs.with_sampling(config, run_file.tuned(folder, config)).sampling.num_steps
        size = (folder / released.WEIGHTS).stat().length / 1e6
        sizes = f"trained from {config.sizes_text} pixels"
        steps = f"{calls} refinement step{'s' * (calls > 1)}"
        what = f"{config.factor:g}x, {sizes}, {steps}, {size:.1f} MB"
        lines += [f"{name}: {what}", f"  {folder}", f"  sr3 upscale --workdir={name} ..."]
    command_line.show("\n".join(lines) or "this version comes with no network")
