"""Devices that are not there: TPUs of a topology, to compile for with the TPU's compiler."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

# A host of each chip, which libtpu wants to be told of where it cannot ask the machine.
_ACCELERATOR = {
    "v2": "v2-8",
    "v3": "v3-8",
    "v4": "v4-8",
    "v5e": "v5litepod-4",
    "v5p": "v5p-8",
    "v6e": "v6e-4",
}


def tpu_devices(topology: str) -> Sequence[jax.Device]:
    """The devices of a TPU topology: programs can be compiled for them, not run.

    Args:
      topology: a chip and how many along each axis, as `v3:8x8` (128 cores), `v4:2x2x4`; with
        `*2` after it, two such slices.

    Raises:
      ValueError: for a topology that the compiler does not know.
      RuntimeError: where there is no compiler: `pip install libtpu`.
    """
    slice_topology, star, num_slices = topology.partition("*")
    chip = slice_topology.partition(":")[0]
    if chip not in _ACCELERATOR or (star and not num_slices.isdecimal()):
        raise ValueError(
            f"topology {topology!r} is unknown; give a chip, one of {', '.join(_ACCELERATOR)}, "
            "and its axes, as v3:8x8 (or v3:8x8*2 for two slices)"
        )
    # Asked of a metadata server otherwise, which only exists beside a TPU.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", _ACCELERATOR[chip])
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    # No TPU is touched, so processes need not take turns.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        # A v4 chip's two cores work as one device, as they do wherever there are such chips.
        options: dict[str, Any] = {"chip_config_name": "megacore"} if chip == "v4" else {}
        if star:
            options["num_slices"] = int(num_slices)
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=slice_topology, **options
        )
    except RuntimeError as error:
        if "not installed" in str(error) or "libtpu" in str(error):
            raise RuntimeError(
                f"the TPU's compiler cannot be loaded ({error}); pip install libtpu"
            ) from error
        raise ValueError(f"topology {topology!r}: {error}") from error
    return found.devices
