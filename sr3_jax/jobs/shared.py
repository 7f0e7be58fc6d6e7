"""Checks, listings and progress bars of several jobs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
import tqdm
from absl import logging
from etils import epath
from jaxtyping import Int, UInt

from sr3_jax import parallel
from sr3_jax.config import Config, image_sets, to_json
from sr3_jax.data import locks, storage
from sr3_jax.parallel import StoppedError

if TYPE_CHECKING:  # imported only where images are read: it takes seconds
    from sr3_jax.data.pipeline import Pipeline

INDEX = "index"  # in the workdir: the images found when the run began

_MOST_NAMED = 20  # files, in one message
# For at most so many images a bar moves with every network call, which must be waited for.
_FEW = 32

# Labels of methods in pictures, where they differ from their names.
LABELS = {"sr3": "SR3", "srcnn": "SRCNN"}


@contextlib.contextmanager
def holding(folder: epath.PathLike, job: str, flag: str = "--workdir") -> Iterator[None]:
    """Holds a folder for a job of any number of processes; see `data.locks.hold`.

    Raises:
      HeldError: another job holds it; raised in every process.
    """
    with contextlib.ExitStack() as stack:
        error: Exception | None = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(locks.hold(folder, job, flag))
            except (locks.HeldError, OSError) as why:
                error = why
        # No process begins before the folder is held, or waits for others if it is not.
        if not parallel.of_all_processes(np.asarray([error is None])).all():
            raise error or locks.HeldError(f"process 0 could not take {folder} for this job")
        check_shared(folder)
        yield
        parallel.wait_for_all()


def check_shared(folder: epath.PathLike) -> None:
    """Checks that all processes can write into a folder, and that it is the same one for all.

    Each process writes a file, looks for that of process 0, and removes its own.

    Raises:
      OSError: this process cannot write there.
      ValueError: another process cannot, or has a different folder under that name, as on a disk of
        its own.
    """
    if jax.process_count() == 1:
        return
    drawn = np.frombuffer(secrets.token_bytes(4), np.uint8)[None]
    token = parallel.of_all_processes(drawn)[0].tobytes().hex()
    # Names of temporary files, which other jobs ignore and clean up.
    mine, first = (f"{os.fspath(folder)}/.{token}{i:08x}.partial" for i in (jax.process_index(), 0))
    error: OSError | None = None
    try:
        storage.write_whole(mine, b"")
    except OSError as why:
        error = why
    parallel.wait_for_all()
    can_write = parallel.of_all_processes(np.asarray([error is None]))
    sees = parallel.of_all_processes(np.asarray([storage.exists(first)]))
    if error is not None:
        raise error
    storage.remove(mine)
    for fault, found in (("cannot write into", can_write), ("has another folder as", sees)):
        if not found.all():
            raise ValueError(
                f"process {int(np.argmin(found))} of {len(found)} {fault} {os.fspath(folder)}; "
                "give a folder that all hosts share and may write, by one file system or a bucket"
            )


def listed(reasons: Mapping[str, str]) -> str:
    """Returns files and what is wrong with each as one line, the first 20 of them."""
    some = [f"{storage.shown(name)}: {why}" for name, why in reasons.items()]
    more = f"; and {len(some) - _MOST_NAMED} more" if len(some) > _MOST_NAMED else ""
    return "; ".join(some[:_MOST_NAMED]) + more


def list_images(config: Config, workdir: epath.Path, *, training: bool) -> None:
    """Makes the lists of images that are not kept yet, in process 0, for all processes.

    They are of the held-out images and, if `training`, of those to train on.
    """
    if jax.process_index() == 0:
        if training:
            image_sets.training_source(config, workdir / INDEX)
        image_sets.evaluation_source(config, workdir / INDEX)
    parallel.wait_for_all()


def check_same_config(config: Config) -> None:
    """Checks that all processes of a job have the same config.

    Raises:
      ValueError: a process has another config than process 0.
    """
    digest = hashlib.sha256(to_json(config).encode()).digest()
    everyone = parallel.of_all_processes(np.frombuffer(digest, np.uint8)[None])
    if (differs := (everyone != everyone[0]).any(axis=1)).any():
        raise ValueError(
            f"process {int(np.argmax(differs))} of {len(everyone)} has another config than process "
            "0; give all the same flags, and the same version of the code"
        )


def check_same_images(images: Pipeline) -> None:
    """Checks that all processes read the same pixels, by a few images.

    Raises:
      ValueError: a process reads another image, as if each host had a disk of its own.
    """
    if jax.process_count() == 1:
        return
    last = images.num_images - 1
    chosen = sorted({0, last // 3, last // 2, last})
    seen = np.array([[images.fingerprint(index) for index in chosen]])
    everyone = parallel.of_all_processes(seen)
    for process, which in np.argwhere(everyone != everyone[0]):
        raise ValueError(
            f"process {process} of {len(everyone)} reads another image than process 0 as "
            f"{images.name(chosen[which])}; give all hosts the same images, by one file system or "
            "a bucket"
        )


def check_usable(config: Config, workdir: epath.Path) -> None:
    """Reads training images and held-out images until it has met one of each that can be used.

    Raises:
      ValueError: none of them can be used, or the first usable one is of no known class.
    """
    at_once, index = jax.process_count(), workdir / INDEX
    source, size = image_sets.training_source(config, index), config.data.image_size
    pipelines = {
        "held-out": image_sets.evaluation_pipeline(config, at_once, index_dir=index),
        "training": image_sets.make_pipeline(config, source, at_once, size),
    }
    for name, images in pipelines.items():
        with contextlib.closing(images.evaluation_batches()) as stream:
            batches = with_known_classes(images, stream, config.model.num_classes)
            try:
                usable = any(batch["weight"].any() for batch in batches)
            except ValueError as error:
                raise ValueError(f"the {name} images: {error}") from error
        if not usable:
            raise ValueError(f"the {name} images: none can be used")


def count_unusable(images: Pipeline) -> dict[str, int]:
    """Counts the unusable images of all processes; too many are an error in every process."""
    damaged, too_small = images.unusable
    # Negative numbers stand for one kind, so that one exchange does for both.
    found = parallel.union(np.concatenate([damaged, -1 - too_small]))
    damaged = found[found >= 0]
    images.check_damaged(damaged)
    return {"images_damaged": len(damaged), "images_too_small": len(found) - len(damaged)}


def with_known_classes(
    images: Pipeline, batches: Iterable[dict[str, np.ndarray]], num_classes: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of `images` for a network that knows so many classes, 0 for none.

    Raises:
      ValueError: an image has no class, or one that the network lacks.
    """
    for batch in batches:
        label = batch["label"]
        wrong = (label < 0) | (label >= num_classes)
        for row in np.flatnonzero(wrong & (batch["weight"] > 0)) if num_classes else ():
            name, found = images.name(int(batch["index"][row])), int(label[row])
            what = "no class" if found < 0 else f"class {found}"
            raise ValueError(
                f"image {name} is of {what}, and config.model.num_classes = {num_classes} knows 0 "
                f"to {num_classes - 1}; folders and tars need a folder for each class "
                "(docs/data.md)"
            )
        yield batch


