"""Devices and processes: mesh, shardings, compilation, free memory, peak rates."""

from sr3_jax.parallel.compilation import compile_for, keep_compiled
from sr3_jax.parallel.devices import check_accelerator, describe, multiplies_bfloat16, set_up_cpu
from sr3_jax.parallel.layout import Gradient, Layout, Loss
from sr3_jax.parallel.memory import free_bytes, free_host_bytes
from sr3_jax.parallel.mesh import (
    SPATIAL_AXIS,
    check_batch_size,
    gather,
    make_mesh,
    num_batch_parts,
    on_this_process,
    replicated,
    split_batch,
    to_global,
    usable,
)
from sr3_jax.parallel.peak import clock_hz, memory_bandwidth, peak_flops
from sr3_jax.parallel.processes import (
    StoppedError,
    StopSignal,
    is_one_of_several,
    join,
    of_all_processes,
    union,
    wait_for_all,
)

__all__ = [
    "SPATIAL_AXIS",
    "Gradient",
    "Layout",
    "Loss",
    "StopSignal",
    "StoppedError",
    "check_accelerator",
    "check_batch_size",
    "clock_hz",
    "compile_for",
    "describe",
    "free_bytes",
    "free_host_bytes",
    "gather",
    "is_one_of_several",
    "join",
    "keep_compiled",
    "make_mesh",
    "memory_bandwidth",
    "multiplies_bfloat16",
    "num_batch_parts",
    "of_all_processes",
    "union",
    "on_this_process",
    "peak_flops",
    "replicated",
    "set_up_cpu",
    "split_batch",
    "to_global",
    "usable",
    "wait_for_all",
]
