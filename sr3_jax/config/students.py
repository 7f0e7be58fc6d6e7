"""Configs of students: networks that need fewer calls than the teacher they learn from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from etils import epath

from sr3_jax.config import reading
from sr3_jax.config.sections import Config

# Calls of the teacher for one of the first student: its sampler is then near the exact solution.
_FIRST_TEACHER_CALLS = 4
# Salimans and Ho train each student for a sixteenth of the steps of the teacher (appendix B).
_SHARE_OF_STEPS = 16


def plan(
    teacher: Config,
    address: str,
    workdir: epath.Path,
    calls: Sequence[int],
    num_steps: int | None = None,
) -> dict[epath.Path, Config]:
    """Returns the config of each student by its workdir, in the order of training.

    All students use the schedule of the teacher's sampling, each a part of its knots. The learning
    rate falls to 0 over each training, and the loss is the squared error.

    Args:
      teacher: the config of the teacher, with changes that are for all students.
      address: the teacher, as `config.train.initial_weights`.
      workdir: the folder of all students.
      calls: calls of the students, from many to few.
      num_steps: training steps of each student.

    Raises:
      ValueError: a number of calls is no divisor of the one before, or a config cannot work.
    """
    if not calls or min(calls) < 1 or any(a <= b or a % b for a, b in itertools.pairwise(calls)):
        raise ValueError(
            f"--calls={','.join(map(str, calls))}: each number must be a divisor of the one "
            "before, such as 8,4,2,1"
        )
    steps = num_steps or max(1, teacher.train.num_steps // _SHARE_OF_STEPS)
    warmup = min(teacher.train.num_warmup_steps, steps // 10)
    knots = calls[0] * _FIRST_TEACHER_CALLS
    of_all = {
        "train.num_steps": steps,
        "train.num_warmup_steps": warmup,
        "train.num_decay_steps": steps - warmup,
        "train.loss": "l2",
        "train.loss_weight": "none",
        "sampling.sampler": "ddim",
        "sampling.knots": knots,
        "sampling.guidance": 1.0,
    }
    planned, before = {}, knots
    for number in calls:
        is_first = before == knots
        of_this = {
            "train.initial_weights": address if is_first else str(last),
            "sampling.num_steps": number,
            "distillation.teacher_calls": before // number,
            "distillation.teacher_sampler": "dpmpp_2m" if is_first else "ddim",
            "distillation.teacher_guidance": teacher.sampling.guidance if is_first else 1.0,
        }
        before, last = number, workdir / f"{number}_call{'s' * (number > 1)}"
        planned[last] = reading.changed(teacher, of_all | of_this)
    return planned
