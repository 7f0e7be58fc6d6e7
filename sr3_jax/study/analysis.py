"""What the answers of a study say: fool rates, and how sure they are.

Answers of one subject resemble each other, and so do answers to one picture. An interval that takes
each answer for a trial of its own is too narrow: about three times for 50 subjects who see the same
50 pictures. Here intervals are of the two-way bootstrap (Owen 2007, "The pigeonhole bootstrap"),
which draws subjects and pictures anew, each with all their answers. Where neither subjects nor
pictures differ, or of each only few answers were given, it is too wide.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import choix
import numpy as np
from jaxtyping import Float, Int

from sr3_jax.study.answers import Answer
from sr3_jax.study.design import REFERENCE, Study

LEVEL = 0.95
_NUM_DRAWS = 2000
_NORMAL = 1.959964  # its 97.5th percentile
_POWER_NORMAL = 0.841621  # its 80th, for a power of 80 %
_PRIOR = 0.01  # of Bradley-Terry: as if each had won this often more, so that no score is infinite


class Estimate(NamedTuple):
    """A number with its interval of 95 %; nan where there are no answers."""

    value: float
    low: float
    high: float


class Rate(NamedTuple):
    """How often something was chosen.

    Attributes:
      share: of the trials.
      trials: their number.
      subjects, images: how many took part.
      parts: the variance of one answer, from differences between subjects, between images, and the
        rest (method of moments); the precision of other numbers of subjects follows from it.
    """

    share: Estimate
    trials: int
    subjects: int
    images: int
    parts: tuple[float, float, float]

    def half_width(self, subjects: int | float, images: int | float, trials: int | float) -> float:
        """Returns half the width of an interval that other numbers would give, about.

        `trials` is the number of a subject.
        """
        of_subject, of_image, rest = self.parts
        variance = of_subject / subjects + of_image / images + rest / (subjects * trials)
        return _NORMAL * math.sqrt(variance)

    def subjects_for(self, difference: float) -> float:
        """Returns how many subjects show a difference from 50 % with a power of 80 %.

        The pictures stay these, and with them what they contribute; infinite if that alone is too
        much.
        """
        of_subject, of_image, rest = self.parts
        allowed = (difference / (_NORMAL + _POWER_NORMAL)) ** 2 - of_image / self.images
        if allowed <= 0:
            return math.inf
        return (of_subject + rest * self.subjects / self.trials) / allowed


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a study found.

    Attributes:
      fool_rates: of each method, how often it was chosen in place of the reference.
      scores: of Bradley and Terry, log odds against the reference, where methods were also shown
        against each other; else empty.
      left: how often the left side was chosen.
      agreement: of two subjects who saw the same pair of a picture, how often they chose the same;
        alpha: the same beyond chance (Krippendorff's, nominal), nan where no pair was seen twice.
      subjects: who took part, finished, and was left out for missed checks.
      median_shown_ms: how long pictures were shown; `late`: the share that was shown more than a
        tenth of a second longer or shorter than set.
      median_answered_ms: time to the answer.
    """

    fool_rates: dict[str, Rate]
    scores: dict[str, Estimate]
    left: Estimate
    agreement: float
    alpha: float
    subjects: dict[str, int]
    median_shown_ms: float
    late: float
    median_answered_ms: float


def analyse(study: Study, answers: Sequence[Answer], seed: int = 0) -> Findings:
    """Analyses all answers of a study; `seed` is that of the bootstrap."""
    excluded = excluded_subjects(study, answers)
    main = [a for a in answers if a.kind == "main" and a.subject not in excluded]
    rng = np.random.default_rng(seed)
    rates = {}
    for method in study.methods:
        against = [a for a in main if {a.left, a.right} == {method, REFERENCE}]
        rates[method] = _rate(against, [a.chosen == method for a in against], rng)
    shown = np.array([a.shown_ms for a in main]) if main else np.full(1, np.nan)
    set_ms = 1000 * study.options.seconds
    # An answer may come earlier, which hides the pictures.
    wanted = [min(set_ms, a.answered_ms) if set_ms else a.answered_ms for a in main]
    late = np.mean(np.abs(shown - wanted) > 100) if main else math.nan
    agreement, alpha = _agreement(study, main)
    of_subject = _count(a.subject for a in answers if a.kind == "main")
    return Findings(
        rates,
        _scores(study, main, rng),
        _rate(main, [a.side == "left" for a in main], rng).share,
        agreement,
        alpha,
        {
            "took part": len({a.subject for a in answers}),
            "finished": sum(count == study.num_trials for count in of_subject.values()),
            "left out": len(excluded),
        },
        float(np.median(shown)),
        float(late),
        float(np.median([a.answered_ms for a in main])) if main else math.nan,
    )


def excluded_subjects(study: Study, answers: Sequence[Answer]) -> set[str]:
    """Returns who missed more checks than the study allows."""
    missed = _count(a.subject for a in answers if a.kind == "check" and not a.is_right)
    return {who for who, count in missed.items() if count > study.options.most_failed_checks}


