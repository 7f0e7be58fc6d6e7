"""Studies of what people see: made, served and reported."""

from __future__ import annotations

from collections.abc import Mapping

from etils import epath

from sr3_jax.data import storage
from sr3_jax.study import design, report
from sr3_jax.study.answers import Answers
from sr3_jax.web import serving, study_page


def make(
    folder: epath.Path,
    reference: str,
    outputs: Mapping[str, str],
    low_resolution: str,
    options: design.Options,
    address: serving.Address | None = None,
) -> None:
    """Makes a study (`design.make`), prints what it is, and serves it at an address, if any.

    Served again, a study that was made so goes on.

    Raises:
      ValueError: the study in the folder was made with other options.
    """
    if address and (folder / design.FILE).exists():
        made = design.load(folder)
        if (made.options, made.methods) != (options, tuple(outputs)):
            raise ValueError(
                f"{folder} is a study of other options or methods; give another folder, or `sr3 "
                "study serve` to go on with that one"
            )
        return serve(folder, address)
    study = design.make(folder, reference, outputs, low_resolution, options)
    plain = options.practice + options.checks
    pairs = ", ".join(" against ".join(pair) for pair in study.alternatives)
    print(
        f"{study.folder}: {len(study.images)} pictures, {pairs}; each subject sees "
        f"{study.num_trials} of them, and {plain} for practice and checks, in about "
        f"{study.duration}"
    )
    if study.codes:
        path = study.folder / "invitations.txt"
        storage.write_whole(path, "".join(f"/?code={code}\n" for code in study.codes).encode())
        print(f"what follows the page's address, one line for each subject: {path}")
    if address:
        return serve(study.folder, address)
    print(f"sr3 study serve --study={study.folder}")


def serve(folder: epath.Path, address: serving.Address) -> None:
    """Serves the page of a study until Ctrl-C."""
    study = design.load(folder)
    with serving.listening(address) as opened:
        answers = Answers(study)
        print(f"{answers.num_subjects()} subjects have begun so far", flush=True)
        app = study_page.StudyPage(answers).app()
        serving.serve(app, opened, address, has_password=False)


def tell(folder: epath.Path, export: str = "") -> None:
    """Writes the report of a study, prints its figures, and exports its answers if asked to."""
    study = design.load(folder)
    answers = Answers(study)
    rows = answers.all()
    answers.close()
    if export:
        report.export(study, rows, export)
        print(f"{len(rows)} answers: {export}")
    findings = report.write(study, rows)
    shown = report.values(study, findings)
    print(shown["summary"])
    for row in shown["rates"]:
        print(f"  {row['method']}: {row['share']} {row['interval']}".rstrip())
    for row in shown["scores"]:
        print(f"  score of {row['method']}: {row['score']} {row['interval']}")
    for note in shown["notes"]:
        print(note)
    print(f"report: {study.folder / report.NAMES[0]}")
