"""Descriptions of absent TPUs and GPUs, for which the real compilers compile programs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

# The accelerator type of one host of each chip, which libtpu requires on other machines.
_ACCELERATOR = {chip: f"{chip}-8" for chip in ("v2", "v3", "v4", "v5p")}
_ACCELERATOR |= {"v5e": "v5litepod-4", "v6e": "v6e-4"}

# Properties of a device that XLA's GPU compiler requires: the CUDA driver's figures, and the
# bandwidth of the maker's data sheet.
_GPU = """gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_memory}
  shared_memory_per_block_optin: {most_shared_memory}
  threads_per_core_limit: {threads}
  core_count: {cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
device_description_str: "{name}"
"""
_GPUS = {
    "h100": {
        "name": "NVIDIA H100 80GB HBM3",
        "major": 9,
        "minor": 0,
        "threads": 2048,
        "cores": 132,
        "units": 128,
        "clock": 1.98,
        "memory": 84_978_434_048,
        "bandwidth": 3_352_320_000_000,
        "cache": 52_428_800,
        "shared_memory": 233_472,
        "most_shared_memory": 232_448,
    },
    "a100": {
        "name": "NVIDIA A100-SXM4-80GB",
        "major": 8,
        "minor": 0,
        "threads": 2048,
        "cores": 108,
        "units": 64,
        "clock": 1.41,
        "memory": 84_986_691_584,
        "bandwidth": 2_039_000_000_000,
        "cache": 41_943_040,
        "shared_memory": 167_936,
        "most_shared_memory": 166_912,
    },
    "rtx4090": {
        "name": "NVIDIA GeForce RTX 4090",
        "major": 8,
        "minor": 9,
        "threads": 1536,
        "cores": 128,
        "units": 128,
        "clock": 2.52,
        "memory": 25_386_352_640,
        "bandwidth": 1_008_000_000_000,
        "cache": 75_497_472,
        "shared_memory": 102_400,
        "most_shared_memory": 101_376,
    },
}


def devices(topology: str) -> Sequence[jax.Device]:
    """Returns the devices of a GPU, `h100`, `a100` or `rtx4090`; else as `tpu_devices`."""
    if topology not in _GPUS:
        return tpu_devices(topology)
    try:
        found = topologies.get_topology_desc(
            topology, "cuda", topology="1x1x1", target_config=_GPU.format(**_GPUS[topology])
        )
    except RuntimeError as error:
        raise RuntimeError(
            f"the GPU's compiler cannot be loaded ({error}); pip install 'jax[cuda13]'"
        ) from error
    return found.devices


def gpu_memory(topology: str) -> int | None:
    """Returns the bytes of memory of a GPU; None for TPUs, whose compiler checks what fits."""
    return _GPUS[topology]["memory"] if topology in _GPUS else None


def tpu_devices(topology: str) -> Sequence[jax.Device]:
    """Returns the devices of a TPU topology; programs can be compiled for them, but not run.

    A topology is a chip and the number along each axis, such as `v3:8x8` (128 cores) or `v4:2x2x4`;
    `*2` after it means two such slices.

    Raises:
      ValueError: the compiler does not know the topology.
      RuntimeError: the compiler is not installed.
    """
    slice_topology, star, num_slices = topology.partition("*")
    chip = slice_topology.partition(":")[0]
    if chip not in _ACCELERATOR or (star and not num_slices.isdecimal()):
        raise ValueError(
            f"topology {topology!r} is unknown; give a chip, one of {', '.join(_ACCELERATOR)}, "
            "and its axes, as v3:8x8 (or v3:8x8*2 for two slices), or one of "
            f"{', '.join(_GPUS)}"
        )
    # Otherwise libtpu asks a metadata server, which machines without TPUs lack.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", _ACCELERATOR[chip])
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    # No TPU is used, so processes need not take turns.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        # The two cores of a v4 chip are one device, as on real ones.
        options: dict[str, Any] = {"chip_config_name": "megacore"} if chip == "v4" else {}
        if set(slice_topology.partition(":")[2].split("x")) == {"1"}:
            options["chips_per_host_bounds"] = (1, 1, 1)  # Colab's v5e-1; other hosts have four
        if star:
            options["num_slices"] = int(num_slices)
        found = topologies.get_topology_desc(slice_topology, "tpu", **options)
    except RuntimeError as error:
        if "not installed" in str(error) or "libtpu" in str(error):
            raise RuntimeError(
                f"the TPU's compiler cannot be loaded ({error}); pip install libtpu"
            ) from error
        raise ValueError(
            f"topology {topology!r} is unknown to the compiler ({error}); give axes of whole "
            "hosts, as v3:2x2, v5e:4x8 or v4:2x2x4"
        ) from error
    return found.devices
