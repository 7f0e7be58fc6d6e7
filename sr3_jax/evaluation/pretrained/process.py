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

    It runs in a process of its own, on the CPU and what torch finds: torch cannot be loaded after
    TensorFlow, which training loads for TensorBoard, and the devices here are taken. So the inputs
    must be such that can be pickled.

    Args:
      options: some of `registry.options()`.
      inputs: the images, and what they are compared with.
      weights: files of weights, by option; those that are missing or None are downloaded.

    Raises:
      ImportError: a library is not installed.
      FileNotFoundError: no such weights.
      OSError: weights could not be downloaded.
      ValueError: inputs that do not fit; see the metrics.
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
