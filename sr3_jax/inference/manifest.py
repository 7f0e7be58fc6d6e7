"""Keeps which outputs of a folder were made, of what and how, so that a job can go on.

    OUTPUT/manifest.jsonl         a row for each input: its status, and what its output was made of
    OUTPUT/.manifest/recipe.json  how all outputs of the folder are made
    OUTPUT/.manifest/plan.jsonl   what the job that runs, or was killed, set out to make
    OUTPUT/.manifest/TIME.jsonl   rows that processes of that job have written since

A file that neither a row nor the plan accounts for is not an output of this program, and is left
alone. Rows are ASCII, so that any name survives, also one that is not UTF-8 or has line breaks.
"""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from sr3_jax.data import sources, storage
from sr3_jax.inference import recipes

NAME = "manifest.jsonl"
_PLAN = "plan.jsonl"
_FLUSH_SECONDS = 30.0
_ROWS_OF_A_PART = 10_000  # each flush writes the part anew: a bucket's files cannot be appended to
_STATUSES = ("written", "failed", "found")


@dataclasses.dataclass(frozen=True)
class Record:
    """The status of one input: a row of the manifest.

    Attributes:
      input: its name, relative to the folder of inputs.
      output: relative to the folder of outputs.
      status: `written`, `failed`, or `found`: its job was killed between the output and its row.
      error: why it failed; else empty.
      seconds: its share of the time that its batch took.
      seed: of its noise.
      note: what was done to it besides, and what of it could not be kept; else empty.
      colour_shift: mean colour of the output less the input's, in levels of 255; of the three
        channels the one that is off most. A network that has learnt enough stays under 1.
      input_size: of the input's file when it was read, in bytes.
      input_version: of that file; see `storage.State`.
      input_digest: of its content.
      output_size: of the output's file, in bytes. A failed input may have an output of an earlier
        version.
      output_version: of that file when it was written; see `storage.State`.
      output_digest: of its content; empty in a bucket, where the version is one.
    """

    input: str
    output: str
    status: str
    error: str = ""
    seconds: float | None = None
    seed: int | None = None
    note: str = ""
    colour_shift: float | None = None
    input_size: int | None = None
    input_version: str = ""
    input_digest: str = ""
    output_size: int | None = None
    output_version: str = ""
    output_digest: str = ""


@dataclasses.dataclass(frozen=True)
class Task:
    """An input to upscale: a row of the plan.

    Attributes:
      input: its name.
      output: relative to the folder of outputs.
      state: of the input's file when the job began; None where it could not be seen.
      before: of a file in the output's place that the job replaces; None where there was none.
    """

    input: str
    output: str
    state: storage.State | None
    before: storage.State | None

    def is_made(self, now: storage.State | None) -> bool:
        """Returns whether the output was written since the job began."""
        return now is not None and now != self.before


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a job finds in its folder of outputs.

    Attributes:
      tasks: what is to be made.
      unknown: files in an output's place that are not what this program wrote there; of each, why.
    """

    tasks: list[Task]
    unknown: dict[str, str]


_TYPES: dict[str, Any] = {
    **dict.fromkeys(("input", "output", "status", "error", "note"), str),
    **dict.fromkeys(("input_version", "input_digest"), str),
    **dict.fromkeys(("output_version", "output_digest"), str),
    **dict.fromkeys(("seconds", "colour_shift"), float | int | None),
    **dict.fromkeys(("seed", "input_size", "output_size"), int | None),
}


class Manifest:
    """Rows of one process; see `merge`."""

    def __init__(self, output: epath.PathLike) -> None:
        """Takes the folder of outputs."""
        self._folder = epath.Path(output)
        self._rows: list[str] = []
        self._part = self._new_part()
        self._flushed = time.monotonic()

    def add(self, record: Record) -> None:
        """Adds a row, which is written within half a minute, while rows come."""
        self._rows.append(_line(record))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what was added."""
        if self._rows:
            storage.write_whole(self._part, "".join(self._rows).encode())
        if len(self._rows) >= _ROWS_OF_A_PART:
            self._rows, self._part = [], self._new_part()
        self._flushed = time.monotonic()

    def _new_part(self) -> str:
        # Begins with the time, so that later ones sort later.
        return str(
            self._folder / recipes.FOLDER / f"{time.time():017.6f}-{uuid.uuid4().hex[:8]}.jsonl"
        )


def forget(output: epath.PathLike) -> None:
    """Removes all rows, so that no output there counts as made; the outputs stay."""
    for path in (*_parts(output), _plan_of(output), str(epath.Path(output) / NAME)):
        storage.remove(path)


