"""Images and batches of a config: its sections `data` and `evaluation`."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt, UInt8

from sr3_jax import image_ops, scaling, sizes
from sr3_jax.config import networks, resolve
from sr3_jax.config.reading import changed
from sr3_jax.config.sections import Config
from sr3_jax.data import image_files, source_kinds, sources, storage
from sr3_jax.data.image_files import BadImageError

if TYPE_CHECKING:  # imported only where images are read: it takes seconds
    from sr3_jax.data import pipeline, windows

_nothing = lambda: None  # noqa: E731
_MOST_TRIED = 100  # files that are opened to find a readable one
_ROWS = 64  # read together where no batch is made of them


def training_source(config: Config, index_dir: epath.PathLike | None = None) -> sources.Source:
    """The images to train on.

    Lists of what was found are kept in `index_dir`, for the next start; None: nowhere.
    """
    images = _open(config, "train", index_dir)
    if resolve.has_held_out(config):
        return images
    return sources.Subset(images, np.delete(np.arange(len(images)), _held_out(config, images)))


def evaluation_source(config: Config, index_dir: epath.PathLike | None = None) -> sources.Source:
    """The held-out images, at most `config.evaluation.num_images` of them; see the other."""
    images = _open(config, "eval", index_dir)
    if not resolve.has_held_out(config):
        images = sources.Subset(images, _held_out(config, images))
    return images[: config.evaluation.num_images or None]


def training_pipeline(config: Config, index_dir: epath.PathLike | None = None) -> pipeline.Pipeline:
    """Batches of `config.train.batch_size` training images, over all processes."""
    source = training_source(config, index_dir)
    return make_pipeline(config, source, config.train.batch_size, config.data.image_size)


def evaluation_pipeline(
    config: Config,
    batch_size: int,
    num_images: int | None = None,
    *,
    split: bool = True,
    index_dir: epath.PathLike | None = None,
    signed: bool = True,
) -> pipeline.Pipeline:
    """Batches of (the first `num_images` of) the held-out images; see `make_pipeline`."""
    source = evaluation_source(config, index_dir)[:num_images]
    how = config.evaluation.downsampling
    return make_pipeline(
        config, source, batch_size, config.evaluation_size, split, how, signed=signed
    )


def central_training_images(
    config: Config, index_dir: epath.PathLike | None = None
) -> Iterator[UInt[np.ndarray, "_h _w 3"]]:
    """The largest central window of every usable training image, at the size of evaluation."""
    source = training_source(config, index_dir)
    pipeline_ = make_pipeline(config, source, _ROWS, config.evaluation_size, split=False)
    for batch in pipeline_.evaluation_batches():
        yield from batch["high_resolution"][batch["weight"] > 0]


def shown_in_training(
    config: Config, most: int, index_dir: epath.PathLike | None = None
) -> Iterator[UInt8[np.ndarray, "n size size 3"]]:
    """Yields the first training crops in 8 bits, as training draws them but for its flips.

    There are at least `most` random crops; of central ones, each image once, or `most`.
    """
    yield from _first_crops(config, training_source(config, index_dir), most)


def residual_rms(config: Config, most: int, index_dir: epath.PathLike | None = None) -> float:
    """Returns the root mean square of y_0 - x over `most` training crops; without x, of y_0.

    It is that of images in [-1, 1], to three digits, and the same in all processes.
    """
    source = training_source(config, index_dir)
    images = make_pipeline(config, source, _ROWS, config.data.image_size, split=False)
    squares = []
    with contextlib.closing(images.training_batches()) as batches:
        for batch in itertools.islice(batches, -(-most // _ROWS)):
            y_0, x = image_ops.to_signed(batch["high_resolution"]), 0.0
            if config.has_source:
                low, size = image_ops.to_signed(batch["low_resolution"]), y_0.shape[1:3]
                x = image_ops.network_input(
                    low, size, may_miss=config.data.missing, resize=networks.upsampling(config)
                )
                y_0, _ = image_ops.with_known(y_0, x, config.known_at)
                x = x[..., : y_0.shape[-1]]
            squares.append(np.mean(np.square(y_0 - x), axis=(1, 2, 3))[batch["weight"] > 0])
    return float(f"{np.sqrt(np.mean(np.concatenate(squares))):.3g}")


def statistics(
    config: Config, index_dir: epath.PathLike | None = None, progress: Callable[[], None] = _nothing
) -> scaling.Statistics:
    """Measures `config.units`: channels of low resolutions, then those of maps, of all images.

    `progress` is called after each image. Images that cannot be used are left out.

    Raises:
      ValueError: no image can be used.
    """
    source = training_source(config, index_dir)
    reader = make_pipeline(config, source, 1, config.data.image_size, split=False, signed=False)
    data, count = config.data, len(source)
    # Low resolutions of their own have the units of y_0, and more channels.
    parts = {"image": data.channels if data.low_path else config.source_channels}
    if data.low_path and config.source_channels > data.channels:
        parts["low_resolution"] = config.source_channels - data.channels
    if data.maps:
        parts["maps"] = data.maps
    measuring = {name: scaling.Measuring(channels, count) for name, channels in parts.items()}
    for picture in reader.usable_pictures():
        for name, measured in measuring.items():
            first = data.channels if name == "low_resolution" else 0
            measured.add(getattr(picture, name)[..., first:])
        progress()
    found = [measured.statistics() for measured in measuring.values()]
    return scaling.Statistics(
        *(sum(parts, ()) for parts in zip(*(vars(each).values() for each in found), strict=True))
    )


def read_statistics(path: epath.PathLike) -> dict[str, Any]:
    """Returns the statistics in a file of `tools.measure_data`, as values of `config.units`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is another file.
    """
    names = [field.name for field in dataclasses.fields(scaling.Statistics)]
    try:
        found = json.loads(storage.read(path))
        return {name: found[name] for name in names}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"config.units.file = {path!s} is no file of sr3_jax.tools.measure_data: {error!r}"
        ) from error


def with_statistics(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns the config with statistics in `config.units`.

    Raises:
      ValueError: they are of another number of channels.
    """
    return changed(config, {f"units.{name}": value for name, value in values.items()})


