"""Work that can be stopped at any time: the same command does what is missing.

A job makes *units*: pictures, trials, files of records. A unit is written whole or not at all. The
units of one folder have one `Fingerprint`, and a job with another one is refused. A finished unit
is found again by a row of a table (`read_rows`), or by its own file. While devices compute, units
are read ahead and written behind in threads (`in_threads`).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any, TypeVar

from sr3_jax.data import storage

A = TypeVar("A")
B = TypeVar("B")

Path = str | os.PathLike[str]

HIDDEN = ".manifest"  # begins with a dot, so that no image is looked for there
MARK = f"{HIDDEN}/recipe.json"  # the fingerprint of the outputs in a folder

THREADS = 4  # that read, and that write
MOST_BYTES = 1 << 30  # that one stage of `in_threads` holds


def digest(content: bytes) -> str:
    """Returns a digest of a file's content, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The values that decide the content of a unit.

    Attributes:
      values: JSON values by name; networks by digests of their weights.
      older: values that older versions wrote in place of the keys that end in `network`.
      defaults: values of keys that older versions did not write, by the last part of their names.
      names: today's names of values that are kept under older ones, likewise by key.
    """

    values: Mapping[str, Any]
    older: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    names: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of the values, 32 hexadecimal digits."""
        return digest(json.dumps(self.values, sort_keys=True).encode())

    def differences(self, before: Mapping[str, Any] | None) -> list[str]:
        """Returns how the values of a fingerprint that was read (None: none) differ from these."""
        if before is None:
            return []
        now, older, defaults = json.loads(json.dumps([self.values, self.older, self.defaults]))
        if older and before.keys() >= older.keys():
            now = {key: value for key, value in now.items() if not key.endswith("network")} | older
        was = {key: before.get(key, defaults.get(key.rpartition(".")[2])) for key in now} | before
        now = {key: now.get(key, defaults.get(key.rpartition(".")[2])) for key in was}
        today = {key: (self._today(key, was[key]), self._today(key, now[key])) for key in was}
        return [f"{key} was {a!r} and is {b!r}" for key, (a, b) in sorted(today.items()) if a != b]

    def _today(self, key: str, value: Any) -> Any:
        return self.names.get(key.rpartition(".")[2], {}).get(str(value), value)

    def check(self, folder: Path) -> None:
        """Refuses to mix results of several fingerprints in a folder, which need not exist.

        Raises:
          ValueError: the folder has outputs of another fingerprint, or its own is damaged.
        """
        differ = self.differences(read_fingerprint(folder))
        # A job that was stopped before its first output leaves a fingerprint alone.
        if differ and any(not name.startswith(".") for name in storage.find(folder)):
            raise ValueError(
                f"{storage.shown(folder)} has outputs made in another way: {'; '.join(differ)}. "
                "Give another folder, or --overwrite to make all of them anew"
            )

    def fits(self, folder: Path) -> bool:
        """Returns whether `check` raises no error."""
        try:
            return not self.differences(read_fingerprint(folder))
        except ValueError:
            return False

    def keep(self, folder: Path) -> None:
        """Writes the values into the folder of outputs."""
        text = json.dumps(self.values, indent=2, sort_keys=True)
        storage.write_whole(os.path.join(folder, MARK), text.encode())


def read_fingerprint(folder: Path) -> dict[str, Any] | None:
    """Returns the values that `Fingerprint.keep` wrote; None where there are none.

    Raises:
      ValueError: they are damaged.
    """
    try:
        return read_json(
            os.path.join(folder, MARK),
            dict,
            "It says how the outputs beside it were made. Remove it if you know that they were "
            "made in this way, give another folder, or --overwrite to make all anew",
        )
    except (FileNotFoundError, NotADirectoryError):
        return None


def has_fingerprint(folder: Path) -> bool:
    """Returns whether a folder has outputs of this program."""
    return storage.exists(os.path.join(folder, MARK))


def read_json(path: Path, kind: type[A] | Mapping[str, set[type]], remedy: str) -> A:
    """Reads a file of one JSON object; see `from_json`.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged; the message ends with the remedy.
    """
    try:
        return from_json(kind, json.loads(storage.read(path)))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{storage.shown(path)} is damaged: {error}. {remedy}") from error


