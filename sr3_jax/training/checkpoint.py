"""Checkpoints of the whole training state, written in the background by Orbax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

Which = Literal["latest", "best"] | int
T = TypeVar("T")

_METRIC = "validation_loss"


class Checkpointer:
    """Saves and restores states under `DIRECTORY/<step>`.

    A checkpoint appears under its final name only once it is whole, so that a run killed while
    it writes leaves the one before as the latest.
    """

    def __init__(
        self, directory: epath.PathLike, *, keep_last: int = 3, keep_best: bool = True
    ) -> None:
        """Opens (and makes) the directory.

        Args:
          directory: where checkpoints lie; local or in a bucket.
          keep_last: how many of the newest to keep.
          keep_best: also keep the one of the lowest `validation_loss`.
        """
        policies = [checkpoint_managers.LatestN(keep_last)]
        if keep_best:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics[_METRIC],
                    reverse=True,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self.directory = epath.Path(directory).absolute()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                best_fn=lambda metrics: metrics[_METRIC],
                best_mode="min",
            ),
        )

    @property
    def steps(self) -> list[int]:
        """Steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: object, metrics: Mapping[str, float]) -> None:
        """Starts to write `state`; returns once it may be changed. `step` must be new.

        Args:
          step: number of updates that made `state`.
          state: a pytree of arrays.
          metrics: numbers that describe it; `validation_loss` decides which one is best.
        """
        self._manager.save(
            step,
            args=ocp.args.StandardSave(state),
            metrics={name: float(value) for name, value in metrics.items()},
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
        """
        step = self._find(which)
        self._check_shapes(like, step)
        return step, self._manager.restore(step, args=ocp.args.StandardRestore(like))

    def restore_part(self, like: T, which: Which = "latest") -> tuple[int, T]:
        """Restores only those of a checkpoint's top-level fields that the mapping `like` has.

        The rest (an optimizer's state is twice the size of the parameters) is never read.
        Raises as `restore`.
        """
        step = self._find(which)
        self._check_shapes(like, step)
        restore_args = ocp.checkpoint_utils.construct_restore_args(like)
        with ocp.PyTreeCheckpointer() as reader:
            part = reader.restore(
                self._path(step),
                args=ocp.args.PyTreeRestore(
                    item=like, restore_args=restore_args, partial_restore=True
                ),
            )
        return step, part

    def wait(self) -> None:
        """Returns once every checkpoint is on disk; raises what went wrong in writing one."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the directory."""
        self._manager.close()

    def _find(self, which: Which) -> int:
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
                logging.warning("no checkpoint has a %s; taking the latest", _METRIC)
            return steps[-1] if best is None else best
        if which not in steps:
            raise FileNotFoundError(
                f"no checkpoint of step {which} in {self.directory}; there are {steps}"
            )
        return which

    def _path(self, step: int) -> epath.Path:
        return self.directory / str(step) / "default"

    def _check_shapes(self, like: object, step: int) -> None:
        """Raises ValueError where the checkpoint's arrays are not those of `like`."""
        with ocp.PyTreeCheckpointer() as reader:
            found = _shapes(reader.metadata(self._path(step)).item_metadata.tree)
        for name, shape in _shapes(like).items():
            if found.get(name) != shape:
                raise ValueError(
                    f"checkpoint {self.directory / str(step)} was made under another config: "
                    f"{name} has shape {found.get(name, 'none: it is missing')} there and {shape} "
                    "under this one; use the config it was trained with, or a new workdir"
                )


def _shapes(tree: object) -> dict[str, tuple[int, ...]]:
    """The shape of each array, by a name that is the same for objects and for dictionaries."""
    return {
        "/".join(str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in path): (
            tuple(leaf.shape)
        )
        for path, leaf in jax.tree.leaves_with_path(tree)
        if hasattr(leaf, "shape")
    }