def channel_labels(config: Config, index_dir: epath.PathLike | None = None) -> tuple[str, ...]:
    """Returns a label of each channel of y_0, with its unit where the files say it: `t2m (K)`."""
    names, units = config.data.variables, ()
    for ref in itertools.islice(_open(config, "eval", index_dir), _MOST_TRIED):
        with contextlib.suppress(BadImageError, AttributeError):  # pictures have no names
            file = ref.open()
            names, units = names or file.names, file.units
            break
    count = config.data.channels
    names = (*names[:count], *map(str, range(len(names), count)))
    units = (*units[:count], *[""] * count)[:count]
    return tuple(
        f"{name} ({unit})" if unit else name for name, unit in zip(names, units, strict=True)
    )


def held_out_images(
    config: Config, most: int, index_dir: epath.PathLike | None = None
) -> UInt8[np.ndarray, "n size size 3"]:
    """Usable held-out images, `most` at most, cut as those of `shown_in_training` are."""
    source = evaluation_source(config, index_dir)
    return np.concatenate(list(_first_crops(config, source, most)))[:most]


def _first_crops(
    config: Config, source: sources.Source, most: int
) -> Iterator[UInt8[np.ndarray, "n size size 3"]]:
    images = make_pipeline(config, source, _ROWS, config.data.image_size, split=False)
    once = config.data.crop == "central" and len(source) <= most
    batches = images.evaluation_batches() if once else images.training_batches()
    with contextlib.closing(batches):
        for batch in itertools.islice(batches, -(-most // _ROWS)):
            yield image_files.to_8_bits(batch["high_resolution"][batch["weight"] > 0])


def make_pipeline(
    config: Config,
    source: sources.Source,
    batch_size: int,
    image_size: sizes.Size,
    split: bool = True,
    downsampling: windows.Downsampling = "pillow",
    *,
    signed: bool = True,
) -> pipeline.Pipeline:
    """Batches of a source, with everything else from `config.data`.

    The low resolution is smaller than `image_size` by the factor of the config. Where `split`,
    each process gets rows of its own. Numbers that are no levels are in the range of the network,
    or, without `signed`, in their own units.
    """
    from sr3_jax.data import depth, pipeline, windows

    c, low = config.data, 0
    if config.has_source:
        high, by = config.image_sides[0], config.low_sides[0]
        low = tuple(n * by // high for n in sizes.sides(image_size))
    options = windows.DegradeOptions(
        image_size=image_size,
        low_resolution=low,
        crop=c.crop,
        crop_scale=c.crop_scale,
        downsampling=downsampling,
        degradation=config.degradation.options(),
    )
    make = pipeline.Pipeline
    if c.loader == "tf":
        from sr3_jax.data import tf_pipeline  # imports TensorFlow

        make = tf_pipeline.TfPipeline
    return make(
        source,
        options,
        batch_size=batch_size,
        seed=config.seed,
        process_index=jax.process_index() if split else 0,
        process_count=jax.process_count() if split else 1,
        dtype=c.dtype or None,
        white_level=c.white_level,
        channels=depth.Channels(c.channels, config.source_channels, c.maps, c.missing),
        scalings=config.scalings if signed else None,
        cache_bytes=int(c.cache_gb * 2**30),
        max_bad_share=c.max_bad_share,
        num_threads=c.num_threads or None,
    )


def _open(
    config: Config, half: source_kinds.Half, index_dir: epath.PathLike | None
) -> sources.LazySource:
    kind, place = resolve.place_of(config, half, index_dir)
    images = kind.open(place)
    is_lazy = isinstance(images, sources.LazySource)
    return images if is_lazy else sources.Subset(images, np.arange(len(images)))


def _held_out(config: Config, images: sources.LazySource) -> np.ndarray:
    """Positions chosen by a hash of the name: adding images later moves few across the split."""
    count = config.data.num_eval_images
    if not 0 < count < len(images):
        raise ValueError(
            f"config.data.num_eval_images = {count} of the {len(images)} images of "
            f"config.data.path = {config.data.path!r} are to be held out, which leaves none to "
            "train on or none to evaluate; change it, or give config.data.eval_path"
        )
    hashes = np.fromiter(map(zlib.crc32, images.names()), np.uint32, len(images))
    last = np.partition(hashes, count - 1)[count - 1]
    below, ties = np.flatnonzero(hashes < last), np.flatnonzero(hashes == last)
    ties = sorted(ties.tolist(), key=lambda i: images[i].name)[: count - len(below)]
    return np.sort(np.concatenate([below, np.array(ties, below.dtype)]))