def _count(items: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    return counts


class _Table(NamedTuple):
    """Answers by subject and image: the index of each."""

    subject: Int[np.ndarray, " n"]
    image: Int[np.ndarray, " n"]
    num_subjects: int
    num_images: int

    def sums(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, "s i"]:
        """Returns the sum of values for each subject and image."""
        made = np.zeros((self.num_subjects, self.num_images))
        np.add.at(made, (self.subject, self.image), values)
        return made


def _table(answers: Sequence[Answer]) -> _Table:
    subjects, subject = np.unique([a.subject for a in answers], return_inverse=True)
    images, image = np.unique([a.image for a in answers], return_inverse=True)
    return _Table(subject, image, len(subjects), len(images))


def _draws(table: _Table, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns how often each subject and each image is drawn, `[draws, s]` and `[draws, i]`."""
    return tuple(
        rng.multinomial(count, np.full(count, 1 / count), _NUM_DRAWS).astype(float)
        for count in (table.num_subjects, table.num_images)
    )


def _interval(value: float, drawn: Float[np.ndarray, " draws"]) -> Estimate:
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Estimate(value, math.nan, math.nan)
    return Estimate(value, *map(float, np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])))


def _rate(answers: Sequence[Answer], chosen: Sequence[bool], rng: np.random.Generator) -> Rate:
    if not answers:
        nothing = Estimate(math.nan, math.nan, math.nan)
        return Rate(nothing, 0, 0, 0, (math.nan,) * 3)
    table, values = _table(answers), np.asarray(chosen, float)
    of_subjects, of_images = _draws(table, rng)
    total, count = table.sums(values), table.sums(np.ones_like(values))
    numerator = np.einsum("ds,si,di->d", of_subjects, total, of_images, optimize=True)
    denominator = np.einsum("ds,si,di->d", of_subjects, count, of_images, optimize=True)
    if min(table.num_subjects, table.num_images) < 2:  # how they differ cannot be known
        share = Estimate(float(values.mean()), math.nan, math.nan)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            share = _interval(float(values.mean()), numerator / denominator)
    return Rate(share, len(values), table.num_subjects, table.num_images, _parts(total, count))


def _parts(
    total: Float[np.ndarray, "s i"], count: Float[np.ndarray, "s i"]
) -> tuple[float, float, float]:
    """Variance between subjects, between images, and the rest, of values that are 0 or 1.

    Two answers of one subject to different images covary by the first, two answers to one image of
    different subjects by the second.
    """
    mean = total.sum() / count.sum()
    off = total - count * mean  # sums of deviations
    squares = total * (1 - 2 * mean) + count * mean**2  # a 0 or 1 is its own square

    def between(axis: int) -> float:
        pairs = (count.sum(axis) ** 2).sum() - (count**2).sum()
        same = (off.sum(axis) ** 2).sum() - (off**2).sum()
        return max(0.0, float(same / pairs)) if pairs else 0.0

    of_subject, of_image = between(1), between(0)
    rest = float(squares.sum() / count.sum()) - of_subject - of_image
    return of_subject, of_image, max(0.0, rest)


def _scores(study: Study, main: Sequence[Answer], rng: np.random.Generator) -> dict[str, Estimate]:
    """Returns the scores of Bradley and Terry, 0 for the reference."""
    if study.options.pairs == "reference" or not main:
        return {}  # fool rates say the same
    names = [REFERENCE, *study.methods]
    table, of = _table(main), {name: i for i, name in enumerate(names)}
    wins = np.zeros((len(names), len(names), table.num_subjects, table.num_images))
    for answer, s, i in zip(main, table.subject, table.image, strict=True):
        loser = answer.left if answer.side == "right" else answer.right
        wins[of[answer.chosen], of[loser], s, i] += 1

    def fitted(counts: Float[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
        found = choix.ilsr_pairwise_dense(counts, alpha=_PRIOR)
        return found - found[0]

    values = fitted(wins.sum((2, 3)))
    of_subjects, of_images = (draws[: _NUM_DRAWS // 4] for draws in _draws(table, rng))
    drawn = np.einsum("ds,klsi,di->dkl", of_subjects, wins, of_images, optimize=True)
    all_drawn = np.array([fitted(counts) for counts in drawn])
    return {
        name: _interval(float(values[k]), all_drawn[:, k])
        for k, name in enumerate(names)
        if name != REFERENCE
    }


def _agreement(study: Study, main: Sequence[Answer]) -> tuple[float, float]:
    """Returns how often two subjects agree, and Krippendorff's alpha."""
    order = [REFERENCE, *study.methods]
    units: dict[tuple, dict[str, int]] = {}
    for answer in main:
        first, second = sorted((answer.left, answer.right), key=order.index)
        unit = units.setdefault((answer.image, first, second), {})
        key = "first" if answer.chosen == first else "second"
        unit[key] = unit.get(key, 0) + 1
    seen = [(u.get("first", 0), u.get("second", 0)) for u in units.values()]
    counts = np.array([unit for unit in seen if sum(unit) > 1], float).reshape(-1, 2)
    if not len(counts):
        return math.nan, math.nan
    number = counts.sum(1)
    same = (counts * (counts - 1)).sum(1)
    agreement = float(same.sum() / (number * (number - 1)).sum())
    # Each unit counts by its answers.
    observed = 1 - float((same / (number - 1)).sum() / number.sum())
    total = counts.sum(0)
    expected = 2 * total[0] * total[1] / (number.sum() * (number.sum() - 1))
    return agreement, float(1 - observed / expected) if expected else math.nan