def read_rows(path: Path, kind: type[A]) -> tuple[list[A], list[str]]:
    """Reads a file with one JSON object in each line; one that is missing has no rows.

    Returns:
      The rows, and a message for each damaged line.
    """
    rows, damaged = [], []
    try:
        lines = storage.read(path).split(b"\n")
    except FileNotFoundError:
        lines = []
    for line in filter(None, lines):
        try:
            rows.append(from_json(kind, json.loads(line)))
        except (ValueError, RecursionError) as error:
            shown = line[:100].decode(errors="backslashreplace")
            damaged.append(f"{storage.shown(path)} is damaged: {error}: {shown}")
    return rows, damaged


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Writes dataclasses, or JSON values, for `read_rows`; in ASCII, so that any name survives."""
    lines = (dataclasses.asdict(row) if dataclasses.is_dataclass(row) else row for row in rows)
    storage.write_whole(path, "".join(f"{json.dumps(line)}\n" for line in lines).encode())


def from_json(kind: type[A] | Mapping[str, set[type]], value: Any) -> A:
    """Returns a JSON object, checked, or the dataclass that is made of it.

    Args:
      kind: `dict`; the types of keys that must be there; or a dataclass, to which keys of other
        versions are not passed.
      value: the JSON value. Elements of lists and dictionaries in it are not checked.

    Raises:
      ValueError: it is no JSON object, or a key is missing or has a value of another type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is expected, and there is {value!r:.100}")
    if kind is dict:
        return value
    is_class = isinstance(kind, type)
    allowed = _json_types(kind) if is_class else kind
    known = {key: value.get(key) for key in allowed if key in value or not is_class}
    for key, found in known.items():
        if type(found) not in allowed[key]:
            raise ValueError(f"its {key} is missing or of another type: {found!r:.100}")
    try:
        return kind(**known) if is_class else value
    except TypeError as error:  # a field is missing
        raise ValueError(str(error)) from error


@functools.cache
def _json_types(kind: type) -> dict[str, set[type]]:
    """Returns the types of JSON values that the fields of a dataclass take."""
    found = {}
    for name, hint in typing.get_type_hints(kind).items():
        is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        parts = typing.get_args(hint) if is_union else (hint,)
        found[name] = {typing.get_origin(part) or part for part in parts}
        found[name] |= {int} if float in found[name] else set()
    return found


def existing(folder: Path) -> set[str]:
    """Returns the names of the files in a folder, which need not exist; see `storage.find`."""
    return set(storage.find(folder)) if storage.exists(folder) else set()


def remove_partials(folder: Path) -> None:
    """Removes temporary files that killed processes left; call it while the folder is held."""
    for place in (folder, os.path.join(folder, HIDDEN)):
        for name in filter(storage.is_partial, existing(place)):
            storage.remove(os.path.join(place, name))


def in_threads(
    function: Callable[[A], B],
    items: Iterable[A],
    *,
    ahead: int,
    num_bytes: Callable[[A], int] = lambda item: 0,
    eager: bool = False,
) -> Iterator[B]:
    """Calls a function in threads, and yields its results in the order of the items.

    An error of `items` or of the function is raised in its place in the order. After it, or when
    the iteration ends early, calls under way are finished, and others are dropped.

    Args:
      function: called with each item.
      items: taken one by one, at most one more than may wait.
      ahead: most results that wait to be taken, with those under way.
      num_bytes: memory that an item takes; all that wait take at most `MOST_BYTES`, or are one.
      eager: yield finished results before the next item is taken, as a stage that writes should;
        one that reads ahead should not.
    """
    pool = futures.ThreadPoolExecutor(THREADS)
    waiting: collections.deque[tuple[futures.Future[B], int]] = collections.deque()
    held = 0
    try:
        for item in items:
            size = num_bytes(item)
            while waiting and (
                len(waiting) >= ahead
                or held + size > MOST_BYTES
                or (eager and waiting[0][0].done())
            ):
                freed = waiting[0][1]
                yield waiting.popleft()[0].result()
                held -= freed
            waiting.append((pool.submit(function, item), size))
            held += size
            del item  # which the function may be the last to need
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def one_behind(begun: Iterable[Callable[[], A]]) -> Iterator[A]:
    """Yields the result of each function after the next was begun.

    So devices work on a batch while the results of the one before are fetched. `begun` begins a
    piece of work whenever its next function is taken; the function waits for the result.
    """
    for before, _ in itertools.pairwise(itertools.chain(begun, [None])):
        yield before()
