"""The answers of a study: a database of SQLite, one row for each trial, written before the next.

A subject is a random code. Its trials are those of `Study.trials` of its number; the next one is
the first without an answer, whatever a browser believes. So a reload, a second tab, a retry or a
killed server neither loses an answer nor takes one twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import secrets
import sqlite3
import threading
from typing import Any, NamedTuple

from etils import epath

from sr3_jax.study.design import Study, Trial

_FILE = "answers.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS subjects (
  code TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, began TEXT NOT NULL,
  width INTEGER NOT NULL, height INTEGER NOT NULL, ratio REAL NOT NULL,
  withdrawn INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS answers (
  subject TEXT NOT NULL REFERENCES subjects (code), trial INTEGER NOT NULL, kind TEXT NOT NULL,
  image TEXT NOT NULL, left TEXT NOT NULL, right TEXT NOT NULL, side TEXT NOT NULL,
  shown_ms REAL NOT NULL, answered_ms REAL NOT NULL, at TEXT NOT NULL,
  PRIMARY KEY (subject, trial)
);
"""


class Answer(NamedTuple):
    """A row of the answers.

    Attributes:
      subject: code of the subject.
      number: number of the subject, from 0.
      trial: number of the trial, from 0.
      kind, image, left, right: see `Trial`.
      side: `left` or `right`, which was chosen.
      shown_ms: how long the pictures were on the screen, as the browser measured it.
      answered_ms: time from their appearance to the answer.
      at: time of the answer, UTC.
    """

    subject: str
    number: int
    trial: int
    kind: str
    image: str
    left: str
    right: str
    side: str
    shown_ms: float
    answered_ms: float
    at: str

    @property
    def chosen(self) -> str:
        """The method that was chosen."""
        return getattr(self, self.side)

    @property
    def is_right(self) -> bool:
        """Whether the answer is the expected one, or none is expected."""
        expected = Trial(self.kind, self.image, self.left, self.right).expected
        return not expected or self.side == expected


class Window(NamedTuple):
    """A subject's window: width and height in its own pixels, and the screen's to one of those."""

    width: int
    height: int
    ratio: float


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a subject is.

    Attributes:
      trials: all trials.
      next: number of the next; `len(trials)` at the end.
      is_withdrawn: whether the subject withdrew the answers.
    """

    trials: list[Trial]
    next: int
    is_withdrawn: bool = False


class Answers:
    """The database of a study. It may be used from several threads."""

    def __init__(self, study: Study) -> None:
        """Opens the database, and makes it where there is none."""
        self.study = study
        path = epath.Path(study.folder) / _FILE
        self._connection = sqlite3.connect(str(path), check_same_thread=False, isolation_level=None)
        self._lock = threading.Lock()
        # A row that was confirmed survives a killed server and a machine that loses power.
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._connection.close()

    def begin(self, window: Window, code: str = "") -> str:
        """Takes a subject in, and returns the code; one that is in already stays as it is.

        Args:
          window: the window.
          code: an invitation; empty where the study invites nobody.

        Raises:
          PermissionError: the study is over, or the invitation is none of its.
        """
        if self.study.codes and code not in self.study.codes:
            raise PermissionError("this study is for invited people; use the address you were sent")
        if self.study.is_over:
            raise PermissionError("this study is over; thank you for your interest")
        code = code or secrets.token_urlsafe(16)
        with self._writing():
            if not self._row("SELECT 1 FROM subjects WHERE code = ?", code):
                (number,) = self._row("SELECT coalesce(max(number) + 1, 0) FROM subjects")
                row = (code, number, _now(), *window)
                self._connection.execute("INSERT INTO subjects VALUES (?, ?, ?, ?, ?, ?, 0)", row)
        return code

    def progress(self, code: str) -> Progress | None:
        """Returns how far a subject is; None if there is none of that code."""
        with self._lock:
            row = self._row("SELECT number, withdrawn FROM subjects WHERE code = ?", code)
            if row is None:
                return None
            (count,) = self._row("SELECT count(*) FROM answers WHERE subject = ?", code)
        return Progress(self.study.trials(row[0]), count, bool(row[1]))

    def add(
        self, code: str, trial: int, side: str, shown_ms: int | float, answered_ms: int | float
    ) -> bool:
        """Keeps an answer, on the disk; returns whether it was the next one.

        An answer to another trial than the next is not kept: it is there already, or the browser is
        mistaken.

        Raises:
          ValueError: the side is neither left nor right.
          PermissionError: the study is over, or the subject unknown.
        """
        if side not in ("left", "right"):
            raise ValueError(f"side = {side!r}; give left or right")
        if self.study.is_over:
            raise PermissionError("this study is over; thank you for your interest")
        progress = self.progress(code)
        if progress is None:
            raise PermissionError("this subject is not known; load the page again")
        if progress.is_withdrawn or not 0 <= trial < len(progress.trials):
            return False
        shown = progress.trials[trial]
        with self._writing():
            (count,) = self._row("SELECT count(*) FROM answers WHERE subject = ?", code)
            if count != trial:
                return False
            row = (code, trial, *shown, side, shown_ms, answered_ms, _now())
            self._connection.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row
            )
        return True

    def withdraw(self, code: str) -> None:
        """Removes the answers of a subject, which cannot begin again."""
        with self._writing():
            self._connection.execute("DELETE FROM answers WHERE subject = ?", (code,))
            self._connection.execute("UPDATE subjects SET withdrawn = 1 WHERE code = ?", (code,))

    def all(self) -> list[Answer]:
        """Returns all answers, by subject and trial."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT subject, number, trial, kind, image, left, right, side, shown_ms, "
                "answered_ms, at FROM answers JOIN subjects ON code = subject "
                "ORDER BY number, trial"
            ).fetchall()
        return [Answer(*row) for row in rows]

    def num_subjects(self) -> int:
        """Returns how many have begun, without those who withdrew."""
        with self._lock:
            return self._row("SELECT count(*) FROM subjects WHERE NOT withdrawn")[0]

    @contextlib.contextmanager
    def _writing(self) -> Any:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _row(self, query: str, *values: Any) -> tuple | None:
        return self._connection.execute(query, values).fetchone()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