class HeldOut(NamedTuple):
    """Held-out images: their low and high resolutions, and classes."""

    low: UInt[np.ndarray, "b h w 3"]
    high: UInt[np.ndarray, "b h2 w2 3"]
    label: Int[np.ndarray, " b"]


def held_out(config: Config, workdir: epath.Path, count: int) -> HeldOut:
    """Returns the first `count` held-out images, of a network of levels.

    Raises:
      ValueError: no image is usable, or the network is one of other numbers.
    """
    if not config.has_levels:
        raise ValueError(
            "schedules are tuned on pictures, and config.units.scaling = "
            f"{config.units.scaling!r} is of other numbers; set config.sampling instead"
        )
    list_images(config, workdir, training=False)
    pipeline = image_sets.evaluation_pipeline(config, 8, count, index_dir=workdir / INDEX)
    parts = []
    batches = pipeline.evaluation_batches()
    for batch in with_known_classes(pipeline, batches, config.model.num_classes):
        rows = batch["weight"] > 0
        keys = ("low_resolution", "high_resolution", "label")
        parts.append([batch[key][rows] for key in keys])
    count_unusable(pipeline)
    if not (found := sum(len(low) for low, *_ in parts)):
        raise ValueError("no held-out image can be used; see --mode=evaluate")
    if found < 16:
        logging.warning("on %d images: the differences may be chance", found)
    return HeldOut(*map(np.concatenate, zip(*parts, strict=True)))


def check_signal(stop: parallel.StopSignal) -> None:
    """Raises StoppedError if a signal asked this process to stop.

    Other processes are not asked: each has files of its own, so they need not agree.
    """
    if (signal := stop.asked(0)) is not None:
        raise StoppedError(signal, "the same command does what is missing", alone=True)


def advance(bar: tqdm.tqdm, share: float) -> None:
    """Moves a bar by a share of an image; sums of shares may round to more than the total."""
    bar.update(min(share, bar.total - bar.n))


@contextlib.contextmanager
def progress_of(
    name: str, total: int, stop: parallel.StopSignal, *, by_calls: bool = True
) -> Iterator[tuple[Callable[[float], None] | None, Callable[[], None]]]:
    """Shows a bar over images that are sampled.

    Yields:
      A function to call after each network call with the share of an image that it made, or None if
      the bar moves by whole images (which it does if `by_calls` is False); and one to call after
      each image. Both raise StoppedError if a signal asked to stop.
    """
    by_calls = by_calls and (total <= _FEW or jax.default_backend() == "cpu")
    with progress_bar(name, total) as bar:

        def move(share: float) -> None:
            check_signal(stop)
            advance(bar, share)

        yield move if by_calls else None, functools.partial(move, 0.0 if by_calls else 1.0)


def progress_bar(name: str, total: int, unit: str = "images") -> tqdm.tqdm:
    """Returns a bar that can move by shares of a unit."""
    return tqdm.tqdm(
        total=total,
        desc=name,
        dynamic_ncols=True,
        disable=jax.process_index() != 0,
        bar_format="{l_bar}{bar}| {n:.1f}/{total} " + unit + " [{elapsed}<{remaining}{postfix}]",
    )
