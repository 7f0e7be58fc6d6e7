"""Upscaling with a trained network: `SuperResolver`, the object users hold."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Num

from sr3_jax import conformal, parallel, released, sizes
from sr3_jax.data import storage
from sr3_jax.inference import confidence, host_images, inputs, trained, upscale_files

_MOST_VALUES = 2**31 - 1  # of an array, whose indices are int32

# One image or several, uint8 or uint16 RGB, or what the network was trained on; and the results.
Images = Num[np.ndarray, "*n height width c"]
Made = Num[np.ndarray, "*n new_height new_width d"]
Maps = Num[np.ndarray, "... _height _width m"]  # of each image, or of all


@dataclasses.dataclass(frozen=True)
class Upscaled:
    """The result of `SuperResolver.sample`.

    Attributes:
      images: `[n, h * factor, w * factor, 3]`, of the input's type.
      refinement: `[k, n, h * factor, w * factor, 3]`, y_T to y_0; empty without snapshots.
      seconds: time of sampling, without compilation.
    """

    images: Num[np.ndarray, "n new_height new_width c"]
    refinement: Num[np.ndarray, "k n new_height new_width c"]
    seconds: float


class SuperResolver(trained.TrainedNetwork):
    """Upscales images by SR3's iterative refinement, or a baseline's one step.

        resolver = SuperResolver.pretrained()  # or .from_workdir("runs/quickstart")
        large = resolver.upscale(small)  # uint8 or uint16 [height, width, 3], or [n, ...]
        large = resolver.upscale(small, steps=20, seed=1)
        samples = resolver.sample_many(small, 8)  # several samples of the posterior

    Few programs are compiled, whatever the sizes of images and the number of steps (see
    `inference.programs`). The devices share each batch, and the tiles of an image larger than
    `tile_size`. Each of several processes upscales its own images on its own devices.
    """

    _makes_from_source = True

    @classmethod
    def pretrained(cls, name: str = released.DEFAULT, **sampling: Any) -> SuperResolver:
        """Loads a network that comes with the package (`sr3 models`), or `hf://USER/NAME`.

        `**sampling` overrides keys of `config.sampling`, as in `from_workdir`.

        Raises:
          ValueError: there is no network of that name.
        """
        is_of_hub = name.startswith(released.HUB)
        return cls.from_workdir(name if is_of_hub else released.shipped(name), **sampling)

    def num_refinements(
        self, shape: tuple[int, ...], steps: int | None = None, *, factor: int | float | None = None
    ) -> int:
        """Returns the number of times that `upscale` calls `progress` for images of `shape`."""
        size = self._network_size(shape[1:3], factor)
        return self.refiner.num_calls(shape[0], size) * self.nfe(steps)

    def upscale(
        self,
        images: Images,
        steps: int | None = None,
        seed: trained.Seed = 0,
        progress: trained.Progress | None = None,
        *,
        factor: int | float | None = None,
        label: trained.Label | None = None,
        maps: Maps | None = None,
    ) -> Made:
        """Upscales an image, or images of one size.

        Args:
          images: RGB of 8 or 16 bits, of any size. For a network of numbers without levels
            (`config.units`): real numbers in the units of its training, with as many channels as
            `config.data.source_channels`, and NaN where they are missing.
          steps: number of refinement steps; None for the config's.
          seed: one number, from which image i takes the i-th stream; or one number or key for each
            image. A result depends on the pixels of its image, its stream and
            `sampling.tile_size`, not on its batch.
          progress: called after each call of the network on a batch of images or tiles.
          factor: ratio of output to input size; None for the factor of training. For a larger
            factor, images are first resized by bicubic; for a smaller one, the network's results
            are resized, which keeps all details of the input.
          label: class of all images, or of each; None for none.
          maps: the maps of all images, or of each, at the size of the result; None for none.

        Returns:
          RGB of the same type, `factor` times as high and wide; numbers as float32, in the units of
          the input.

        Raises:
          ValueError: the images have another type or shape, the schedule cannot have `steps`, the
            factor is outside 1/16 to 64 (of numbers, is not the network's), maps are missing or
            have another size, or the network returns numbers that are not finite.
        """
        images, more = np.asarray(images), {"factor": factor, "label": label, "maps": maps}
        if images.ndim == 3:
            return self.upscale(images[None], steps, seed, progress, **more)[0]
        made = self.start(images, steps, seed, progress=progress, **more)
        return np.concatenate([result()[0] for result in made])

    def start(
        self,
        images: Images,
        steps: int | None = None,
        seed: trained.Seed = 0,
        *,
        factor: int | float | None = None,
        label: trained.Label | None = None,
        maps: Maps | None = None,
        num_snapshots: int = 0,
        progress: trained.Progress | None = None,
        watch: Callable[[Made], None] | None = None,
    ) -> Iterator[Callable[[], tuple[Made, list[Made]]]]:
        """Starts to upscale images, as `upscale`, for jobs that do other work meanwhile.

        `watch` is called with each snapshot of a batch as soon as it is made.

        Yields:
          For each batch, once it is dispatched, a function that waits for its results and for
          snapshots of the refinement (see `sample`), without the results.
        """
        if self.scalings:
            images, maps = self._checked_numbers(images, maps, factor)
        else:
            images = host_images.check_images(images, self.num_channels)
        size = images.shape[1:3]
        factor = self.factor if factor is None else factor
        wanted = host_images.output_size(size, factor)
        scale = factor / self.factor
        if scale > 1:
            images = host_images.resized(images, scale, self._network_size(size, factor))
        stops = self._stops(steps, num_snapshots)

        def finished(made: np.ndarray) -> np.ndarray:
            return host_images.resized(made, min(scale, 1.0), wanted)

        see = watch and (lambda made: watch(finished(made)))
        for results in self._batches(images, steps, seed, label, progress, stops, maps, see):

            def fetch(results: list = results) -> tuple[Made, list[Made]]:
                *kept, made = (finished(result()) for result in results)
                return made, kept

            yield fetch

    def _checked_numbers(
        self, images: Images, maps: Maps | None, factor: int | float | None
    ) -> tuple[Images, Maps | None]:
        """Returns numbers and maps as arrays of four axes; raises ValueError as `upscale`."""
        if factor not in (None, self.factor):
            raise ValueError(
                f"factor = {factor:g}; a network of numbers takes its own alone, {self.factor:g}"
            )
        may_miss = self.refiner.denoiser.known_at > 0
        images = host_images.check_numbers(images, self.num_channels, may_miss=may_miss)
        if (maps is not None) != (self.num_maps > 0):
            takes = f"{self.num_maps} maps" if self.num_maps else "no maps"
            given = "none" if maps is None else "some"
            raise ValueError(f"the network takes {takes}, and {given} were given")
        if maps is None:
            return images, None
        maps = np.asarray(maps)
        maps = host_images.check_numbers(
            maps[None] if maps.ndim == 3 else maps, self.num_maps, "maps"
        )
        wanted = (len(images), *sizes.scaled(images.shape[1:3], self.factor))
        if maps.shape[1:3] != wanted[1:] or len(maps) not in (1, len(images)):
            raise ValueError(
                f"maps have shape {maps.shape}; the result is {wanted[1]} pixels high and "
                f"{wanted[2]} wide, so give [{wanted[1]}, {wanted[2]}, {self.num_maps}] for all "
                "images, or one for each"
            )
        return images, np.broadcast_to(maps, (*wanted, self.num_maps))

    def _network_size(self, size: tuple[int, int], factor: int | float | None) -> tuple[int, int]:
        """Returns height and width of the network's input, given those of the image."""
        if factor is None or factor <= self.factor:
            return size
        # A hair less, since a quotient may be rounded up.
        wanted = host_images.output_size(size, factor)
        return tuple(math.ceil(n / self.factor - 1e-6) for n in wanted)

    def check_fits(
        self,
        size: tuple[int, int],
        *,
        factor: int | float | None = None,
        num_samples: int = 1,
        num_snapshots: int = 0,
    ) -> None:
        """Checks that free memory suffices for an image, given its height and width.

        The estimate is right within about a factor of two.

        Raises:
          ValueError: memory is too small (names the needed and the free size, and the fix), or the
            factor is outside its limits.
        """
        factor = self.factor if factor is None else factor
        wanted = host_images.output_size(size, factor)
        within = self._network_size(size, factor)
        refined = sizes.scaled(within, self.factor)
        what = f"a picture of {size[1]}x{size[0]} becomes {wanted[1]}x{wanted[0]}"
        if refined != wanted:
            what += f", by way of {refined[1]}x{refined[0]},"
        # Arrays are larger than images by a half.
        most_pixels = _MOST_VALUES // self.refiner.most_channels // 1.5
        if math.prod(refined) > most_pixels:
            raise ValueError(
                f"{what} and so more than {most_pixels / 1e6:.0f} megapixels; use parts "
                "of the picture, or a smaller --factor"
            )
        on_device, on_host = self.refiner.memory(num_samples, within)
        # Samples and frames wait on the host, of at most 16 bits, or as numbers.
        of_pixel = 4 * self.refiner.most_channels if self.scalings else 6
        on_host += of_pixel * wanted[0] * wanted[1] * (num_samples + 1) * (num_snapshots + 1)
        device = jax.local_devices()[0]
        if device.platform == "cpu":
            # All CPU devices share one memory.
            on_host += on_device * self.refiner.share(num_samples, within)[0]
            on_device = 0
        for needed, free, where in (
            (on_device, parallel.free_bytes(device), f"of each {device.device_kind}'s memory"),
            (on_host, parallel.free_host_bytes(), "of this machine's memory"),
        ):
            if free is not None and needed > free:
                raise ValueError(
                    f"{what} and needs about {needed / 1e9:.2g} GB {where}, of which "
                    f"{free / 1e9:.2g} GB are free; use parts of the picture, or a smaller "
                    "sampling.tile_size or sampling.batch_size; without --confidence, fewer "
                    "--samples or a smaller --factor help, too"
                )

    def upscale_file(
        self,
        path: epath.PathLike,
        output: epath.PathLike,
        steps: int | None = None,
        seed: int = 0,
        *,
        factor: int | float | None = None,
        num_samples: int = 1,
        animate: bool = False,
        overwrite: bool = False,
    ) -> str:
        """Upscales one picture file as `--mode=upscale` does: alpha, profile and depth are kept.

        `path` is local or a URL. The result has the picture's name, in the folder `output`; its
        path is returned. `inputs.UpscaleOptions` describes the options. `overwrite` replaces
        existing files, but never the picture itself.

        Raises:
          FileNotFoundError: there is no such file.
          FileExistsError: the result exists already.
          ValueError: the picture cannot be read, upscaled or written, or would replace itself.
        """
        if epath.Path(path).is_dir():
            raise ValueError(f"{path} is a folder; give a file, or use --mode=upscale")
        options = inputs.UpscaleOptions(steps, seed, factor, num_samples, animate)
        for name in options.output_names(epath.Path(path).name):
            made = epath.Path(output) / name
            if storage.is_same_file(path, made):
                raise ValueError(f"{made} is the picture itself; give another folder than {output}")
            if made.exists() and not overwrite:
                raise FileExistsError(f"{made} exists already; overwrite=True replaces it")
        (record,) = upscale_files.upscale_files(self, inputs.find_inputs(path), output, options)
        if record.error:
            raise ValueError(f"{path}: {record.error}")
        return str(epath.Path(output) / record.output)

    def sample_many(
        self,
        image: Images,
        num_samples: int,
        steps: int | None = None,
        seed: int = 0,
        progress: trained.Progress | None = None,
        *,
        maps: Maps | None = None,
    ) -> Num[np.ndarray, "k new_height new_width d"]:
        """Draws several samples for one image.

        Their mean has a higher PSNR than each sample, but is blurred; their standard deviation
        (`inference.visualization.deviation`) shows where results are uncertain.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples = {num_samples}; it must be at least 1")
        images = np.repeat(np.asarray(image)[None], num_samples, axis=0)
        return self.upscale(images, steps, seed, progress, maps=maps)

    def interval(
        self,
        image: Images,
        promise: float | conformal.Promise = 0.9,
        seed: int = 0,
        progress: trained.Progress | None = None,
        *,
        maps: Maps | None = None,
    ) -> tuple[Made, Made, Made]:
        """Returns the mean of samples, and lower and upper ends of an interval for each value.

        The intervals hold a share `promise` of the truth, on average over images that are drawn as
        those that `--mode=calibrate` saw; see `conformal` for other promises.

        Raises:
          FileNotFoundError: the network was not calibrated.
          ValueError: it was calibrated with another sampling, or on too few images.
        """
        if self.workdir is None:
            raise FileNotFoundError(
                "the network was not loaded from a folder, which has its calibration; use "
                "SuperResolver.from_workdir or .pretrained"
            )
        found = confidence.read(self.workdir)
        found.check(self.fingerprint(), self.workdir)
        if not isinstance(promise, conformal.Promise):
            promise = conformal.Promise(promise)
        band = found.calibration.choose(promise)
        samples = self.sample_many(image, found.num_samples, None, seed, progress, maps=maps)
        mean = samples.mean(axis=0)
        if samples.dtype.kind != "f":
            mean = np.rint(mean).astype(samples.dtype)
        return mean, *confidence.interval(samples, band)

    def sample(
        self,
        images: Images,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        *,
        label: trained.Label | None = None,
        maps: Maps | None = None,
        num_snapshots: int = 0,
        progress: trained.Progress | None = None,
    ) -> Upscaled:
        """Upscales images; also returns `num_snapshots` of y_t from noise to image, and the time.

        `label` and `maps` are as in `upscale`. Snapshots are evenly spaced in network calls; the
        last one is the result.
        """
        parts, snapshots = [], []
        begin = time.perf_counter() - self.refiner.programs.compile_seconds
        more = {"label": label, "maps": maps, "num_snapshots": num_snapshots, "progress": progress}
        started = self.start(images, steps, seed, **more)
        for made, kept in (fetch() for fetch in started):
            parts.append(made)
            snapshots.append(np.stack([*kept, made]) if num_snapshots else made[None][:0])
        seconds = time.perf_counter() - self.refiner.programs.compile_seconds - begin
        return Upscaled(np.concatenate(parts), np.concatenate(snapshots, axis=1), seconds)
