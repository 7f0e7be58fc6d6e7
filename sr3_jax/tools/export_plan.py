"""What an export is of: the network, the sampler, and the size of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from sr3_jax import diffusion, sizes
from sr3_jax.config import Config, schedules, with_sampling
from sr3_jax.inference import tiling

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # as jax names them


@dataclasses.dataclass(frozen=True)
class Plan:
    """An export; see `make_plan`.

    Attributes:
      config: config of the run, with the sampling of the export.
      sampler: sampler of the refinement steps.
      size: height and width of the low resolution.
      tile: height and width of the network's input.
      factor: growth of images.
      platforms: that the program runs on.
    """

    config: Config
    sampler: diffusion.Sampler
    size: tuple[int, int]
    tile: tuple[int, int]
    factor: int | float
    platforms: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype:
        """Type of the images."""
        return np.dtype(np.uint8 if self.config.has_levels else np.float32)

    @property
    def inputs(self) -> dict[str, tuple[tuple[int, int], int]]:
        """Size and channels of each array of images that the program takes, in their order."""
        found = {"low_resolution": (self.size, self.config.source_channels)}
        if maps := self.config.data.maps:
            found["maps"] = self.large_size, maps
        return found

    @property
    def large_size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return sizes.scaled(self.size, self.factor)


def make_plan(
    config: Config,
    size: tuple[int, int] | None = None,
    steps: int | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> Plan:
    """Plans the export of a run.

    Args:
      config: config of the run, with the sampling to export.
      size: height and width of the low resolution; None for a square of
        `config.data.low_resolution`.
      steps: refinement steps; None for the config's.
      platforms: some of `PLATFORMS`, whether they are here or not.

    Raises:
      ValueError: images are larger than a tile, the schedule cannot do the steps, or a platform is
        unknown.
    """
    if not config.has_source or config.model.num_classes:
        raise ValueError(
            "an export takes low resolutions and seeds alone, and this network makes images from "
            "nothing or is told classes; use --mode=generate, or --mode=upscale"
        )
    if config.sampling.source_noise:
        raise ValueError("an export adds no noise to its input; use sampling.source_noise = 0")
    if unknown := [platform for platform in platforms or [""] if platform not in PLATFORMS]:
        raise ValueError(f"platform = {unknown[0]!r} is unknown; use one of {', '.join(PLATFORMS)}")
    if steps is not None and not config.predicts_image:
        config = with_sampling(config, {"num_steps": steps})
    sampler = schedules.sampler(config, steps)
    size = size or config.low_sides
    factor, stride = config.factor, config.stride
    large = sizes.scaled(size, factor)
    if any(abs(n * factor - wanted) > 1e-6 for n, wanted in zip(size, large, strict=True)):
        raise ValueError(
            f"a low resolution of {sizes.text(size)} times {factor:g} has parts of pixels; give "
            f"a --size of multiples of {sizes.text(config.low_sides)}"
        )
    # As `inference.refinement` has it.
    tile_size = -(-config.tile_size // stride) * stride
    grid = tiling.make_grid(large, tile_size, 0, stride)
    plan = Plan(config, sampler, size, grid.tile, factor, tuple(platforms))
    if grid.is_cut:
        largest = (int(tile_size // factor),) * 2
        raise ValueError(
            f"a low resolution of {sizes.text(size)} becomes {sizes.text(large)}, larger than a "
            f"tile: config.sampling.tile_size = {tile_size}. An export is of one tile: give a "
            f"--size of at most {sizes.text(largest)}, and upscale larger images by --mode=upscale"
        )
    return plan
