"""The images of an evaluation as files, so that an evaluation that was stopped goes on.

    FOLDER/input/000012.png       the 13th image of the set, as the methods get it
    FOLDER/reference/000012.png   what it should be
    FOLDER/sr3/000012.png         what a method made of it; its second sample: sr3_sample_1

The PNGs are lossless, of 8 or 16 bits. The comment of each holds a digest of what it was made from
(`made_of`) and the seconds it took. A file with another digest, or a damaged one, is made anew.
Numbers of any range are files `000012.npz`, with `values`, `made_of` and `seconds`.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from etils import epath
from jax.typing import DTypeLike
from jaxtyping import Num

from sr3_jax.data import image_files, resumable, storage
from sr3_jax.evaluation import evaluator
from sr3_jax.evaluation.pretrained.common import Images
from sr3_jax.metrics import fields
from sr3_jax.models import Batch

Lacks = Callable[[evaluator.Inputs], bool]


class Files(Sequence):
    """The files of one method, each read when it is asked for."""

    def __init__(
        self, folder: epath.PathLike, numbers: Sequence[int], dtype: DTypeLike = np.uint8
    ) -> None:
        """Takes the folder of a method, the numbers of its images in the set, and their type."""
        self._folder, self._numbers = epath.Path(folder), list(numbers)
        self._dtype = dtype

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, position: int) -> Num[np.ndarray, "h w c"]:
        path = self._folder / file_of(self._numbers[position], self._dtype)
        if np.dtype(self._dtype).kind == "f":
            return _read_numbers(path)[0]
        return image_files.read_rgb(str(path))


class Upsampled(Sequence):
    """Bicubic upsamplings of inputs to the sizes and types of their references."""

    def __init__(self, inputs: Images, references: Images) -> None:
        self._inputs, self._references = inputs, references

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, position: int) -> Num[np.ndarray, "h w c"]:
        reference = self._references[position]
        if reference.dtype.kind == "f":
            low, channels = self._inputs[position], reference.shape[-1]
            return fields.interpolated(low[None], len(reference) / len(low), channels)[0]
        return evaluator.resize(self._inputs[position], reference.shape[:2], reference.dtype)


def file_of(number: int, dtype: DTypeLike = np.uint8) -> str:
    """Returns the file name of an image of the set, of a type."""
    return f"{number:06d}.{'npz' if np.dtype(dtype).kind == 'f' else 'png'}"


def kept(
    method: evaluator.Method,
    name: str,
    folder: epath.Path,
    fingerprint: str,
    lacks: Lacks = lambda inputs: False,
    *,
    takes_classes: bool = False,
) -> evaluator.Method:
    """Returns the method, reading images that are in `folder` and writing those that it makes.

    If an image of a batch is missing, the whole batch is made, so that nothing is compiled anew.

    Args:
      method: method of `evaluator.evaluate`.
      name: name of its folders.
      folder: folder of the evaluation's images.
      fingerprint: everything that decides what the method makes of an input.
      lacks: whether another file is missing that the method writes for these inputs.
      takes_classes: whether what it makes also depends on the class of an input.
    """
    samples = [name, *(f"{name}_sample_{k}" for k in range(1, method.num_samples))]

    def run(inputs: evaluator.Inputs) -> tuple[np.ndarray, float]:
        low, maps = inputs.low, inputs.maps
        made_of = [
            digest(f"{fingerprint} {known}" if takes_classes else fingerprint, image, *of_image)
            for image, known, *of_image in zip(
                low, inputs.label, *([] if maps is None else [maps]), strict=True
            )
        ]
        units = [
            (folder / sample / file_of(int(i), low.dtype), each)
            for sample in samples
            for i, each in zip(inputs.index, made_of, strict=True)
        ]
        found = _in_threads(read, units)
        if all(found) and not lacks(inputs):
            images = np.stack([image for image, _ in found])
            images = images.reshape(len(samples), len(low), *images.shape[1:])
            return images, sum(spent for _, spent in found)
        images, seconds = method.run(inputs)
        flat, share = images.reshape(-1, *images.shape[2:]), seconds / len(units)
        made = ((image, *unit, share) for image, unit in zip(flat, units, strict=True))
        _in_threads(write, made)
        return images, seconds

    return evaluator.Method(run, method.num_samples)


def with_inputs(batches: Iterable[Batch], folder: epath.Path) -> Iterator[Batch]:
    """Yields the batches, after writing those of their images that `folder` lacks."""

    def write_missing(image: np.ndarray, path: epath.Path) -> None:
        made_of = digest("", image)
        if read(path, made_of) is None:
            write(image, path, made_of, 0.0)

    for batch in batches:
        images = (
            (
                batch[key][row],
                folder / name / file_of(int(batch["index"][row]), batch[key].dtype),
            )
            for row in np.flatnonzero(batch["weight"] > 0)
            for key, name in (("low_resolution", "input"), ("high_resolution", "reference"))
        )
        _in_threads(write_missing, images)
        yield batch


def _in_threads(function: Callable, calls: Iterable[tuple]) -> list:
    """Calls a function with each tuple of arguments; returns the results in order."""
    return list(resumable.in_threads(lambda arguments: function(*arguments), calls, ahead=64))


def digest(fingerprint: str, *inputs: np.ndarray) -> str:
    """Returns a digest of what an image is made from: a fingerprint and the pixels of its input."""
    found = hashlib.sha256(fingerprint.encode())
    for pixels in inputs:
        found.update(str(pixels.shape).encode())
        found.update(np.ascontiguousarray(pixels).tobytes())
    return found.hexdigest()


def read(path: epath.Path, made_of: str) -> tuple[np.ndarray, float] | None:
    """Returns an image and its seconds; None if it is missing, damaged, or of another digest."""
    if path.suffix == ".npz":
        try:
            image, found, seconds = _read_numbers(path)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile):
            return None
        return (image, seconds) if found == made_of else None
    try:
        image, comment = image_files.read_with_comment(str(path))
        found = json.loads(comment)
        return (image, float(found["seconds"])) if found["made_of"] == made_of else None
    except (image_files.BadImageError, json.JSONDecodeError, KeyError, TypeError):
        return None


def write(image: np.ndarray, path: epath.Path, made_of: str, seconds: float) -> None:
    """Writes what `read` reads, whole or not at all."""
    if path.suffix == ".npz":
        content = io.BytesIO()
        np.savez_compressed(content, values=image, made_of=made_of, seconds=seconds)
        storage.write_whole(path, content.getvalue())
        return
    comment = json.dumps({"made_of": made_of, "seconds": seconds})
    image_files.write_image(image, path, comment=comment)


def _read_numbers(path: epath.Path) -> tuple[np.ndarray, str, float]:
    """Returns numbers, the digest of what they were made of, and their seconds."""
    with np.load(io.BytesIO(storage.read(path)), allow_pickle=False) as found:
        return found["values"], str(found["made_of"]), float(found["seconds"])
