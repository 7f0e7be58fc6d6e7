"""Lists the networks that come with sr3_jax.

sr3 models
"""

from __future__ import annotations

from absl import flags

from sr3_jax import command_line, released
from sr3_jax import config as configs
from sr3_jax.commands import shared


def define_flags(values: flags.FlagValues) -> None:
    """Defines no flags."""


def prepare(values: flags.FlagValues) -> shared.Job:
    """Shows the list, and ends the process."""
    lines = []
    for name in released.names():
        folder = released.shipped(name)
        config = configs.load(folder / "config.json")
        size = (folder / released.WEIGHTS).stat().length / 1e6
        data = config.data
        sizes = f"trained from {data.low_resolution} to {data.image_size} pixels"
        what = f"{config.factor}x, {sizes}, {size:.1f} MB"
        lines += [f"{name}: {what}", f"  {folder}", f"  sr3 upscale --workdir={name} ..."]
    command_line.show("\n".join(lines) or "this version comes with no network")
