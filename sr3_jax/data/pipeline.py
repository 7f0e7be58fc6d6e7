"""Batches of pairs, in an order that is a function of the step alone.

Row i of the global batch at step n is example p = n * batch_size + i of an endless stream, whose
epoch is p // len(source). Each epoch is a permutation of the source, and p also seeds the crop.
So resuming at any step costs nothing and needs no iterator state, and the stream is the same for
every number of processes and threads. (It is not promised to be the same across versions of Grain,
whose `index_shuffle` makes the permutations, and of NumPy, which makes the crops.)

An image that cannot be used keeps its row, with weight 0, so it shifts nothing.
"""

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypedDict

import grain
import numpy as np
from absl import logging
from grain.experimental import index_shuffle
from jaxtyping import Float32, Float64, Int32, UInt8

from sr3_jax.data import degrade, image_file, sources

# With no usable image among so many, the source as a whole is at fault; a large one would take
# hours to read to the end.
_MAX_TRIES = 1000

# Batches that are made ahead of the one asked for.
_BATCHES_AHEAD = 2

_MOST_ROWS_TOGETHER = 8

# Of Grain's permutation, which takes seeds of 32 bits; four rounds are its own default.
_SHUFFLE_ROUNDS = 4


class Batch(TypedDict):
    """This process's rows of one global batch; `batch` is batch_size / process_count.

    Attributes:
        high_resolution: RGB; zeros in rows of weight 0.
        low_resolution: RGB, of the same square of the picture.
        weight: 1 for a real image, 0 for an unusable image or padding.
        index: position of the image in the source; -1 for padding.
        label: of the image's class; -1 where it has none, and in rows of weight 0.
    """

    high_resolution: UInt8[np.ndarray, "batch image_size image_size 3"]
    low_resolution: UInt8[np.ndarray, "batch low_resolution low_resolution 3"]
    weight: Float32[np.ndarray, " batch"]
    index: Int32[np.ndarray, " batch"]
    label: Int32[np.ndarray, " batch"]


class TooManyBadError(ValueError):
    """More images of a source are damaged than the user allows."""


class _Pair(NamedTuple):
    """What a row of a batch is made of."""

    high_resolution: UInt8[np.ndarray, "image_size image_size 3"]
    low_resolution: UInt8[np.ndarray, "low_resolution low_resolution 3"]
    label: int


