"""Checkpoints of the whole training state, written in the background by Orbax."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from sr3_jax import parallel
from sr3_jax.checkpoints import digests, orbax_parts

Which = Literal["latest", "best"] | int
T = TypeVar("T")
_POLL_SECONDS = 0.01  # while a checkpoint is written


def _badness(metrics: Mapping[str, float]) -> float:
    """By which the best checkpoint is the least: the regression baseline's by its PSNR."""
    if "validation_psnr" in metrics:
        return -metrics["validation_psnr"]
    return metrics["validation_loss"]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or none can be read."""


class _MismatchError(ValueError):
    """A checkpoint's arrays are not those of the network."""


class Checkpointer:
    """Saves and restores states under `DIRECTORY/<step>`.

    A checkpoint appears under its final name only once it is whole, so that a run killed while
    it writes leaves the one before as the latest. Beside the arrays lie their digests, which are
    checked on reading. Where the latest has been damaged since, the one before is read instead,
    with a warning.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep_last: int = 3,
        keep_best: bool = True,
        read_only: bool = False,
    ) -> None:
        """Opens (and, unless it is only read, makes) the directory.

        Args:
          directory: where checkpoints lie; local or in a bucket.
          keep_last: how many of the newest to keep.
          keep_best: also keep the one of the highest `validation_psnr`, or of those that have
            none the lowest `validation_loss`.
          read_only: leave the directory as it is; a run may be writing into it.
        """
        policies = [checkpoint_managers.LatestN(keep_last)]
        if keep_best:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=_badness,
                    reverse=True,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self.directory = epath.Path(directory).expanduser().absolute()
        self._names = orbax_parts.SoundSteps()
        self._error: BaseException | None = None
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={
                "default": orbax_parts.handler(self._note),
                digests.FOLDER: ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                best_fn=_badness,
                best_mode="min",
                step_name_format=self._names,
                read_only=read_only,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )
        self._damaged: set[int] = set()

    @property
    def steps(self) -> list[int]:
        """Steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: object, metrics: Mapping[str, float]) -> None:
        """Starts to write `state`; returns once it may be changed. `step` must be new.

        Args:
          step: number of updates that made `state`.
          state: a pytree of arrays.
          metrics: numbers that describe it; `keep_best` says which decide.

        Raises:
          CheckpointError: where this one, or the one before, cannot be written, or numbers in it
            are not finite.
        """
        found = digests.of(state)
        _check_finite(found, f"the state after step {step}")
        numbers = {name: float(value) for name, value in metrics.items()}
        record = digests.Record({name: digest.text for name, digest in found.items()}, numbers)
        with self._name_failure():
            self._wait()
            # They would count as the latest, and their numbers are needed again.
            for damaged in sorted(self._damaged & set(self.steps)):
                self._manager.delete(damaged)
            self._damaged.clear()
            for folder in self._names.hidden if jax.process_index() == 0 else ():
                folder.rmtree()
            self._names.hidden.clear()
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    default=ocp.args.StandardSave(state),
                    **{digests.FOLDER: ocp.args.JsonSave(record.to_json())},
                ),
                metrics=numbers or None,
                force=True,  # what is asked for is never skipped
            )

    def restore(self, like: T, which: Which = "latest") -> tuple[int, T]:
        """Restores a checkpoint whole.

        Args:
          like: a pytree of arrays or `jax.ShapeDtypeStruct`; their shardings place the result.
          which: `latest`, `best`, or a step.

        Returns:
          The step and the state.

        Raises:
          FileNotFoundError: where there is no such checkpoint.
          ValueError: where its shapes are not those of `like`.
          CheckpointError: where it (for `latest`: every one) is damaged, or numbers in it are not
            finite.
        """

        def read(step: int) -> T:
            args = ocp.args.Composite(default=ocp.args.StandardRestore(like))
            return self._manager.restore(step, args=args)["default"]

        return self._read(like, which, read)

    def restore_part(self, like: T, which: Which = "latest") -> tuple[int, T]:
        """Restores only those of a checkpoint's top-level fields that the mapping `like` has.

        The rest (an optimizer's state is twice the size of the parameters) is never read.
        Raises as `restore`.
        """
        restore_args = ocp.checkpoint_utils.construct_restore_args(like)

        def read(step: int) -> T:
            with ocp.PyTreeCheckpointer() as reader:
                return reader.restore(
                    self._path(step),
                    args=ocp.args.PyTreeRestore(
                        item=like, restore_args=restore_args, partial_restore=True
                    ),
                )

        return self._read(like, which, read)

    def wait(self) -> None:
        """Returns once every checkpoint is on disk; raises CheckpointError where one is not."""
        with self._name_failure():
            self._wait()

    def check(self) -> None:
        """Raises CheckpointError where a checkpoint could not be written; does not wait."""
        with self._name_failure():
            if self._error is not None:
                raise self._error

    def _note(self, error: BaseException) -> None:
        self._error = error

    def _wait(self) -> None:
        # Orbax's own wait would take ten minutes where the write of one process has failed.
        while self._manager.is_saving_in_progress():
            self.check()
            time.sleep(_POLL_SECONDS)
        self.check()
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the directory."""
        self._manager.close()

    def _read(self, like: T, which: Which, read: Callable[[int], T]) -> tuple[int, T]:
        """Reads a checkpoint; where the latest is asked for, the latest that can be read."""
        first = self.find(which)
        reasons = {}
        for step in reversed(self.steps) if which == "latest" else (first,):
            state, record, reason = None, None, ""
            try:
                self.check_shapes(like, step)
                record = digests.read(self.directory / str(step))
                state = read(step)
            except _MismatchError:
                raise
            # Damaged files make Orbax and TensorStore raise a dozen kinds of exceptions.
            except Exception as error:
                reason = str(error).partition("\n")[0][:500] or type(error).__name__
            # A step that one process cannot read is read by none.
            if parallel.of_all_processes(np.asarray([not reason])).all():
                found = digests.of(state)
                reason = self._difference(record, found, step)
                if parallel.of_all_processes(np.asarray([not reason])).all():
                    _check_finite(found, f"checkpoint {self.directory / str(step)}")
                    return step, state
            reasons[step] = reason or "another process cannot read it"
            self._damaged.add(step)
            logging.warning("checkpoint %s is damaged: %s", self.directory / str(step), reason)
        raise CheckpointError(
            f"no checkpoint in {self.directory} can be read: "
            + "; ".join(f"{step}: {reason}" for step, reason in reasons.items())
        )

    def _difference(
        self, record: digests.Record | None, found: Mapping[str, digests.Digest], step: int
    ) -> str:
        """What was not read as it was written; empty for nothing."""
        if record is None:
            folder = self.directory / str(step)
            logging.info("checkpoint %s is of an older version, without digests to check", folder)
            return ""
        wrong = [name for name in found if found[name].text != record.arrays.get(name)]
        return f"{', '.join(wrong[:3])}: not the numbers that were written" if wrong else ""

    def digest(self, like: object, step: int) -> str:
        """Tells networks apart: a digest of those arrays of a checkpoint that `like` has.

        Nothing but the arrays decides about it. Reads none of them, unless the checkpoint is of a
        version that wrote no digests. Arguments and errors as of `restore_part`.
        """
        self.check_shapes(like, step)
        record = digests.read(self.directory / str(step))
        if record is not None:
            return digests.combine({name: record.arrays[name] for name in digests.named(like)})
        found = digests.of(self.restore_part(like, step)[1])
        return digests.combine({name: digest.text for name, digest in found.items()})

    @contextlib.contextmanager
    def _name_failure(self) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            cause: BaseException | None = error
            seen = set()  # the same error may come a second time, with itself for a reason
            while cause is not None and id(cause) not in seen:
                seen.add(id(cause))
                if isinstance(cause, jax.errors.JaxRuntimeError):
                    # Of the devices or of other processes, not of the file system.
                    raise cause from None
                cause = cause.__cause__ or cause.__context__
            reason = str(error).partition("\n")[0][:500]
            whole = sorted(self._manager.all_steps(read=True))
            raise CheckpointError(
                f"a checkpoint in {self.directory} could not be written: {reason}. The ones before "
                f"are whole: {whole}; where the disk is full, make room or lower "
                "config.checkpoint.keep_last, and start again"
            ) from error

    def find(self, which: Which) -> int:
        """The step of a checkpoint.

        Raises:
          FileNotFoundError: there is none, or not that one.
        """
        steps = self.steps
        if not steps:
            raise FileNotFoundError(
                f"no checkpoint in {self.directory}: train first, or give another workdir"
            )
        if which == "latest":
            return steps[-1]
        if which == "best":
            best = self._manager.best_step()
            if best is None:
                logging.warning("no checkpoint has a validation_loss; taking the latest")
            return steps[-1] if best is None else best
        if which not in steps:
            raise FileNotFoundError(
                f"no checkpoint of step {which} in {self.directory}; there are {steps}"
            )
        return which

    def _path(self, step: int) -> epath.Path:
        return self.directory / str(step) / "default"

    def check_shapes(self, like: object, step: int) -> None:
        """Raises ValueError where the checkpoint's arrays are not those of `like`; reads none."""
        with ocp.PyTreeCheckpointer() as reader:
            found = _shapes(reader.metadata(self._path(step)).item_metadata.tree)
        for name, shape in _shapes(like).items():
            if found.get(name) != shape:
                raise _MismatchError(
                    f"checkpoint {self.directory / str(step)} was made under another config: "
                    f"{name} has shape {found.get(name, 'none: it is missing')} there and {shape} "
                    "under this one; use the config it was trained with, or a new workdir"
                )


def _shapes(tree: object) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in digests.named(tree).items()}


def _check_finite(found: Mapping[str, digests.Digest], what: str) -> None:
    wrong = [name for name, digest in found.items() if not digest.is_finite]
    if wrong:
        raise CheckpointError(
            f"{what}: {', '.join(wrong[:3])} has numbers that are not finite, "
            f"{len(wrong)} of {len(found)} arrays in all; use an earlier checkpoint and a lower "
            "config.train.learning_rate or config.train.clip_norm"
        )
