"""Distils a trained network into students that need fewer calls, and evaluates them.

sr3 distill --teacher=NETWORK --workdir=DIR [--calls=8,4,2,1] [--steps=N] [--truth=SHARE]
    [--config.SECTION.KEY=VALUE ...]
sr3 distill --objective=energy --teacher=NETWORK --workdir=DIR [--steps=N] [--config...]

DIR/8_calls, DIR/4_calls, ... are then workdirs as training leaves them; with --truth also
DIR/1_call_truth. With --objective=energy there is one student, DIR/1_call, that learns from the
images themselves (docs/distillation.md).
"""

from __future__ import annotations

import functools

from absl import flags

from sr3_jax.commands import shared
from sr3_jax.config import in_words, resolve, run_file, students, with_sampling

CONFIG_OF_RUN = "teacher"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of distillation."""
    of = {"flag_values": values}
    meaning = (
        "The network to distil: the workdir of a training run, the folder of a released network, "
        "hf://USER/NAME, or a name that sr3 models lists."
    )
    flags.DEFINE_string("teacher", None, meaning, **of)
    shared.define_workdir(values, "Folder of the students.")
    shared.define_config(values, "In place of the config that the teacher left.")
    meaning = (
        "Network calls of each student, from many to few, each a divisor of the one before. The "
        "first learns from the teacher, every other from the one before."
    )
    flags.DEFINE_list("calls", ["8", "4", "2", "1"], meaning, **of)
    meaning = (
        "calls: a student learns to replace calls of its teacher. energy: a student of one call "
        "begins with the teacher's weights and learns by the energy score of its images."
    )
    flags.DEFINE_enum("objective", "calls", ["calls", "energy"], meaning, **of)
    meaning = "Training steps of each student; default: a sixteenth of the teacher's."
    flags.DEFINE_integer("steps", None, meaning, lower_bound=1, **of)
    meaning = (
        "A last stage for the last student, in which this share of its last calls should end at "
        "the training image itself (config.distillation.truth). 0: no such stage."
    )
    flags.DEFINE_float("truth", 0.0, meaning, lower_bound=0.0, upper_bound=1.0, **of)


def prepare(values: flags.FlagValues) -> shared.Job:
    """Reads the config of the teacher, and checks those of the students."""
    shared.require(values, "teacher", "workdir")
    workdir = shared.workdir(values)
    if not all(number.isdecimal() for number in values.calls):
        raise ValueError(f"--calls={','.join(values.calls)} are no numbers; give such as 8,4,2,1")
    folder = shared.network_folder(values.teacher)
    teacher = shared.config_of_run(values, folder)
    if teacher.sampling == run_file.load(folder / "config.json").sampling:
        teacher = with_sampling(teacher, run_file.tuned(folder, teacher))
    calls = [int(number) for number in values.calls]
    given = (teacher, values.teacher, workdir)
    if values.objective == "energy":
        if values["calls"].present and calls != [1] or values.truth:
            raise ValueError(
                "--objective=energy trains a student of one call, without a teacher's calls; leave "
                "out --calls and --truth"
            )
        planned = students.plan_one_call(*given, values.steps)
    else:
        planned = students.plan(*given, calls, values.steps, values.truth)
    check = functools.partial(resolve.faults, trains=True)
    if missing := list(check(next(iter(planned.values())))):
        raise ValueError(in_words(missing))
    return shared.Job(shared.late("distill", planned), workdir, stops_together=True)
