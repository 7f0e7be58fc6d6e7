"""Cascades: a generator followed by super-resolvers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Int, Key, UInt8

from sr3_jax import released
from sr3_jax.checkpoints import Which
from sr3_jax.config import Config, run_file, schedules, students
from sr3_jax.data import resumable
from sr3_jax.inference import generator, loading, super_resolver, trained

Network = generator.Generator | super_resolver.SuperResolver


@dataclasses.dataclass(frozen=True)
class Stage:
    """A trained network of a cascade; its parameters are not loaded yet.

    Attributes:
      workdir: workdir of its training run.
      config: config of that run, with the `sampling` of this stage.
      step: step of its checkpoint.
    """

    workdir: str
    config: Config
    step: int

    @property
    def image_size(self) -> int:
        """Height and width of its images in pixels."""
        return self.config.data.image_size

    @property
    def num_classes(self) -> int:
        """Number of class labels; 0 if unconditional."""
        return self.config.model.num_classes

    def load(self) -> Network:
        """Loads the network onto the devices."""
        kind = super_resolver.SuperResolver if self.config.has_source else generator.Generator
        checkpoints = epath.Path(self.workdir) / "checkpoints"
        return kind.from_config(self.config, checkpoints, self.step)

    def fingerprint(self) -> resumable.Fingerprint:
        """Returns everything that its result for an input depends on, except seed and label."""
        return loading.fingerprint(self.config, epath.Path(self.workdir) / "checkpoints", self.step)


def open_stage(
    workdir: epath.PathLike,
    which: Which | None = None,
    config: Config | None = None,
    **sampling: Any,
) -> Stage:
    """Opens a trained network, and checks that its checkpoint is whole and fits its config.

    Arguments are those of `TrainedNetwork.from_workdir`; `config` replaces the workdir's.

    Raises:
      FileNotFoundError: there is no config, or no such checkpoint.
      ValueError: the checkpoint is of another network, or a key of `sampling` is invalid.
    """
    workdir = released.locate(workdir)
    try:
        config = config or run_file.load(workdir / "config.json")
        changed = students.with_sampling(config, run_file.tuned(workdir, config) | sampling)
        schedules.sampler(changed)
        step = loading.find(changed, workdir / "checkpoints", which)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"network of {workdir}: {error}") from error
    except ValueError as error:
        raise ValueError(f"network of {workdir}: {error}") from error
    return Stage(str(workdir), changed, step)


def check(stages: Sequence[Stage], labels: Sequence[int] = ()) -> None:
    """Raises ValueError, naming the stage, unless stages form a cascade that knows the labels."""
    if not stages:
        raise ValueError("a cascade needs at least one stage")
    first = stages[0]
    if first.config.has_source:
        raise ValueError(
            f"stage 1, {first.workdir}, makes {first.image_size} pixels of "
            f"{first.config.data.low_resolution}; the first must make images from nothing "
            "(config.data.low_resolution = 0)"
        )
    for number, (before, stage) in enumerate(zip(stages, stages[1:], strict=False), 2):
        low = stage.config.data.low_resolution
        if not low:
            raise ValueError(
                f"stage {number}, {stage.workdir}, makes images from nothing, which only the first "
                "can do"
            )
        if low != before.image_size:
            raise ValueError(
                f"stage {number}, {stage.workdir}, takes {low} pixels, but stage {number - 1}, "
                f"{before.workdir}, makes {before.image_size}"
            )
        if stage.image_size <= low:
            raise ValueError(
                f"stage {number}, {stage.workdir}, makes {stage.image_size} pixels of {low}, and "
                "so no larger ones"
            )
    conditional = {stage.workdir: stage.num_classes for stage in stages if stage.num_classes}
    if len({*conditional.values()}) > 1:
        counts = ", ".join(f"{workdir} {count}" for workdir, count in conditional.items())
        raise ValueError(f"the stages have different numbers of classes: {counts}")
    if labels and not first.num_classes:
        raise ValueError(
            f"stage 1, {first.workdir}, is unconditional, so images cannot have label {labels[0]}; "
            "leave it out, or train with config.model.num_classes"
        )
    if conditional and not first.num_classes:
        raise ValueError(
            f"{next(iter(conditional))} needs a class label, but stage 1, {first.workdir}, makes "
            "images without one; train stage 1 with config.model.num_classes"
        )
    if wrong := [label for label in labels if not 0 <= label < first.num_classes]:
        raise ValueError(
            f"label {wrong[0]} is none of the classes 0 to {first.num_classes - 1} of "
            f"{first.workdir}"
        )


def labels_of(
    stages: Sequence[Stage], labels: Sequence[int], numbers: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"] | None:
    """Returns the labels of images: those given (or all classes) in turn; None if unconditional."""
    num_classes = stages[0].num_classes
    if not num_classes:
        return None
    labels = np.asarray(labels or range(num_classes), np.int32)
    return labels[numbers % len(labels)]


def keys_of(seed: int, stage: int, numbers: Int[np.ndarray, " n"]) -> Key[jax.Array, " n"]:
    """Returns the key of each image's noise in a stage; it depends on the image's number alone."""
    key = jax.random.fold_in(jax.random.key(seed), stage)
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.asarray(numbers))


def start(
    network: Network,
    inputs: UInt8[np.ndarray, "n low low 3"] | None,
    keys: Key[jax.Array, " n"],
    labels: Int[np.ndarray, " n"] | None,
    progress: trained.Progress | None = None,
) -> Iterator[Callable[[], UInt8[np.ndarray, "n size size 3"]]]:
    """Runs a stage; yields for each batch, once dispatched, a function that waits for its images.

    `inputs` are the images of the previous stage, None for the first. An unconditional network
    ignores `labels`. `progress` is called after each call of a network.
    """
    labels = labels if network.num_classes else None
    if inputs is None:
        yield from network.start(len(keys), seed=keys, label=labels, progress=progress)
        return
    for fetch in network.start(inputs, seed=keys, label=labels, progress=progress):
        yield lambda fetch=fetch: fetch()[0]


class Cascade:
    """Draws images by several networks, each of which upscales the images of the previous one.

        cascade = Cascade.from_workdirs("runs/base", "runs/16_32", "runs/32_64")
        small, middle, large = cascade.generate(8, seed=1)

    The networks are loaded one after the other, so memory holds one at a time. For many images,
    `--mode=generate` is a job that can be stopped and resumed.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        """Makes a cascade of stages (`open_stage`); raises ValueError as `check`."""
        check(stages)
        self.stages = list(stages)

    @classmethod
    def from_workdirs(cls, *workdirs: epath.PathLike) -> Cascade:
        """Makes a cascade of training runs; each samples by its `inference.json` or config."""
        return cls([open_stage(workdir) for workdir in workdirs])

    def generate(
        self,
        num_images: int,
        seed: int = 0,
        *,
        label: int | Sequence[int] = (),
        progress: trained.Progress | None = None,
    ) -> list[UInt8[np.ndarray, "n size size 3"]]:
        """Draws images; returns those of each stage, in order.

        Args:
          num_images: number of images.
          seed: image k depends on the seed, on k and on its label alone.
          label: the class of all images, or several classes in turn; default: all classes.
          progress: called after each network call.

        Raises:
          ValueError: a label is not a class of the networks.
        """
        if num_images < 1:
            raise ValueError(f"num_images = {num_images}; it must be at least 1")
        given = [label] if isinstance(label, int) else list(label)
        check(self.stages, given)
        numbers = np.arange(num_images)
        labels = labels_of(self.stages, given, numbers)
        made: list[np.ndarray] = []
        for i, stage in enumerate(self.stages):
            keys = keys_of(seed, i, numbers)
            batches = start(stage.load(), made[-1] if made else None, keys, labels, progress)
            made.append(np.concatenate([fetch() for fetch in batches]))
        return made
