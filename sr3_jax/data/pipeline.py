"""Batches of pairs, in an order that is a function of the step alone.

Row i of the global batch at step n is example p = n * batch_size + i of an endless stream, whose
epoch is p // len(source). Each epoch is a permutation of the source, and p also seeds the crop.
So resuming at any step costs nothing and needs no iterator state, and the stream is the same for
every number of processes and threads. (It is not promised to be the same across versions of
TensorFlow, whose `index_shuffle` makes the permutations.)

An image that cannot be used keeps its row, with weight 0, so it shifts nothing.
"""

import atexit
import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypedDict

import numpy as np
import tensorflow as tf
from absl import logging
from jaxtyping import Float32, Int32, Num, UInt8

from sr3_jax.data import degrade, image_file
from sr3_jax.data.sources import ImageRef

# So many examples that no run ends, few enough for int64 arithmetic.
_ENDLESS = 2**60

# With no usable image among so many, the source as a whole is at fault; a large one would take
# hours to read to the end.
_MAX_TRIES = 1000


class Batch(TypedDict):
    """This process's rows of one global batch; `batch` is batch_size / process_count.

    Attributes:
        high_resolution: RGB; zeros in rows of weight 0.
        low_resolution: RGB, of the same square of the picture.
        weight: 1 for a real image, 0 for an unusable image or padding.
        index: position of the image in the source; -1 for padding.
    """

    high_resolution: UInt8[np.ndarray, "batch image_size image_size 3"]
    low_resolution: UInt8[np.ndarray, "batch low_resolution low_resolution 3"]
    weight: Float32[np.ndarray, " batch"]
    index: Int32[np.ndarray, " batch"]


