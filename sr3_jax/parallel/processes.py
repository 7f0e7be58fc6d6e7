"""Several processes: joining, agreeing to stop, waiting for each other, exchanging arrays."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import types
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int32

# After this silence of one process the others take it for dead and end.
_HEARTBEAT_SECONDS = 60
# Compiling the largest networks takes ten minutes on a slow host.
_BARRIER_SECONDS = 3600
_barriers = itertools.count()


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    index: int | None = None,
    *,
    stop_together: bool = True,
) -> None:
    """Joins this process to the others of its job; must run before anything asks for devices.

    Without arguments jax detects the cluster (TPU pods, Slurm, Open MPI, Kubernetes); a machine
    outside any cluster runs alone.

    Args:
      coordinator: `HOST:PORT` of process 0, the same for all.
      num_processes: 1: this process runs alone, and no cluster is looked for.
      index: index of this process, from 0.
      stop_together: whether jax handles SIGTERM, so that all processes agree on a step to stop at
        (`StopSignal`). A job that never asks a `StopSignal` would lose the SIGTERM.

    Raises:
      ValueError: only some of the arguments are given, one is out of range, or the other
        processes cannot be found.
      RuntimeError: the coordinator cannot be reached.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_index": index}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if num_processes == 1:
        return
    if missing and len(missing) < len(given):
        raise ValueError(
            f"{' and '.join(missing)} missing: give all of {', '.join(given)}, or none"
        )
    if not missing and not 0 <= index < num_processes:
        raise ValueError(
            f"--process_index={index} is not in [0, {num_processes}), the range of "
            f"--num_processes={num_processes}"
        )
    if missing and "1" in map(os.environ.get, ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")):
        return  # the only task of its job; jax would give it one GPU only
    jax.config.update("jax_enable_preemption_service", stop_together)
    try:
        jax.distributed.initialize(
            coordinator, num_processes, index, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
        )
    except Exception as error:
        if not missing:
            raise
        if isinstance(error, ValueError) and "coordinator_address" in str(error):
            return  # this machine is in no cluster that jax knows
        # For example, the metadata server does not answer.
        raise ValueError(
            "this machine seems to be one of several, but the others cannot be found "
            f"({type(error).__name__}: {error}); give --coordinator, --num_processes and "
            "--process_index, or --num_processes=1 to run on this machine alone"
        ) from error


def is_one_of_several() -> bool:
    """Returns whether `join` has found a cluster (perhaps of this process alone)."""
    return jax.distributed.is_initialized()


class StoppedError(RuntimeError):
    """A signal ended a job; the same command resumes it.

    Attributes:
      signal: the signal.
      alone: whether the other processes of the job continue.
    """

    def __init__(self, number: signal.Signals, message: str, *, alone: bool = False) -> None:
        super().__init__(f"{number.name}: {message}")
        self.signal, self.alone = number, alone


class StopSignal:
    """A context in which SIGTERM (a preemption) and Ctrl-C are noted instead of ending the process.

    A second Ctrl-C raises KeyboardInterrupt. Several processes stop together: if any of them gets
    a SIGTERM, all see it at the same step.
    """

    def __init__(self, *, alone: bool = False) -> None:
        """Makes the context; `alone`: this process stops by itself, without asking the others."""
        self._alone = alone
        self._signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        # With several processes jax handles SIGTERM, to inform the others. Python sets signal
        # handlers in the main thread only.
        main = threading.current_thread() is threading.main_thread()
        if (self._alone or jax.process_count() == 1) and main:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def asked(self, step: int) -> signal.Signals | None:
        """Returns the signal that has come; all processes must ask after every step, or `alone`."""
        asks = not self._alone and jax.process_count() > 1 and self._signal is None
        if asks and multihost_utils.reached_preemption_sync_point(step):
            self._signal = signal.SIGTERM
        return self._signal

    def _note(self, number: int, _: types.FrameType | None) -> None:
        if number == signal.SIGINT and self._signal is not None:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number)


def wait_for_all() -> None:
    """Waits until every process calls it, for up to an hour, since compiling may take minutes.

    (Collectives time out sooner: on CPUs after 30 seconds.)
    """
    if jax.process_count() == 1:
        return
    from orbax.checkpoint import multihost  # late: the import takes a second

    key = f"sr3_jax/{next(_barriers)}"
    multihost.get_barrier_sync_fn()(key=key, timeout_ms=_BARRIER_SECONDS * 1000)


def of_all_processes(tree: Any) -> Any:
    """Concatenates the rows of numpy arrays of all processes, each of which has as many rows."""
    if jax.process_count() == 1:
        return tree
    wait_for_all()

    def gather(rows: np.ndarray) -> np.ndarray:
        # As bytes, since jax would turn float64 into float32.
        flat = np.ascontiguousarray(rows).reshape(len(rows), -1)
        everyone = multihost_utils.process_allgather(flat.view(np.uint8), tiled=True)
        return np.asarray(everyone).view(rows.dtype).reshape(-1, *rows.shape[1:])

    return jax.tree.map(gather, tree)


def union(numbers: Int32[np.ndarray, " n"]) -> Int32[np.ndarray, " m"]:
    """Returns the sorted distinct numbers of all processes, which may differ in how many."""
    counts = of_all_processes(np.array([len(numbers)], np.int32))
    if not counts.any():
        return numbers
    padded = np.zeros((1, counts.max()), np.int32)
    padded[0, : len(numbers)] = numbers
    real = np.arange(padded.shape[1]) < counts[:, None]
    return np.unique(of_all_processes(padded)[real])
