"""Peak arithmetic rates, memory bandwidths and clocks of accelerators."""

from __future__ import annotations

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# Words of a device kind that mean a variant, or a part of a GPU, with other figures.
_VARIANTS = {"laptop", "mobile", "max", "mig", "ti", "super", "d"}


class _Rates(NamedTuple):
    """Figures of one jax device, from the makers' data sheets.

    One jax device is a core of a TPU v2 or v3, and one of the two chiplets of a TPU7x.

    Attributes:
      flops: dense bf16 FLOP/s; a half of the sparse rate where the data sheet gives that.
      bandwidth: bytes a second of its memory.
      clock: cycles a second of a TPU's cores. v2 to v4: Jouppi et al., "TPU v4" (2023), Table 1;
        later ones: `flops` over the operations of their multipliers in a cycle.
    """

    flops: float
    bandwidth: float
    clock: float | None = None


# A device is the first entry whose words are all in jax's `device_kind`, in lower case.
_DEVICES = {
    "tpu v2": _Rates(22.5e12, 350e9, 700e6),
    "tpu v3": _Rates(61.5e12, 450e9, 940e6),
    "tpu v4": _Rates(275e12, 1228e9, 1050e6),
    "tpu v5 lite": _Rates(197e12, 819e9, 1500e6),
    "tpu v5e": _Rates(197e12, 819e9, 1500e6),
    "tpu v5": _Rates(459e12, 2765e9, 1750e6),
    "tpu v5p": _Rates(459e12, 2765e9, 1750e6),
    "tpu v6": _Rates(918e12, 1640e9, 1750e6),
    "tpu v6e": _Rates(918e12, 1640e9, 1750e6),
    "tpu7x": _Rates(1153.5e12, 3690e9),
    "gb200": _Rates(2500e12, 8000e9),
    "b200": _Rates(2250e12, 8000e9),
    "h200 nvl": _Rates(836e12, 4800e9),
    "h200": _Rates(989e12, 4800e9),
    "h100 pcie": _Rates(756e12, 2000e9),
    "h100 nvl": _Rates(836e12, 3900e9),
    "h100": _Rates(989e12, 3350e9),
    "a100 80gb pcie": _Rates(312e12, 1935e9),
    "a100 80gb": _Rates(312e12, 2039e9),
    "a100": _Rates(312e12, 1555e9),
    "a10": _Rates(125e12, 600e9),
    "l40s": _Rates(362e12, 864e9),
    "l40": _Rates(181e12, 864e9),
    "l4": _Rates(121e12, 300e9),
    "rtx 6000 ada": _Rates(364e12, 960e9),
    "rtx a6000": _Rates(155e12, 768e9),
    "rtx 5090": _Rates(209e12, 1792e9),
    "rtx 4090": _Rates(165e12, 1008e9),
    "rtx 3090": _Rates(71e12, 936e9),
}


def memory_bandwidth(device: jax.Device) -> float | None:
    """Returns the bytes a second that a device moves at most; None where unknown."""
    rates = _rates(device.device_kind)
    return rates and rates.bandwidth


def clock_hz(device: jax.Device) -> float | None:
    """Returns the cycles a second of a TPU's cores; None for other devices."""
    rates = _rates(device.device_kind)
    return rates and rates.clock


def peak_flops(device: jax.Device | str, dtype: DTypeLike = jnp.bfloat16) -> float | None:
    """Returns the peak dense FLOP/s of a TPU or GPU in bfloat16; None where unknown.

    `device` is a device, or its kind, such as "TPU v5p".
    """
    kind = device if isinstance(device, str) else device.device_kind
    rates = _rates(kind) if jnp.dtype(dtype) == jnp.bfloat16 else None
    return rates and rates.flops


def _rates(kind: str) -> _Rates | None:
    words = set(re.findall(r"[a-z0-9]+", kind.lower()))
    for name, rates in _DEVICES.items():
        named = set(name.split())
        if words >= named and not (words - named) & _VARIANTS:
            return rates
    return None