class Pipeline:
    """Makes the batches of one source.

    Decoded images stay in memory as far as `cache_bytes` goes, for every batch this object makes.
    Unusable images (missing, broken, too small) are logged once, with name and reason, and kept in
    `skipped`; of those, this process knows only the ones it has met.
    """

    def __init__(
        self,
        source: Sequence[ImageRef],
        options: degrade.DegradeOptions,
        *,
        batch_size: int,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        cache_bytes: int = 1 << 30,
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
            cache_bytes: most memory to spend on decoded images; 0 for none.
            num_threads: threads that decode and resize; None for one a core.

        Raises:
            ValueError: empty source, repeated name in it, or a number outside its range.
        """
        if not source:
            raise ValueError("the source has no image")
        if repeated := len(source) - len({ref.name for ref in source}):
            raise ValueError(f"{repeated} names in the source are repeated; make them unique")
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
        # TensorFlow's stateless generators drop the upper bits of a 64-bit seed without a word.
        if not 0 <= seed < 2**31:
            raise ValueError(f"seed is {seed}; it must be in [0, 2**31)")
        if num_threads is not None and num_threads < 1:
            raise ValueError(f"num_threads is {num_threads}; it must be at least 1, or None")
        self._source = source
        self._options = options
        self._batch_size = batch_size
        self._local_batch_size = batch_size // process_count
        self._first_row = process_index * self._local_batch_size
        self._seed = seed
        self._num_threads = num_threads or os.cpu_count() or 1
        # Guards the fields below, which the threads of tf.data share.
        self._lock = threading.Lock()
        self._cache: dict[int, UInt8[np.ndarray, "height width 3"]] = {}
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
        """The endless stream, from step `start_step` on.

        Raises:
            ValueError: negative `start_step`; while iterating, if no image is usable.
        """
        if start_step < 0:
            raise ValueError(f"start_step is {start_step}; it must not be negative")
        return self._batches(start_step, _ENDLESS // self._batch_size, self._training_example)

    def evaluation_batches(self) -> Iterator[Batch]:
        """One pass in the order of the source, with central crops whatever the options say.

        The last global batch is padded with rows of weight 0 and index -1, so that all batches
        have one shape and all processes the same number of them.

        Raises:
            ValueError: while iterating, if no image is usable.
        """
        num_steps = -(-len(self._source) // self._batch_size)
        return self._batches(0, num_steps, self._evaluation_example)

    def _batches(
        self,
        start_step: int,
        end_step: int,
        example: Callable[[tf.Tensor, list[Exception]], dict[str, tf.Tensor]],
    ) -> Iterator[Batch]:
        # What a thread raised: TensorFlow itself only passes on the text of an exception.
        errors: list[Exception] = []
        size = self._local_batch_size

        @tf.autograph.experimental.do_not_convert
        def row(k: tf.Tensor) -> dict[str, tf.Tensor]:
            position = k // size * self._batch_size + self._first_row + k % size
            return example(position, errors)

        dataset = tf.data.Dataset.range(start_step * size, end_step * size)
        dataset = dataset.map(row, num_parallel_calls=self._num_threads, deterministic=True)
        dataset = dataset.batch(size, drop_remainder=True).prefetch(2)
        options = tf.data.Options()
        options.threading.private_threadpool_size = self._num_threads
        # The threads work on different rows; more threads inside one operation only get in the way.
        options.threading.max_intra_op_parallelism = 1
        options.autotune.enabled = False
        batches = _iterate(dataset.with_options(options), errors)
        _live_iterators.add(batches)
        return batches

    def _training_example(
        self, position: tf.Tensor, errors: list[Exception]
    ) -> dict[str, tf.Tensor]:
        count = len(self._source)
        index = tf.random.experimental.index_shuffle(
            position % count, tf.stack([np.int64(self._seed), position // count]), count - 1
        )
        # A named algorithm, as the default one may depend on the machine.
        uniforms = tf.random.stateless_uniform(
            [3], tf.stack([np.int64(self._seed), position]), alg="philox"
        )
        return self._example(index, uniforms, self._options.crop == "random", errors)

    def _evaluation_example(
        self, position: tf.Tensor, errors: list[Exception]
    ) -> dict[str, tf.Tensor]:
        index = tf.where(position < len(self._source), position, np.int64(-1))
        return self._example(index, tf.zeros([3]), False, errors)

    def _example(
        self, index: tf.Tensor, uniforms: tf.Tensor, random: bool, errors: list[Exception]
    ) -> dict[str, tf.Tensor]:
        crop, weight = tf.numpy_function(
            functools.partial(self._crop, random=random, errors=errors),
            [index, uniforms],
            [tf.uint8, tf.float32],
        )
        # numpy_function loses the shapes.
        crop = tf.ensure_shape(crop, [None, None, 3])
        weight = tf.ensure_shape(weight, [])
        high_resolution, low_resolution = degrade.make_pair(
            crop, self._options.image_size, self._options.low_resolution
        )
        return {
            "high_resolution": high_resolution,
            "low_resolution": low_resolution,
            "weight": weight,
            "index": tf.cast(index, tf.int32),
        }

    def _crop(
        self,
        index: np.int64,
        uniforms: Num[np.ndarray, "3"],
        *,
        random: bool,
        errors: list[Exception],
    ) -> tuple[UInt8[np.ndarray, "side side 3"], np.float32]:
        """The crop of one image and its weight; this, and what it calls, runs in many threads."""
        try:
            image = self._image(int(index)) if index >= 0 else None
        except Exception as e:
            errors.append(e)
            raise
        if image is None:
            size = self._options.image_size
            return np.zeros((size, size, 3), np.uint8), np.float32(0)
        if not random:
            left, top, right, bottom = degrade.central_box(*image.shape[:2])
            return image[top:bottom, left:right], np.float32(1)
        box = degrade.random_box(*image.shape[:2], self._options, uniforms)
        left, top, right, bottom = box
        return image[top:bottom, left:right], np.float32(1)

    def _image(self, index: int) -> UInt8[np.ndarray, "height width 3"] | None:
        """The whole image, or None if it is unusable."""
        with self._lock:
            if index in self._unusable:
                return None
            if index in self._cache:
                return self._cache[index]
        try:
            image = image_file.read_image(self._source[index])
            degrade.check_size(image, self._options.image_size)
        except image_file.BadImageError as e:
            self._skip(index, e)
            return None
        with self._lock:
            self._found_usable = True
            # Nothing is ever thrown out: an epoch visits every image once, so the one thrown out
            # would be as likely needed next as the one let in.
            if index not in self._cache and image.nbytes <= self._free_cache_bytes:
                self._cache[index] = image
                self._free_cache_bytes -= image.nbytes
        return image

    def _skip(self, index: int, error: image_file.BadImageError) -> None:
        with self._lock:
            if index in self._unusable:
                return  # Another thread came first, and has logged it.
            self._unusable[index] = error
            num_tried = len(self._unusable)
            hopeless = not self._found_usable and num_tried >= min(_MAX_TRIES, len(self._source))
        logging.warning("skipping image %s: %s", self._source[index].name, error)
        if hopeless:
            examples = "; ".join(f"{n}: {reason}" for n, reason in list(self.skipped.items())[:5])
            raise ValueError(
                f"no usable image in the source: all {num_tried} images tried of "
                f"{len(self._source)} were skipped ({examples})"
            )


def _iterate(dataset: tf.data.Dataset, errors: list[Exception]) -> Generator[Batch, None, None]:
    iterator = dataset.as_numpy_iterator()
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError:
            if errors:
                raise errors[0] from None
            raise
        yield batch


_live_iterators: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()


@atexit.register
def _close_iterators() -> None:
    # While Python shuts down, it ends any thread that comes back to it, such as one of TensorFlow's
    # from decoding an image. An iterator that still lives then would wait for that thread's row
    # forever, so a program that had done its work would hang instead of ending.
    for batches in list(_live_iterators):
        # ValueError: a daemon thread is in its next(), and nothing waits for such a thread.
        with contextlib.suppress(ValueError):
            batches.close()
