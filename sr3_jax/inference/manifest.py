"""What became of every input of a job, kept so that the job can be stopped at any time and go on.

Beside the outputs lie `manifest.jsonl`, a row for each input, and in `.manifest/` the recipe by
which all outputs of the folder are made and, while a job runs, what its processes did since.
"""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from absl import logging
from etils import epath

from sr3_jax.data import storage
from sr3_jax.inference.files import Record, output_name

NAME = "manifest.jsonl"
_PARTS = ".manifest"  # hidden, so that it is not taken for a folder of images
_FLUSH_SECONDS = 30.0
_ROWS_OF_A_PART = 10_000  # each flush writes the part anew: a bucket's files cannot be appended to


class Manifest:
    """Rows of one process; see `merge`."""

    def __init__(self, output: epath.PathLike) -> None:
        """Of the folder of outputs."""
        self._folder = epath.Path(output)
        self._rows: list[str] = []
        self._part = self._new_part()
        self._flushed = time.monotonic()

    def add(self, record: Record) -> None:
        """Adds a row, which is written within half a minute, while rows come."""
        self._rows.append(json.dumps(dataclasses.asdict(record), ensure_ascii=False))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what was added."""
        if self._rows:
            storage.write_whole(self._part, "".join(f"{row}\n" for row in self._rows).encode())
        if len(self._rows) >= _ROWS_OF_A_PART:
            self._rows, self._part = [], self._new_part()
        self._flushed = time.monotonic()

    def _new_part(self) -> str:
        # Begins with the time, so that later ones sort later.
        return str(self._folder / _PARTS / f"{time.time():017.6f}-{uuid.uuid4().hex[:8]}.jsonl")


def check_recipe(output: epath.PathLike, recipe: Mapping[str, Any], *, overwrite: bool) -> None:
    """Keeps the recipe with the outputs, so that a folder never mixes those of several.

    Args:
      output: the folder of outputs.
      recipe: everything that decides what an input becomes; JSON.
      overwrite: forget what was there, so that it is made anew.

    Raises:
      ValueError: the folder has outputs by another recipe.
    """
    if not overwrite:
        if differ := differences(output, recipe):
            raise ValueError(
                f"{output} has outputs made in another way: {'; '.join(differ)}. Give another "
                "folder, or --overwrite to make all of them anew"
            )
        if _recipe_of(output).exists():
            return
    for part in _parts(output) if overwrite else ():
        epath.Path(part).unlink()
    if overwrite:
        (epath.Path(output) / NAME).unlink(missing_ok=True)
    text = json.dumps(recipe, indent=2, sort_keys=True)
    storage.write_whole(str(_recipe_of(output)), text.encode())


def differences(output: epath.PathLike, recipe: Mapping[str, Any]) -> list[str]:
    """In what the recipe of the outputs in a folder differs from this one; nothing without any."""
    path = _recipe_of(output)
    if not path.exists():
        return []
    before, recipe = json.loads(path.read_text()), json.loads(json.dumps(recipe))
    return [
        f"{key} was {before.get(key)!r} and is {recipe.get(key)!r}"
        for key in sorted(before.keys() | recipe.keys())
        if before.get(key) != recipe.get(key)
    ]


def _recipe_of(output: epath.PathLike) -> epath.Path:
    return epath.Path(output) / _PARTS / "recipe.json"


def existing(output: epath.PathLike) -> set[str]:
    """Names of the files in a folder, which need not exist."""
    if not epath.Path(output).exists():
        return set()
    return set(storage.find(str(output)))


def merge(output: epath.PathLike, inputs: Iterable[str]) -> dict[str, int]:
    """Makes `manifest.jsonl` of all rows there are: one for each input, the last that was written.

    An input that has an output but no row, as its job was killed in between, gets one of status
    `found`; one with neither gets none. To be called when no process adds rows any more.

    Args:
      output: the folder of outputs.
      inputs: names of the job's inputs; rows of others are kept.

    Returns:
      How many rows there are of each status, of these inputs.
    """
    parts = _parts(output)
    rows: dict[str, str] = {}
    for path in (str(epath.Path(output) / NAME), *parts):
        for line in _lines(path):
            rows[json.loads(line)["input"]] = line
    there, counts = existing(output), {}
    for name in inputs:
        status = json.loads(rows[name])["status"] if name in rows else None
        is_there = output_name(name) in there
        if is_there and status in (None, "failed"):
            record = Record(name, output_name(name), "found")
            rows[name], status = json.dumps(dataclasses.asdict(record)), "found"
        elif status in ("written", "found") and not is_there:
            # Somebody has removed it since.
            del rows[name]
            status = None
        if status is not None:
            counts[status] = counts.get(status, 0) + 1
    text = "".join(f"{rows[name]}\n" for name in sorted(rows))
    storage.write_whole(str(epath.Path(output) / NAME), text.encode())
    for part in parts:
        epath.Path(part).unlink()
    return counts


def read(output: epath.PathLike) -> list[Record]:
    """The rows of `manifest.jsonl`."""
    return [Record(**json.loads(line)) for line in _lines(str(epath.Path(output) / NAME))]


def _parts(output: epath.PathLike) -> list[str]:
    return storage.matches(epath.Path(output) / _PARTS, "*.jsonl")


def _lines(path: str) -> Iterator[str]:
    try:
        text = storage.read(path).decode()
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            json.loads(line)["input"]
        except (ValueError, KeyError, TypeError):
            logging.warning("%s: not a row of a manifest, left out: %s", path, line[:100])
            continue
        yield line
