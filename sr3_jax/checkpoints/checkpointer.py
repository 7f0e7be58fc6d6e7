"""Checkpoints of the whole training state, written in the background by Orbax."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from sr3_jax import parallel
from sr3_jax.checkpoints import digests, orbax_parts
from sr3_jax.checkpoints.common import CheckpointError, Which

T = TypeVar("T")
_POLL_SECONDS = 0.01  # while a checkpoint is written


def _value_to_minimise(metrics: Mapping[str, float]) -> float:
    """Returns the value that the best checkpoint minimises; for baselines, minus the PSNR."""
    if "validation_psnr" in metrics:
        return -metrics["validation_psnr"]
    return metrics["validation_loss"]


class _MismatchError(ValueError):
    """A checkpoint's arrays are not those of the network."""


class Checkpointer:
    """Saves and restores training states under `DIRECTORY/STEP`.

    A checkpoint gets its final name once it is complete, so a run that is killed while it writes
    leaves the previous one as the latest. Digests of the arrays are stored with them and checked
    on reading. If the latest checkpoint is damaged, the previous one is read, with a warning.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep_last: int = 3,
        keep_best: bool = True,
        read_only: bool = False,
    ) -> None:
        """Opens the directory, and makes it unless `read_only`.

        Args:
          directory: local, or in a bucket.
          keep_last: number of the newest checkpoints to keep.
          keep_best: also keep the checkpoint of the highest `validation_psnr`; where that is not
            measured, of the lowest `validation_loss`.
          read_only: change nothing in the directory; a run may be writing into it.
        """
        best = checkpoint_managers.BestN(
            get_metric_fn=_value_to_minimise,
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        policies = [checkpoint_managers.LatestN(keep_last), *([best] if keep_best else [])]
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
                best_fn=_value_to_minimise,
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
        """The steps that have a checkpoint, in increasing order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: object, metrics: Mapping[str, float]) -> None:
        """Starts to write a checkpoint; returns once the buffers of `state` may be changed.

        `step` is the number of updates that made `state`; no checkpoint of it may exist. By the
        metrics of validation the best checkpoint is chosen.

        Raises:
          CheckpointError: this checkpoint or the previous one cannot be written, or `state` has
            numbers that are not finite.
        """
        found = digests.of(state)
        _check_finite(found, f"the state after step {step}")
        numbers = {name: float(value) for name, value in metrics.items()}
        record = digests.Record({name: digest.text for name, digest in found.items()}, numbers)
        with self._name_failure():
            self._wait()
            # A damaged checkpoint would count as the latest, and its step is written again.
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
                force=True,  # never skip a step
            )

    def restore(self, like: T, which: Which = "latest") -> tuple[int, T]:
        """Restores a whole checkpoint; returns the step and the state.

        `like`, a pytree of arrays or `jax.ShapeDtypeStruct`, gives structure, shapes and shardings.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: its shapes are not those of `like`.
          CheckpointError: it is damaged (for `latest`: all checkpoints are), or has numbers that
            are not finite.
        """
        args = ocp.args.Composite(default=ocp.args.StandardRestore(like))

        def read(step: int) -> T:
            return self._manager.restore(step, args=args)["default"]

        return self._read(like, which, read)

    def restore_part(self, like: T, which: Which = "latest") -> tuple[int, T]:
        """Restores, and reads, only the top-level fields that the mapping `like` has.

        (Adam's moments are twice the size of the parameters.) Raises as `restore`.
        """
        restore_args = ocp.checkpoint_utils.construct_restore_args(like)
        args = ocp.args.PyTreeRestore(item=like, restore_args=restore_args, partial_restore=True)

        def read(step: int) -> T:
            with ocp.PyTreeCheckpointer() as reader:
                return reader.restore(self._path(step), args=args)

        return self._read(like, which, read)

    def wait(self) -> None:
        """Waits until every checkpoint is on disk; raises CheckpointError if a write failed."""
        with self._name_failure():
            self._wait()

    def check(self) -> None:
        """Raises CheckpointError if a write has failed; does not wait."""
        with self._name_failure():
            if self._error is not None:
                raise self._error

    def _note(self, error: BaseException) -> None:
        self._error = error

    def _wait(self) -> None:
        # Orbax's own wait takes ten minutes if the write of one process has failed.
        while self._manager.is_saving_in_progress():
            self.check()
            time.sleep(_POLL_SECONDS)
        self.check()
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for pending writes and closes the directory."""
        self._manager.close()

    def _read(self, like: T, which: Which, read: Callable[[int], T]) -> tuple[int, T]:
        """Reads a checkpoint; for `latest`, the latest one that is not damaged."""
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
            # All processes skip a step that one of them cannot read.
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
        """Returns which arrays differ from those that were written; empty if none."""
        if record is None:
            folder = self.directory / str(step)
            logging.info("checkpoint %s is of an older version, without digests to check", folder)
            return ""
        wrong = [name for name in found if found[name].text != record.arrays.get(name)]
        return f"{', '.join(wrong[:3])}: not the numbers that were written" if wrong else ""

    def digest(self, like: object, step: int) -> str:
        """Returns a digest of the arrays of a checkpoint that `like` has, and of nothing else.

        The arrays are read only of checkpoints of older versions, without digests. Raises as
        `restore_part`.
        """
        self.check_shapes(like, step)
        record = digests.read(self.directory / str(step))
        if record is not None:
            return digests.combine({name: record.arrays[name] for name in digests.named(like)})
        found = digests.of(self.restore_part(like, step)[1])
        return digests.combine({name: digest.text for name, digest in found.items()})

    @contextlib.contextmanager
    def _name_failure(self) -> Iterator[None]:
        """Turns an error of writing into a CheckpointError, but not one of devices or processes."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            cause: BaseException | None = error
            seen = set()  # an error that is raised twice may be its own cause
            while cause is not None and id(cause) not in seen:
                seen.add(id(cause))
                if isinstance(cause, jax.errors.JaxRuntimeError):
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
        """Returns the step of a checkpoint; raises FileNotFoundError if it is not there."""
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
                logging.warning("no checkpoint has a validation_loss; using the latest")
            return steps[-1] if best is None else best
        if which not in steps:
            raise FileNotFoundError(
                f"no checkpoint {which!r} in {self.directory}; use latest, best, or one of {steps}"
            )
        return which

    def _path(self, step: int) -> epath.Path:
        return self.directory / str(step) / "default"

    def check_shapes(self, like: object, step: int) -> None:
        """Raises ValueError if shapes in a checkpoint are not those of `like`; reads no arrays."""
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
