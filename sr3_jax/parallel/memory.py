"""Free memory of devices and of the host."""

from __future__ import annotations

import pathlib

import jax

_CGROUP = pathlib.Path("/sys/fs/cgroup")


def free_bytes(device: jax.Device) -> int | None:
    """Returns the free bytes of a device (of the host for a CPU); None where unknown."""
    if device.platform == "cpu":
        return free_host_bytes()
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def free_host_bytes() -> int | None:
    """Returns the free bytes of the machine, or of its container if fewer; None if not Linux."""
    found = [_of_machine(), _of_container()]
    return min((free for free in found if free is not None), default=None)


def _of_machine() -> int | None:
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        (kilobytes,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError):
        return None
    return int(kilobytes) * 1024


def _of_container() -> int | None:
    """Returns the free bytes of a cgroup (version 2); reclaimable file caches count as free."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())  # or `max`
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return limit - used + int(stat.get("inactive_file", 0))