class Pipeline:
    """Makes the batches of one source.

    What is read stays in memory as far as `cache_bytes` goes, for every batch this object makes:
    pairs of central crops, whole images where crops are random. Besides that, a batch for each of
    `_BATCHES_AHEAD`, and a decoded image for each thread.

    Unusable images (missing, broken, too small) are logged once, with name and reason, and kept in
    `skipped`; of those, this process knows only the ones it has met.
    """

    def __init__(
        self,
        source: sources.Source,
        options: degrade.DegradeOptions,
        *,
        batch_size: int,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        cache_bytes: int = 1 << 30,
        max_bad_share: float = 1.0,
        num_threads: int | None = None,
    ) -> None:
        """Checks the arguments; reads no image yet.

        Args:
            source: the images.
            options: sizes and crop.
            batch_size: number of rows of the global batch, over all processes.
            seed: of order and crops, in [0, 2**31).
            process_index: which contiguous slice of every global batch is made here.
            process_count: number of slices; divides `batch_size`.
            cache_bytes: most memory to spend on what was read; 0 for none.
            max_bad_share: of the source: with more damaged images than that, iterating is an
                error. Images that are only too small do not count.
            num_threads: threads that decode and resize; None for one a core.

        Raises:
            ValueError: empty source, or a number outside its range.
        """
        if not source:
            raise ValueError("the source has no image")
        if process_count < 1 or not 0 <= process_index < process_count:
            raise ValueError(
                f"process_index is {process_index} and process_count {process_count}; "
                "need 0 <= process_index < process_count"
            )
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(
                f"batch_size is {batch_size}; it must be a positive multiple of "
                f"process_count, {process_count}"
            )
        if not 0 <= seed < 2**31:
            raise ValueError(f"seed is {seed}; it must be in [0, 2**31)")
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"max_bad_share is {max_bad_share}; it must be in [0, 1]")
        if num_threads is not None and num_threads < 1:
            raise ValueError(f"num_threads is {num_threads}; it must be at least 1, or None")
        self._source = source
        self._options = options
        self._batch_size = batch_size
        self._local_batch_size = batch_size // process_count
        self._first_row = process_index * self._local_batch_size
        self._seed = seed
        self._max_bad_share = max_bad_share
        self._num_threads = num_threads or os.cpu_count() or 1
        # Guards the fields below, which the threads share.
        self._lock = threading.Lock()
        self._cache: dict[int, _Pair | sources.Picture] = {}
        self._free_cache_bytes = cache_bytes
        self._unusable: dict[int, image_file.BadImageError] = {}
        self._found_usable = False

    @property
    def num_images(self) -> int:
        """Number of images in the source, usable or not."""
        return len(self._source)

    @property
    def sizes(self) -> tuple[int, int]:
        """Of `high_resolution` and of `low_resolution`, in pixels."""
        return self._options.image_size, self._options.low_resolution

    @property
    def skipped(self) -> Mapping[str, str]:
        """Name and reason of every unusable image met so far."""
        with self._lock:
            return MappingProxyType(
                {self._source[i].name: str(error) for i, error in self._unusable.items()}
            )

    @property
    def num_too_small(self) -> int:
        """How many of `skipped` are good images, but smaller than `image_size`."""
        with self._lock:
            return sum(isinstance(e, degrade.TooSmallError) for e in self._unusable.values())

    def training_batches(self, start_step: int = 0) -> Iterator[Batch]:
        """The endless stream, from step `start_step` on; `close()` ends its threads.

        Raises:
            ValueError: negative `start_step`; while iterating, if no image is usable.
            TooManyBadError: while iterating.
        """
        if start_step < 0:
            raise ValueError(f"start_step is {start_step}; it must not be negative")
        return self._batches(start_step, sys.maxsize // self._batch_size, self._training_row)

    def evaluation_batches(self) -> Iterator[Batch]:
        """One pass in the order of the source, with central crops whatever the options say.

        The last global batch is padded with rows of weight 0 and index -1, so that all batches
        have one shape and all processes the same number of them.

        Raises:
            ValueError: while iterating, if no image is usable.
            TooManyBadError: while iterating.
        """
        num_steps = -(-len(self._source) // self._batch_size)
        return self._batches(0, num_steps, self._evaluation_row)

    def _batches(
        self, start_step: int, end_step: int, row: Callable[[int], dict[str, np.ndarray]]
    ) -> Iterator[Batch]:
        size = self._local_batch_size
        together = _rows_together(size, self._num_threads)
        parts = size // together

        def some_rows(k: int) -> dict[str, np.ndarray]:
            step, part = divmod(k, parts)
            first = step * self._batch_size + self._first_row + part * together
            return _stacked([row(first + i) for i in range(together)])

        def join(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: rows.reshape(size, *rows.shape[2:]) for name, rows in batch.items()}

        dataset = grain.MapDataset.range(start_step * parts, end_step * parts).map(some_rows)
        reading = grain.ReadOptions(
            num_threads=self._num_threads, prefetch_buffer_size=_BATCHES_AHEAD * parts
        )
        return iter(dataset.to_iter_dataset(reading).batch(parts).map(join))

    def _training_row(self, position: int) -> dict[str, np.ndarray]:
        count = len(self._source)
        epoch, place = divmod(position, count)
        index = index_shuffle(
            place, max_index=count - 1, seed=_epoch_seed(self._seed, epoch), rounds=_SHUFFLE_ROUNDS
        )
        uniforms = None
        if self._options.crop == "random":
            uniforms = np.random.default_rng((self._seed, position)).random(3)
        return self._row(index, uniforms)

    def _evaluation_row(self, position: int) -> dict[str, np.ndarray]:
        return self._row(position if position < len(self._source) else -1, None)

    def _row(self, index: int, uniforms: Float64[np.ndarray, "3"] | None) -> dict[str, np.ndarray]:
        pair = self._pair(index, uniforms) if index >= 0 else None
        high, low = self.sizes
        blank = _Pair(_black(high), _black(low), sources.NO_LABEL)
        chosen = pair or blank
        return {
            "high_resolution": chosen.high_resolution,
            "low_resolution": chosen.low_resolution,
            "weight": np.float32(pair is not None),
            "index": np.int32(index),
            "label": np.int32(chosen.label),
        }

    def _pair(self, index: int, uniforms: Float64[np.ndarray, "3"] | None) -> _Pair | None:
        """One image's pair, or None if it is unusable; runs in many threads at once."""
        with self._lock:
            if index in self._unusable:
                return None
            kept = self._cache.get(index)
        if isinstance(kept, _Pair):
            return kept
        try:
            picture = kept or self._source[index].read()
            high, low = degrade.make_pair_of(
                picture.image, picture.low_resolution, self._options, uniforms
            )
        except image_file.BadImageError as error:
            self._skip(index, error)
            return None
        pair = _Pair(high, low, picture.label)
        self._keep(index, picture if self._options.crop == "random" else pair)
        return pair

    def _keep(self, index: int, value: _Pair | sources.Picture) -> None:
        size = sum(part.nbytes for part in value if isinstance(part, np.ndarray))
        with self._lock:
            self._found_usable = True
            # Nothing is ever thrown out: an epoch visits every image once, so the one thrown out
            # would be as likely needed next as the one let in.
            if index not in self._cache and size <= self._free_cache_bytes:
                self._cache[index] = value
                self._free_cache_bytes -= size

    def _skip(self, index: int, error: image_file.BadImageError) -> None:
        name = self._source[index].name
        with self._lock:
            if index in self._unusable:
                return  # Another thread came first, and has logged it.
            self._unusable[index] = error
            num_tried = len(self._unusable)
            hopeless = not self._found_usable and num_tried >= min(_MAX_TRIES, len(self._source))
        logging.warning("skipping image %s: %s", name, error)
        if hopeless:
            raise ValueError(
                f"no usable image in the source: all {num_tried} images tried of "
                f"{len(self._source)} were skipped ({_listed(self.skipped, 5)})"
            )
        with self._lock:
            bad = {
                self._source[i].name: str(e)
                for i, e in self._unusable.items()
                if not isinstance(e, degrade.TooSmallError)
            }
        if len(bad) > self._max_bad_share * len(self._source):
            raise TooManyBadError(
                f"{len(bad)} of {len(self._source)} images are damaged, more than the "
                f"{self._max_bad_share:.2%} that config.data.max_bad_share allows; mend or remove "
                f"them, or raise it: {_listed(bad, 100)}"
            )


def _rows_together(size: int, num_threads: int) -> int:
    """How many of a batch's rows a thread makes at once: Grain takes 0.1 ms for each turn."""
    fitting = (n for n in range(1, _MOST_ROWS_TOGETHER + 1) if size % n == 0)
    return max((n for n in fitting if size // n >= num_threads), default=1)


def _stacked(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@functools.lru_cache(4)
def _epoch_seed(seed: int, epoch: int) -> int:
    """Of an epoch's permutation; mixed, so that no epoch of one seed is one of another's."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


@functools.lru_cache(4)
def _black(size: int) -> UInt8[np.ndarray, "size size 3"]:
    return np.zeros((size, size, 3), np.uint8)


def _listed(reasons: Mapping[str, str], most: int) -> str:
    named = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:most])
    return named + (f"; and {len(reasons) - most} more" if len(reasons) > most else "")
