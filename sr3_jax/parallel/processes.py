"""Several processes: how they find each other, agree to stop, and share what each has found."""

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

# A process that says nothing for so long is taken for dead, and the others end.
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
    """Makes this process one of several. Comes before anything that asks for devices.

    Without arguments it is found out where jax can (TPU pods, Slurm, Open MPI, Kubernetes); a
    machine that is part of nothing runs alone.

    Args:
      coordinator: `HOST:PORT` of process 0, the same for all.
      num_processes: how many there are; 1: alone, and nothing is looked for.
      index: which one this is, from 0.
      stop_together: whether jax takes SIGTERM, so that all can agree on a step; see `StopSignal`.
        Where nobody asks it, a SIGTERM would be lost.

    Raises:
      ValueError: where only some of the arguments are given, or one cannot be, or the others
        cannot be found.
      RuntimeError: where those that are named cannot be reached.
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
        return  # a job's only task, to which jax would give one of its GPUs
    jax.config.update("jax_enable_preemption_service", stop_together)
    try:
        jax.distributed.initialize(
            coordinator, num_processes, index, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
        )
    except Exception as error:
        if not missing:
            raise
        if isinstance(error, ValueError) and "coordinator_address" in str(error):
            return  # jax knows no cluster that this machine is part of
        # A metadata server or a cluster's interface that does not answer, for one.
        raise ValueError(
            "this machine seems to be one of several, but the others cannot be found "
            f"({type(error).__name__}: {error}); give --coordinator, --num_processes and "
            "--process_index, or --num_processes=1 to run on this machine alone"
        ) from error


def is_one_of_several() -> bool:
    """Whether `join` has found others (or a cluster of this process alone)."""
    return jax.distributed.is_initialized()


class StoppedError(RuntimeError):
    """A signal ended a job, which the same command goes on with.

    Attributes:
      signal: the signal.
      alone: whether the other processes of the job go on.
    """

    def __init__(self, number: signal.Signals, message: str, *, alone: bool = False) -> None:
        super().__init__(f"{number.name}: {message}")
        self.signal, self.alone = number, alone


class StopSignal:
    """Whether a signal has asked the job to stop; a context within which signals only ask.

    SIGTERM announces a preemption, and Ctrl-C is the user; a second Ctrl-C ends at once. Several
    processes agree: where any of them gets a SIGTERM, all are asked, at the same point.
    """

    def __init__(self, *, alone: bool = False) -> None:
        """Of a job whose processes stop together, or, `alone`, of one whose processes need not."""
        self._alone = alone
        self._signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        # Of several processes, jax has taken SIGTERM to tell the others. Python lets signals be
        # taken by the main thread alone.
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
        """The signal that asked, or None; all processes ask after every step, unless alone."""
        if (
            not self._alone
            and jax.process_count() > 1
            and self._signal is None
            and multihost_utils.reached_preemption_sync_point(step)
        ):
            self._signal = signal.SIGTERM
        return self._signal

    def _note(self, number: int, _: types.FrameType | None) -> None:
        if number == signal.SIGINT and self._signal is not None:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number)


def wait_for_all() -> None:
    """Returns once every process is here, which may take minutes where one has to compile.

    Sums over the devices of several processes give up sooner: on CPUs after 30 seconds.
    """
    if jax.process_count() == 1:
        return
    from orbax.checkpoint import multihost  # late: a second of imports that samplers do without

    key = f"sr3_jax/{next(_barriers)}"
    multihost.get_barrier_sync_fn()(key=key, timeout_ms=_BARRIER_SECONDS * 1000)


def of_all_processes(tree: Any) -> Any:
    """Puts the rows of numpy arrays of all processes, as many of each, one after the other."""
    if jax.process_count() == 1:
        return tree

    wait_for_all()

    def gather(rows: np.ndarray) -> np.ndarray:
        # As bytes: on its way through jax a float64 would become a float32.
        flat = np.ascontiguousarray(rows).reshape(len(rows), -1)
        everyone = multihost_utils.process_allgather(flat.view(np.uint8), tiled=True)
        return np.asarray(everyone).view(rows.dtype).reshape(-1, *rows.shape[1:])

    return jax.tree.map(gather, tree)


def union(numbers: Int32[np.ndarray, " n"]) -> Int32[np.ndarray, " m"]:
    """The distinct numbers of all processes, sorted; each may have as many as it likes."""
    counts = of_all_processes(np.array([len(numbers)], np.int32))
    if not counts.any():
        return numbers
    padded = np.zeros((1, counts.max()), np.int32)
    padded[0, : len(numbers)] = numbers
    real = np.arange(padded.shape[1]) < counts[:, None]
    return np.unique(of_all_processes(padded)[real])
