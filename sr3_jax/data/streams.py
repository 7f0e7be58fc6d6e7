"""The order of a source's images, and how each is cut: a function of the step alone.

Row i of the global batch at step n is example p = n * batch_size + i of an endless stream, whose
epoch is p // num_images. Each epoch is a permutation of the source, and p also seeds the crop and
the degradation. So resuming needs no iterator state, and the stream is the same for every number of
processes and threads. NumPy promises that its `SeedSequence`, `MT19937` and frozen `RandomState`,
which make the stream, do not change from version to version.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Integer

from sr3_jax.data import degradations, windows

_TRAINED, _HELD_OUT = 1, 2  # seeds of degradations, apart from those of crops


class Choice(NamedTuple):
    """An example.

    Attributes:
      index: position of its image in the source; -1: none.
      uniforms: numbers of `windows.random_box`; None for the central box.
      degradation: that of its low resolution; None for bicubic alone.
    """

    index: int
    uniforms: Float64[np.ndarray, 3] | None = None
    degradation: degradations.Drawn | None = None


class Stream:
    """The examples of a source; thread-safe."""

    def __init__(
        self,
        num_images: int,
        options: windows.DegradeOptions,
        seed: int,
        neighbours: int | None = None,
    ) -> None:
        """Makes no order yet. Each epoch permutes `neighbours` in a row, or None for all."""
        self._num_images, self._options, self._seed = num_images, options, seed
        self._neighbours = neighbours or num_images
        self._lock = threading.Lock()  # of the orders
        self._orders: dict[int, Integer[np.ndarray, " num_images"]] = {}

    def training(self, position: int) -> Choice:
        """Returns an example of the endless stream."""
        epoch, place = divmod(position, self._num_images)
        uniforms = None
        if self._options.crop == "random":
            bits = np.random.SeedSequence((self._seed, position)).generate_state(3, np.uint64)
            uniforms = (bits >> np.uint64(11)) * 2.0**-53
        return Choice(int(self._order(epoch)[place]), uniforms, self._drawn(position, _TRAINED))

    def evaluation(self, position: int) -> Choice:
        """Returns the central box of an image, in the order of the source; beyond it none."""
        if position >= self._num_images:
            return Choice(-1)
        return Choice(position, None, self._drawn(position, _HELD_OUT))

    def _drawn(self, position: int, stream: int) -> degradations.Drawn | None:
        options = self._options.degradation
        return options and degradations.draw(options, (self._seed, position, stream))

    def _order(self, epoch: int) -> Integer[np.ndarray, " num_images"]:
        """Returns the permutation of an epoch; takes 0.1 s for a million images."""
        with self._lock:
            if epoch not in self._orders:
                # Reading ahead needs the next epoch while the last one is not over.
                self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
                seed = np.random.SeedSequence((self._seed, epoch))
                order = np.arange(self._num_images, dtype=np.int32)
                random = np.random.RandomState(np.random.MT19937(seed))
                for first in range(0, self._num_images, self._neighbours):
                    random.shuffle(order[first : first + self._neighbours])
                self._orders[epoch] = order
            return self._orders[epoch]
