"""Peak arithmetic rates and clocks of accelerators, for how fast a program should run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# Dense bf16 FLOP/s of one jax device (for TPU v2 and v3: of one core), from the makers' data
# sheets. The key is a part of jax's `device_kind`, in lower case; the first match counts.
_BF16_PEAK = (
    ("tpu v2", 22.5e12),
    ("tpu v3", 61.5e12),
    ("tpu v4", 275e12),
    ("tpu v5 lite", 197e12),
    ("tpu v5e", 197e12),
    ("tpu v5", 459e12),
    ("tpu v6", 918e12),
    ("b200", 2250e12),
    ("h200", 989e12),
    ("h100 pcie", 756e12),
    ("h100", 989e12),
    ("a100", 312e12),
    ("l4", 121e12),
    ("v100", 125e12),
)

# Of TPU v2 to v4: Jouppi et al., "TPU v4" (2023), Table 1. Of later ones: the peak, divided by the
# operations of their multipliers in a cycle.
_TPU_CLOCK = (
    ("tpu v2", 700e6),
    ("tpu v3", 940e6),
    ("tpu v4", 1050e6),
    ("tpu v5 lite", 1500e6),
    ("tpu v5e", 1500e6),
    ("tpu v5", 1750e6),
    ("tpu v6", 1750e6),
)
# Bytes a second of one device's memory, from the same data sheets.
_TPU_BANDWIDTH = (
    ("tpu v2", 350e9),
    ("tpu v3", 450e9),
    ("tpu v4", 1228e9),
    ("tpu v5 lite", 819e9),
    ("tpu v5e", 819e9),
    ("tpu v5", 2765e9),
    ("tpu v6", 1640e9),
)


def memory_bandwidth(device: jax.Device) -> float | None:
    """Bytes a second that a TPU reads and writes at most, or None for other devices."""
    return _of(device, _TPU_BANDWIDTH)


def clock_hz(device: jax.Device) -> float | None:
    """Cycles a second of a TPU's cores, or None for other devices."""
    return _of(device, _TPU_CLOCK)


def peak_flops(device: jax.Device, dtype: DTypeLike = jnp.bfloat16) -> float | None:
    """Peak dense FLOP/s of `device`, or None where it is not known.

    Known for bfloat16 on TPUs and data-centre GPUs; a CPU's depends on clock and core count
    that jax does not tell.
    """
    if jnp.dtype(dtype) != jnp.dtype(jnp.bfloat16):
        return None
    return _of(device, _BF16_PEAK)


def _of(device: jax.Device, table: tuple[tuple[str, float], ...]) -> float | None:
    kind = device.device_kind.lower()
    return next((value for name, value in table if name in kind), None)
