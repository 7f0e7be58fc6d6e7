"""The status of each input of upscaling, so that a job can go on.

    OUTPUT/manifest.jsonl         a row for each input: its status, and what its output was made of
    OUTPUT/.manifest/recipe.json  how all outputs of the folder are made (`resumable.Fingerprint`)
    OUTPUT/.manifest/plan.jsonl   what the job that runs, or was killed, set out to make
    OUTPUT/.manifest/TIME.jsonl   rows that processes of that job have written since

A file that neither a row nor the plan accounts for is not an output of this program, and is left
alone.
"""

from __future__ import annotations

import dataclasses
import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from absl import logging
from etils import epath

from sr3_jax.data import array_source, resumable, sources, storage

T = TypeVar("T")

NAME = "manifest.jsonl"
_FLUSH_SECONDS = 30.0
_STATUSES = ("written", "failed", "found")
_NO_ROW = "no row of the manifest says that it was made here"


@dataclasses.dataclass(frozen=True)
class Record:
    """The status of one input: a row of the manifest.

    Attributes:
      input: its name, relative to the folder of inputs.
      output: the output's name, relative to the folder of outputs.
      status: `written`, `failed`, or `found`: its job was killed between the output and its row.
      error: why it failed; else empty.
      seconds: its share of the time that its batch took.
      seed: seed of its noise.
      note: what was done to it besides, and what of it could not be kept; else empty.
      colour_shift: mean colour of the output less the input's, in levels of 255; of the three
        channels the one that is off most. A network that has learnt enough stays under 1.
      input_size, input_version: bytes and version (`storage.State`) of the file that was read.
      input_digest: digest of its content.
      output_size, output_version: likewise of the output. A failed input may have an output of an
        earlier version.
      output_digest: digest of its content; empty in a bucket, where the version is one.
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

    def __post_init__(self):
        if self.status not in _STATUSES:
            raise ValueError(f"status {self.status!r} is none of {', '.join(_STATUSES)}")

    @property
    def has_output(self) -> bool:
        """Whether there was an output when the row was written."""
        return self.status != "failed" or self.output_size is not None


@dataclasses.dataclass(frozen=True)
class Task:
    """An input to upscale: a row of the plan.

    Attributes:
      input, output: their names, as in `Record`.
      state: state of the input's file when the job began; None where it could not be seen.
      before: state of the file that the output replaces; None where there was none.
    """

    input: str
    output: str
    state: storage.State | list | None
    before: storage.State | list | None

    def __post_init__(self):
        for name in ("state", "before"):  # JSON has lists
            if (pair := getattr(self, name)) is not None:
                if [*map(type, pair)] != [int, str]:
                    raise ValueError(f"{name} is {pair!r:.100}; it must be size and version")
                object.__setattr__(self, name, storage.State(*pair))


class Manifest:
    """The rows that one process writes, into a new file every half minute; see `merge`."""

    def __init__(self, output: epath.PathLike) -> None:
        """Takes the folder of outputs."""
        self._output = output
        self._rows: list[Record] = []
        self._flushed = time.monotonic()

    def add(self, record: Record) -> None:
        """Adds a row, which is written within half a minute, while rows come."""
        self._rows.append(record)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what was added since the last time."""
        if self._rows:
            # Begins with the time, so that later ones sort later.
            name = f"{time.time():017.6f}-{uuid.uuid4().hex[:8]}.jsonl"
            resumable.write_rows(_hidden(self._output, name), self._rows)
        self._rows, self._flushed = [], time.monotonic()


def forget(output: epath.PathLike) -> None:
    """Removes all rows, so that no output there counts as made; the outputs stay."""
    for path in (*_parts(output), _plan(output), os.path.join(output, NAME)):
        storage.remove(path)


def survey(
    output: epath.PathLike,
    inputs: Iterable[sources.FileRef],
    outputs: Mapping[str, Sequence[str]],
    versions: Mapping[str, storage.State],
    *,
    overwrite: bool = False,
) -> tuple[list[Task], dict[str, str]]:
    """Compares what is in a folder of outputs with what is asked for.

    To be made are outputs that are missing, whose input has changed since, or that the job before
    was to replace and did not come to; with `overwrite`, all.

    Args:
      output: the folder of outputs.
      inputs: the inputs of the job.
      outputs: all files that each input becomes, by its name; the first is the picture.
      versions: states of the inputs' files, by name, as far as they could be seen.
      overwrite: make anew whatever is there.

    Returns:
      What is to be made; and the files that are not what this program wrote there, with the reason.
    """
    rows = {} if overwrite else {row.input: row for row in read(output)}
    plan = {} if overwrite else {task.input: task for task in read_plan(output)}
    there = _existing(output)
    states = storage.states(output, [names[0] for names in outputs.values() if names[0] in there])
    tasks, unknown = [], {}
    in_bucket = storage.is_url(str(output))  # folders there are only names: they hide no file
    if not overwrite and NAME in there and not resumable.has_fingerprint(output):
        unknown[NAME] = f"it has no {resumable.MARK} beside it, so this program did not write it"
    for ref in inputs:
        row, task, its = rows.get(ref.name), plan.get(ref.name), versions.get(ref.name)
        made, *beside = outputs[ref.name]
        now, path = states.get(made), os.path.join(output, made)
        if not overwrite and task is None and not (row and row.has_output):
            unknown |= dict.fromkeys(there.intersection(beside), _NO_ROW)
        if now is None and not in_bucket and storage.is_folder(path):
            unknown[made] = "it is a folder, which --overwrite does not replace either"
            continue
        if now is not None and not overwrite:
            if row is None or row.output != made:
                why = "" if task and task.before == now else _NO_ROW
            elif not (why := _why_unknown(row, now, path)):
                if row.status != "failed" and not _has_changed(row, ref, its, now):
                    continue
            if why:
                unknown[made] = why
                continue
        tasks.append(Task(ref.name, made, its, now))
    return tasks, unknown


