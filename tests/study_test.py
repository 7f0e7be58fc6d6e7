"""Studies without their page: pictures, balance, the database, and what the analysis finds."""

import collections
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap

import krippendorff
import numpy as np
import pandas as pd
import pytest
import small_run
import study_example
from etils import epath
from PIL import Image

from sr3_jax import jobs
from sr3_jax.study import analysis, design, report
from sr3_jax.study.answers import Answers, Window
from sr3_jax.study.design import REFERENCE, Options

_WINDOW = Window(1000, 800, 1.0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    return root, study_example.write_pictures(root)


@pytest.fixture
def make(pictures, tmp_path):
    root, outputs = pictures

    def made(name="study", **options):
        low = str(root / "input") if options.get("task") == 1 else ""
        reference = str(root / REFERENCE)
        return design.make(tmp_path / name, reference, outputs, low, Options(**options))

    return made


def _abstract(num_images, methods=("a",), **options):
    """A study whose pictures nobody looks at."""
    options = Options(practice=0, checks=0, **options)
    names = tuple(f"{i}.png" for i in range(num_images))
    return design.Study(epath.Path("nowhere"), options, methods, {}, {}, names, (), ())


@pytest.mark.parametrize("task", [1, 2])
def test_a_study_is_what_its_folder_says(make, pictures, task):
    study = make(task=task, trials=5)
    again = design.load(study.folder)
    assert again == study and again.trials(3) == study.trials(3)
    root, _ = pictures
    for name in study.images:
        for method in (REFERENCE, "sharp", "blurred"):
            shown = Image.open(study.folder / "images" / study.files[name][method])
            assert np.array_equal(shown, Image.open(root / method / name))
        assert ("input" in study.files[name]) == (task == 1)
    # A file's name is no hint of what it shows.
    names = [file for files in study.files.values() for file in files.values()]
    assert len({*names}) == len(names) and not any("sharp" in n or "ref" in n for n in names)


@pytest.mark.parametrize("pairs", ["reference", "all"])
@pytest.mark.parametrize("trials", [7, 12])
def test_images_pairs_and_sides_are_balanced(pairs, trials):
    study = _abstract(12, ("a", "b"), trials=trials, pairs=pairs)
    num_pairs = len(study.alternatives)
    assert num_pairs == (2 if pairs == "reference" else 3)
    shown = [study.trials(number) for number in range(2 * 12 * num_pairs)]
    for trials_ in shown:  # No subject sees a picture twice, and sides and pairs are mixed.
        assert len({trial.image for trial in trials_}) == trials
        lefts = sum(trial.left == REFERENCE for trial in trials_)
        of_reference = sum(REFERENCE in (trial.left, trial.right) for trial in trials_)
        assert abs(2 * lefts - of_reference) <= 4
    counts = collections.Counter(t[1:] for trials_ in shown for t in trials_)
    assert len(counts) == 12 * num_pairs * 2  # each picture, pair and order
    assert max(counts.values()) - min(counts.values()) <= 1
    orders = {tuple(trial.image for trial in trials_) for trials_ in shown}
    assert len(orders) == len(shown)


def test_practice_comes_first_and_checks_are_spread(make):
    study = make(practice=2, checks=3, trials=6)
    assert {*study.practice_images}.isdisjoint(study.images)
    places = []
    for number in range(40):
        kinds = [trial.kind for trial in study.trials(number)]
        assert kinds[:2] == ["practice"] * 2 and collections.Counter(kinds)["check"] == 3
        places.append([k - 2 for k, kind in enumerate(kinds) if kind == "check"])
        for trial in study.trials(number):
            assert bool(trial.expected) == (trial.kind != "main")
            assert not trial.expected or getattr(trial, trial.expected) == REFERENCE
    assert np.ptp(places, axis=0).min() >= 2  # nobody knows where they are
    assert (np.diff(np.mean(places, axis=0)) > 1.5).all()


def test_wrong_studies_are_named(make, pictures, tmp_path):
    root, outputs = pictures
    with pytest.raises(ValueError, match="12 pictures are too few: 12 are taken"):
        make(practice=4, checks=8)
    with pytest.raises(ValueError, match="trials = 7, but no subject sees a picture twice and 6"):
        make(trials=7)
    with pytest.raises(ValueError, match="until = 'soon'"):
        make(until="soon")
    with pytest.raises(ValueError, match="until = '2020-01-01' is over"):
        make(until="2020-01-01")
    for seconds in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="seconds = "):
            make(seconds=seconds)
    with pytest.raises(ValueError, match="task 1 shows the low resolution"):
        design.make(tmp_path / "x", str(root / REFERENCE), outputs, "", Options(task=1))
    for i in range(12):
        (tmp_path / "other").mkdir(exist_ok=True)
        Image.new("RGB", (40, 48)).save(tmp_path / "other" / f"{i:03d}.png")
    given = {"wide": str(tmp_path / "other")}
    with pytest.raises(ValueError, match="000.png: wide is 40x48, and the reference 48x48"):
        design.make(tmp_path / "x", str(root / REFERENCE), given)
    assert not (tmp_path / "x").exists() and not (tmp_path / ".x.partial").exists()
    # What a killed command left is in nobody's way.
    (tmp_path / ".good.partial" / "images").mkdir(parents=True)
    study = make("good")
    with pytest.raises(FileExistsError, match="good exists already"):
        make("good")
    (study.folder / "study.json").write_text('{"version": 9}')
    with pytest.raises(ValueError, match="it is of version 9"):
        design.load(study.folder)