def existing(output: epath.PathLike) -> set[str]:
    """Returns the names of the files in a folder, which need not exist."""
    if not epath.Path(output).exists():
        return set()
    return set(storage.find(str(output)))


def remove_partials(output: epath.PathLike) -> None:
    """Removes temporary files that killed processes left; call it while the folder is held."""
    hidden = epath.Path(output) / recipes.FOLDER
    for folder, names in ((output, existing(output)), (hidden, existing(hidden))):
        for name in filter(storage.is_partial, names):
            storage.remove(str(epath.Path(folder) / name))


def survey(
    output: epath.PathLike,
    inputs: Iterable[sources.FileRef],
    outputs: Mapping[str, Sequence[str]],
    versions: Mapping[str, storage.State],
    *,
    overwrite: bool = False,
) -> Survey:
    """Compares what is in a folder of outputs with what is asked for.

    To be made are outputs that are missing, whose input has changed since, or that the job before
    was to replace and did not come to; with `overwrite`, all.

    Args:
      output: the folder of outputs.
      inputs: of the job.
      outputs: all files that each input becomes, by its name; the first is the picture.
      versions: of the inputs' files, by name, as far as they could be seen.
      overwrite: make anew whatever is there.
    """
    rows = {} if overwrite else {row.input: row for row in read(output)}
    before = {} if overwrite else {task.input: task for task in _read_plan(output)}
    there = existing(output)
    states = storage.states(output, [names[0] for names in outputs.values() if names[0] in there])
    tasks, unknown = [], {}
    is_bucket = storage.is_url(str(output))  # folders there are only names: they hide no file
    if not overwrite and NAME in there and not _is_ours(output):
        unknown[NAME] = "there is no recipe beside it, so that it is no manifest of this program"
    for ref in inputs:
        name, its = ref.name, versions.get(ref.name)
        made, *beside = outputs[name]
        now, row, task = states.get(made), rows.get(name), before.get(name)
        if not overwrite and task is None and not _has_output(row):
            for other in there.intersection(beside):
                unknown[other] = "no row of the manifest says that it was made here"
        if now is None and not is_bucket and storage.is_folder(epath.Path(output) / made):
            unknown[made] = "it is a folder, which --overwrite does not replace either"
            continue
        if now is None or overwrite:
            pass
        elif row is None or row.output != made:
            if task is None or task.before != now:
                unknown[made] = "no row of the manifest says that it was made here"
                continue
        elif row.output_size is not None and row.output_size != now.size:
            unknown[made] = f"it has {now.size} bytes, where {row.output_size} were written"
            continue
        elif _was_edited(row, now, str(epath.Path(output) / made)):
            unknown[made] = "its content has changed since it was written"
            continue
        elif not _has_output(row):
            unknown[made] = "its input had failed when the manifest was written"
            continue
        elif row.status != "failed" and not _has_changed(row, ref, its, now):
            continue
        tasks.append(Task(name, made, its, now))
    return Survey(tasks, unknown)


def _has_changed(
    row: Record, ref: sources.FileRef, its: storage.State | None, output: storage.State
) -> bool:
    """Returns whether an input is another one than that which its output was made of."""
    if its is None:
        return False  # it will fail if it is asked for
    if row.input_size is None:  # a row of an older version
        versions = (its.version, output.version)
        return all(v.isdigit() for v in versions) and int(versions[0]) > int(versions[1])
    if its == (row.input_size, row.input_version):
        return False
    if its.size != row.input_size or not row.input_digest:
        return True
    try:
        # Copied or touched, it may still have the same content.
        return recipes.digest(storage.read(ref.path)) != row.input_digest
    except OSError:
        return True  # it will fail, and say why


def _was_edited(row: Record, now: storage.State, path: str) -> bool:
    """Returns whether an output of the size that was written has another content."""
    if not row.output_version or now.version == row.output_version:
        return False
    if not row.output_digest:  # in a bucket the version is that of the content
        return True
    try:
        return recipes.digest(storage.read(path)) != row.output_digest
    except OSError:
        return True


def _is_ours(output: epath.PathLike) -> bool:
    """Returns whether a folder has a recipe, and so a manifest and a plan of this program."""
    return (epath.Path(output) / recipes.MARK).exists()


def _has_output(row: Record | None) -> bool:
    return row is not None and (row.status != "failed" or row.output_size is not None)


def keep_plan(output: epath.PathLike, tasks: Iterable[Task]) -> None:
    """Writes what the job is about to make, so that its outputs are known if it is killed."""
    lines = "".join(json.dumps(dataclasses.asdict(task)) + "\n" for task in tasks)
    storage.write_whole(_plan_of(output), lines.encode())


