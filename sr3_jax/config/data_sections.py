"""Options of the data: where images are, what they hold, and how their numbers are scaled."""

from __future__ import annotations

import dataclasses
import itertools

from sr3_jax import scaling
from sr3_jax.config.fields import Section, Size, option
from sr3_jax.data import degradations, source_kinds

SOURCES = tuple(source_kinds.KINDS)


@dataclasses.dataclass(frozen=True)
class Data(Section):
    """The images, and how they are cut and paired with low resolutions."""

    source: str = option(
        "folder",
        "Kind of the training images. "
        + " ".join(f"`{name}`: {kind.meaning}." for name, kind in source_kinds.KINDS.items())
        + " See docs/data.md.",
        choices=SOURCES,
    )
    path: str = option(
        "",
        "The training images: a folder, a tar file, TFRecord files, or NAME:SPLIT of TFDS, "
        "several with commas.",
    )
    low_path: str = option("", "Their low resolutions, for `folder_pairs` and `arrays`.")
    maps_path: str = option(
        "",
        "Their maps, for `maps`: a folder with a file of the same name for each of theirs, or one "
        "file for all.",
    )
    tfds_dir: str = option(
        "",
        "Where TFDS has prepared its data sets. Empty: where TFDS looks, `TFDS_DATA_DIR` or "
        "`~/tensorflow_datasets`.",
    )
    tfds_train: str = option(
        "", "NAME:SPLIT of TFDS that is trained on if `path` is empty; set by the paper's configs."
    )
    tfds_eval: str = option(
        "",
        "NAME:SPLIT of TFDS that is held out if `eval_path` is empty, unless `path` is given in "
        "place of `tfds_train`.",
    )
    eval_path: str = option(
        "",
        "The held-out images. Empty: `num_eval_images` of `path`, chosen by a hash of their "
        "names, are kept out of training.",
    )
    eval_source: str = option(
        "", "Kind of the held-out images. Empty: as `source`.", choices=("", *SOURCES)
    )
    eval_low_path: str = option("", "Low resolutions of the held-out images, as `low_path`.")
    eval_maps_path: str = option("", "Maps of the held-out images. Empty: as `maps_path`.")
    num_eval_images: int = option(16, "Number of images held out of `path`.", at_least=0)
    image_size: Size = option(
        256,
        "Size of y_0, in pixels: one number for squares, or (height, width).",
        at_least=1,
        at_most=65_536,
        may_change=False,
    )
    low_resolution: Size = option(
        64,
        "Size of the source x, in pixels, of the same shape as y_0. 0: the network has no source "
        "and makes images from noise alone, as the first network of a cascade does.",
        at_least=0,
        at_most=65_536,
        may_change=False,
    )
    upsampling: str = option(
        "bicubic",
        "How the network is given the source, at the size of y_0. `bicubic`, as in the paper. "
        "`consistent`: bicubic with the least change after which the downsampled result is the "
        "source; images are then nearer to their source (docs/choosing.md).",
        choices=("bicubic", "consistent"),
        may_change=False,
    )
    dtype: str = option(
        "",
        "Type of the pixels. Empty: that of the first image. 8-bit images are scaled exactly to "
        "16 bits; 16-bit images are rounded to 8 bits, which is logged. `float32`: numbers of any "
        "range, mapped to the network's by `config.units`; see docs/arrays.md.",
        choices=("", "uint8", "uint16", "float32"),
    )
    channels: int = option(
        3,
        "Channels of y_0. Pictures have 3, or 1 if all are grey.",
        at_least=1,
        at_most=1024,
        may_change=False,
    )
    source_channels: int = option(
        0,
        "Channels of the low resolution, the first of which are those of y_0; further ones, such "
        "as other acquisitions, help to predict it. 0: as `channels`.",
        at_least=0,
        at_most=1024,
        may_change=False,
    )
    maps: int = option(
        0,
        "Channels that the network is given beside, at the size of y_0, such as elevation.",
        at_least=0,
        at_most=1024,
        may_change=False,
    )
    missing: bool = option(
        False,
        "Values may be missing (NaN, or the file's nodata). The loss leaves them out, and the "
        "network is told where the low resolution has none. False: an image with some is damaged.",
        may_change=False,
    )
    variables: tuple[str, ...] = option(
        (),
        "Names of the arrays that are the channels, in files of named arrays (NetCDF, Zarr, HDF5, "
        "npz). Empty: the only array there is.",
    )
    map_variables: tuple[str, ...] = option((), "The same for maps.")
    white_level: int = option(
        0,
        "Value that means white in 16-bit images, such as 4095 for 12 bits; brighter values are "
        "clipped. 0: 65535.",
        at_least=0,
        at_most=65_535,
        may_change=False,
    )
    crop: str = option(
        "central",
        "`central`: the largest central window of the shape of `image_size`; `random`: one drawn "
        "anew each time.",
        choices=("central", "random"),
    )
    crop_scale: tuple[float, float] = option(
        (0.0, 1.0),
        "Least and greatest side of random crops, as a share of that of the largest; never less "
        "than `image_size`. (0, 0): windows are cut at the resolution of the images, held-out ones "
        "from the middle.",
        at_least=0.0,
        at_most=1.0,
        lengths=(2,),
        increases=True,
    )
    cache_gb: float = option(
        1.0,
        "Memory for images that were read, in GiB: pairs, or whole images where crops are random.",
        at_least=0.0,
    )
    num_threads: int = option(
        0, "Threads that read, decode and resize. 0: one for each core.", at_least=0, at_most=4096
    )
    loader: str = option(
        "grain",
        "What makes the batches. `grain`: Grain's threads, with the decoders of this project. "
        "`tf`: a `tf.data.Dataset`, which decodes plain JPEG and PNG files itself; it needs "
        "TensorFlow, and keeps no image in memory. Both have the same order and crops.",
        choices=("grain", "tf"),
    )
    max_bad_share: float = option(
        0.01, "A run stops when a larger share of images is damaged.", at_least=0.0, at_most=1.0
    )


