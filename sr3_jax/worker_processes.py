"""A pool of worker processes that end with this one and ignore Ctrl-C."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any


@contextlib.contextmanager
def pool(
    count: int, begin: Callable[..., object] | None = None, arguments: tuple[Any, ...] = ()
) -> Iterator[futures.ProcessPoolExecutor]:
    """Yields an executor with worker processes.

    The workers are spawned: forked ones would lack the threads of this process. They end when this
    process is killed. If the context ends by an exception, workers and tasks are cancelled at once.

    Args:
      count: largest number of workers.
      begin: called in each worker first.
      arguments: arguments of `begin`.
    """
    before = {child.pid for child in multiprocessing.active_children()}
    context = multiprocessing.get_context("spawn")
    executor = _Executor(count, context, _begin, (begin, arguments))
    try:
        yield executor
    except BaseException:
        for child in multiprocessing.active_children():
            if child.pid not in before:
                child.terminate()
        executor.shutdown(cancel_futures=True)
        raise
    executor.shutdown()


class _Executor(futures.ProcessPoolExecutor):
    """Starts workers that ignore Ctrl-C, which a terminal sends to all processes of a command."""

    def submit(self, *args: Any, **kwargs: Any) -> futures.Future:
        """Submits a task. This may start a worker, which inherits the blocked signals."""
        with _later_interrupt():
            return super().submit(*args, **kwargs)


@contextlib.contextmanager
def _later_interrupt() -> Iterator[None]:
    """Blocks Ctrl-C, and handles it at the end: half a worker would print a traceback."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    came: list[tuple[int, Any]] = []
    # Another thread may get the signal, and Python then calls the handler in the main thread.
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda *signal_: came.append(signal_)) if is_main else 0
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if came and callable(handler):
            handler(*came[0])


def _begin(begin: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin is not None:
        begin(*arguments)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
