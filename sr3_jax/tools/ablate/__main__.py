r"""Ablations: every combination of some keys, trained, evaluated and tabulated.

    python -m sr3_jax.tools.ablate --config=configs/quickstart.py --workdir=DIR \
        --vary=train.loss=l1,l2 --vary=train.blur_probability=0,0.5 [--config.KEY=VALUE ...]

Each combination is a run of `sr3_jax.main` in a process and a workdir of its own, named after the
varied keys: `DIR/train.loss=l1,train.blur_probability=0`, with its output in `log.txt`. The command
can be stopped at any time; the same command goes on. `--dry_run` prints what is left to do. Results
are in DIR/ablation.md and DIR/ablation.json. `--seeds=3` trains each combination with three seeds
and gives means and standard deviations.

Commas separate values, colons the numbers of a tuple: `--vary=model.multipliers=1:2:2,1:2:4`; no
number at all is the empty tuple.

Keys of `sampling` and `evaluation` do not change the network, which is trained once for all of
their values: the workdir of the first combination holds the training, and in the others
`checkpoints` is a link to it (so DIR is on a disk, and is moved as a whole). If
`evaluation.checkpoint` is `best`, images of another `evaluation.image_size` or `num_images` may
choose another checkpoint, so each is trained.

The ablations of the paper, and of questions that it leaves open, are in configs/ablations:

    --flagfile=configs/ablations/loss.flags --flagfile=configs/ablations/blur.flags

Exit status: 0 all is done; 1 a combination failed, and the others are done; 2 wrong use; 75 or 130
stopped by SIGTERM or Ctrl-C, and the same command goes on.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from absl import flags
from ml_collections import config_flags

from sr3_jax import command_line, parallel, worker_processes
from sr3_jax.command_line import FAILED, INTERRUPTED, START_AGAIN
from sr3_jax.data import storage
from sr3_jax.tools.ablate import plan as ablation_plan
from sr3_jax.tools.ablate import table as ablation_table
from sr3_jax.tools.ablate.plan import Run

# Exit statuses of a run that was stopped, and the status of this program then.
_STOPPED = {
    START_AGAIN: START_AGAIN,
    128 + signal.SIGTERM: START_AGAIN,
    -signal.SIGTERM: START_AGAIN,
    INTERRUPTED: INTERRUPTED,
    -signal.SIGINT: INTERRUPTED,
}
_LOG = "log.txt"
_END_OF_LOG = 1 << 16  # bytes


def run_all(runs: Sequence[Run], workdir: pathlib.Path) -> int:
    """Does what is left, run by run, with a report after each; returns the exit status."""
    failed: dict[Run, str] = {}
    # Runs that share a training follow it.
    trainers = {run: ablation_plan.trainer(run, runs) for run in runs}
    order = sorted(runs, key=lambda run: (runs.index(trainers[run]), trainers[run] is not run))
    with parallel.StopSignal(alone=True) as stop:
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
        for count, run in enumerate(order, 1):
            step, training = ablation_plan.next_step(run, runs)
            if step == "wait":
                failed[run] = f"not evaluated, since {training} is not trained"
            elif step != "done":
                print(f"[{count}/{len(runs)}] {step} {run.folder}", file=sys.stderr, flush=True)
                if step == "evaluate":
                    ablation_plan.borrow_training(run, training)
                of_run = [f"--mode={step}", f"--workdir={run.folder}", *run.flags]
                status, said = _execute(of_run, run.folder, stop)
                if (asked := stop.asked(0)) is not None:
                    status = INTERRUPTED if asked == signal.SIGINT else START_AGAIN
                if status in _STOPPED:
                    ablation_table.write(_results(runs, failed), workdir)
                    print("stopped; the same command goes on", file=sys.stderr)
                    return _STOPPED[status]
                if status:
                    failed[run] = f"{said}; see {run.folder / _LOG}"
            ablation_table.write(_results(runs, failed), workdir)
    print(ablation_table.table(_results(runs, failed)))
    print("results:", workdir / "ablation.md", workdir / "ablation.json")
    return FAILED if failed else 0


def _execute(
    main_flags: Sequence[str], folder: pathlib.Path, stop: parallel.StopSignal
) -> tuple[int, str]:
    """Runs `sr3_jax.main` to its end, shows its output, and passes on a signal to stop.

    Returns:
      Its exit status and its error, or its last line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOG, "ab") as log, open(folder / _LOG, "rb") as said:
        begin = said.seek(0, os.SEEK_END)
        try:
            # The run inherits the lock, which then holds even if this program is killed.
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"a run that was started before is still at work in {folder}; wait for its end, "
                "or end it, and give this command again"
            ) from error
        child = _start(main_flags, log)
        status = passed_on = None
        try:
            while status is None:
                if passed_on is None and (passed_on := stop.asked(0)) is not None:
                    is_interrupt = passed_on == signal.SIGINT
                    child.send_signal(signal.SIGINT if is_interrupt else signal.SIGTERM)
                time.sleep(0.1)
                status = child.poll()
                sys.stderr.buffer.write(said.read())
                sys.stderr.flush()
        except KeyboardInterrupt:  # the second Ctrl-C, which ends the run at once
            child.send_signal(signal.SIGINT)
            raise
        said.seek(max(begin, said.tell() - _END_OF_LOG))
        lines = re.split(r"[\r\n]+", said.read().decode(errors="replace").strip())
    if status < 0:
        return status, f"ended by {signal.Signals(-status).name}"
    return status, next((s for s in reversed(lines) if s.startswith("error: ")), lines[-1])


