"""`Generator`: draws images from noise alone, by a network without a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import UInt8

from sr3_jax.inference import trained


class Generator(trained.TrainedNetwork):
    """Draws images by a network without a source, such as the first of a cascade.

        generator = Generator.from_workdir("runs/digits")
        threes = generator.generate(16, label=3)  # uint8 [16, size, size, 3]

    A `SuperResolver` can upscale its images.
    """

    _makes_from_source = False

    @property
    def image_size(self) -> int:
        """Height and width of its images in pixels."""
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
        """Draws images; the options are those of `SuperResolver.upscale`.

        An image depends on its stream of noise and its label alone, not on its batch.

        Raises:
          ValueError: a label is not a class of the network, or the schedule cannot have `steps`.
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
        """Starts to draw images, as `generate`, for jobs that do other work meanwhile.

        Yields:
          For each batch, once it is dispatched, a function that waits for its images.
        """
        # Only the size of these images is used.
        channels = self.refiner.denoiser.network.image_channels
        blank = np.zeros((num_images, self.image_size, self.image_size, channels), np.uint8)
        for results in self._batches(blank, steps, seed, label, progress):
            yield results[-1]
