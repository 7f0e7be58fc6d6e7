"""The images of any data set of TensorFlow Datasets, by name.

TFDS prepares data sets as ArrayRecord files, which have a table of contents, or as TFRecord files,
which get one here. TFDS gives only bytes, so that TensorFlow itself does not run.
"""

import dataclasses
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import Integer

from sr3_jax.data import image_files, records, source_kinds, sources

# TFDS's names may have a version (`mnist:3.*.*`) and options with commas.
_SPLIT = r"[\w-]+(?:\[[^\]]*\])?"
_NAMED = re.compile(rf"\s*([^\s,].*?):({_SPLIT}(?:\+{_SPLIT})*)\s*(?:,|$)")


class ArrayRecords(sources.LazySource):
    """The examples of a data set that was prepared as ArrayRecord files."""

    def __init__(self, name: str, examples: Sequence[bytes]) -> None:
        self._name, self._examples = name, examples

    def __len__(self) -> int:
        return len(self._examples)

    def ref(self, index: int) -> "ExampleRef":
        return ExampleRef(f"{self._name}#{index}", self._examples, index)


@dataclasses.dataclass(frozen=True)
class ExampleRef:
    """An image of a TFDS data set; see `sources.ImageRef`."""

    name: str
    examples: Sequence[bytes]
    index: int

    def read(self, decode: sources.Decode = image_files.decode_seen) -> sources.Picture:
        return records.decode_example(self.examples[self.index], decode)


def faults(place: source_kinds.Place) -> Iterator[str]:
    """Yields what is wrong with the names of data sets and their splits; see `source_kinds`."""
    key = place.key("path")
    for name, split in _named(place):
        if not name:
            yield (
                f"{key} = {place.path!r}: TFDS needs the name of a data set and its split, as "
                "imagenet2012:train"
            )
            continue
        try:
            check_prepared(name, split, place.tfds_dir or None)
        except (FileNotFoundError, ValueError) as error:
            yield f"{key} = {place.path!r}: {error}"


def open_source(place: source_kinds.Place) -> sources.LazySource:
    """Returns the images of a split, or those of several data sets one after the other.

    Labels are those of a single data set: several number their classes alike.
    """
    named = _named(place)
    if len(named) == 1:
        ((name, split),) = named
        return tfds_split(name, split, place.tfds_dir or None, place.index)
    return sources.Joined([tfds_split(*each, place.tfds_dir or None) for each in named])


def _named(place: source_kinds.Place) -> list[tuple[str, str]]:
    """Returns data set and split of each `NAME:SPLIT` of a path; an empty name for what is none."""
    found, end = [], 0
    while end < len(place.path) or not found:
        match = _NAMED.match(place.path, end)
        if not match:
            return [*found, ("", place.path[end:])]
        found.append((match[1], match[2]))
        end = match.end()
    return found


def tfds_split(
    name: str,
    split: str,
    data_dir: str | None = None,
    index: str | os.PathLike[str] | None = None,
) -> sources.LazySource:
    """Opens the images of a prepared TFDS data set.

    Args:
      name: name of the data set, with a config of its builder if it has any: `imagenet2012`,
        `celeb_a_hq/256`.
      split: a split or a part of one: `train`, `validation[:1000]`.
      data_dir: folder where it was prepared; None for TFDS's own, `~/tensorflow_datasets`.
      index: file in which the list of TFRecord files' images is kept; None: nowhere.

    Raises:
      FileNotFoundError: it is not prepared; the message has the command that does.
      ValueError: there is no such data set or split, or it has another file format.
    """
    builder = check_prepared(name, split, data_dir)
    chosen = builder.info.splits[split]
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return ArrayRecords(
            f"{name}/{split}", builder.as_data_source(split, deserialize_method=raw)
        )
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise ValueError(
            f"TFDS's {name} is prepared as {builder.info.file_format.value}; prepare it with "
            "--file_format=array_record"
        )
    files = [instruction.filename for instruction in chosen.file_instructions]
    found = records.open_records(files, index)
    return sources.Subset(found, _positions(found, chosen.file_instructions))


def check_prepared(name: str, split: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """Returns the builder of a data set that is prepared; see `tfds_split`."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of each version that is not there
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.is_prepared():
            raise FileNotFoundError(
                f"TFDS's {name} is not prepared in {builder.data_path}; prepare it by "
                f"tensorflow_datasets.builder({name!r}, file_format='array_record')"
                ".download_and_prepare()"
            )
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name.lower(), tfds.list_builders(), 1)
        hint = f"did you mean {near[0]}?" if near else "tfds.list_builders() lists them"
        raise ValueError(f"TFDS has no data set {name!r}; {hint}") from error
    finally:
        logging.set_verbosity(verbosity)
    if "://" in str(builder.data_path) and builder.info.file_format.value == "array_record":
        raise ValueError(
            f"TFDS's {name} lies in a bucket ({builder.data_path}) as ArrayRecord files, which can "
            "only be read from a disk; prepare it there with file_format='tfrecord', copy it to a "
            "disk, or mount the bucket"
        )
    try:
        builder.info.splits[split]
    except (KeyError, ValueError) as error:
        available = sorted(builder.info.splits)
        raise ValueError(f"TFDS's {name} has splits {available}, not {split!r}") from error
    return builder


def _positions(found: records.Records, instructions: Sequence[Any]) -> Integer[np.ndarray, " n"]:
    """Returns the positions of the records in a split such as `train[10:20]`."""
    counts = np.bincount(found.to_arrays()["file_index"], minlength=len(instructions))
    firsts = np.cumsum(counts) - counts
    parts = [
        first + np.arange(part.skip, min(part.skip + part.take, count))
        for first, count, part in zip(firsts, counts, instructions, strict=True)
    ]
    return np.concatenate(parts)
