"""Upscaling with a trained network: `SuperResolver`, the object users hold."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import linen as nn
from jaxtyping import UInt8, UInt16

from sr3_jax import config_file, diffusion, factory, models, sampling_factory
from sr3_jax.inference import files, loading, refinement
from sr3_jax.training import checkpoint
from sr3_jax.training.state import Params

Progress = Callable[[], None]
# One image or several, and what becomes of them.
Images = UInt8[np.ndarray, "*n height width 3"] | UInt16[np.ndarray, "*n height width 3"]
Made = (
    UInt8[np.ndarray, "*n new_height new_width 3"] | UInt16[np.ndarray, "*n new_height new_width 3"]
)


@dataclasses.dataclass(frozen=True)
class Upscaled:
    """What one call made.

    Attributes:
      images: `[n, h * factor, w * factor, 3]`, of the input's type.
      refinement: `[k, n, h * factor, w * factor, 3]`, y_T to y_0; empty where not asked.
      seconds: spent sampling, compilation not counted.
    """

    images: (
        UInt8[np.ndarray, "n new_height new_width 3"]
        | UInt16[np.ndarray, "n new_height new_width 3"]
    )
    refinement: (
        UInt8[np.ndarray, "k n new_height new_width 3"]
        | UInt16[np.ndarray, "k n new_height new_width 3"]
    )
    seconds: float


class SuperResolver:
    """Upscales images by SR3's iterative refinement, or a baseline's one step.

        resolver = SuperResolver.from_workdir("runs/quickstart")
        large = resolver.upscale(small)  # uint8 or uint16 [height, width, 3], or [n, ...]
        large = resolver.upscale(small, steps=20, seed=1)
        samples = resolver.sample_many(small, 8)  # what else it could have been

    Programs are compiled once for each size of array, of which there are few (see
    `inference.tiling`), whatever the number of steps. The devices share each batch, and the tiles
    of an image larger than `tile_size`. Of several processes, each has images and devices of its
    own.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Params,
        make_sampler: Callable[[int], diffusion.Sampler | None],
        options: sampling_factory.Options,
        *,
        factor: int,
        stride: int,
    ) -> None:
        """Puts the parameters on all devices.

        Args:
          model: estimates the noise: `model.apply({"params": params}, x, y_t, gamma)`; or, of a
            baseline, the image: `model.apply({"params": params}, x)`.
          params: its weights; for the best pictures the averaged ones.
          make_sampler: the sampler of a number of steps; of a baseline None.
          options: of sampling; its `num_steps` and `batch_size` are the defaults.
          factor: by how much the network makes images grow.
          stride: sizes that the model takes are multiples of it; others are padded, and images
            larger than `options.tile_size` refined in tiles.
        """
        self.checkpoint_step: int | None = None  # of training, where the weights are a checkpoint's
        self.factor = factor
        self.make_sampler, self._options = make_sampler, options
        self.refiner = refinement.Refiner(
            model, options, factor=factor, stride=stride, devices=jax.local_devices()
        )
        self.set_params(params)

    @classmethod
    def from_workdir(
        cls,
        workdir: epath.PathLike,
        which: checkpoint.Which | None = None,
        **sampling: Any,
    ) -> SuperResolver:
        """Loads what a training run left: its config and the averaged weights.

        It samples as the run's config says, or as `inference.json` does, which
        `--mode=tune_schedule` writes there.

        Args:
          workdir: the `--workdir` of the run.
          which: `latest`, `best` (by held-out loss, of baselines by PSNR), or the step of a
            checkpoint; None for what `config.evaluation.checkpoint` says.
          **sampling: keys of `config.sampling` to use instead, such as `sampler="dpmpp_2m"`,
            `num_steps=20`, `consistent=True`; see configs/default.py.

        Raises:
          FileNotFoundError: where the folder holds no config or no such checkpoint.
          ValueError: where the two do not fit together, or for an unknown key.
        """
        workdir = epath.Path(workdir)
        config = config_file.load(workdir / "config.json")
        return cls.from_config(
            config, workdir / "checkpoints", which, **(sampling_factory.tuned(workdir) | sampling)
        )

    @classmethod
    def from_checkpoint(
        cls, path: epath.PathLike, config: factory.ConfigDict, **sampling: Any
    ) -> SuperResolver:
        """Loads one checkpoint wherever it is, with the config of the network it is of.

        Args:
          path: a checkpoint's folder, `.../STEP`.
          config: as `get_config()` of a config file returns.
          **sampling: see `from_workdir`.

        Raises:
          FileNotFoundError: there is no checkpoint.
          ValueError: the name is no number, or the config is of another network.
        """
        path = epath.Path(path)
        if not path.name.isdigit():
            raise ValueError(
                f"{path} is no checkpoint; give its folder, named by its step, as 5000"
            )
        return cls.from_config(config, path.parent, int(path.name), **sampling)

    @classmethod
    def from_config(
        cls,
        config: factory.ConfigDict,
        checkpoints: epath.PathLike,
        which: checkpoint.Which | None = None,
        **sampling: Any,
    ) -> SuperResolver:
        """As `from_workdir`, with a config that need not lie beside the checkpoints."""
        config = sampling_factory.changed(config, sampling)
        step, params = loading.restore(config, epath.Path(checkpoints), which)
        resolver = cls.from_params(config, params)
        resolver.checkpoint_step = step
        return resolver

    @classmethod
    def from_params(cls, config: factory.ConfigDict, params: Params) -> SuperResolver:
        """With weights at hand, of the network that `config` describes."""
        return cls(
            factory.model(config),
            params,
            functools.partial(sampling_factory.sampler, config),
            sampling_factory.options(config),
            factor=config.data.image_size // config.data.low_resolution,
            stride=models.deepest_stride(config.model.multipliers),
        )

    def set_params(self, params: Params) -> None:
        """Changes the weights; what was compiled stays."""
        self.refiner.set_params(params)

    @property
    def params(self) -> Params:
        """The weights, in the type they are computed with, on all devices."""
        return self.refiner.params

    @property
    def batch_size(self) -> int:
        """Images sampled at once (the next multiple of the devices, where they share it)."""
        return self._options.batch_size

    def num_calls(self, steps: int | None = None) -> int:
        """How often the network is called for one image: `steps`, but of Heun's method more."""
        sampler = self._sampler(steps)
        return 1 if sampler is None else sampler.num_calls

    def num_refinements(
        self,
        shape: tuple[int, ...],
        steps: int | None = None,
        *,
        factor: int | float | None = None,
    ) -> int:
        """How often `upscale` will call its `progress` for images of `shape`."""
        size = self._network_size(shape[1:3], factor)
        return self.refiner.num_batches(shape[0], size) * self.num_calls(steps)

    def upscale(
        self,
        images: Images,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        progress: Progress | None = None,
        *,
        factor: int | float | None = None,
    ) -> Made:
        """Super-resolves an image, or images of one size.

        Args:
          images: RGB, of 8 or 16 bits, of any size.
          steps: refinement steps; None for the config's.
          seed: one number for all, of which image i takes the i-th stream, or one number for
            each image. An image's result depends on its pixels and its seed alone, not on the
            batch it is in.
          progress: called after each refinement step of each batch.
          factor: by how much images grow; None for what the network was trained for. For a larger
            one, images are first resized by bicubic, and the network makes the rest; for a smaller
            one, its results are resized, which loses nothing of the images.

        Returns:
          RGB of the same type, `factor` times as high and wide.

        Raises:
          ValueError: for images of another type or shape, or steps the schedule cannot do.
        """
        images = np.asarray(images)
        if images.ndim == 3:
            return self.upscale(images[None], steps, seed, progress, factor=factor)[0]
        made = self.start(images, steps, seed, factor=factor, progress=progress)
        return np.concatenate([result()[0] for result in made])

    def start(
        self,
        images: Images,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        *,
        factor: int | float | None = None,
        num_snapshots: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[Callable[[], tuple[Made, list[Made]]]]:
        """As `upscale`, of several images, for jobs that do something else while devices refine.

        Yields:
          For each batch, when it is under way, a function that waits for its results and (see
          `sample`) snapshots of the way to them, the result not among them.
        """
        images = refinement.check_images(images)
        size = images.shape[1:3]
        factor = self.factor if factor is None else factor
        wanted = refinement.output_size(size, factor)
        scale = factor / self.factor
        if scale > 1:
            images = refinement.resized(images, scale, self._network_size(size, factor))
        stops = self._stops(steps, num_snapshots)
        for results in self._batches(images, steps, seed, stops=stops, progress=progress):

            def fetch(results: list = results) -> tuple[Made, list[Made]]:
                *kept, made = (
                    refinement.resized(result(), min(scale, 1.0), wanted) for result in results
                )
                return made, kept

            yield fetch

    def _network_size(self, size: tuple[int, int], factor: int | float | None) -> tuple[int, int]:
        """Height and width of the network's input, for those of the image."""
        if factor is None or factor <= self.factor:
            return size
        return tuple(-(-n // self.factor) for n in refinement.output_size(size, factor))

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
    ) -> str:
        """Upscales one picture file as `--mode=upscale` does: alpha, profile and depth are kept.

        Args:
          path: of the picture; local or a URL.
          output: the folder for the result, of the same name.
          steps: see `upscale`.
          seed: of all noise; that of the picture also depends on its name.
          factor: see `upscale`.
          num_samples: see `inference.files.Options`.
          animate: see `inference.files.Options`.

        Returns:
          The path of what was written.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it cannot be read, upscaled or written; the message says why.
        """
        if epath.Path(path).is_dir():
            raise ValueError(f"{path} is a folder; give a file, or use --mode=upscale")
        options = files.Options(steps, seed, factor, num_samples, animate)
        (record,) = files.upscale_files(self, files.find_inputs(path), output, options)
        if record.error:
            raise ValueError(f"{path}: {record.error}")
        return str(epath.Path(output) / record.output)

    def sample_many(
        self,
        image: Images,
        num_samples: int,
        steps: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> (
        UInt8[np.ndarray, "k new_height new_width 3"]
        | UInt16[np.ndarray, "k new_height new_width 3"]
    ):
        """Several results for one image, with noise of their own: what else it could have been.

        Their mean is nearer to the truth in PSNR than each, and blurred; their deviation
        (`inference.pictures.deviation`) says where a result is a guess.

        Returns:
          `[num_samples, height * factor, width * factor, 3]`.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples = {num_samples}; it must be at least 1")
        images = np.repeat(refinement.check_images(np.asarray(image)[None]), num_samples, axis=0)
        return self.upscale(images, steps, seed, progress)

    def sample(
        self,
        images: Images,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        *,
        num_snapshots: int = 0,
        progress: Progress | None = None,
    ) -> Upscaled:
        """As `upscale`; also returns `num_snapshots` of y_t from noise to image, and the time.

        Snapshots are evenly spaced in network calls; the last is the result.
        """
        parts, snapshots = [], []
        begin = time.perf_counter() - self.refiner.compile_seconds
        for fetch in self.start(
            images, steps, seed, num_snapshots=num_snapshots, progress=progress
        ):
            made, kept = fetch()
            parts.append(made)
            snapshots.append(np.stack([*kept, made]) if num_snapshots else made[None][:0])
        seconds = time.perf_counter() - self.refiner.compile_seconds - begin
        return Upscaled(np.concatenate(parts), np.concatenate(snapshots, axis=1), seconds)

    def _batches(
        self,
        images: Images,
        steps: int | None,
        seed: int | Sequence[int],
        *,
        stops: Sequence[int] = (),
        progress: Progress | None = None,
    ) -> Iterator[list[Callable[[], Made]]]:
        """Batch after batch: functions that wait for y_t after each of `stops`, and for y_0."""
        sampler, keys = self._sampler(steps), refinement.keys_of(seed, len(images))
        first = 0
        while first < len(images):
            _, size = self.refiner.share(len(images) - first, images.shape[1:3])
            # A batch is filled up with repeats, so that nothing is compiled anew.
            rows = np.minimum(np.arange(first, first + size), len(images) - 1)
            count = min(size, len(images) - first)
            made = self.refiner.refine(images[rows], keys[rows], sampler, stops, progress)
            yield [lambda result=result, count=count: result()[:count] for result in made]
            first += count

    def _sampler(self, steps: int | None) -> diffusion.Sampler | None:
        steps = self._options.num_steps if steps is None else steps
        if steps < 1:
            raise ValueError(f"steps = {steps}; it must be at least 1")
        return self.make_sampler(steps)

    def _stops(self, steps: int | None, num_snapshots: int) -> list[int]:
        """After how many calls to look, the end apart."""
        calls = self.num_calls(steps)
        if num_snapshots == 1 or num_snapshots < 0 or num_snapshots > calls + 1:
            raise ValueError(
                f"num_snapshots = {num_snapshots}: use 0, or 2 (first and last) to {calls + 1} "
                f"(all) for {calls} network calls"
            )
        return np.round(np.linspace(0, calls, num_snapshots)).astype(int)[:-1].tolist()
