"""`TrainedNetwork`: loading and sampling, shared by `SuperResolver` and `Generator`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import jax
import numpy as np
from etils import epath
from jaxtyping import Int, Key
from ml_collections import ConfigDict

from sr3_jax import diffusion, models, released, scaling
from sr3_jax.checkpoints import Which
from sr3_jax.config import Config, Sampling, networks, read, run_file, schedules, students
from sr3_jax.data import resumable
from sr3_jax.inference import host_images, loading, refinement
from sr3_jax.models import Params

Trained = TypeVar("Trained")  # the class that a network is loaded as
Progress = Callable[[], None]
# One number for all images, one for each, or their keys; see `SuperResolver.upscale`.
Seed = int | Sequence[int] | Key[jax.Array, " n"]
# A class, from 0: of all images, or of each.
Label = int | Sequence[int] | Int[np.ndarray, " n"]


class TrainedNetwork:
    """A network with its weights on the devices, its sampler, and its compiled programs.

    Use `SuperResolver`, or `Generator` for networks without a source.
    """

    _makes_from_source: ClassVar[bool]

    def __init__(
        self,
        denoiser: models.Denoiser,
        params: Params,
        make_sampler: Callable[[int], diffusion.Sampler],
        sampling: Sampling,
        *,
        factor: int | float,
        stride: int,
        knows_no_class: bool = True,
        scalings: scaling.Scalings | None = None,
        upsample: Callable[..., Any] | None = None,
    ) -> None:
        """Puts the parameters on all devices.

        Args:
          denoiser: estimates y_0.
          params: its weights; the averaged ones give better pictures.
          make_sampler: returns the sampler of a number of steps.
          sampling: the sampling options; `num_steps` is the default.
          factor: ratio of output to input size.
          stride: the network takes sizes that are multiples of it; others are padded.
          knows_no_class: whether a class-conditional network may be called without a label.
          scalings: units of numbers that are no levels; None for levels of 8 or 16 bits.
          upsample: `upsample(low, size)` makes the network's x; None for bicubic.
        """
        self.checkpoint_step: int | None = None  # of training, where the weights are a checkpoint's
        # The folder that it was loaded from, and what identifies it (`loading.fingerprint`).
        self.workdir: epath.Path | None = None
        self.fingerprint: Callable[[], resumable.Fingerprint] | None = None
        # Value that means white in 16-bit pictures; 0: 65535. See `config.data.white_level`.
        self.white_level = 0
        self.num_channels, self.num_maps = 3, 0  # of low resolutions and of maps
        # Names of channels in files of named arrays; see `config.data.variables`.
        self.variables: tuple[str, ...] = ()
        self.map_variables: tuple[str, ...] = ()
        self.factor = factor
        self.make_sampler, self._sampling = make_sampler, sampling
        self._knows_no_class = knows_no_class
        self.refiner = refinement.Refiner(
            denoiser,
            sampling,
            factor=factor,
            stride=stride,
            devices=jax.local_devices(),
            scalings=scalings,
            upsample=upsample,
        )
        self.set_params(params)

    @classmethod
    def from_workdir(
        cls: type[Trained], workdir: epath.PathLike, which: Which | None = None, **sampling: Any
    ) -> Trained:
        """Loads the averaged weights of a training run, or of a released network.

        Sampling follows `inference.json` of the workdir, which `--mode=tune_schedule` writes, or
        else the run's config.

        Args:
          workdir: the `--workdir` of the run; or `hf://USER/NAME`, or a name of `sr3 models`
            (`released.locate`).
          which: `latest`, `best` (lowest held-out loss; highest PSNR for baselines), or the step of
            a checkpoint; None for `config.evaluation.checkpoint`.
          **sampling: overrides keys of `config.sampling`, such as `sampler="dpmpp_2m"`,
            `num_steps=20`, `consistent=True`; see docs/config.md.

        Raises:
          FileNotFoundError: the folder has no config, or no such checkpoint.
          ValueError: the checkpoint is of another network, or a key is unknown.
        """
        workdir = released.locate(workdir)
        config = run_file.load(workdir / "config.json")
        sampling = run_file.tuned(workdir, config) | sampling
        made = cls.from_config(config, workdir / "checkpoints", which, **sampling)
        made.workdir = workdir
        return made

    @classmethod
    def from_config(
        cls: type[Trained],
        config: Config | ConfigDict,
        checkpoints: epath.PathLike,
        which: Which | None = None,
        **sampling: Any,
    ) -> Trained:
        """Loads a checkpoint of a folder of checkpoints; see `from_workdir`."""
        config = students.with_sampling(read(config), sampling)
        step, params = loading.restore(config, epath.Path(checkpoints), which)
        resolver = cls.from_params(config, params)
        resolver.checkpoint_step = step
        resolver.fingerprint = functools.partial(
            loading.fingerprint, config, epath.Path(checkpoints), step
        )
        return resolver

    @classmethod
    def from_params(cls: type[Trained], config: Config | ConfigDict, params: Params) -> Trained:
        """Makes one of weights at hand, of the network that `config` describes."""
        config = read(config)
        if config.has_source != cls._makes_from_source:
            low, use = config.data.low_resolution, "nothing: use Generator, or --mode=generate"
            if low:
                use = "smaller ones: use SuperResolver, or --mode=upscale"
            raise ValueError(
                f"a network of config.data.low_resolution = {low} makes images from {use}"
            )
        made = cls(
            networks.denoiser(config),
            params,
            functools.partial(schedules.sampler, config),
            config.effective_sampling,
            factor=config.factor,
            stride=config.stride,
            knows_no_class=config.knows_no_class,
            scalings=config.scalings,
            upsample=networks.upsampling(config),
        )
        made.num_channels = config.source_channels
        made.num_maps = config.data.maps
        made.variables, made.map_variables = config.data.variables, config.data.map_variables
        made.white_level = config.data.white_level
        return made

    @property
    def scalings(self) -> scaling.Scalings | None:
        """Units of numbers that are no levels; None for levels."""
        return self.refiner.scalings

    def set_params(self, params: Params) -> None:
        """Replaces the weights; compiled programs stay."""
        self.refiner.set_params(params)

    @property
    def params(self) -> Params:
        """The weights in the network's type, on all devices."""
        return self.refiner.params

    @property
    def batch_size(self) -> int:
        """Number of images sampled at once; rounded up to a multiple of the devices in use."""
        return self._sampling.batch_size

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if unconditional."""
        return self.refiner.denoiser.network.num_classes

    def nfe(self, steps: int | None = None) -> int:
        """Returns the number of function evaluations of an image: the calls of the network."""
        return self._sampler(steps).nfe

    def _batches(
        self,
        images: host_images.Images,
        steps: int | None,
        seed: Seed,
        label: Label | None,
        progress: Progress | None,
        stops: Sequence[int] = (),
        maps: host_images.Images | None = None,
        watch: Callable[[host_images.Images], None] | None = None,
    ) -> Iterator[list[Callable[[], host_images.Images]]]:
        """Yields for each batch functions that wait for y_t after each of `stops`, and for y_0.

        `watch` is called with each y_t while the batch is being refined.
        """
        labels = self._labels(label, len(images))
        sampler, keys = self._sampler(steps), host_images.keys_of(seed, len(images))
        first = 0
        for _, size in self.refiner.batches(len(images), images.shape[1:3]):
            # A batch is filled up with repeats, so that nothing is compiled anew.
            rows = np.minimum(np.arange(first, first + size), len(images) - 1)
            count = min(size, len(images) - first)
            of_rows = None if labels is None else labels[rows]
            made = self.refiner.refine(
                images[rows],
                keys[rows],
                sampler,
                stops,
                progress,
                of_rows,
                None if maps is None else maps[rows],
            )
            results = []
            for result in made:
                results.append(lambda result=result, count=count: result()[:count])
                if watch and len(results) <= len(stops):
                    watch(results[-1]())
            yield results
            first += count

    def _labels(self, label: Label | None, count: int) -> Int[np.ndarray, " n"] | None:
        """Returns the class of each image; None for the null label."""
        known = self.num_classes
        if label is None:
            if known and not self._knows_no_class:
                raise ValueError(
                    f"no label, but the network was trained with one for every image "
                    f"(config.train.label_dropout = 0); give one of 0 to {known - 1}"
                )
            return None
        labels = np.broadcast_to(np.asarray(label, np.int32), (count,))
        if wrong := [int(i) for i in labels if not 0 <= i < known]:
            classes = f"0 to {known - 1}" if known else "none"
            raise ValueError(f"label = {min(wrong)}; the network knows {classes}")
        return labels

    def _sampler(self, steps: int | None) -> diffusion.Sampler:
        steps = self._sampling.num_steps if steps is None else steps
        if not isinstance(steps, int | np.integer) or steps < 1:
            raise ValueError(f"steps = {steps!r}; it must be a whole number of at least 1")
        return self.make_sampler(steps)

    def _stops(self, steps: int | None, num_snapshots: int) -> list[int]:
        """Returns the numbers of calls after which to take snapshots, without the last."""
        calls = self.nfe(steps)
        if num_snapshots == 1 or num_snapshots < 0 or num_snapshots > calls + 1:
            raise ValueError(
                f"num_snapshots = {num_snapshots}: use 0, or 2 (first and last) to {calls + 1} "
                f"(all) for {calls} network calls"
            )
        return np.round(np.linspace(0, calls, num_snapshots)).astype(int)[:-1].tolist()