def _existing(output: epath.PathLike) -> set[str]:
    """Returns the names of the files in a folder, of which a folder of Zarr is one."""
    names = resumable.existing(output)
    return names | {array_source.whole(name) for name in names}


def _why_unknown(row: Record, now: storage.State, path: str) -> str:
    """Returns why a file is not the output that a row says was written; empty where it is."""
    if row.output_size not in (None, now.size):
        return f"it has {now.size} bytes, where {row.output_size} were written"
    if row.output_version not in ("", now.version) and (
        not row.output_digest or _digest(path) != row.output_digest
    ):
        return "its content has changed since it was written"
    return "" if row.has_output else "its input had failed when the manifest was written"


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
    # Copied or touched, it may still have the same content.
    is_same = its.size == row.input_size and row.input_digest
    return not is_same or _digest(ref.path) != row.input_digest


def _digest(path: str) -> str:
    try:
        return resumable.digest(storage.read(path))
    except OSError:
        return ""  # it will fail, and say why


def keep_plan(output: epath.PathLike, tasks: Iterable[Task]) -> None:
    """Writes what the job is about to make, so that its outputs are known if it is killed."""
    resumable.write_rows(_plan(output), tasks)


def merge(output: epath.PathLike) -> None:
    """Makes `manifest.jsonl` of all rows there are: one for each input, the last that was written.

    An output of the plan without a row, whose job was killed in between, gets one of status
    `found`. Rows whose output somebody has removed go. To be called while no process adds rows.
    """
    if not resumable.has_fingerprint(output):
        return
    parts, there, plan = _parts(output), _existing(output), read_plan(output)
    rows = {row.input: row for row in read(output)}
    new = {row.input: row for part in parts for row in _read(part, Record)}
    states = storage.states(output, [task.output for task in plan if task.output in there])
    for task in plan:
        now, row, old = states.get(task.output), new.get(task.input), rows.get(task.input)
        if now is not None and row is None and now != task.before:
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
        elif now is not None and row and row.status == "failed" and old and old.has_output:
            # What was made of an earlier version of the input is still an output of this program.
            new[task.input] = dataclasses.replace(row, output_size=now.size)
    rows |= new
    kept = (row for row in rows.values() if row.status == "failed" or row.output in there)
    path = os.path.join(output, NAME)
    resumable.write_rows(path, sorted(kept, key=lambda row: row.input))
    for part in parts:
        storage.remove(part)
    # What it did not come to stays planned: the next job may replace what is there.
    if left := [task for task in plan if task.input not in new]:
        keep_plan(output, left)
    else:
        storage.remove(_plan(output))


def damage(output: epath.PathLike) -> str:
    """Says how many rows of a folder's `manifest.jsonl` are damaged, and the remedy; else empty."""
    path = os.path.join(output, NAME)
    rows, damaged = resumable.read_rows(path, Record)
    if not damaged or not resumable.has_fingerprint(output):
        return ""
    return (
        f"{storage.shown(path)}, which says which outputs were made, is damaged: {len(damaged)} of "
        f"its {len(rows) + len(damaged)} rows cannot be read. Restore it from a copy, or give "
        "another folder, or --overwrite to make all outputs anew"
    )


def read(output: epath.PathLike) -> list[Record]:
    """Returns the rows of `manifest.jsonl`; damaged ones are left out, with a warning."""
    return _read(os.path.join(output, NAME), Record)


def read_plan(output: epath.PathLike) -> list[Task]:
    """Returns what a job that was killed, or runs, is to make; none in folders of others."""
    if not resumable.has_fingerprint(output):
        return []
    return _read(_plan(output), Task)


def _read(path: str, kind: type[T]) -> list[T]:
    rows, damaged = resumable.read_rows(path, kind)
    for each in damaged:
        logging.warning("row left out: %s", each)
    return rows


def _plan(output: epath.PathLike) -> str:
    return _hidden(output, "plan.jsonl")


def _parts(output: epath.PathLike) -> list[str]:
    return storage.matches(_hidden(output), "[0-9]*.jsonl")  # their names begin with the time


def _hidden(output: epath.PathLike, *names: str) -> str:
    return os.path.join(output, resumable.HIDDEN, *names)
