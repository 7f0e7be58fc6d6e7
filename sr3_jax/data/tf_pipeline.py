"""Batches by a `tf.data.Dataset`, whose threads decode, cut and resize without Python.

TensorFlow decodes plain files (`image_files.Encoded`). Its resizing is that of `degrade`, and its
decoder of JPEG differs from Pillow's by a level at most. What it cannot decode, and what is no
picture of 8 bits, is made as in `pipeline`, in the same threads.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

from sr3_jax.data import degradations, degrade, depth, pipeline, streams, tf_data_source, windows
from sr3_jax.data.image_files import BadImageError, Box, Encoded, decode_unless_plain
from sr3_jax.sizes import Size, sides

if TYPE_CHECKING:
    import tensorflow as tf

_BLOCK = 16  # pixels of the largest block of JPEG whose colours are stored together
_AHEAD = 4  # pairs for each thread that are made before they are asked for

Pair = tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h2 w2 3"]]


class TfPipeline(pipeline.Pipeline):
    """A `Pipeline` with the same batches, but for a level where decoders differ.

    It keeps no picture in memory that TensorFlow decodes.
    """

    def _batches(
        self, start_step: int, end_step: int, image_at: Callable[[int], streams.Choice]
    ) -> Iterator[pipeline.Batch]:
        size = self._local_batch_size
        waiting: dict[int, _Waiting] = {}

        def ask(number: int) -> Ask | None:
            step, row = divmod(number, size)
            choice = image_at(step * self._batch_size + self._first_row + row)
            waiting[number], wanted = self._prepared(choice)
            return wanted

        numbers = range(start_step * size, end_step * size)
        made = pairs(ask, numbers, self._options, self._num_threads)
        atexit.register(made.close)  # a program may end in the middle
        try:
            for first in numbers[::size]:
                rows = []
                for number, pair in zip(range(first, first + size), made, strict=False):
                    here = waiting.pop(number)
                    if here.rows is None and pair is None:
                        # TensorFlow cannot decode it; the reader of this project has the last word.
                        here = here._replace(rows=self._rows([here.choice]))
                    rows.append(here.rows or self._row(here, pair))
                yield {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        finally:
            made.close()
            atexit.unregister(made.close)

    def _prepared(self, choice: streams.Choice) -> tuple[_Waiting, Ask | None]:
        """Returns what waits for a pair of TensorFlow, or is ready without."""
        is_plain = self.dtype == np.uint8 and self.channels == depth.Channels()
        if not is_plain or choice.index < 0 or choice.index in self._unusable:
            return _Waiting(choice, self._rows([choice])), None
        try:
            picture = self.reader.read(choice.index, decode_unless_plain)
            high, low = picture.image, picture.low_resolution
            if not isinstance(high, Encoded):
                return _Waiting(choice, self._rows([choice], {0: picture})), None
            boxes = windows.choose_boxes(
                high.shape[:2], low and low.shape[:2], self._options, choice.uniforms
            )
            self.reader.count_loss(choice.index, boxes.loss)
        except BadImageError as error:
            self._skip(choice.index, error)
            return _Waiting(choice, self._rows([choice])), None
        self._found_usable = True
        wanted = Ask(high, boxes.high, low, boxes.low, choice.degradation)
        return _Waiting(choice, None, picture.label), wanted

    def _row(self, waiting: _Waiting, pair: Pair) -> pipeline.Batch:
        """Returns the row of a pair that TensorFlow made."""
        high, low = pair
        return pipeline.Batch(
            high_resolution=high[None],
            low_resolution=low[None],
            weight=np.ones(1, np.float32),
            index=np.array([waiting.choice.index], np.int32),
            label=np.array([waiting.label], np.int32),
        )


class _Waiting(NamedTuple):
    """An example under way: its row, or what the pair of TensorFlow is of."""

    choice: streams.Choice
    rows: pipeline.Batch | None
    label: int = -1


class Ask(NamedTuple):
    """A pair to be made; `low` is None if it is made from `high`, with a degradation or not."""

    high: Encoded
    box: Box
    low: Encoded | None = None
    low_box: Box | None = None
    degradation: degradations.Drawn | None = None


def pairs(
    ask: Callable[[int], Ask | None],
    numbers: range,
    options: windows.DegradeOptions,
    num_threads: int,
) -> Iterator[Pair | None]:
    """Yields the pair of each number, in their order; `close()` ends TensorFlow's threads.

    An exception of `ask` ends it. It yields None where nothing was asked for, and where TensorFlow
    cannot decode the file.

    Args:
      ask: says what to make for a number; called by many threads, long before its pair is yielded.
      numbers: consecutive numbers.
      options: sizes and methods.
      num_threads: pairs that are made at once.
    """
    tf = tf_data_source.tensorflow()
    high_size, low_size = sides(options.image_size), sides(options.low_resolution)
    is_open, is_running, failed = tf.Variable(True, trainable=False), True, []
    reduces_here = options.degradation is not None or options.downsampling != "pillow"
    drawn: dict[int, degradations.Drawn | None] = {}  # where it reduces here

    def fetch(number: np.integer) -> tuple[bytes, bytes, np.ndarray]:
        wanted = None
        try:
            if is_running:
                wanted = ask(int(number))
        except Exception as error:  # TensorFlow would keep its text alone
            failed.append(error)
        if wanted is None:
            return b"", b"", np.zeros((2, 2, 4), np.int32)
        if reduces_here and not wanted.low:
            drawn[int(number)] = wanted.degradation
        low = wanted.low.data if wanted.low else b""
        boxes = [_boxes(wanted.high, wanted.box), _boxes(wanted.low, wanted.low_box)]
        return wanted.high.data, low, np.array(boxes, np.int32)

    def reduce_here(high: np.ndarray, number: np.integer) -> np.ndarray:
        if (how := drawn.pop(int(number))) is not None:
            return degradations.degraded(high, low_size, how)
        return degrade.make_pair(high, high_size, low_size, options.downsampling)[1]

    def reduced(high: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        if not all(low_size):
            return tf.zeros((*low_size, 3), tf.uint8)
        if reduces_here:
            made = tf.numpy_function(reduce_here, [high, number], tf.uint8)
            return tf.ensure_shape(made, (*low_size, 3))
        return _levels(tf.image.resize(high, low_size, method="bicubic", antialias=True))

    @tf.autograph.experimental.do_not_convert  # it has no statements of Python
    def make(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        types = [tf.string, tf.string, tf.int32]
        content, low_content, boxes = tf.numpy_function(fetch, [number], types)
        boxes = tf.ensure_shape(boxes, (2, 2, 4))
        is_asked = tf.strings.length(content) > 0

        def pair() -> tuple[tf.Tensor, tf.Tensor]:
            high = _window(content, boxes[0], high_size)
            low = tf.cond(
                tf.strings.length(low_content) > 0,
                lambda: _window(low_content, boxes[1], low_size),
                lambda: reduced(high, number),
            )
            return high, low

        def none() -> tuple[tf.Tensor, tf.Tensor]:
            return tf.zeros((*high_size, 3), tf.uint8), tf.zeros((*low_size, 3), tf.uint8)

        return is_asked, *tf.cond(is_asked, pair, none)

    dataset = tf.data.Dataset.range(numbers.start, numbers.stop)
    dataset = dataset.take_while(lambda _: is_open.read_value())
    dataset = dataset.map(make, num_parallel_calls=num_threads, deterministic=True)
    made = iter(dataset.prefetch(_AHEAD * num_threads))
    try:
        for _ in numbers:
            try:
                is_asked, high, low = next(made)
            except tf.errors.InvalidArgumentError:  # the iterator goes on with the next element
                is_asked = False
            if failed:
                raise failed[0]
            yield (high.numpy(), low.numpy()) if is_asked else None
    finally:
        is_running = False
        is_open.assign(False)
        _use_up(made)


def _use_up(made: Iterator) -> None:
    """Takes what is left of an iterator of TensorFlow.

    One that is deleted while its threads wait for Python waits for ever.
    """
    tf = tf_data_source.tensorflow()
    while True:
        try:
            if next(made, None) is None:
                return
        except tf.errors.OpError:
            continue


def _window(content: tf.Tensor, boxes: tf.Tensor, size: Size) -> tf.Tensor:
    """Decodes the inner of two boxes (`_boxes`), and resizes it by area to `size`."""
    tf = tf_data_source.tensorflow()
    height, width = sides(size)
    outer, box = boxes[0], boxes[1]

    def cut(pixels: tf.Tensor, top: tf.Tensor, left: tf.Tensor) -> tf.Tensor:
        return tf.image.crop_to_bounding_box(pixels, top, left, box[2], box[3])

    def of_jpeg() -> tf.Tensor:
        # As Pillow decodes: exact transform, smooth chroma.
        pixels = tf.io.decode_and_crop_jpeg(
            content, outer, channels=3, dct_method="INTEGER_ACCURATE", fancy_upscaling=True
        )
        return cut(pixels, box[0] - outer[0], box[1] - outer[1])

    def of_png() -> tf.Tensor:
        return cut(tf.io.decode_png(content, channels=3), box[0], box[1])

    pixels = tf.cond(tf.io.is_jpeg(content), of_jpeg, of_png)
    is_right = tf.reduce_all(tf.equal(box[2:], (height, width)))
    window = tf.cond(
        is_right,
        lambda: pixels,
        lambda: _levels(tf.image.resize(pixels, (height, width), method="area")),
    )
    return tf.ensure_shape(window, (height, width, 3))


def _levels(pixels: tf.Tensor) -> tf.Tensor:
    """Rounds to the nearest level, halves to even, as `degrade.to_levels`."""
    tf = tf_data_source.tensorflow()
    return tf.cast(tf.clip_by_value(tf.round(pixels), 0.0, 255.0), tf.uint8)


def _boxes(of: Encoded | None, box: Box | None) -> list[tuple[int, int, int, int]]:
    """Returns the box to decode, and the box within it, as top, left, height and width.

    The first is larger, since colours at the border of what is decoded are not smoothed.
    """
    if of is None:
        return [(0, 0, 0, 0)] * 2
    left, top, right, bottom = box
    outer_top, outer_left = (max(0, n // _BLOCK - 1) * _BLOCK for n in (top, left))
    outer_bottom, outer_right = (
        min((-(-n // _BLOCK) + 1) * _BLOCK, size)
        for n, size in zip((bottom, right), of.shape, strict=False)
    )
    outer = outer_top, outer_left, outer_bottom - outer_top, outer_right - outer_left
    return [outer, (top, left, bottom - top, right - left)]
