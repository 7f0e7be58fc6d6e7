"""Batches of pairs, in the order of a `streams.Stream`, made by threads."""

import contextlib
import hashlib
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict

import grain
import numpy as np
from absl import logging
from jaxtyping import Float32, Int32, Integer, Num
from numpy.typing import DTypeLike

from sr3_jax import scaling, sizes
from sr3_jax.data import degrade, depth, resumable, sources, streams, windows
from sr3_jax.data.image_files import BadImageError

# Without a usable image among so many the source is refused: reading a large one to the end would
# take hours.
_MAX_TRIES = 1000

_BATCHES_AHEAD = 2  # made before they are asked for

_MOST_ROWS_TOGETHER = 32
_NONE: Mapping[int, sources.Picture] = types.MappingProxyType({})


class Batch(TypedDict):
    """This process's rows of one global batch; `batch` is batch_size / process_count.

    Attributes:
      high_resolution: uint8 or uint16; or float32 in the range of the network, with NaN where
        values are missing. Zeros in rows of weight 0.
      low_resolution: the same window of the picture, likewise.
      maps: only of sources with maps: their window, float32, at the size of `high_resolution`.
      weight: 1 for a usable image, 0 for an unusable image or padding.
      index: position of the image in the source; -1 for padding.
      label: class of the image; -1 if it has none, and in rows of weight 0.
    """

    high_resolution: Num[np.ndarray, "batch height width c"]
    low_resolution: Num[np.ndarray, "batch low_height low_width d"]
    maps: NotRequired[Float32[np.ndarray, "batch height width m"]]
    weight: Float32[np.ndarray, " batch"]
    index: Int32[np.ndarray, " batch"]
    label: Int32[np.ndarray, " batch"]


class TooManyBadError(ValueError):
    """More images of a source are damaged than the user allows."""


class _Pair(NamedTuple):
    high_resolution: Num[np.ndarray, "height width c"]
    low_resolution: Num[np.ndarray, "low_height low_width d"]
    maps: Float32[np.ndarray, "height width m"]
    label: int