def test_nobody_answers_twice(make):
    study = make(invitations=2)
    answers = Answers(study)
    with pytest.raises(PermissionError, match="invited"):
        answers.begin(_WINDOW, "made-up")
    code = answers.begin(_WINDOW, study.codes[0])
    assert answers.begin(_WINDOW, code) == code and answers.num_subjects() == 1
    assert answers.add(code, 0, "left", 1, 1)
    assert not answers.add(code, 0, "right", 1, 1)  # answered
    assert not answers.add(code, 2, "right", 1, 1)  # not asked yet
    assert [a.side for a in answers.all()] == ["left"]
    with pytest.raises(ValueError, match="side = 'both'"):
        answers.add(code, 1, "both", 1, 1)
    with pytest.raises(PermissionError, match="not known"):
        answers.add(study.codes[1], 0, "left", 1, 1)
    answers.begin(_WINDOW, study.codes[1])
    answers.withdraw(code)
    assert not answers.all() and answers.num_subjects() == 1
    assert not answers.add(code, 0, "left", 1, 1) and answers.progress(code).is_withdrawn
    answers.close()
    options = dataclasses.replace(study.options, until="2020-01-01")
    over = Answers(dataclasses.replace(study, options=options))
    for refused in (
        lambda: over.add(study.codes[1], 0, "left", 1, 1),
        lambda: over.begin(_WINDOW, study.codes[1]),
    ):
        with pytest.raises(PermissionError, match="over"):
            refused()