def _start(main_flags: Sequence[str], log: IO[bytes]) -> Any:
    command = [sys.executable, "-m", "sr3_jax.main", *main_flags]
    # In a session of its own: a terminal sends Ctrl-C to all of its processes, and a second one,
    # passed on, would end the run before it has saved.
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def _results(runs: Sequence[Run], failed: Mapping[Run, str]) -> list[ablation_table.Result]:
    return [
        ablation_table.Result(
            values=run.values,
            seed=run.config.seed,
            folder=run.folder.name,
            method=run.config.method,
            training_steps=run.config.train.num_steps,
            scores=ablation_table.read_scores(run.folder / ablation_plan.METRICS),
            failure=failed.get(run, ""),
        )
        for run in runs
    ]


def _print_plan(runs: Sequence[Run]) -> None:
    for run in runs:
        step, training = ablation_plan.next_step(run, runs)
        words = {"done": "done", "train": "to train", "evaluate": "to evaluate"}
        of = "" if training == run.folder else f", of the training of {training.name}"
        begun = step == "train" and ablation_plan.has_training(run.folder)
        print(f"{'goes on' if begun else words.get(step, 'to evaluate')}: {run.folder.name}{of}")


def define_flags() -> None:
    """Defines the flags; not on import, so that the module can be used beside other tools."""
    config_flags.DEFINE_config_file("config", None, "The config, as for training.")
    flags.DEFINE_string("workdir", None, "Folder of all runs, on a disk.")
    flags.DEFINE_multi_string("vary", [], "KEY=V1,V2,...; can be given several times.")
    flags.DEFINE_integer("seeds", 1, "Train each combination with so many seeds.", 1)
    flags.DEFINE_bool("dry_run", False, "Only say what is done and what is to do.")


def main(_: list[str]) -> int:
    """Does what is left of the ablation, or prints it; returns the exit status."""
    given = flags.FLAGS
    if given.config is None or not given.workdir or not given.vary:
        raise ValueError("--config=FILE, --workdir=DIR and --vary=KEY=V1,V2 are needed")
    if storage.is_url(given.workdir):
        raise ValueError(f"--workdir={given.workdir} is in a bucket; give a folder on a disk")
    workdir = pathlib.Path(given.workdir).expanduser().absolute()
    storage.check_writable(workdir, "--workdir")
    filename = config_flags.get_config_filename(given["config"])
    overrides = config_flags.get_override_values(given["config"])
    keys = (given.vary, given.seeds, workdir)
    runs = ablation_plan.combinations(given.config, filename, overrides, *keys)
    ablation_plan.check_folders(runs)
    configs = {run.folder.name: run.config for run in runs}
    with worker_processes.pool(1) as pool:
        pool.submit(ablation_plan.check, configs).result()
    if given.dry_run:
        _print_plan(runs)
        return 0
    return run_all(runs, workdir)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
