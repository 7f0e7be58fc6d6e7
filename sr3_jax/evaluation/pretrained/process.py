"""Measures with pretrained networks, in a process of its own."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence

import jax

from sr3_jax import worker_processes
from sr3_jax.evaluation.pretrained.common import Inputs, Measured
from sr3_jax.metrics import registry


def measure(
    options: Sequence[str], inputs: Inputs, weights: Mapping[str, str | None] | None = None
) -> Measured:
    """Measures each method's images, and the references themselves; shows bars.

    Networks run in a process of their own: torch cannot be loaded after TensorFlow, and jax holds
    the devices here. So the inputs must be picklable.

    Args:
      options: some of `registry.options()`.
      inputs: the images.
      weights: files of weights by option; those that are missing or None are downloaded.

    Raises:
      ImportError: a library is not installed.
      FileNotFoundError: there are no such weights.
      OSError: weights could not be downloaded.
      ValueError: a metric cannot be computed on the inputs.
    """
    with worker_processes.pool(1, _leave_devices) as pool:
        return pool.submit(_measure, options, inputs, weights or {}).result()


def _leave_devices() -> None:
    jax.config.update("jax_platforms", "cpu")


def _measure(options: Sequence[str], inputs: Inputs, weights: Mapping[str, str | None]) -> Measured:
    functions = {m.option: m.function for m in registry.of("network") if m.option in options}
    whole = Measured(inputs.rows)
    for option in sorted(functions):
        measure_one = pkgutil.resolve_name(functions[option])
        whole.add_all(measure_one(inputs, weights.get(option)))
    return whole
