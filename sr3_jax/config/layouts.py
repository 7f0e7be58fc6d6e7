"""The layout of a training on devices, from its config."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from sr3_jax import parallel
from sr3_jax.config.sections import Config


def layout(config: Config, devices: Sequence[jax.Device] | None = None) -> parallel.Layout:
    """Returns the layout of training on all devices, or on those given.

    Raises:
      ValueError: the number of devices does not divide the batch, or the height of an image.
    """
    c = config.parallel
    devices = jax.devices() if devices is None else devices
    rows = config.train.batch_size // config.train.accumulate_steps
    spatial = c.spatial or _fewest_for_an_image(rows, len(devices) // c.model)
    try:
        mesh = parallel.make_mesh(devices, model=c.model, spatial=spatial)
    except ValueError as error:
        raise ValueError(f"config.parallel: {error}") from error
    key = "low_resolution" if config.has_source else "image_size"
    height = (config.low_sides if config.has_source else config.image_sides)[0]
    if height % spatial:
        raise ValueError(
            f"config.parallel.spatial = {spatial} does not divide the height of config.data.{key}, "
            f"{height}; use a divisor, or a larger config.train.batch_size"
        )
    parallel.check_batch_size(rows, mesh, "config.train.batch_size / accumulate_steps")
    return parallel.Layout(mesh, c.layout)


def _fewest_for_an_image(rows: int, devices: int) -> int:
    """Returns the fewest devices that share an image: 1 unless there are fewer images."""
    divisors = (n for n in range(1, devices + 1) if devices % n == 0)
    return 1 if rows >= devices else next(n for n in divisors if rows % (devices // n) == 0)
