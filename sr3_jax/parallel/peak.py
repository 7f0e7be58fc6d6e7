"""Peak arithmetic rates and clocks of accelerators, for how fast a program should run."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# A device is the first whose words are all among those of jax's `device_kind`, in lower case.
_Table = tuple[tuple[str, float], ...]
# A name with one of these words is of a variant, or of a part of a GPU, with other figures.
_OF_ANOTHER = {"laptop", "mobile", "max", "mig", "ti", "super", "d"}

# Dense bf16 FLOP/s of one jax device, from the makers' data sheets (where these give the rate for
# sparse matrices, a half of it). One jax device is a core of a TPU v2 or v3, and one of the two
# chiplets of a TPU7x.
_BF16_PEAK: _Table = (
    ("tpu v2", 22.5e12),
    ("tpu v3", 61.5e12),
    ("tpu v4", 275e12),
    ("tpu v5 lite", 197e12),
    ("tpu v5e", 197e12),
    ("tpu v5", 459e12),
    ("tpu v5p", 459e12),
    ("tpu v6", 918e12),
    ("tpu v6e", 918e12),
    ("tpu7x", 1153.5e12),
    ("gb200", 2500e12),
    ("b200", 2250e12),
    ("h200 nvl", 836e12),
    ("h200", 989e12),
    ("h100 pcie", 756e12),
    ("h100 nvl", 836e12),
    ("h100", 989e12),
    ("a100", 312e12),
    ("a10", 125e12),
    ("l40s", 362e12),
    ("l40", 181e12),
    ("l4", 121e12),
    ("rtx 6000 ada", 364e12),
    ("rtx a6000", 155e12),
    ("rtx 5090", 209e12),
    ("rtx 4090", 165e12),
    ("rtx 3090", 71e12),
)

# Of TPU v2 to v4: Jouppi et al., "TPU v4" (2023), Table 1. Of later ones: the peak, divided by the
# operations of their multipliers in a cycle.
_TPU_CLOCK: _Table = (
    ("tpu v2", 700e6),
    ("tpu v3", 940e6),
    ("tpu v4", 1050e6),
    ("tpu v5 lite", 1500e6),
    ("tpu v5e", 1500e6),
    ("tpu v5", 1750e6),
    ("tpu v5p", 1750e6),
    ("tpu v6", 1750e6),
    ("tpu v6e", 1750e6),
)
# Bytes a second of one device's memory, from the same data sheets.
_BANDWIDTH: _Table = (
    ("tpu v2", 350e9),
    ("tpu v3", 450e9),
    ("tpu v4", 1228e9),
    ("tpu v5 lite", 819e9),
    ("tpu v5e", 819e9),
    ("tpu v5", 2765e9),
    ("tpu v5p", 2765e9),
    ("tpu v6", 1640e9),
    ("tpu v6e", 1640e9),
    ("tpu7x", 3690e9),
    ("gb200", 8000e9),
    ("b200", 8000e9),
    ("h200", 4800e9),
    ("h100 pcie", 2000e9),
    ("h100 nvl", 3900e9),
    ("h100", 3350e9),
    ("a100 80gb pcie", 1935e9),
    ("a100 80gb", 2039e9),
    ("a100", 1555e9),
    ("a10", 600e9),
    ("l40s", 864e9),
    ("l40", 864e9),
    ("l4", 300e9),
    ("rtx 6000 ada", 960e9),
    ("rtx a6000", 768e9),
    ("rtx 5090", 1792e9),
    ("rtx 4090", 1008e9),
    ("rtx 3090", 936e9),
)


def memory_bandwidth(device: jax.Device) -> float | None:
    """Bytes a second that a device reads and writes at most, or None where it is not known."""
    return _of(device.device_kind, _BANDWIDTH)


def clock_hz(device: jax.Device) -> float | None:
    """Cycles a second of a TPU's cores, or None for other devices."""
    return _of(device.device_kind, _TPU_CLOCK)


def peak_flops(device: jax.Device, dtype: DTypeLike = jnp.bfloat16) -> float | None:
    """Peak dense FLOP/s of `device`, or None where it is not known.

    Known for bfloat16 on TPUs and many GPUs; a CPU's depends on clock and core count that jax does
    not tell.
    """
    if jnp.dtype(dtype) != jnp.dtype(jnp.bfloat16):
        return None
    return _of(device.device_kind, _BF16_PEAK)


def _of(kind: str, table: _Table) -> float | None:
    words = set(re.findall(r"[a-z0-9]+", kind.lower()))
    for name, value in table:
        found = set(name.split())
        if words >= found and not (words - found) & _OF_ANOTHER:
            return value
    return None
