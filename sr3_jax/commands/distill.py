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
from collections.abc import Iterable, Iterator, Set

from absl import flags, logging
from etils import epath

from sr3_jax.commands import shared
from sr3_jax.config import Config, in_words, resolve, run_file, students, with_sampling

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
    folder = shared.network_folder(values.teacher, "teacher")
    if workdir == folder:
        raise ValueError(
            f"--workdir={workdir} is the teacher's; give another folder for the students"
        )
    given = shared.given_keys(values)
    teacher = _as_tuned(shared.config_of_run(values, folder), folder, given)
    if teacher.predicts_image:
        raise ValueError(
            f"--teacher={values.teacher} is a {teacher.method}, which makes its image in one call; "
            "give a network of method sr3"
        )
    path = folder / "config.json"
    run_file.check_weights(
        run_file.load(path), teacher, path, "distillation.teacher", values.teacher
    )
    calls = [int(number) for number in values.calls]
    of_all = (teacher, values.teacher, workdir)
    if values.objective == "energy":
        if values["calls"].present and calls != [1] or values.truth:
            raise ValueError(
                "--objective=energy trains a student of one call, without a teacher's calls; leave "
                "out --calls and --truth"
            )
        planned = students.plan_one_call(*of_all, values.steps)
    else:
        planned = students.plan(*of_all, calls, values.steps, values.truth)
    if replaced := list(_replaced(teacher, planned.values(), given)):
        raise ValueError(in_words(replaced))
    check = functools.partial(resolve.faults, trains=True)
    if missing := list(check(next(iter(planned.values())))):
        raise ValueError(in_words(missing))
    return shared.Job(shared.late("distill", planned), workdir, stops_together=True)


def _as_tuned(config: Config, folder: epath.Path, given: Set[str]) -> Config:
    """Returns the config with the sampling that the teacher was tuned to, but for given keys."""
    untouched = run_file.load(folder / "config.json")
    of_file = {key for key in run_file.changed_keys(untouched, config) if key not in given}
    if any(key.startswith("sampling.") for key in of_file):
        return config  # the sampling is that of --config=FILE
    found = run_file.tuned(folder, config)
    found = {key: value for key, value in found.items() if f"sampling.{key}" not in given}
    if found.get("eta", 0) not in (0, 1):
        logging.info("students learn from the teacher's sampler without noise: eta = 0")
        found["eta"] = 0.0
    return with_sampling(config, found)


def _replaced(teacher: Config, planned: Iterable[Config], given: Set[str]) -> Iterator[str]:
    """Yields a message for each given option that a student cannot have."""
    flags_of = {"train.num_steps": "--steps", "sampling.num_steps": "--calls"}
    flags_of |= {"distillation.truth": "--truth", "train.initial_weights": "--teacher"}
    taken = {"sampling.guidance"}  # by the teacher, and so by its students
    found = {}
    for config in planned:
        for key, (old, new) in run_file.changed_keys(teacher, config).items():
            if key in given - taken:
                found.setdefault(key, (old, new))
    for key, (old, new) in found.items():
        instead = f"use {flags_of[key]}" if key in flags_of else "leave it out"
        yield f"config.{key} = {old!r}, but a student has {new!r}; {instead}"
