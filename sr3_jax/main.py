"""The one door: `sr3 COMMAND --FLAG=VALUE ...`, or `python -m sr3_jax.main --mode=COMMAND ...`.

Exit status: 0 done; 1 failed; 2 wrong use; 75 start the same command again and it goes on: training
was asked to stop by SIGTERM and has saved, or another process of the job was lost; 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from typing import NoReturn

from absl import flags

from sr3_jax import command_line, commands
from sr3_jax.commands import parsing

# TensorFlow only prepares TFDS's data sets here; what it says when it starts is of no use to
# anyone. That it uses oneDNN it says whatever the level.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def command() -> None:
    """The console command `sr3`: `sr3 upscale --workdir=...` for `--mode=upscale`."""
    two = "_".join(sys.argv[1:3])  # as in `sr3 study new`
    if len(sys.argv) > 1 and sys.argv[1] in commands.NAMES:
        sys.argv[1] = f"--mode={sys.argv[1]}"
    elif two in commands.NAMES:
        sys.argv[1:3] = [f"--mode={two}"]
    elif len(sys.argv) == 1 or sys.argv[1] == "study":
        from sr3_jax.commands import help as help_texts

        command_line.leave(command_line.WRONG_USE, help_texts.of_all())
    run()


def run() -> None:
    """The same for `python -m sr3_jax.main`."""
    command_line.run(_main, parsing.parse)


def _main(_: list[str]) -> int | None:
    """Runs the command; returns the exit status, None for 0."""
    job = commands.module(flags.FLAGS.mode).prepare(flags.FLAGS)

    with command_line.nothing_to_lose():
        # Late, so that a wrong flag is answered at once.
        import jax
        from jax.errors import JaxRuntimeError

        from sr3_jax import parallel
        from sr3_jax.checkpoints import quiet_orbax
        from sr3_jax.parallel import StoppedError

    quiet_orbax()
    # It tells of every kind of device that a machine lacks; `check_accelerator` of those it has.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)

    try:
        values = flags.FLAGS
        parallel.join(
            values.coordinator,
            values.num_processes,
            values.process_index,
            stop_together=job.stops_together,
        )
        if job.sets_up_cpu:
            parallel.set_up_cpu()
        parallel.check_accelerator()
        parallel.keep_compiled(job.workdir or "")
        if jax.process_index() == 0:
            print(parallel.describe(), file=sys.stderr)
        if status := job.run():
            _leave(status)
    except StoppedError as stopped:
        is_user = stopped.signal == signal.SIGINT
        status = command_line.INTERRUPTED if is_user else command_line.START_AGAIN
        leave = _leave if stopped.alone else command_line.leave
        leave(status, str(stopped))
    except Exception as error:
        status, message = command_line.ending(error)
        # Where another process is gone, so is the other end of a sum over devices.
        several = parallel.is_one_of_several()
        lost = isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)
        if several and lost:
            why = "this process cannot go on, most likely because another one was lost"
            status = command_line.START_AGAIN
            message = message.replace("error: ", f"error: {why}: ", 1)
        _leave(status, message)


def _leave(status: int, message: str = "") -> NoReturn:
    """Ends the process after a failure, without waiting for the other processes of the job."""
    from sr3_jax import parallel

    if not parallel.is_one_of_several():
        command_line.leave(status, message)
    # The usual end of a process waits until all have come to theirs, and the others may be waiting
    # for this one.
    command_line.say(message)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
