"""Cascades: a generator, then super-resolvers that take what the one before made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Int, Key, UInt8

from sr3_jax.checkpoints import Which
from sr3_jax.config import Config, Sampling, run_file, sampling_recipe, schedules, with_sampling
from sr3_jax.data import resumable
from sr3_jax.inference import generator, loading, super_resolver, trained

Network = generator.Generator | super_resolver.SuperResolver


@dataclasses.dataclass(frozen=True)
class Stage:
    """A trained network of a cascade, of which nothing is loaded yet.

    Attributes:
      workdir: of its training run.
      config: of that run, with `sampling` as it is to be.
      step: of its checkpoint.
    """

    workdir: str
    config: Config
    step: int

    @property
    def image_size(self) -> int:
        """Height and width of what it makes, in pixels."""
        return self.config.data.image_size

    @property
    def num_classes(self) -> int:
        """That it is told of; 0: none."""
        return self.config.model.num_classes

    def load(self) -> Network:
        """Loads its weights onto the devices."""
        kind = super_resolver.SuperResolver if self.config.has_source else generator.Generator
        checkpoints = epath.Path(self.workdir) / "checkpoints"
        return kind.from_config(self.config, checkpoints, self.step)

    def fingerprint(self) -> resumable.Fingerprint:
        """Everything that decides what it makes of an input, but for seed and label."""
        checkpoints = epath.Path(self.workdir) / "checkpoints"
        network = loading.weights_digest(self.config, checkpoints, self.step)
        return resumable.Fingerprint(
            {"network": network, **sampling_recipe(self.config)},
            older={"workdir": self.workdir, "checkpoint": self.step},
            defaults=dataclasses.asdict(Sampling()),
        )


def open_stage(
    workdir: epath.PathLike,
    which: Which | None = None,
    config: Config | None = None,
    **sampling: Any,
) -> Stage:
    """Finds a network, and checks that its checkpoint is whole and fits its config.

    Args:
      workdir: of its training run.
      which: see `TrainedNetwork.from_workdir`.
      config: instead of the workdir's.
      **sampling: keys of `config.sampling`, before those of `inference.json` and of the config.

    Raises:
      FileNotFoundError: there is no config or no such checkpoint.
      ValueError: the checkpoint is of another network, or the sampling cannot be.
    """
    workdir = epath.Path(workdir).expanduser()
    try:
        config = config or run_file.load(workdir / "config.json")
        changed = with_sampling(config, run_file.tuned(workdir, config) | sampling)
        schedules.sampler(changed)
        step = loading.find(changed, workdir / "checkpoints", which)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"network of {workdir}: {error}") from error
    except ValueError as error:
        raise ValueError(f"network of {workdir}: {error}") from error
    return Stage(str(workdir), changed, step)


def check(stages: Sequence[Stage], labels: Sequence[int] = ()) -> None:
    """Whether stages make up a cascade.

    Args:
      stages: in their order.
      labels: that images are to have.

    Raises:
      ValueError: naming the stage that does not fit to the one before it, or to the labels.
    """
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
    told = {stage.workdir: stage.num_classes for stage in stages if stage.num_classes}
    if len({*told.values()}) > 1:
        counts = ", ".join(f"{workdir} {count}" for workdir, count in told.items())
        raise ValueError(f"the stages know different numbers of classes: {counts}")
    if labels and not first.num_classes:
        raise ValueError(
            f"stage 1, {first.workdir}, knows no classes, so images cannot have label "
            f"{labels[0]}; leave it out, or train with config.model.num_classes"
        )
    if told and not first.num_classes:
        raise ValueError(
            f"{next(iter(told))} is told classes, but stage 1, {first.workdir}, makes images of "
            "none in particular"
        )
    if wrong := [label for label in labels if not 0 <= label < first.num_classes]:
        raise ValueError(
            f"label {wrong[0]} is none of the classes 0 to {first.num_classes - 1} of "
            f"{first.workdir}"
        )


def labels_of(
    stages: Sequence[Stage], labels: Sequence[int], numbers: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"] | None:
    """Of images by their numbers: those given in turn, or else all classes; None without any."""
    known = stages[0].num_classes
    if not known:
        return None
    labels = np.asarray(labels or range(known), np.int32)
    return labels[numbers % len(labels)]


def keys_of(seed: int, stage: int, numbers: Int[np.ndarray, " n"]) -> Key[jax.Array, " n"]:
    """Of the noise of images in a stage: of their number alone, whoever makes them."""
    key = jax.random.fold_in(jax.random.key(seed), stage)
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.asarray(numbers))


def start(
    network: Network,
    inputs: UInt8[np.ndarray, "n low low 3"] | None,
    keys: Key[jax.Array, " n"],
    labels: Int[np.ndarray, " n"] | None,
    progress: trained.Progress | None = None,
) -> Iterator[Callable[[], UInt8[np.ndarray, "n size size 3"]]]:
    """A stage at work: for each batch, once it is under way, a function that waits for it.

    Args:
      network: of the stage.
      inputs: what the stage before made; None of the first.
      keys: of the images' noise.
      labels: of the images; not looked at by a network that is told none.
      progress: called after each step of each batch.
    """
    labels = labels if network.num_classes else None
    if inputs is None:
        yield from network.start(len(keys), seed=keys, label=labels, progress=progress)
        return
    for fetch in network.start(inputs, seed=keys, label=labels, progress=progress):
        yield lambda fetch=fetch: fetch()[0]


class Cascade:
    """Draws images by several networks, each of which takes what the one before made.

        cascade = Cascade.from_workdirs("runs/base", "runs/16_32", "runs/32_64")
        small, middle, large = cascade.generate(8, seed=1)

    The networks are loaded one after the other, so that memory is needed for one at a time. For
    many images, and so that it can be stopped: `--mode=generate`.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        """Takes the stages (`open_stage`); raises ValueError where they do not fit together."""
        check(stages)
        self.stages = list(stages)

    @classmethod
    def from_workdirs(cls, *workdirs: epath.PathLike) -> Cascade:
        """Of training runs in their order; each samples as its `inference.json` or config says."""
        return cls([open_stage(workdir) for workdir in workdirs])

    def generate(
        self,
        num_images: int,
        seed: int = 0,
        *,
        label: int | Sequence[int] = (),
        progress: trained.Progress | None = None,
    ) -> list[UInt8[np.ndarray, "n size size 3"]]:
        """Draws images.

        Args:
          num_images: how many.
          seed: image k depends on it, on k and its label alone.
          label: a class of all, or several that images have in turn; without, all there are.
          progress: called after each network call.

        Returns:
          What each stage made, the last one's the largest.

        Raises:
          ValueError: for a label that the networks do not know.
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
