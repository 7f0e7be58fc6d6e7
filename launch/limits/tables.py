"""Tables and the picture of a gallery of limits, from the files that it left."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from launch.comparison import upscale
from launch.comparison.tables import jpeg
from launch.limits import measures
from launch.limits.subjects import Subject
from sr3_jax.evaluation.report import grids, intervals
from sr3_jax.metrics import full_reference

_MOST_BYTES = 300_000
_CROP = 64  # pixels, which the sheet shows at 300 %


class Measure(NamedTuple):
    """A column: its heading, how a mean is written; shares are counted, and not averaged."""

    heading: str
    write: Callable[[float], str] = "{:.2f}".format
    is_count: bool = False


class Kind(NamedTuple):
    """A kind of subjects: its heading, what its groups are, and its measures by name."""

    heading: str
    groups: str
    measures: Mapping[str, Measure]
    has_reference: bool = False  # as a row


_SPECTRA = {
    "is_right": Measure("strongest frequency is the true one", is_count=True),
    "is_alias": Measure("strongest frequency is the alias", is_count=True),
    "amplitude": Measure("amplitude at the true frequency → 1"),
    "false": Measure("share of energy at false frequencies ↓"),
}
_TEXTURES = {
    "gradient_energy": Measure("gradient energy → 1"),
    "coherence": Measure("coherence of directions → 1"),
    "turned": Measure("directions turned by (degrees) ↓", "{:.1f}".format),
    "detail": Measure("correlation of detail ↑"),
}
KINDS = {
    "letters": Kind(
        "Drawn letters",
        "height of an x in pixels of the input",
        {"errors": Measure("character error rate ↓")},
        has_reference=True,
    ),
    "photographed": Kind(
        "Photographed letters", "", {"errors": Measure("character error rate ↓")}, True
    ),
    "stripes": Kind("Stripes", "wavelength in pixels of the input", _SPECTRA, True),
    "grids": Kind("Grids", "wavelength in pixels of the input", _SPECTRA, True),
    "lines": Kind(
        "Lines",
        "width in pixels of the input",
        {
            "kept": Measure("share kept ↑"),
            "contrast": Measure("contrast → 1"),
            "strays": Measure("strays by (pixels) ↓"),
        },
    ),
    "windows": Kind(
        "Windows and lattices",
        "",
        {
            "recall": Measure("share of the reference's lines that are there ↑"),
            "precision": Measure("share of lines that are the reference's ↑"),
            "length": Measure("length of lines, of the reference's → 1"),
        },
    ),
    "fur": Kind("Fur and hair", "", _TEXTURES),
    "glasses": Kind("Glasses", "width of the glasses in pixels of the input", _TEXTURES),
}

# Rows of the picture: subjects, and where in the reference the window begins (left, top).
_SHOWN = {
    "letters_03_00": (0, 4),
    "letters_06_03": (0, 4),
    "photographed_train_78019": (170, 0),
    "stripes_1.8_1": (32, 32),
    "stripes_2.5_1": (32, 32),
    "grids_3_1": (32, 32),
    "lines_0.5_1": (32, 32),
    "windows_train_277095": (60, 90),
    "fur_val_163085": (60, 30),
    "fur_chelsea": (60, 60),
    "fur_train_198023": (20, 30),
    "glasses_train_65019": (20, 28),
}

Row = dict[str, Any]  # subject, kind, group, method and measures by name


def write(chosen: Sequence[Subject], folder: pathlib.Path, methods: Sequence[str]) -> None:
    """Measures all subjects and writes tables.md, pictures.jpg and scores.json."""
    rows = [row for subject in chosen for row in _measured(subject, folder, methods)]
    titles = {name: _title(folder, name) for name in methods} | {"reference": "the reference"}
    parts = []
    for name, kind in KINDS.items():
        if of_kind := [row for row in rows if row["kind"] == name]:
            parts.append(f"## {kind.heading}\n\n{_tables(kind, of_kind, titles)}")
    for name in ("letters", "photographed"):
        if of_kind := [row for row in rows if row["kind"] == name]:
            parts.append(_words(KINDS[name].heading, of_kind, titles))
    parts.append(_texts(chosen, folder, [*methods, "reference"]))
    text = "Means with 95 % intervals.\n\n" + "\n".join(filter(None, parts))
    picture = _drawn(chosen, folder, titles)
    for file, content in (
        ("scores.json", json.dumps(rows, default=float, indent=1).encode()),
        ("pictures.jpg", picture),
        ("tables.md", text.encode()),
    ):
        part = folder / f"{file}.part"
        part.write_bytes(content)
        os.replace(part, folder / file)
    print(f"{text}\nwritten: {folder / 'tables.md'}")


def _title(folder: pathlib.Path, name: str) -> str:
    """Returns the name of a method, of a network with its number of calls."""
    version = json.loads((folder / "made" / f"{name}.json").read_bytes())["version"]
    return f"{name}, {version.partition(', ')[2]}" if version.startswith("step") else name


def _measured(subject: Subject, folder: pathlib.Path, methods: Sequence[str]) -> list[Row]:
    """Measures what each method made of a subject; of letters there is a row for each word."""
    names = [*methods, "reference"] if KINDS[subject.kind].has_reference else methods
    file, found = f"{subject.name}.png", []
    for name in names:
        image = upscale.read(_folder(folder, name) / file)
        about = {"subject": subject.name, "kind": subject.kind, "group": subject.group}
        about["method"] = name
        if lines := subject.truth.get("lines"):
            read = _read(folder, name).get(subject.name)
            for line, text in zip(lines, read or (), strict=bool(read)):
                errors = measures.character_errors(text, line["text"])
                found.append({**about, "errors": errors, "is_word": line.get("is_word")})
            continue
        if vectors := subject.truth.get("vectors"):
            result = measures.spectrum(image, vectors)._asdict()
            result["amplitude"] /= measures.spectrum(subject.image, vectors).amplitude
        elif subject.kind == "lines":
            result = measures.line(image, subject.image, **subject.truth)._asdict()
        elif subject.kind == "windows":
            ours, theirs = measures.segments(image), measures.segments(subject.image)
            result = {
                "recall": measures.share_found(theirs, ours),
                "precision": measures.share_found(ours, theirs),
                "length": measures.length(ours) / measures.length(theirs),
            }
        else:
            three = image, subject.image, upscale.read(folder / "made" / "bicubic" / file)
            if box := subject.truth.get("box"):
                three = [each[box[1] : box[3], box[0] : box[2]] for each in three]
            result = measures.texture(*three)._asdict()
            energy = full_reference.gradient_energy(three[0][None], three[1][None])
            result["gradient_energy"] = float(energy[0])
        found.append({**about, **result})
    return found


def _folder(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / name if name in ("reference", "input") else folder / "made" / name


def _read(folder: pathlib.Path, name: str) -> dict[str, list[str]]:
    """Returns what was read on the pictures of a method; empty where nothing was."""
    path = folder / "read" / f"{name}.json"
    return json.loads(path.read_bytes()) if path.exists() else {}


def _tables(kind: Kind, rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    """Returns the tables of a kind: one for each measure, or one for all of a single group."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    counts = {g: sum(row["group"] == g for row in rows) for g in groups}
    each = len({row["method"] for row in rows})

    def cell(measure: str, group: str, method: str) -> str:
        values = [r[measure] for r in rows if (r["method"], r["group"]) == (method, group)]
        return _cell(kind.measures[measure], values)

    present = [name for name in titles if any(row["method"] == name for row in rows)]
    if len(groups) == 1:
        columns = {
            measure.heading: [cell(name, groups[0], m) for m in present]
            for name, measure in kind.measures.items()
        }
        return f"n = {counts[groups[0]] // each}\n\n{table([titles[m] for m in present], columns)}"
    parts = []
    for name, measure in kind.measures.items():
        columns = {
            f"{group} (n = {counts[group] // each})": [cell(name, group, m) for m in present]
            for group in groups
        }
        of = f", by {kind.groups}" if kind.groups else ""
        parts.append(f"{measure.heading}{of}:\n\n{table([titles[m] for m in present], columns)}")
    return "\n".join(parts)


