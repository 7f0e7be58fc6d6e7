"""Devices of a program, and a check that it uses the machine's accelerator."""

from __future__ import annotations

import collections
import functools
import importlib.util
import os
import pathlib
import platform
import re
from collections.abc import Callable

import jax

from sr3_jax.parallel import memory

_PCI = pathlib.Path("/sys/bus/pci/devices")
_GOOGLE, _NVIDIA = "0x1ae0", "0x10de"
_STORAGE, _NETWORK = "0x01", "0x02"  # classes of other devices that Google's machines have
_GPU_CLASSES = ("0x03", "0x12")

# jax's packages for each kind of accelerator.
_TPU_PLUGINS = ("libtpu",)
_GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_cuda12_pjrt", "jax_cuda13_pjrt")


_MOST_CPU_DEVICES = 8


def set_up_cpu() -> None:
    """Makes sampling on CPUs faster (docs/cpu.md). Call it before jax makes an array.

    Each core becomes a device, up to 8, and refines tiles of its own; JAX_NUM_CPU_DEVICES overrides
    that.
    """
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        jax.config.update("jax_num_cpu_devices", min(cores or 1, _MOST_CPU_DEVICES))


@functools.cache
def multiplies_bfloat16() -> bool:
    """Returns whether Linux lists instructions for products of bfloat16 (x86 CPUs alone)."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False
    found = re.search("^flags.*", text, re.MULTILINE)
    return bool(found) and not {"avx512_bf16", "amx_bf16"}.isdisjoint(found[0].split())


def describe() -> str:
    """Returns one line that describes devices, free memory, processes and versions."""
    kinds = collections.Counter(device.device_kind for device in jax.local_devices())
    each = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    free = memory.free_bytes(jax.local_devices()[0])
    where = "of memory" if jax.default_backend() == "cpu" else "of memory on each"
    memory_free = "" if free is None else f"{free / 1e9:.1f} GB {where} free; "
    return (
        f"devices: {each} ({jax.default_backend()}); {memory_free}"
        f"process {jax.process_index()} of {jax.process_count()}; "
        f"jax {jax.__version__}, Python {platform.python_version()}"
    )


def check_accelerator() -> None:
    """Checks that jax does not run on the CPU of a machine that has an accelerator.

    Does nothing if `JAX_PLATFORMS` is set: jax then checks its platform itself.

    Raises:
      RuntimeError: the machine has TPU chips or an NVIDIA GPU, or jax's package for one is
        installed, but jax came up on the CPU; the message gives the reason and the fix.
    """
    if jax.config.jax_platforms or jax.default_backend() != "cpu":
        return
    for name, backend, chips, plugins, remedy in (
        ("a TPU", "tpu", _tpu_chips(), _TPU_PLUGINS, f"pip install 'jax[tpu]=={jax.__version__}'"),
        (
            "an NVIDIA GPU",
            "cuda",
            _gpus(),
            _GPU_PLUGINS,
            f"pip install 'jax[cuda13]=={jax.__version__}' (driver 580 or newer, by nvidia-smi; "
            "for drivers from 525 on, cuda12)",
        ),
    ):
        found = [plugin for plugin in plugins if importlib.util.find_spec(plugin)]
        if not chips and (not found or (backend == "cuda" and _are_gpus_hidden())):
            continue
        what = f"this machine has {name} ({chips})" if chips else f"{found[0]} is installed"
        why = _why_not(backend) if found else f"the package for it is not installed: {remedy}"
        raise RuntimeError(
            f"{what}, but jax came up on the CPU, which is many times slower; {why}. To run on the "
            "CPU all the same, set JAX_PLATFORMS=cpu"
        )


def _why_not(backend: str) -> str:
    try:
        jax.devices(backend)
        return "jax does not say why"
    except RuntimeError as error:
        if "Unknown backend" in str(error):
            return "the package could not be loaded, for the reason that jax has printed above"
        return f"jax says: {' '.join(str(error).split())[:600]}"


def _tpu_chips() -> str:
    """Describes the TPU chips on the PCI bus; empty if there are none."""
    return _on_bus(_GOOGLE, lambda kind: not kind.startswith((_STORAGE, _NETWORK)))


def _gpus() -> str:
    """Describes the NVIDIA GPUs by the driver's device files, or on the PCI bus; may be empty."""
    if _are_gpus_hidden():
        return ""
    files = sorted(str(path) for path in pathlib.Path("/dev").glob("nvidia[0-9]*"))
    return ", ".join(files) or _on_bus(_NVIDIA, lambda kind: kind.startswith(_GPU_CLASSES))


def _are_gpus_hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def _on_bus(vendor: str, is_chip: Callable[[str], bool]) -> str:
    found = []
    for path in sorted(_PCI.glob("*")):
        try:
            if (path / "vendor").read_text().strip() == vendor:
                if is_chip((path / "class").read_text().strip()):
                    found.append(path.name)
        except OSError:
            continue
    return f"{len(found)} on the PCI bus" if found else ""
