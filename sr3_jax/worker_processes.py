"""Processes that work for this one, end when it ends, and leave Ctrl-C to it."""

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
    """A context with so many processes of their own.

    They are not forked, since threads of this process would not come along, and what is loaded
    here would. Where this process is killed, they end as well. Where the context ends by an
    exception, they are ended at once, and what they were asked for is dropped.

    Args:
      count: how many, at most.
      begin: called in each of them first.
      arguments: of `begin`.
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
    """Starts processes that ignore Ctrl-C, which a terminal sends to all processes of a command."""

    def submit(self, *args: Any, **kwargs: Any) -> futures.Future:
        """Also starts a process, where one is missing; it inherits which signals are blocked."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(begin: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin is not None:
        begin(*arguments)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
