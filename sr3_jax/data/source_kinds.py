"""Kinds of image sources: the choices of `config.data.source`.

A kind is a module with two functions, and an entry of `KINDS`:

    faults(place) -> Iterator[str]     what is missing, with key and fix, before any image is read
    open_source(place) -> Source       the images
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import types
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # reading images imports much that checking a config does not need
    from sr3_jax.data import sources

Half = Literal["train", "eval"]


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of the images of one half of a data set: training or held-out.

    Attributes:
      half: `train`, or `eval` for held-out images.
      path: `data.path` or `data.eval_path` of the config.
      low_path: the same for their low resolutions, of `folder_pairs` and `arrays`.
      maps_path: the same for their maps, of `arrays`: one file for all, or a folder.
      image_size: smallest size that is asked for, in pixels.
      tfds_dir: folder of TFDS's data sets; empty for TFDS's own.
      index: file in which the list of images is kept for the next start; None: nowhere.
      skip: folders in which no image is looked for.
      channels: number of channels, of `arrays`.
      low_channels: number of those of low resolutions.
      maps: number of those of maps.
      variables: names of channels in files of named arrays; empty: the only array there is.
      map_variables: the same for maps.
    """

    half: Half
    path: str
    low_path: str = ""
    maps_path: str = ""
    image_size: int = 0
    tfds_dir: str = ""
    index: Any = None
    skip: frozenset[str] = frozenset()
    channels: int = 3
    low_channels: int = 3
    maps: int = 0
    variables: tuple[str, ...] = ()
    map_variables: tuple[str, ...] = ()

    def key(self, name: str) -> str:
        """Returns the key of an option of this half: `config.data.eval_path`."""
        return f"config.data.{'' if self.half == 'train' else 'eval_'}{name}"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of source.

    Attributes:
      module: its module, imported when images are looked for.
      meaning: the sentence about it in docs/config.md.
      package: an optional package that it needs.
      extra: the extra of sr3_jax that has it.
      has_path: whether it needs `path`.
      has_held_out: whether it has held-out images of its own.
    """

    module: str
    meaning: str
    package: str = ""
    extra: str = "train"
    has_path: bool = True
    has_held_out: bool = False

    def faults(self, place: Place) -> Iterator[str]:
        """Yields a message for everything that is missing."""
        if self.has_path and not place.path:
            yield f"{place.key('path')} is empty"
        elif self.package and importlib.util.find_spec(self.package) is None:
            yield (
                f"{place.key('path')} = {place.path!r} needs {self.package}, which is not "
                f"installed: pip install 'sr3_jax[{self.extra}]'"
            )
        else:
            yield from self._module().faults(place)

    def open(self, place: Place) -> sources.Source:
        """Returns the images; they are read later.

        Raises:
          ValueError: something is missing; the message has all `faults`.
        """
        if faults := list(self.faults(place)):
            raise ValueError("; ".join(faults))
        return self._module().open_source(place)

    def _module(self) -> types.ModuleType:
        return importlib.import_module(self.module)


KINDS: Mapping[str, Kind] = types.MappingProxyType(
    {
        "folder": Kind("sr3_jax.data.folders", "any tree of images"),
        "folder_pairs": Kind("sr3_jax.data.pairs", "two trees, with images of the same names"),
        "tar": Kind(
            "sr3_jax.data.archives", "a tar file of images, or of tars of them, such as ImageNet's"
        ),
        "tfrecord": Kind(
            "sr3_jax.data.prepared",
            "FFHQ's files, or those that `tools.prepare_data` wrote",
            package="tensorflow_datasets",
        ),
        "tfds": Kind(
            "sr3_jax.data.tfds_source",
            "an image data set of TensorFlow Datasets",
            package="tensorflow_datasets",
        ),
        "tf_data": Kind(
            "sr3_jax.data.tf_data_source",
            "your own `tf.data.Dataset`, of a function `MODULE:FUNCTION` or `FILE.py:FUNCTION`",
            package="tensorflow",
            extra="tfds",
        ),
        "arrays": Kind(
            "sr3_jax.data.array_source",
            "files of any numbers and channels, such as npy, GeoTIFF, NetCDF, Zarr, NIfTI",
        ),
        "photos": Kind(
            "sr3_jax.data.photos",
            "the photographs of scikit-image",
            has_path=False,
            has_held_out=True,
        ),
    }
)
