"""Images from nothing: `Generator`, of networks without a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import UInt8

from sr3_jax.inference import trained


class Generator(trained.TrainedNetwork):
    """Draws images from what a network without a source has learnt: the first of a cascade.

        generator = Generator.from_workdir("runs/digits")
        threes = generator.generate(16, label=3)  # uint8 [16, size, size, 3]

    `SuperResolver` takes what it makes to larger sizes.
    """

    _makes_from_source = False

    @property
    def image_size(self) -> int:
        """Height and width of what it makes, in pixels."""
        return self._sampling.tile_size

    def generate(
        self,
        num_images: int,
        steps: int | None = None,
        seed: trained.Seed = 0,
        progress: trained.Progress | None = None,
        *,
        label: trained.Label | None = None,
    ) -> UInt8[np.ndarray, "n height width 3"]:
        """Draws images.

        Args:
          num_images: how many.
          steps: of sampling; None for the config's.
          seed: one number for all, of which image i takes the i-th stream, or one number or key
            for each. An image depends on that and on its label alone, not on its batch.
          progress: called after each step of each batch.
          label: of networks that know classes: that of all images, or of each; None for none.

        Raises:
          ValueError: for a label that the network does not know, or steps the schedule cannot do.
        """
        if num_images < 1:
            raise ValueError(f"num_images = {num_images}; it must be at least 1")
        made = self.start(num_images, steps, seed, label=label, progress=progress)
        return np.concatenate([result() for result in made])

    def start(
        self,
        num_images: int,
        steps: int | None = None,
        seed: trained.Seed = 0,
        *,
        label: trained.Label | None = None,
        progress: trained.Progress | None = None,
    ) -> Iterator[Callable[[], UInt8[np.ndarray, "n height width 3"]]]:
        """As `generate`, for jobs that do something else while devices sample.

        Yields:
          For each batch, when it is under way, a function that waits for its images.
        """
        # Only their size counts.
        blank = np.zeros((num_images, self.image_size, self.image_size, 3), np.uint8)
        for results in self._batches(blank, steps, seed, label=label, progress=progress):
            yield results[-1]
