"""The only place that knows about devices: the mesh, layouts on it, peak rates."""

from sr3_jax.parallel.layout import Layout, LayoutName, constrain
from sr3_jax.parallel.mesh import (
    DATA_AXIS,
    check_batch_size,
    gather,
    make_mesh,
    replicated,
    split_batch,
    to_global,
)
from sr3_jax.parallel.peak import peak_flops

__all__ = [
    "DATA_AXIS",
    "Layout",
    "LayoutName",
    "check_batch_size",
    "constrain",
    "gather",
    "make_mesh",
    "peak_flops",
    "replicated",
    "split_batch",
    "to_global",
]