def test_what_was_confirmed_survives_a_kill(make):
    """A process that is killed while it writes loses no confirmed answer, and leaves no half."""
    study = make(trials=6, practice=0, checks=0)
    program = textwrap.dedent(f"""
        from sr3_jax.study import answers, design
        kept = answers.Answers(design.load({str(study.folder)!r}))
        while True:
            code = kept.begin(answers.Window(1000, 800, 1.0))
            for trial in range(6):
                assert kept.add(code, trial, "left", 1.0, 1.0)
                print(code, trial, flush=True)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=small_run.ROOT, stdout=subprocess.PIPE, text=True
    )
    confirmed = [process.stdout.readline().split() for _ in range(25)]
    os.kill(process.pid, signal.SIGKILL)
    confirmed += [line.split() for line in process.stdout.read().splitlines()]
    process.wait()
    answers = Answers(study)
    rows = answers.all()
    kept = {(row.subject, str(row.trial)) for row in rows}
    assert {tuple(one) for one in confirmed} <= kept and len(kept) == len(rows)
    assert len(rows) - len(confirmed) <= 1
    # The next subject gets a number of its own.
    answers.begin(_WINDOW)
    assert answers.num_subjects() == len({row.subject for row in rows}) + 1 or (
        answers.num_subjects() == len({row.subject for row in rows}) + 2  # one without an answer
    )


def test_intervals_cover_what_they_promise():
    """200 studies of 30 subjects and 40 pictures; binomial intervals often do not."""
    study = _abstract(40, trials=40)
    covered, naive, widths = [], [], []
    for seed in range(200):
        subjects = study_example.Subjects(study, {"a": -0.4}, side_bias=0.3, seed=seed)
        rate = analysis.analyse(study, subjects.answers(30), seed).fool_rates["a"]
        truth, share = subjects.rate("a"), rate.share
        covered.append(share.low <= truth <= share.high)
        error = 1.96 * np.sqrt(share.value * (1 - share.value) / rate.trials)
        naive.append(abs(share.value - truth) <= error)
        widths.append((share.high - share.low) / 2)
    assert 0.90 <= np.mean(covered) <= 0.99
    assert np.mean(naive) < 0.7
    # What the parts of the variance say of this size is what the bootstrap says.
    assert rate.half_width(30, 40, 40) == pytest.approx(np.mean(widths), rel=0.35)


def test_more_subjects_help_as_foretold():
    study = _abstract(40, trials=40)
    subjects = study_example.Subjects(study, {"a": 0.9}, of_subject=1.5, of_image=0.1)
    few = analysis.analyse(study, subjects.answers(20)).fool_rates["a"]
    needed = few.subjects_for(0.05)
    assert few.half_width(needed, 40, 40) == pytest.approx(0.05 * 1.96 / 2.8, rel=0.03)
    many = analysis.analyse(study, subjects.answers(80)).fool_rates["a"].share
    expected = few.half_width(80, 40, 40)
    assert (many.high - many.low) / 2 == pytest.approx(expected, rel=0.35)
    # No number of subjects makes up for few pictures that differ.
    subjects = study_example.Subjects(study, {"a": 0.0}, of_subject=0.1, of_image=2.0)
    rate = analysis.analyse(study, subjects.answers(20)).fool_rates["a"]
    assert rate.subjects_for(0.03) == np.inf


def test_sides_scores_and_agreement_are_found():
    """Of three methods in all pairs; scores are the log odds that made the answers."""
    study = _abstract(30, ("a", "b", "c"), pairs="all", trials=30)
    truth = {"a": -0.5, "b": -2.0, "c": 0.4}
    subjects = study_example.Subjects(study, truth, 0.0, 0.0, side_bias=0.4, seed=1)
    rows = subjects.answers(60)
    found = analysis.analyse(study, rows)
    for name, score in found.scores.items():
        width = score.high - score.low  # of some four standard errors
        assert abs(score.value - truth[name]) < 0.75 * width < 1.0
        assert found.fool_rates[name].trials == 300
    assert found.left.high < 0.5  # the right side is preferred
    # The same agreement as an independent program's, of units by raters.
    order = [REFERENCE, "a", "b", "c"]
    units = {}
    for row in rows:
        pair = tuple(sorted((row.left, row.right), key=order.index))
        value = float(row.chosen == pair[0])
        units.setdefault((row.image, pair), {})[row.number] = value
    table = pd.DataFrame(units).to_numpy()  # subjects by units, nan where unseen
    expected = krippendorff.alpha(table, level_of_measurement="nominal")
    assert found.alpha == pytest.approx(expected, abs=1e-9)
    assert 0.5 < found.agreement < 1


def test_who_misses_checks_is_left_out(make):
    study = make(checks=3, practice=1, trials=6, most_failed_checks=1)
    subjects = study_example.Subjects(study, {"sharp": -1.0, "blurred": -3.0})
    rows = subjects.answers(4)
    other = {"left": "right", "right": "left"}
    careless = [
        row._replace(side=other[row.side]) if row.subject == "s2" and row.kind == "check" else row
        for row in rows
    ]
    assert analysis.excluded_subjects(study, rows) == set()
    assert analysis.excluded_subjects(study, careless) == {"s2"}
    found = analysis.analyse(study, careless)
    assert found.subjects == {"took part": 4, "finished": 4, "left out": 1}
    assert sum(rate.trials for rate in found.fool_rates.values()) == 3 * 6


def test_the_report_and_the_table_say_the_same(make, pictures, tmp_path):
    study = make(trials=6)
    subjects = study_example.Subjects(study, {"sharp": -1.0, "blurred": -3.0})
    rows = subjects.answers(12)
    findings = report.write(study, rows)
    page, text = ((study.folder / name).read_text() for name in report.NAMES)
    share = f"{100 * findings.fool_rates['sharp'].share.value:.1f} %"
    assert share in page and share in text and "47.4 %" in page and design.QUESTIONS[2] in page
    for name in ("answers.csv", "answers.parquet"):
        report.export(study, rows, tmp_path / name)
        read = pd.read_csv if name.endswith("csv") else pd.read_parquet
        table = read(tmp_path / name)
        assert len(table) == len(rows) and "subject" not in table  # a code is a key
        assert table.is_right[table.kind == "main"].isna().all()
        assert not table.is_left_out.any()
        main = table[(table.kind == "main")]
        against = main[(main.left == "sharp") | (main.right == "sharp")]
        assert f"{100 * (against.chosen == 'sharp').mean():.1f} %" == share
        with pytest.raises(FileExistsError, match="exists already"):
            report.export(study, rows, tmp_path / name)
    with pytest.raises(ValueError, match="ends in .csv or .parquet"):
        report.export(study, rows, tmp_path / "answers.xls")
    # A scoring of the same pictures shows it beside its own figures.
    root, outputs = pictures
    people = report.of_folder(study.folder)
    assert [row["share"] for row in people["rates"]] == ["no answers"] * 2
    people = report.values(study, findings)
    workdir = epath.Path(tmp_path / "scores")
    jobs.score(None, workdir, str(root / REFERENCE), outputs, str(root / "input"), people)
    assert share in (workdir / "report.html").read_text()
    assert share in (workdir / "report.md").read_text()
    # Of one subject nobody knows how others differ. Without an answer there is a report, too.
    alone = report.values(study, report.write(study, [a for a in rows if a.number == 0]))
    assert {row["interval"] for row in alone["rates"]} == {"(too few subjects or pictures)"}
    report.write(study, [])
    assert "no answers" in (study.folder / "report.html").read_text()