class Pipeline:
    """Makes the batches of one source, all of one depth.

    It keeps what it reads in memory, up to `cache_bytes`: pairs of central crops, or whole images
    if crops are random. Two batches are made ahead, and each thread holds a decoded image.

    An unusable image (missing, broken, too small) keeps its row, with weight 0, and is logged once,
    with name and reason. Each process knows only those that it has met.

    Attributes:
      reader: reads the images, and counts their losses.
      channels: those of its batches.
      stream: the order of its images, and how each is cut.
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
        dtype: DTypeLike | None = None,
        white_level: int = 0,
        channels: depth.Channels = depth.Channels(),  # noqa: B008  (immutable)
        scalings: scaling.Scalings | None = None,
        cache_bytes: int = 1 << 30,
        max_bad_share: float = 1.0,
        num_threads: int | None = None,
    ) -> None:
        """Reads no image yet.

        Args:
          source: the images.
          options: sizes and crop.
          batch_size: rows of the global batch, over all processes.
          seed: seed of order and crops.
          process_index: number of this process, whose contiguous slice of every batch is made.
          process_count: number of processes; divides `batch_size`.
          dtype: type of pixels, uint8 or uint16; None for that of the first usable image.
            float32 for other numbers.
          white_level: see `depth.convert`.
          channels: of images, as `depth.Reader` checks them.
          scalings: for batches in the range of the network; None for the numbers as they are.
          cache_bytes: most memory for images that were read.
          max_bad_share: largest share of damaged images (too small ones do not count); more end
            the iteration. Several processes must gather `unusable` and call `check_damaged`.
          num_threads: threads that decode and resize; None for one a core.

        Raises:
          ValueError: the source is empty, or `process_count` does not divide `batch_size`.
        """
        if not source:
            raise ValueError("the source has no image")
        if batch_size % process_count:
            raise ValueError(
                f"batch_size is {batch_size}; it must be a multiple of process_count, "
                f"{process_count}"
            )
        self._source = source
        self.reader = depth.Reader(source, dtype, white_level, channels)
        self._options, self.channels, self._scalings = options, channels, scalings
        self._batch_size = batch_size
        self._local_batch_size = batch_size // process_count
        self._first_row = process_index * self._local_batch_size
        self.stream = streams.Stream(
            len(source), options, seed, getattr(source, "neighbours", None)
        )
        self._max_bad_share = max_bad_share
        self._num_threads = num_threads or os.cpu_count() or 1
        self._lock = threading.Lock()  # of the fields below, which the threads share
        self._cache: dict[int, _Pair | sources.Picture] = {}
        self._free_cache_bytes = cache_bytes
        self._unusable: dict[int, BadImageError] = {}
        self._found_usable = False

    @property
    def num_images(self) -> int:
        """Number of images in the source, usable or not."""
        return len(self._source)

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of `high_resolution` and of `low_resolution`, in pixels."""
        return sizes.sides(self._options.image_size), sizes.sides(self._options.low_resolution)

    @property
    def dtype(self) -> np.dtype:
        """Type of pixels. If none was given, the first call reads an image."""
        return self.reader.dtype

    def name(self, index: int) -> str:
        """Returns the name of the image at a position of the source, such as `index` of a batch."""
        return self._source[index].name

    def fingerprint(self, index: int) -> int:
        """Returns a 63-bit digest of an image's name and pixels, or of the error that it gives."""
        ref = self._source[index]
        try:
            content = ref.read().image.tobytes()
        except (BadImageError, OSError) as error:
            content = type(error).__name__.encode()
        name = ref.name.encode("utf-8", "surrogateescape")
        digest = hashlib.blake2b(name + b"\0" + content, digest_size=8).digest()
        return int.from_bytes(digest) >> 1

    @property
    def skipped(self) -> Mapping[str, str]:
        """Name and reason of every unusable image met so far."""
        with self._lock:
            return {self._source[i].name: str(error) for i, error in self._unusable.items()}

    @property
    def unusable(self) -> tuple[Integer[np.ndarray, " damaged"], Integer[np.ndarray, " small"]]:
        """Positions in the source of damaged images and of too small ones, of those met so far."""
        with self._lock:
            indices = np.array([*self._unusable], np.int32)
            errors = self._unusable.values()
            is_small = np.array([isinstance(e, windows.TooSmallError) for e in errors], bool)
        return indices[~is_small], indices[is_small]

    def usable_pictures(self) -> Iterator[sources.Picture]:
        """Yields every picture that can be used, whole, in the order of the source.

        Raises:
          ValueError: while iterating, if no image is usable.
          TooManyBadError: while iterating.
        """

        def read(index: int) -> sources.Picture | None:
            try:
                return self.reader.read(index)
            except BadImageError as error:
                self._skip(index, error)
                return None

        read_some = resumable.in_threads(read, range(len(self._source)), ahead=_BATCHES_AHEAD)
        with contextlib.closing(read_some):
            yield from (picture for picture in read_some if picture is not None)

    def check_damaged(self, damaged: Integer[np.ndarray, " damaged"]) -> None:
        """Raises TooManyBadError if these positions are more than `max_bad_share` of the source."""
        count = len(self._source)
        if len(damaged) <= self._max_bad_share * count:
            return
        with self._lock:
            reasons = {
                self._source[i].name: str(self._unusable.get(i, "found by another process"))
                for i in map(int, damaged)
            }
        raise TooManyBadError(
            f"{len(damaged)} of {count} images are damaged, more than the "
            f"{self._max_bad_share:.2%} that config.data.max_bad_share allows; mend or remove "
            f"them, or raise it: {_listed(reasons, 100)}"
        )

    def training_batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Iterates over the endless stream, from a step on; `close()` ends its threads.

        Raises:
          ValueError: while iterating, if no image is usable.
          TooManyBadError: while iterating.
        """
        return self._batches(start_step, sys.maxsize // self._batch_size, self.stream.training)

    def evaluation_batches(self) -> Iterator[Batch]:
        """Iterates once in the order of the source, by central crops whatever the options say.

        The last batch is padded with rows of weight 0 and index -1, so that all batches have one
        shape and all processes the same number of them. Errors are those of `training_batches`.
        """
        count = len(self._source)
        return self._batches(0, -(-count // self._batch_size), self.stream.evaluation)

    def _batches(
        self, start_step: int, end_step: int, image_at: Callable[[int], streams.Choice]
    ) -> Iterator[Batch]:
        size = self._local_batch_size
        # Rows that a thread makes at once, since each turn costs Grain nearly 1 ms.
        fitting = (n for n in range(1, _MOST_ROWS_TOGETHER + 1) if size % n == 0)
        together = max((n for n in fitting if size // n >= self._num_threads), default=1)
        parts = size // together

        def some_rows(k: int) -> Batch:
            step, part = divmod(k, parts)
            first = step * self._batch_size + self._first_row + part * together
            return self._rows([image_at(first + i) for i in range(together)])

        def join(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: rows.reshape(size, *rows.shape[2:]) for name, rows in batch.items()}

        dataset = grain.MapDataset.range(start_step * parts, end_step * parts).map(some_rows)
        reading = grain.ReadOptions(
            num_threads=self._num_threads, prefetch_buffer_size=_BATCHES_AHEAD * parts
        )
        return iter(dataset.to_iter_dataset(reading).batch(parts).map(join))

    def _rows(
        self, images: Sequence[streams.Choice], read: Mapping[int, sources.Picture] = _NONE
    ) -> Batch:
        """Makes some rows; `read` has pictures that were read already, by row."""
        count, (high, low), of = len(images), self.sizes, self.channels
        batch = Batch(
            high_resolution=np.zeros((count, *high, of.image), self.dtype),
            low_resolution=np.zeros((count, *low, of.source), self.dtype),
            weight=np.zeros(count, np.float32),
            index=np.array([chosen.index for chosen in images], np.int32),
            label=np.full(count, sources.NO_LABEL, np.int32),
        )
        if of.maps:
            batch["maps"] = np.zeros((count, *high, of.maps), np.float32)
        for row, pair in self._pairs(images, read):
            batch["high_resolution"][row] = pair.high_resolution
            batch["low_resolution"][row] = pair.low_resolution
            if of.maps:
                batch["maps"][row] = pair.maps
            batch["weight"][row] = 1
            batch["label"][row] = pair.label
        return batch

    def _pairs(
        self, images: Sequence[streams.Choice], read: Mapping[int, sources.Picture]
    ) -> Iterator[tuple[int, _Pair]]:
        """Yields row and pair of the usable images; runs in many threads at once."""
        waiting: dict[int, tuple[sources.Picture, degrade.Crop]] = {}

        def resized() -> Iterator[tuple[int, _Pair]]:
            crops = [crop for _, crop in waiting.values()]
            drawn = None
            if self._options.degradation:
                drawn = [images[row].degradation for row in waiting]
            pairs = degrade.make_pairs(crops, self._options, drawn)
            for (row, (picture, _)), (high, low) in zip(waiting.items(), pairs, strict=True):
                made = self._pair(high, low, picture.label)
                # A pair that is the same each time is kept, else its picture.
                changes = self._options.crop == "random" or drawn is not None
                self._keep(images[row].index, picture if changes else made)
                yield row, made
            waiting.clear()

        for row, (index, uniforms, _) in enumerate(images):
            if index < 0:
                continue
            with self._lock:
                if index in self._unusable:
                    continue
                kept = self._cache.get(index)
            if isinstance(kept, _Pair):
                yield row, kept
                continue
            try:
                picture = kept or read.get(row) or self.reader.read(index)
                image = picture.image
                low, maps = picture.low_resolution, picture.maps
                crop = degrade.cut(image, low, self._options, uniforms, maps)
                self.reader.count_loss(index, crop.loss)
            except BadImageError as error:
                self._skip(index, error)
                continue
            waiting[row] = picture, crop
            # Small ones wait for others to be resized with, as long as one more would fit.
            if (len(waiting) + 1) * image.nbytes > degrade.BYTES_TOGETHER:
                yield from resized()
        yield from resized()

    def _pair(self, high: np.ndarray, low: np.ndarray, label: int) -> _Pair:
        """Returns a pair in the units of its batches; `high` ends with the channels of maps."""
        of = self.channels
        parts = high[..., : of.image], low[..., : of.source], high[..., high.shape[-1] - of.maps :]
        if self._scalings:
            scaled = (
                part if units is None else units.to_signed(part)
                for units, part in zip(self._scalings, parts, strict=True)
            )
            parts = tuple(scaled)
        return _Pair(*parts, label)

    def _keep(self, index: int, value: _Pair | sources.Picture) -> None:
        size = sum(part.nbytes for part in value if isinstance(part, np.ndarray))
        with self._lock:
            self._found_usable = True
            # Nothing is evicted: an epoch visits every image once, so the evicted image would be
            # needed as soon as the one that takes its place.
            if index not in self._cache and size <= self._free_cache_bytes:
                self._cache[index] = value
                self._free_cache_bytes -= size

    def _skip(self, index: int, error: BadImageError) -> None:
        with self._lock:
            if index in self._unusable:
                return  # another thread came first, and has logged it
            self._unusable[index] = error
            num_tried = len(self._unusable)
            hopeless = not self._found_usable and num_tried >= min(_MAX_TRIES, len(self._source))
        logging.warning("skipping image %s: %s", self._source[index].name, error)
        if hopeless:
            raise ValueError(
                f"no usable image in the source: all {num_tried} images tried of "
                f"{len(self._source)} were skipped ({_listed(self.skipped, 5)})"
            )
        if self._local_batch_size == self._batch_size:
            self.check_damaged(self.unusable[0])


def _listed(reasons: Mapping[str, str], most: int) -> str:
    named = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:most])
    return named + (f"; and {len(reasons) - most} more" if len(reasons) > most else "")