@dataclasses.dataclass(frozen=True)
class Degradation(Section):
    """What is done to low resolutions in training and evaluation, as to photographs of the web.

    A low resolution is made by a blur, a resizing, noise and JPEG compression, each drawn anew for
    each example. The defaults are none: bicubic alone.
    """

    share: float = option(
        1.0, "Share of examples that are degraded; others are not.", at_least=0.0, at_most=1.0
    )
    blur: tuple[float, float] = option(
        (0.0, 0.0),
        "Least and greatest standard deviation of the blur, in pixels of the low resolution.",
        at_least=0.0,
        at_most=32.0,
        lengths=(2,),
        increases=True,
    )
    blur_kernels: tuple[str, ...] = option(
        ("gaussian",),
        "Kernels of the blur, one of which is drawn. `anisotropic`: a Gaussian that is narrower "
        "across a direction; `disk`: out of focus; `motion`: a straight line.",
        choices=degradations.BLURS,
    )
    resize_kernels: tuple[str, ...] = option(
        ("bicubic",),
        "Kernels of the resizing, one of which is drawn; all are anti-aliased.",
        choices=degradations.RESIZERS,
    )
    noise: tuple[float, float] = option(
        (0.0, 0.0),
        "Least and greatest standard deviation of Gaussian noise, in levels of 8 bits.",
        at_least=0.0,
        at_most=255.0,
        lengths=(2,),
        increases=True,
    )
    noise_kinds: tuple[str, ...] = option(
        ("colour",),
        "Kinds of noise, one of which is drawn. `colour`: of each channel; `grey`: the same in all "
        "channels; `shot`: as `colour`, weaker in the dark, as the root of the level.",
        choices=degradations.NOISES,
    )
    jpeg: tuple[int, int] = option(
        (0, 0),
        "Least and greatest quality of JPEG compression, from 1 to 100. (0, 0): none.",
        at_least=0,
        at_most=100,
        lengths=(2,),
        increases=True,
    )

    @property
    def is_active(self) -> bool:
        """Whether any low resolution is degraded."""
        return self.share > 0 and dataclasses.replace(self, share=1.0) != Degradation()

    def options(self) -> degradations.Options | None:
        """Returns the degradation for `data.degrade`; None for none."""
        return degradations.Options(**dataclasses.asdict(self)) if self.is_active else None


_MEASURED = "one number for each channel of the low resolution, then for each map. Empty: measured."


@dataclasses.dataclass(frozen=True)
class Units(Section):
    """How numbers of any range are mapped to the network's, with `data.dtype=float32`.

    A training without statistics measures them on all its images, and keeps them in config.json.
    """

    scaling: str = option(
        "",
        "`range`: the least and the greatest value become -1 and 1. `standardise`: mean and "
        "deviation become 0 and 0.5, without limits, so that `sampling.clip` must be False. "
        "`quantile`: 65 quantiles of the values are evenly spaced. `log`: as `range`, of the "
        "logarithm of 1 + u / s, where u is the distance from the least value, and s its mean. "
        "Empty: levels of 8 or 16 bits.",
        choices=("", *scaling.KINDS),
        may_change=False,
    )
    file: str = option(
        "",
        "JSON file of the statistics, which `sr3_jax.tools.measure_data` wrote. Empty: they are "
        "measured when a training begins.",
    )
    least: tuple[float, ...] = option((), f"Least value: {_MEASURED}", may_change=False)
    greatest: tuple[float, ...] = option((), f"Greatest value: {_MEASURED}", may_change=False)
    mean: tuple[float, ...] = option((), f"Mean: {_MEASURED}", may_change=False)
    deviation: tuple[float, ...] = option(
        (), f"Standard deviation: {_MEASURED}", at_least=0.0, may_change=False
    )
    quantiles: tuple[float, ...] = option(
        (),
        "65 quantiles of each channel, one channel after the other. Empty: measured.",
        may_change=False,
    )

    @property
    def is_measured(self) -> bool:
        """Whether the statistics that the scaling needs are there."""
        return all(getattr(self, name) for name in _NEEDED[self.scaling])

    def statistics(self) -> scaling.Statistics:
        """Returns the statistics; those that the scaling does not need may be missing."""
        values, count = self.quantiles, scaling.NUM_QUANTILES
        quantiles = tuple(values[i : i + count] for i in range(0, len(values), count))
        return scaling.Statistics(self.least, self.greatest, self.mean, self.deviation, quantiles)


def flat(statistics: scaling.Statistics) -> dict[str, tuple[float, ...]]:
    """Returns statistics as values of `Units`."""
    values = dataclasses.asdict(statistics)
    return values | {"quantiles": tuple(itertools.chain.from_iterable(statistics.quantiles))}


# The statistics that each scaling needs; all need the range, to tell values beyond it.
_NEEDED = {
    "": (),
    "range": ("least", "greatest"),
    "standardise": ("least", "greatest", "mean", "deviation"),
    "quantile": ("least", "greatest", "quantiles"),
    "log": ("least", "greatest", "mean"),
}