def _cell(measure: Measure, values: Sequence[float]) -> str:
    """Returns a mean with its interval, or a count."""
    if measure.is_count:
        return f"{sum(map(bool, values))} of {len(values)}"
    mean, low, high, num_finite = intervals.of_mean(values)[:4]
    if not num_finite:
        return "–"
    written = [measure.write(number) for number in (mean, low, high)]
    written = [text.removeprefix("-") if not float(text) else text for text in written]
    if num_finite < 2 or not high > low:
        return written[0]
    return f"{written[0]} ({written[1]} to {written[2]})"


def _words(heading: str, rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    """Returns what all words say: against bicubic on the same words, and of random letters."""
    of = {name: [row for row in rows if row["method"] == name] for name in titles}
    errors = {name: [row["errors"] for row in found] for name, found in of.items()}
    measure = Measure("")
    columns = {
        "all": [_cell(measure, values) for values in errors.values()],
        "less bicubic's": [
            _cell(measure, np.subtract(values, errors["bicubic"])) for values in errors.values()
        ],
    }
    for name, kind in (("words", True), ("random letters", False)):
        if any(row["is_word"] is kind for row in rows):
            columns[name] = [
                _cell(measure, [row["errors"] for row in found if row["is_word"] is kind])
                for found in of.values()
            ]
    text = table([titles[name] for name in of], columns)
    return f"{heading}, character error rate of all {len(errors['bicubic'])}:\n\n{text}"


def _texts(chosen: Sequence[Subject], folder: pathlib.Path, methods: Sequence[str]) -> str:
    """Returns what was read on photographs."""
    read = {name: _read(folder, name) for name in methods}
    if not all(read.values()):
        return ""
    rows, columns = [], {name: [] for name in methods}
    for subject in chosen:
        if subject.kind == "photographed":
            rows += [line["text"] for line in subject.truth["lines"]]
            for name in methods:
                columns[name] += [text.replace("|", "¦") for text in read[name][subject.name]]
    return f"What was read on photographs:\n\n{table(rows, columns)}" if rows else ""


def table(rows: Sequence[str], columns: Mapping[str, Sequence[str]]) -> str:
    """Returns a table of Markdown, of titles of rows and cells by column."""
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row, cells in zip(rows, zip(*columns.values(), strict=True), strict=True):
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _drawn(chosen: Sequence[Subject], folder: pathlib.Path, titles: Mapping[str, str]) -> bytes:
    """Draws a window of each of a few subjects at 300 % as each method made it, as a JPEG."""
    present = {subject.name for subject in chosen}
    shown = {name: at for name, at in _SHOWN.items() if name in present}
    columns = {}
    for method, title in {"input": "input", **titles}.items():
        times = 1 if method == "input" else upscale.FACTOR
        side, windows = _CROP * times // upscale.FACTOR, []
        for name, at in shown.items():
            image = upscale.read(_folder(folder, method) / f"{name}.png")
            left, top = (place * times // upscale.FACTOR for place in at)
            windows.append(image[top : top + side, left : left + side])
        columns[title] = np.stack(windows)
    return jpeg(grids.grid(columns), _MOST_BYTES)
