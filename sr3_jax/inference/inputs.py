"""Inputs of upscaling: which files they are, what each becomes, and the options for all."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Iterator

from absl import logging
from etils import epath

from sr3_jax import conformal
from sr3_jax.config import Config
from sr3_jax.data import array_source, arrays, folders, image_files, resumable, sources, storage
from sr3_jax.inference import host_images

ENDS = ("lower", "upper")  # of intervals


@dataclasses.dataclass(frozen=True)
class UpscaleOptions:
    """How files are upscaled.

    Attributes:
      steps: refinement steps; None for the resolver's.
      seed: seed of all noise. That of a picture depends on it and on the picture's name alone.
      factor: ratio of output to input size; see `SuperResolver.upscale`.
      num_samples: samples of each picture; of several, the output is the mean, and
        `NAME.uncertainty.png` lies beside it (`visualization.uncertainty`).
      animate: write also `NAME.refinement.gif`, from noise to picture.
      format: format of the outputs, one of `image_files.FORMATS`; None for that of each input.
      quality: quality of lossy formats, 1 to 100, or `lossless`; see `image_files.write_picture`.
      maps: for networks that take maps: a file for all inputs, or a folder with a file of the name
        of each, at the size of the outputs.
      are_arrays: whether inputs are files of arrays, which keep their format; of several samples,
        each lies beside the mean: scene.sample_0.tif.
      band: intervals around the mean of the samples, whose ends are written, too
        (`confidence.with_band`): `NAME.lower.png` and `NAME.upper.png`, or scene.lower.tif and
        scene.upper.tif.
    """

    steps: int | None = None
    seed: int = 0
    factor: float | None = None
    num_samples: int = 1
    animate: bool = False
    format: str | None = None
    quality: int | str | None = None
    maps: str = ""
    are_arrays: bool = False
    band: conformal.Band | None = None

    def __post_init__(self):
        image_files.check_format(self.format, self.quality)
        if self.factor is not None:
            host_images.check_factor(self.factor)
        if self.num_samples < 1:
            raise ValueError(f"num_samples = {self.num_samples}; it must be at least 1")

    def seed_of(self, name: str) -> int:
        """Returns the seed of an input's noise."""
        return zlib.crc32(f"{self.seed}/{name}".encode("utf-8", "surrogateescape"))

    def output_names(self, name: str) -> list[str]:
        """Returns all files that an input becomes, in the folder of outputs; first the result."""
        if self.are_arrays:
            suffix = arrays.format_of(name)
            stem, suffix = name[: -len(suffix)], name[-len(suffix) :]
            count = self.num_samples if self.num_samples > 1 else 0
            ends = [f"{stem}.{end}{suffix}" for end in (ENDS if self.band else ())]
            return [name, *(f"{stem}.sample_{k}{suffix}" for k in range(count)), *ends]
        made = str(image_files.output_path(epath.Path(name), self.format))
        names = [made]
        if self.num_samples > 1:
            names.append(storage.fitting_name(made, ".uncertainty.png"))
        if self.band:
            names += [storage.fitting_name(made, f".{end}.png") for end in ENDS]
        if self.animate:
            names.append(storage.fitting_name(made, ".refinement.gif"))
        return names


def for_network(options: UpscaleOptions, config: Config) -> UpscaleOptions:
    """Returns the options for the kind of files that a network takes.

    Raises:
      ValueError: an option is of the other kind; or maps are missing, or not taken.
    """
    if bool(options.maps) != (config.data.maps > 0):
        if options.maps:
            raise ValueError(f"--maps={options.maps}, but the network takes no maps; leave it out")
        raise ValueError(
            f"the network takes {config.data.maps} maps: give --maps=FILE_OR_FOLDER, at the size "
            "of the results"
        )
    if options.maps and not storage.exists(options.maps):
        raise ValueError(f"--maps={options.maps} does not exist; give a file or a folder")
    if config.has_levels:
        return options
    given = ("factor", "animate", "format", "quality")
    if wrong := [name for name in given if getattr(options, name)]:
        raise ValueError(
            f"--{wrong[0]} is for pictures, and the network takes files of arrays, whose results "
            "keep their format and grow by its own factor; leave it out"
        )
    maps = options.maps and storage.absolute(options.maps)
    return dataclasses.replace(options, are_arrays=True, maps=maps)


def find_inputs(
    path: epath.PathLike, output: epath.PathLike | None = None, *, are_arrays: bool = False
) -> sources.Source:
    """Returns the image at `path`, or all images in the folder `path`; or all files of arrays.

    Outputs never become inputs: of a folder, local or a URL, what is in `output` is left out, and
    so is any folder below it that holds outputs of this program, with a warning.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: there is no image in the folder, or a file is not one that can be upscaled.
    """
    path = epath.Path(storage.absolute(path))
    is_file = not path.is_dir() or (are_arrays and arrays.format_of(path) is not None)
    if are_arrays and is_file and path.exists() and arrays.format_of(path) is None:
        raise ValueError(
            f"--input={storage.shown(path)} is no file of arrays, which the network takes; give "
            f"one of {', '.join(arrays.FORMATS)}, or a folder of them"
        )
    if is_file:
        if not path.exists():
            raise FileNotFoundError(
                f"--input={storage.shown(path)} does not exist; give an image or a folder"
            )
        return (sources.FileRef(path.name, str(path)),)
    skip = set()
    if output is not None and storage.real_path(output) != storage.real_path(path):
        skip = {storage.real_path(output)}
        if storage.is_within(output, path) and storage.exists(output):
            logging.warning("all in %s is left out: it is the folder for the outputs", output)
    if are_arrays:
        names = array_source.names_in(str(path), skip)
        if not names:
            raise ValueError(
                f"there is no file of arrays ({', '.join(arrays.FORMATS)}) in {storage.shown(path)}"
            )
        found = folders.Folder(str(path), folders.arrays_of(names))
    else:
        found = folders.folder(path, skip)
    parents = {part for ref in found for part in _parents(ref.name)}
    made = {part for part in parents if resumable.has_fingerprint(os.path.join(path, part))}
    if not made:
        return found
    for part in sorted(made):
        logging.warning(
            "all in %s is left out, since it holds outputs of this program; to upscale what is "
            "there, give that folder as --input",
            storage.shown(path / part),
        )
    kept = [ref.name for ref in found if not made.intersection(_parents(ref.name))]
    if not kept:
        raise ValueError(
            f"all images in {storage.shown(path)} are outputs of this program; to upscale them, "
            "give the folder that they lie in"
        )
    unread = [name for name in found.unread if not made.intersection(_parents(name))]
    return folders.Folder(found.root, folders.arrays_of(kept), found.others, unread)


def _parents(name: str) -> Iterator[str]:
    """Yields the folders that a file lies in: `a` and `a/b` of `a/b/c.png`."""
    while name := name.rpartition("/")[0]:
        yield name
