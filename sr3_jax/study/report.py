"""The report of a study, and its answers as a table."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from etils import epath

from sr3_jax.data import storage
from sr3_jax.evaluation.report import page, paper
from sr3_jax.study import analysis, design
from sr3_jax.study.analysis import Estimate, Findings, Rate
from sr3_jax.study.answers import Answer, Answers
from sr3_jax.study.design import QUESTIONS, Study

NAMES = ("report.html", "report.md")


def values(study: Study, findings: Findings) -> dict[str, Any]:
    """Returns what the section of a report shows."""
    people = findings.subjects
    shown = f"for {study.options.seconds:g} s" if study.options.seconds else "until answered"
    return {
        "question": QUESTIONS[study.options.task],
        "summary": (
            f"Task {study.options.task} of the paper, shown {shown}. People who took part: "
            f"{people['took part']}, who answered all: {people['finished']}, left out: "
            f"{people['left out']}"
            + (
                f" (they missed more than {study.options.most_failed_checks} of "
                f"{study.options.checks} plain pairs)."
                if people["left out"]
                else "."
            )
        ),
        "rates": [_rate(method, rate) for method, rate in findings.fool_rates.items()],
        "scores": [
            {
                "method": method,
                "score": f"{score.value:+.2f}",
                "interval": f"({score.low:+.2f} to {score.high:+.2f})",
                "odds": _percent(1 / (1 + math.exp(-score.value))),
            }
            for method, score in findings.scores.items()
        ],
        "notes": _notes(findings),
        "paper": [
            f"{task}: " + ", ".join(f"{name} {_percent(rate)}" for name, rate in rates.items())
            for task, rates in paper.FOOL_RATES.items()
        ]
        + [f"50 subjects, 50 images each, 3 seconds ({paper.NAME}); other pictures than these."],
    }


def of_folder(folder: epath.PathLike) -> dict[str, Any]:
    """Returns the section of the study in a folder; see `values`."""
    study = design.load(folder)
    answers = Answers(study)
    rows = answers.all()
    answers.close()
    return values(study, analysis.analyse(study, rows))


def _rate(method: str, rate: Rate) -> dict[str, Any]:
    share = rate.share
    counts = {"trials": rate.trials, "subjects": rate.subjects, "images": rate.images}
    if math.isnan(share.low):
        empty = {"share": _percent(share.value) if rate.trials else "no answers"}
        empty["interval"] = "(too few subjects or pictures)" if rate.trials else ""
        empty |= {"low": None, "high": None, "at": None, "doubled": "", "needed": ""}
        return {"method": method, **counts, **empty}
    each = rate.trials / rate.subjects
    doubled = rate.half_width(2 * rate.subjects, rate.images, each)
    difference = abs(share.value - 0.5)
    needed = rate.subjects_for(difference) if difference else math.inf
    return {
        "method": method,
        "share": _percent(share.value),
        "interval": _brackets(share),
        "low": 1000 * share.low,
        "high": 1000 * share.high,
        "at": 1000 * share.value,
        **counts,
        "doubled": f"±{100 * doubled:.1f} points",
        "needed": str(max(2, math.ceil(needed))) if math.isfinite(needed) else "more pictures",
    }


def _notes(findings: Findings) -> list[str]:
    left = findings.left
    notes = []
    if not math.isnan(left.low):
        off = "" if left.low <= 0.5 <= left.high else ": people prefer a side"
        notes.append(f"The left side was chosen in {_percent(left.value)} {_brackets(left)}{off}.")
    if not math.isnan(findings.agreement):
        notes.append(
            f"Two people who saw the same pair chose the same in {_percent(findings.agreement)}; "
            f"Krippendorff's alpha is {findings.alpha:.2f} (0: chance, 1: always)."
        )
    if not math.isnan(findings.median_shown_ms):
        notes.append(
            f"Pictures were on the screen for {findings.median_shown_ms / 1000:.2f} s (median), "
            f"answers came after {findings.median_answered_ms / 1000:.2f} s. In "
            f"{_percent(findings.late)} the time was off by more than 0.1 s."
        )
    return notes


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _brackets(estimate: Estimate) -> str:
    return f"({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def write(study: Study, answers: Sequence[Answer]) -> Findings:
    """Writes `report.html` and `report.md` into the study's folder; returns what they show."""
    findings = analysis.analyse(study, answers)
    options = study.options
    each = (
        f"{study.num_trials} pairs, {options.practice} for practice before, {options.checks} plain"
    )
    shown = {
        "title": options.title,
        "lead": f"{', '.join(study.methods)}, against photographs.",
        "people": values(study, findings),
        "protocol": [
            f"Each subject: {each}; no picture twice. Order, sides and pairs are balanced, by the "
            f"seed {options.seed}.",
            f"{len(study.images)} pictures; each of their pixels covers {options.scale} by "
            f"{options.scale} pixels of the screen, on dense screens a whole multiple.",
            "Pairs: " + "; ".join(" against ".join(pair) for pair in study.alternatives) + ".",
            "Times are those of the browser: from the frame that shows the pictures to the one "
            "that does not.",
        ],
    }
    templates = page.environment()
    for name in NAMES:
        kind = name.rpartition(".")[2]
        text = templates.get_template(f"study.{kind}.j2").render(shown)
        storage.write_whole(study.folder / name, text.encode())
    return findings


def export(study: Study, answers: Sequence[Answer], path: epath.PathLike) -> None:
    """Writes one row for each answer, as CSV or Parquet by the ending of the path.

    Subjects have numbers there: with the code of a subject, anyone could answer in its place.

    Raises:
      FileExistsError: there is such a file.
      ImportError: pandas, or for Parquet pyarrow, is not installed.
      ValueError: the ending is another one.
    """
    path = epath.Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"--export={path}; give a name that ends in .csv or .parquet")
    if path.exists():
        raise FileExistsError(f"{path} exists already; give another name")
    try:
        import pandas as pd

        if path.suffix == ".parquet":
            import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed; pip install 'sr3_jax[web]'") from error
    excluded = analysis.excluded_subjects(study, answers)
    rows = [
        {
            **one._asdict(),
            "chosen": one.chosen,
            "is_right": None if one.kind == "main" else one.is_right,
            "is_left_out": one.subject in excluded,
        }
        for one in answers
    ]
    columns = [*Answer._fields[1:], "chosen", "is_right", "is_left_out"]
    table = pd.DataFrame(rows, columns=columns).astype({"is_right": "boolean"})
    content = io.BytesIO()
    if path.suffix == ".csv":
        table.to_csv(content, index=False)
    else:
        table.to_parquet(content, index=False)
    storage.write_whole(path, content.getvalue())
