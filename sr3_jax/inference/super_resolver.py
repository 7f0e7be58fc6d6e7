"""Upscaling with a trained network: `SuperResolver`, the object users hold."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from jaxtyping import Array, Float, Key, UInt8

from sr3_jax import config_file, diffusion, factory, models, parallel
from sr3_jax import images as image_ops
from sr3_jax.inference import tiling
from sr3_jax.training import checkpoint
from sr3_jax.training.state import Params

Progress = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Upscaled:
    """What one call made.

    Attributes:
      images: `[n, h * factor, w * factor, 3]` 8-bit.
      refinement: `[k, n, h * factor, w * factor, 3]` 8-bit, y_T to y_0; empty where not asked.
      seconds: spent sampling, compilation not counted.
    """

    images: UInt8[np.ndarray, "n height width 3"]
    refinement: UInt8[np.ndarray, "k n height width 3"]
    seconds: float


class SuperResolver:
    """Upscales images by a fixed factor by SR3's iterative refinement, or a baseline's one step.

    The sampler is compiled once for each combination of image size, batch size and number of
    steps. The devices share each batch; where there are fewer images than devices, the others stay
    idle. Of several processes, each has images and devices of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Params,
        make_schedule: Callable[[int], diffusion.NoiseSchedule | None],
        options: factory.SamplingOptions,
        *,
        factor: int,
        stride: int,
    ) -> None:
        """Puts the parameters on all devices.

        Args:
          model: estimates the noise: `model.apply({"params": params}, x, y_t, gamma)`; or, of a
            baseline, the image: `model.apply({"params": params}, x)`.
          params: its weights; for the best pictures the averaged ones.
          make_schedule: the inference schedule of a number of steps; of a baseline None.
          options: of sampling; its `num_steps` and `batch_size` are the defaults.
          factor: by how much images grow.
          stride: sizes that the model takes are multiples of it; others are padded, and images
            larger than `options.tile_size` refined in tiles.
        """
        self.checkpoint_step: int | None = None  # of training, where the weights are a checkpoint's
        self._devices = jax.local_devices()
        self._model, self._make_schedule, self._options = model, make_schedule, options
        self.factor, self._stride = factor, stride
        self._compiled: dict[tuple, Callable] = {}
        self._progress: Progress | None = None
        self.set_params(params)

    @classmethod
    def from_workdir(
        cls, workdir: epath.PathLike, which: checkpoint.Which | None = None
    ) -> SuperResolver:
        """Loads what a training run left: its config and the averaged weights.

        Args:
          workdir: the `--workdir` of the run.
          which: `latest`, `best` (by held-out loss, of baselines by PSNR), or the step of a
            checkpoint; None for what `config.evaluation.checkpoint` says.

        Raises:
          FileNotFoundError: where the folder holds no config or no such checkpoint.
          ValueError: where the two do not fit together.
        """
        workdir = epath.Path(workdir)
        config = config_file.load(workdir / "config.json")
        return cls.from_config(config, workdir / "checkpoints", which)

    @classmethod
    def from_config(
        cls,
        config: factory.ConfigDict,
        checkpoints: epath.PathLike,
        which: checkpoint.Which | None = None,
    ) -> SuperResolver:
        """As `from_workdir`, with a config that need not lie beside the checkpoints."""
        if not epath.Path(checkpoints).is_dir():
            raise FileNotFoundError(f"{checkpoints} does not exist: nothing was trained there")
        model = factory.model(config)
        inputs = models.example_inputs(model, config.data.image_size)
        shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        sharding = parallel.replicated(parallel.make_mesh(jax.local_devices()))
        like = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes["params"]
        )
        checkpointer = checkpoint.Checkpointer(checkpoints, read_only=True)
        which = factory.checkpoint(config) if which is None else which
        step, restored = checkpointer.restore_part({"ema_params": like}, which)
        checkpointer.close()
        resolver = cls.from_params(config, restored["ema_params"])
        resolver.checkpoint_step = step
        return resolver

    @classmethod
    def from_params(cls, config: factory.ConfigDict, params: Params) -> SuperResolver:
        """With weights at hand, of the network that `config` describes."""
        return cls(
            factory.model(config),
            params,
            functools.partial(factory.inference_schedule, config),
            factory.sampling_options(config),
            factor=config.data.image_size // config.data.low_resolution,
            stride=models.deepest_stride(config.model.multipliers),
        )

    def set_params(self, params: Params) -> None:
        """Changes the weights; what was compiled stays."""
        mesh = parallel.make_mesh(self._devices)
        self._params = jax.device_put(params, parallel.replicated(mesh))
        self._placed: dict[int, Params] = {len(self._devices): self._params}

    @property
    def params(self) -> Params:
        """The weights, on all devices."""
        return self._params

    @property
    def batch_size(self) -> int:
        """Images sampled at once (the next multiple of the devices, where they share it)."""
        return self._options.batch_size

    def upscale(
        self,
        images: UInt8[np.ndarray, "n height width 3"],
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        progress: Progress | None = None,
    ) -> UInt8[np.ndarray, "n new_height new_width 3"]:
        """Super-resolves images of one size.

        Args:
          images: 8-bit RGB.
          steps: refinement steps; None for the config's.
          seed: one number for all, of which image i takes the i-th stream, or one number for
            each image. An image's result depends on its pixels and its seed alone, not on the
            batch it is in.
          progress: called after each refinement step of each batch.

        Returns:
          8-bit RGB, `factor` times as high and wide.

        Raises:
          ValueError: for images of another type or shape, or steps the schedule cannot do.
        """
        return self.sample(images, steps, seed, progress=progress).images

    def num_refinements(self, num_images: int, steps: int | None = None) -> int:
        """How often `upscale` will call its `progress`."""
        steps = self._options.num_steps if steps is None else steps
        _, size = self._share(num_images)
        return -(-num_images // size) * steps

    def sample(
        self,
        images: UInt8[np.ndarray, "n height width 3"],
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        *,
        num_snapshots: int = 0,
        progress: Progress | None = None,
    ) -> Upscaled:
        """As `upscale`; also returns `num_snapshots` of y_t from noise to image, and the time."""
        images = _check_images(images)
        steps = self._options.num_steps if steps is None else steps
        if steps < 1:
            raise ValueError(f"steps = {steps}; it must be at least 1")
        keys = _keys(seed, len(images))
        devices, size = self._share(len(images))
        params = self._params_on(devices)
        run = self._sampler(
            devices, size, images.shape[1:3], steps, num_snapshots, progress is not None
        )
        parts, snapshots, seconds = [], [], 0.0
        self._progress = progress
        try:
            for first in range(0, len(images), size):
                rows = np.arange(first, first + size)
                # The last batch is filled up with repeats, so that nothing is compiled anew.
                rows = np.minimum(rows, len(images) - 1)
                begin = time.perf_counter()
                y_0, kept = jax.device_get(run(params, images[rows], keys[rows]))
                seconds += time.perf_counter() - begin
                count = min(size, len(images) - first)
                parts.append(y_0[:count])
                snapshots.append(kept[:, :count])
        finally:
            self._progress = None
        return Upscaled(np.concatenate(parts), np.concatenate(snapshots, axis=1), seconds)

    def _share(self, num_images: int) -> tuple[int, int]:
        """How many devices sample so many images, and how many images they take at once."""
        largest = min(num_images, self._options.batch_size)
        devices = min(largest, len(self._devices))
        return devices, -(-largest // devices) * devices

    def _mesh(self, devices: int) -> jax.sharding.Mesh:
        return parallel.make_mesh(self._devices[:devices])

    def _params_on(self, devices: int) -> Params:
        """The parameters on the first few devices."""
        if devices not in self._placed:
            where = parallel.replicated(self._mesh(devices))
            self._placed[devices] = jax.device_put(self._params, where)
        return self._placed[devices]

    def _sampler(
        self,
        devices: int,
        batch: int,
        size: tuple[int, int],
        steps: int,
        num_snapshots: int,
        report: bool,
    ) -> Callable:
        """The compiled sampler of one shape."""
        signature = (devices, batch, *size, steps, num_snapshots, report)
        if signature not in self._compiled:
            mesh = self._mesh(devices)
            split = parallel.split_batch(mesh)
            program = jax.jit(
                functools.partial(
                    self._sample,
                    schedule=self._make_schedule(steps),
                    num_snapshots=num_snapshots,
                    report=report,
                ),
                in_shardings=(parallel.replicated(mesh), split, split),
            )
            images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8)
            keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
            self._compiled[signature] = parallel.compile_for(
                mesh.devices.flat[0], program.lower(self._params_on(devices), images, keys)
            )
        return self._compiled[signature]

    def _sample(
        self,
        params: Params,
        images: UInt8[Array, "b h w 3"],
        keys: Key[Array, " b"],
        *,
        schedule: diffusion.NoiseSchedule | None,
        num_snapshots: int,
        report: bool,
    ) -> tuple[UInt8[Array, "b h2 w2 3"], UInt8[Array, "k b h2 w2 3"]]:
        height, width = (n * self.factor for n in images.shape[1:3])
        x = image_ops.upsample_source(images, (height, width))
        padding = [(0, 0), *((0, -n % self._stride) for n in (height, width)), (0, 0)]
        x = jnp.pad(x, padding, mode="edge")

        def network(x: Array, y_t: Array, gamma: Array) -> Float[Array, "b h w 3"]:
            inputs = (x,) if schedule is None else (x, y_t, gamma)
            return self._model.apply({"params": params}, *inputs)

        tile_size = self._options.tile_size
        estimate = tiling.tiled_denoise(network, x, tile_size, tile_size // 4)

        def denoise(y_t: Array, gamma: Array) -> Float[Array, "b h w 3"]:
            if report:
                # Tied to y_t, so that it runs when the step before is done.
                jax.debug.callback(self._report, y_t[0, 0, 0, 0], ordered=False)
            return estimate(y_t, gamma)

        if schedule is None:
            y_0 = denoise(x, jnp.zeros(len(x)))
            snapshots = jnp.zeros((0, *y_0.shape))
        else:
            y_0, snapshots = diffusion.ancestral_sample(
                denoise,
                schedule,
                keys,
                x.shape[1:],
                variance=self._options.variance,
                clip=self._options.clip,
                num_snapshots=num_snapshots,
            )
        y_0, snapshots = y_0[:, :height, :width], snapshots[:, :, :height, :width]
        if self._options.consistent:
            y_0 = image_ops.make_consistent(y_0, images)
        return image_ops.to_uint8(y_0), image_ops.to_uint8(snapshots)

    def _report(self, _: object) -> None:
        if self._progress is not None:
            self._progress()


def _check_images(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}; upscale takes uint8 RGB of shape "
            "[n, height, width, 3] (a single image: image[None])"
        )
    return images


def _keys(seed: int | Sequence[int], count: int) -> Key[Array, " n"]:
    if np.ndim(seed) == 0:
        key = jax.random.key(int(seed))
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    if len(seed) != count:
        raise ValueError(f"{len(seed)} seeds for {count} images; give one for each, or a number")
    return jax.vmap(jax.random.key)(jnp.asarray(seed, jnp.uint32))
