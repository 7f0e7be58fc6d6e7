"""Compiler options that suit this network, and the cache of compiled programs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

# From v4 on, a TPU's compiler cuts batches of fewer than eight images into strips, and each
# convolution copies the strips' edges: at least twice the bytes (docs/tpu.md).
_TPU_OPTIONS = {
    "xla_tpu_run_space_to_batch": False,
    "xla_tpu_run_space_to_batch_on_new_platforms": False,
}


def compile_for(
    device: jax.Device, program: jax.stages.Lowered, options: Mapping[str, Any] | None = None
) -> jax.stages.Compiled:
    """Compiles a lowered program with the options that suit convolutions on few images.

    `device` is one of those that it is lowered for.
    """
    options = dict(options or {})
    if device.platform == "tpu":
        try:
            return program.compile(_TPU_OPTIONS | options)
        except jax.errors.JaxRuntimeError as error:
            # Versions of libtpu know different options.
            if "No such compile option" not in str(error):
                raise
            logging.warning("this libtpu lacks an option, so programs may be slower: %s", error)
    return program.compile(options or None)


def keep_compiled(workdir: str | os.PathLike[str] = "") -> None:
    """Sets the folder of jax's compilation cache, so that the next start does not compile again.

    The folder is `JAX_COMPILATION_CACHE_DIR` if set; else, for a workdir in a bucket,
    `WORKDIR/compiled`, where another machine finds it after a preemption; else
    `~/.cache/sr3_jax`. Programs that took a tenth of a second are kept; jax's own limit, a second,
    would leave out some that every start needs.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if jax.config.jax_compilation_cache_dir:
        return
    path = f"{os.fspath(workdir).rstrip('/')}/compiled"
    if "://" not in path:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
        path = os.path.join(os.path.expanduser(cache), "sr3_jax")
    jax.config.update("jax_compilation_cache_dir", path)
