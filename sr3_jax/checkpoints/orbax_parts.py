"""Changes to Orbax's behaviour: the steps it lists, and how it reports errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from sr3_jax.checkpoints import digests


class SoundSteps(ocp.path.step.NameFormat):
    """Orbax's names of step folders, without steps whose metrics or digests are damaged.

    Orbax reads the metrics of all steps when it opens a directory, and fails if one is unreadable.
    Altered metrics would select another checkpoint as the best.
    """

    def __init__(self) -> None:
        self._standard = ocp.path.step.standard_name_format()
        self.hidden: set[epath.Path] = set()

    def build_name(self, step: int) -> str:
        return self._standard.build_name(step)

    def find_step(self, base_path: epath.PathLike, step: int) -> ocp.path.step.Metadata:
        return self._standard.find_step(base_path, step)

    def find_all(self, base_path: epath.PathLike) -> Iterator[ocp.path.step.Metadata]:
        for found in self._standard.find_all(base_path):
            try:
                _check_metrics(found.path)
            except ValueError as error:
                if found.path not in self.hidden:
                    logging.warning("checkpoint %s is damaged: %s", found.path, error)
                self.hidden.add(found.path)
            else:
                yield found


def _check_metrics(folder: epath.Path) -> None:
    """Raises ValueError if a checkpoint's metrics or digests are not what was written."""
    path, record = folder / "metrics" / "metrics", digests.read(folder)
    try:
        metrics = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    # Compared as texts, since NaN differs from itself.
    if record and json.dumps(metrics, sort_keys=True) != json.dumps(record.metrics, sort_keys=True):
        raise ValueError(f"{path} is not what was written")


class _Write:
    """An `orbax.checkpoint.future.Future` of a write, which reports its error to `note`."""

    def __init__(self, future: Any, note: Callable[[BaseException], None]) -> None:
        self._future, self._note = future, note

    def result(self, timeout: float | None = None) -> Any:
        try:
            return self._future.result(timeout)
        except BaseException as error:
            self._note(error)
            raise

    def cancel(self) -> bool | None:
        return self._future.cancel()


def handler(note: Callable[[BaseException], None]) -> ocp.StandardCheckpointHandler:
    """Returns Orbax's handler of arrays, which passes the error of a failed write to `note`.

    Orbax itself raises the error after all processes are done, and they wait for this one.
    """
    made = ocp.StandardCheckpointHandler()
    save = made.async_save

    async def async_save(*args: Any, **kwargs: Any) -> list[Any] | None:
        writes = await save(*args, **kwargs)
        return writes and [_Write(write, note) for write in writes]

    made.async_save = async_save
    return made
