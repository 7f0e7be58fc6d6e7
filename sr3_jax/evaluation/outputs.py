"""The images of an evaluation as files, so that what was made once is not made again.

    FOLDER/input/000012.png       the 13th image of the set, as the methods get it
    FOLDER/reference/000012.png   what it should be
    FOLDER/sr3/000012.png         what a method made of it; its second sample: sr3_sample_1

The PNGs are lossless, of 8 or 16 bits. Each says in a comment what it was made from (`made_of`, a
digest) and how long it took; one that says something else, or is damaged, is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from etils import epath
from jaxtyping import Int, UInt

from sr3_jax.data import image_files
from sr3_jax.evaluation import evaluator
from sr3_jax.evaluation.pretrained.common import Images
from sr3_jax.models import Batch

# Of inputs [n, h, w, 3] and each one's number in the set.
Lacks = Callable[[UInt[np.ndarray, "n h w 3"], Int[np.ndarray, " n"]], bool]


class Files(Sequence):
    """Images of one method by position, read when they are asked for."""

    def __init__(self, folder: epath.PathLike, numbers: Sequence[int]) -> None:
        """Takes the files of `FOLDER/METHOD` with these numbers in the set."""
        self._folder, self._numbers = epath.Path(folder), list(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, position: int) -> UInt[np.ndarray, "h w 3"]:
        return image_files.read_rgb(str(self._folder / file_of(self._numbers[position])))


class Upsampled(Sequence):
    """Inputs, upsampled by bicubic to the sizes and types of their references."""

    def __init__(self, inputs: Images, references: Images) -> None:
        self._inputs, self._references = inputs, references

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, position: int) -> UInt[np.ndarray, "h w 3"]:
        reference = self._references[position]
        return evaluator.resize(self._inputs[position], reference.shape[:2], reference.dtype)


def file_of(number: int) -> str:
    """The name of an image of the set, in the folder of each method."""
    return f"{number:06d}.png"


def sample_names(method: str, num_samples: int) -> list[str]:
    """Folders of a method's samples."""
    return [method, *(f"{method}_sample_{k}" for k in range(1, num_samples))]


def kept(
    method: evaluator.Method,
    name: str,
    folder: epath.Path,
    recipe: str,
    lacks: Lacks = lambda low, index: False,
) -> evaluator.Method:
    """The method, which looks for its images in `folder` before it makes them.

    A batch of which any is missing is made as a whole: then nothing is compiled anew.

    Args:
      method: of `evaluator.evaluate`.
      name: of its folders.
      folder: of the evaluation's images.
      recipe: all that decides what the method makes of an input.
      lacks: whether something else is missing that the method leaves of these inputs.
    """
    folders = [folder / sample for sample in sample_names(name, method.num_samples)]

    def run(low: np.ndarray, index: Int[np.ndarray, " n"]) -> tuple[np.ndarray, float]:
        made_of = [digest(recipe, image) for image in low]
        found = [
            [read(f / file_of(int(i)), said) for i, said in zip(index, made_of, strict=True)]
            for f in folders
        ]
        is_whole = all(each is not None for sample in found for each in sample)
        if is_whole and not lacks(low, index):
            images = np.stack([np.stack([image for image, _ in sample]) for sample in found])
            return images, sum(spent for sample in found for _, spent in sample)
        images, seconds = method.run(low, index)
        share = seconds / (len(folders) * len(low))
        for sample, into in zip(images, folders, strict=True):
            for image, i, said in zip(sample, index, made_of, strict=True):
                write(image, into / file_of(int(i)), said, share)
        return images, seconds

    return evaluator.Method(run, method.num_samples)


def with_inputs(batches: Iterable[Batch], folder: epath.Path) -> Iterator[Batch]:
    """The batches, whose pictures are written to `folder` as they pass."""
    for batch in batches:
        for row in np.flatnonzero(batch["weight"] > 0):
            for key, name in (("low_resolution", "input"), ("high_resolution", "reference")):
                image, path = batch[key][row], folder / name / file_of(int(batch["index"][row]))
                said = digest("", image)
                if read(path, said) is None:
                    write(image, path, said, 0.0)
        yield batch


def digest(recipe: str, inputs: np.ndarray) -> str:
    """Names what something is made from: how, and of which pixels."""
    found = hashlib.sha256(recipe.encode())
    found.update(str(inputs.shape).encode())
    found.update(np.ascontiguousarray(inputs).tobytes())
    return found.hexdigest()


def read(path: epath.Path, made_of: str) -> tuple[np.ndarray, float] | None:
    """The image and its seconds; None unless it is there, whole, and made from the same."""
    try:
        image, comment = image_files.read_with_comment(str(path))
        said = json.loads(comment)
        return (image, float(said["seconds"])) if said["made_of"] == made_of else None
    except (image_files.BadImageError, json.JSONDecodeError, KeyError, TypeError):
        return None


def write(image: np.ndarray, path: epath.Path, made_of: str, seconds: float) -> None:
    """Writes what `read` reads, whole or not at all."""
    comment = json.dumps({"made_of": made_of, "seconds": seconds})
    image_files.write_image(image, path, comment=comment)
