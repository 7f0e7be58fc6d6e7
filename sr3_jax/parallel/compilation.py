"""Compiling a program with what its devices' compiler has to be told about this network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

# From v4 on, a TPU's compiler cuts fewer than eight images into strips and makes a batch of them,
# and each convolution then copies strips' edges: twice the bytes and more (docs/tpu.md).
_TPU_OPTIONS = {
    "xla_tpu_run_space_to_batch": False,
    "xla_tpu_run_space_to_batch_on_new_platforms": False,
}


def compile_for(
    device: jax.Device, program: jax.stages.Lowered, options: Mapping[str, Any] | None = None
) -> jax.stages.Compiled:
    """`program.compile()`, with the options that suit convolutions on few images.

    Args:
      device: one of those that `program` is for.
      program: as `jax.jit(...).lower(...)` returns.
      options: of the compiler, besides.
    """
    plain = dict(options or {})
    if device.platform != "tpu":
        return program.compile(plain or None)
    try:
        return program.compile(_TPU_OPTIONS | plain)
    except jax.errors.JaxRuntimeError as error:
        # They belong to a version of libtpu, and may go as they came.
        if "No such compile option" not in str(error):
            raise
        logging.warning("this libtpu does not know an option; programs may be slower: %s", error)
        return program.compile(plain or None)


def keep_compiled(workdir: str | os.PathLike[str] = "") -> None:
    """Keeps compiled programs, so that the next start need not compile them again.

    They are kept where jax was told to (`JAX_COMPILATION_CACHE_DIR`); else, of a run in a bucket,
    in `WORKDIR/compiled`, where another machine finds them after a preemption; else in
    `~/.cache/sr3_jax`.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    path = f"{os.fspath(workdir).rstrip('/')}/compiled"
    if "://" not in path:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
        path = os.path.join(os.path.expanduser(cache), "sr3_jax")
    jax.config.update("jax_compilation_cache_dir", path)
