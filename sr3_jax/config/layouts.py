"""The layout of a training on devices, from its config."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax

from sr3_jax import parallel
from sr3_jax.config.sections import Config

# A TPU v2 or v3 keeps the batch beside the channels, in tiles of eight rows, and each tile costs
# the same whether it is full or not.
_SLOW_AT_FEW_IMAGES = ("TPU v2", "TPU v3")
_PARTS = 8  # of images, that fill a tile
_MOST_SHARING = 4
_LEAST_SHARED = 256  # pixels of height: below, a step is too short for many small collectives


def layout(
    config: Config, devices: Sequence[jax.Device] | None = None, *, training: bool = True
) -> parallel.Layout:
    """Returns the layout of training on all devices, or on those given.

    Without `training`, devices share an image only where the config says so, or where there are
    fewer images than devices, as in sampling.

    Raises:
      ValueError: the number of devices does not divide the batch, or the height of an image.
    """
    c = config.parallel
    devices = jax.devices() if devices is None else devices
    rows = config.train.batch_size // config.train.accumulate_steps
    spatial = c.spatial or _sharing_an_image(config, rows, devices, training)
    try:
        mesh = parallel.make_mesh(devices, model=c.model, spatial=spatial)
    except ValueError as error:
        if spatial > 1 and not c.spatial:
            raise ValueError(
                f"config.train.batch_size / accumulate_steps = {rows} cannot be split over "
                f"{len(devices)} devices, and {spatial} of them cannot share each image; "
                f"{len(devices) // c.model} would do"
            ) from error
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


def _sharing_an_image(
    config: Config, rows: int, devices: Sequence[jax.Device], training: bool
) -> int:
    """Returns the number of devices that share an image, where the config leaves it open.

    It is 1, or the fewest that it takes where there are fewer images than devices. In training on a
    TPU v2 or v3 more devices share an image where each would have few, since it is slow at few
    images (docs/tpu.md).
    """
    groups = len(devices) // config.parallel.model
    if rows < groups:
        divisors = (n for n in range(1, groups + 1) if groups % n == 0)
        return next(n for n in divisors if rows % (groups // n) == 0)
    height = config.image_sides[0]
    is_slow = training and devices[0].device_kind.startswith(_SLOW_AT_FEW_IMAGES)
    if not is_slow or height < _LEAST_SHARED:
        return 1
    deepest = height >> (len(config.model.multipliers) - 1)
    low = config.low_sides[0] if config.has_source else height
    wanted = -(-_PARTS * groups // rows)
    return min(math.gcd(_MOST_SHARING, groups, deepest, low), 1 << (wanted - 1).bit_length())
