"""The training command as processes of its own that need not import everything anew.

They are forked from a process that has imported the package and done nothing else.
"""

import multiprocessing
import os
import pathlib
import sys
from collections.abc import Callable

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["forked_run", "sr3_jax.main", "sr3_jax.jobs", "sr3_jax.data.pipeline"]
)


def start(
    flags: list[str], said: pathlib.Path, before: Callable[[], None] | None = None
) -> multiprocessing.Process:
    """Starts `python -m sr3_jax.main` with `flags`; what it says is appended to the file `said`.

    `before`, a function of a module, is called in the new process first.
    """
    said.touch()
    process = _context.Process(target=_run, args=(flags, str(said), before))
    process.start()
    return process


def run(*args, **kwargs) -> int:
    """As `start`, to the end; returns the exit status."""
    process = start(*args, **kwargs)
    process.join()
    return process.exitcode


def _run(flags: list[str], said: str, before: Callable[[], None] | None) -> None:
    file = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if before is not None:
        before()
    from sr3_jax import main

    sys.argv = ["sr3_jax.main", *flags]
    main.run()
