"""Configs of students: networks that need fewer calls than the teacher they learn from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from sr3_jax.config import reading
from sr3_jax.config.fields import MAX_STEPS
from sr3_jax.config.sections import Config

# The keys of `config.sampling` that a student is trained for.
KEYS = ("sampler", "schedule", "num_steps", "knots", "sigma_min", "sigma_max", "rho", "eta")
# Calls of the teacher for one of the first student: its sampler is then near the exact solution.
_FIRST_TEACHER_CALLS = 4
# Salimans and Ho train each student for a sixteenth of the steps of the teacher (appendix B).
_SHARE_OF_STEPS = 16


def plan_one_call(
    teacher: Config, address: str, workdir: epath.Path, num_steps: int | None = None
) -> dict[epath.Path, Config]:
    """Returns the config of a student of one call that learns by the energy score, by its workdir.

    It begins with the teacher's weights and is not taught: the loss compares two of its images with
    the training image. Arguments are those of `plan`.
    """
    of_energy = {
        "train.initial_weights": address,
        "train.loss": "energy",
        "sampling.num_steps": 1,
        "distillation.calls": 1,
        "distillation.teacher": "",
        "distillation.teacher_calls": 0,
        "distillation.truth": 0.0,
    }
    return {workdir / "1_call": reading.changed(teacher, _common(teacher, num_steps) | of_energy)}


def plan(
    teacher: Config,
    address: str,
    workdir: epath.Path,
    calls: Sequence[int],
    num_steps: int | None = None,
    truth: float = 0.0,
) -> dict[epath.Path, Config]:
    """Returns the config of each student by its workdir, in the order of training.

    All students use the schedule of the teacher's sampling, each a part of its knots. The learning
    rate falls to 0 over each training, and the loss is the squared error. A teacher that is a
    student itself is called as often as it samples, at its own times.

    Args:
      teacher: the config of the teacher, with changes that are for all students.
      address: the teacher, as `config.train.initial_weights`.
      workdir: the folder of all students.
      calls: calls of the students, from many to few.
      num_steps: training steps of each student.
      truth: `config.distillation.truth` of a stage that follows, in which the last student goes on
        to learn from the first teacher and from images. 0: no such stage.

    Raises:
      ValueError: a number of calls is no divisor of the one before, or of a student's that is the
        teacher; or a config cannot work.
    """
    if not calls or min(calls) < 1:
        raise ValueError(
            f"--calls={','.join(map(str, calls))}: give 1 or more calls, such as 8,4,2,1"
        )
    if any(a <= b or a % b for a, b in itertools.pairwise(calls)):
        raise ValueError(
            f"--calls={','.join(map(str, calls))}: each number must be a divisor of the one "
            "before, such as 8,4,2,1"
        )
    knots = of_first = calls[0] * _FIRST_TEACHER_CALLS
    sampler = "dpmpp_2m"
    if own := teacher.student_calls:
        of_teacher = f"--teacher={address} is a student, whose number of steps is {own}"
        if own == 1:
            raise ValueError(
                f"{of_teacher}: there are none fewer to learn; --objective=energy trains it on"
            )
        if calls[0] >= own or own % calls[0]:
            raise ValueError(
                f"{of_teacher}: --calls={calls[0]},... must begin with a smaller number that "
                f"divides it, such as {own // 2 if own % 2 == 0 else 1}"
            )
        knots, of_first, sampler = teacher.sampling.knots or own, own, "ddim"
    elif knots > MAX_STEPS:
        raise ValueError(
            f"--calls={calls[0]} is too many; use {MAX_STEPS // _FIRST_TEACHER_CALLS} or fewer"
        )
    of_all = _common(teacher, num_steps) | {"train.loss": "l2", "sampling.knots": knots}
    planned = {}

    def add(name: str, start: str, taught_by: str, of_teacher: int, number: int, **more) -> str:
        is_first = taught_by == address
        planned[workdir / name] = reading.changed(
            teacher,
            of_all
            | {
                "train.initial_weights": start,
                "sampling.num_steps": number,
                "distillation.calls": number,
                "distillation.truth": 0.0,
                "distillation.teacher": taught_by,
                "distillation.teacher_calls": of_teacher // number,
                "distillation.teacher_sampler": sampler if is_first else "ddim",
                "distillation.teacher_guidance": teacher.sampling.guidance if is_first else 1.0,
            }
            | more,
        )
        return str(workdir / name)

    last, of_last = address, of_first
    for number in calls:
        name = f"{number}_call{'s' * (number > 1)}"
        last, of_last = add(name, last, last, of_last, number), number
    if truth:
        add(f"{name}_truth", last, address, of_first, number, **{"distillation.truth": truth})
    return planned


def with_sampling(config: Config, sampling: Mapping[str, Any]) -> Config:
    """Returns the config of a trained network with other values in its section `sampling`.

    Raises:
      ValueError: the network is a student, and one of `KEYS` differs from what it was trained with;
        or as `reading.with_sampling`.
    """
    changed = reading.with_sampling(config, sampling)
    for key in KEYS if config.student_calls else ():
        old, new = getattr(config.sampling, key), getattr(changed.sampling, key)
        if old != new:
            raise ValueError(
                f"sampling.{key} = {new!r}, but the network is a student, which was trained with "
                f"{old!r}; leave it out"
            )
    return changed


def _common(teacher: Config, num_steps: int | None) -> dict[str, Any]:
    """Returns what all students have: a rate that falls to 0, and sampling by `ddim`."""
    steps = num_steps or max(1, teacher.train.num_steps // _SHARE_OF_STEPS)
    warmup = min(teacher.train.num_warmup_steps, steps // 10)
    return {
        "train.num_steps": steps,
        "train.num_warmup_steps": warmup,
        "train.num_decay_steps": steps - warmup,
        "train.loss_weight": "none",
        "sampling.sampler": "ddim",
        "sampling.guidance": 1.0,
    }
