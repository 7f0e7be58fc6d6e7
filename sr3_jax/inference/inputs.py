"""Inputs of upscaling: which files they are, what each becomes, and the options for all."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Iterator

from absl import logging
from etils import epath

from sr3_jax.data import folders, image_files, resumable, sources, storage
from sr3_jax.inference import integer_images


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
    """

    steps: int | None = None
    seed: int = 0
    factor: float | None = None
    num_samples: int = 1
    animate: bool = False
    format: str | None = None
    quality: int | str | None = None

    def __post_init__(self):
        image_files.check_format(self.format, self.quality)
        if self.factor is not None:
            integer_images.check_factor(self.factor)
        if self.num_samples < 1:
            raise ValueError(f"num_samples = {self.num_samples}; it must be at least 1")

    def seed_of(self, name: str) -> int:
        """Returns the seed of an input's noise."""
        return zlib.crc32(f"{self.seed}/{name}".encode("utf-8", "surrogateescape"))

    def output_names(self, name: str) -> list[str]:
        """Returns all files that an input becomes, in the folder of outputs; first the picture."""
        made = str(image_files.output_path(epath.Path(name), self.format))
        names = [made]
        if self.num_samples > 1:
            names.append(storage.fitting_name(made, ".uncertainty.png"))
        if self.animate:
            names.append(storage.fitting_name(made, ".refinement.gif"))
        return names


def find_inputs(path: epath.PathLike, output: epath.PathLike | None = None) -> sources.Source:
    """Returns the image at `path`, or all images in the folder `path`.

    Outputs never become inputs: of a folder, local or a URL, what is in `output` is left out, and
    so is any folder below it that holds outputs of this program, with a warning.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: there is no image in the folder.
    """
    path = epath.Path(storage.absolute(path))
    if not path.is_dir():
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