def planned(output: epath.PathLike) -> set[str]:
    """Returns the names of the inputs that the plan has."""
    return {task.input for task in _read_plan(output)}


def merge(output: epath.PathLike) -> None:
    """Makes `manifest.jsonl` of all rows there are: one for each input, the last that was written.

    An output of the plan without a row, whose job was killed in between, gets one of status
    `found`. Rows whose output somebody has removed go. To be called while no process adds rows.
    """
    if not _is_ours(output):
        return
    parts, there = _parts(output), existing(output)
    rows = {row.input: row for row in read(output)}
    new = {row.input: row for part in parts for row in _records(part)}
    plan = _read_plan(output)
    states = storage.states(output, [task.output for task in plan if task.output in there])
    for task in plan:
        now, row, old = states.get(task.output), new.get(task.input), rows.get(task.input)
        if row is None and task.is_made(now):
            size, version = task.state or (None, "")
            new[task.input] = Record(
                task.input,
                task.output,
                "found",
                input_size=size,
                input_version=version,
                output_size=now.size,
                output_version=now.version,
            )
        elif row is not None and row.status == "failed" and now is not None and _has_output(old):
            # What was made of an earlier version of the input is still an output of this program.
            new[task.input] = dataclasses.replace(row, output_size=now.size)
    rows |= new
    kept = (row for row in rows.values() if row.status == "failed" or row.output in there)
    text = "".join(_line(row) for row in sorted(kept, key=lambda row: row.input))
    storage.write_whole(str(epath.Path(output) / NAME), text.encode())
    for part in parts:
        storage.remove(part)
    # What it did not come to stays planned: the next job may replace what is there.
    if left := [task for task in plan if task.input not in new]:
        keep_plan(output, left)
    else:
        storage.remove(_plan_of(output))


def damage(output: epath.PathLike) -> str:
    """Says how many rows of a folder's `manifest.jsonl` are damaged, and the remedy; else empty."""
    path = str(epath.Path(output) / NAME)
    if not _is_ours(output) or not storage.exists(path):
        return ""
    lines = [line for line in storage.read(path).split(b"\n") if line]
    count = len(lines) - len(read(output))
    if not count:
        return ""
    return (
        f"{storage.shown(path)}, which says which outputs were made, is damaged: {count} of its "
        f"{len(lines)} rows cannot be read. Restore it from a copy, or give another folder, or "
        "--overwrite to make all outputs anew"
    )


def read(output: epath.PathLike) -> list[Record]:
    """Returns the rows of `manifest.jsonl`; damaged ones are left out, with a warning."""
    return list(_records(str(epath.Path(output) / NAME)))


def _read_plan(output: epath.PathLike) -> list[Task]:
    found = []
    if not _is_ours(output):
        return found
    for line in _lines(_plan_of(output)):
        states = [line.get(key) for key in ("state", "before")]
        if all(pair is None or _is_state(pair) for pair in states):
            states = (None if pair is None else storage.State(*pair) for pair in states)
            found.append(Task(line["input"], line["output"], *states))
    return found


def _is_state(pair: Any) -> bool:
    return isinstance(pair, list) and [*map(type, pair)] == [int, str]


def _records(path: str) -> Iterator[Record]:
    for line in _lines(path):
        # Other versions have other fields.
        row = {key: value for key, value in line.items() if key in _TYPES}
        if row.get("status") in _STATUSES and all(isinstance(row[k], _TYPES[k]) for k in row):
            yield Record(**row)
        else:
            logging.warning("%s: row of an unknown kind, left out: %.100r", path, line)


def _lines(path: str) -> Iterator[dict[str, Any]]:
    try:
        content = storage.read(path)
    except FileNotFoundError:
        return
    for line in content.split(b"\n"):
        if not line:
            continue
        try:
            row = json.loads(line)
            if not all(isinstance(row[key], str) for key in ("input", "output")):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            shown = line[:100].decode(errors="backslashreplace")
            logging.warning("%s: not a row of a manifest, left out: %s", storage.shown(path), shown)
            continue
        yield row


def _line(record: Record) -> str:
    return json.dumps(dataclasses.asdict(record)) + "\n"


def _plan_of(output: epath.PathLike) -> str:
    return str(epath.Path(output) / recipes.FOLDER / _PLAN)


def _parts(output: epath.PathLike) -> list[str]:
    # Their names begin with the time.
    return storage.matches(epath.Path(output) / recipes.FOLDER, "[0-9]*.jsonl")
