"""Sources of TFRecord files: FFHQ's, TFDS's, and those that `tools.prepare_data` writes.

A TFRecord file is a sequence of records, each after its length, with checksums of both
(https://www.tensorflow.org/tutorials/load_data/tfrecord). It has no table of contents: the headers
are walked over once, and then any record is one read away. TensorFlow is not needed.
"""

import functools
import math
import os
import re
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple, TypeVar

import google_crc32c
import numpy as np
import tqdm
from jaxtyping import UInt8
from tensorflow_datasets.proto import tf_example_generated_pb2

from sr3_jax.data import index_file, sources, storage
from sr3_jax.data.image_files import BadImageError, decode_seen
from sr3_jax.data.image_files import content as read_content

T = TypeVar("T")

# Names of an encoded image and its class in TFDS, TensorFlow's ImageNet and `prepare_data`.
_IMAGE_KEYS = ("image", "image/encoded", "hr")
_LABEL_KEYS = ("label", "image/class/label")

_HEADER = struct.Struct("<QI")  # of a record: its length, and the checksum of that
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEADER.size
_LOST = -1  # the size of a record whose header is damaged: nothing after it can be found


class Records(sources.LazySource):
    """Images in TFRecord files, one in each record; each takes 20 bytes of memory."""

    def __init__(self, files: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        """Makes a source of what `to_arrays` returned; see `tfrecords`.

        Args:
          files: the files, in order.
          arrays: `file_index` (a position in `files`), `offset` and `size` in bytes of each
            record.

        Raises:
          KeyError: an array is missing.
          ValueError: the arrays are damaged.
        """
        self.files = tuple(files)
        self._file = index_file.check_column(arrays, "file_index", (np.int32, np.int64))
        self._offset, self._size = index_file.check_places(arrays, len(self._file), _LOST)
        in_order = np.concatenate([[0], self._file, [len(files) - 1]])
        if len(self._file) and (np.diff(in_order) < 0).any():
            raise ValueError(f"file_index is not in order within [0, {len(files)})")
        self._first = np.searchsorted(self._file, np.arange(len(files)))

    def __len__(self) -> int:
        return len(self._file)

    def ref(self, index: int) -> "RecordRef":
        file = int(self._file[index])
        number = index - int(self._first[file])
        return RecordRef(self.files[file], number, int(self._offset[index]), int(self._size[index]))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the places of the records, to be kept in a file."""
        return {"file_index": self._file, "offset": self._offset, "size": self._size}


class RecordRef(NamedTuple):
    """An image in the record `number` of the TFRecord file `path`; see `sources.ImageRef`.

    `offset` and `size` are those of the record's content, in bytes.
    """

    path: str
    number: int
    offset: int
    size: int

    @property
    def name(self) -> str:
        return f"{os.path.basename(self.path)}#{self.number}"

    def read(self, decode: sources.Decode = decode_seen) -> sources.Picture:
        return decode_example(read_record(self.path, self.offset, self.size), decode)


def decode_example(content: bytes, decode: sources.Decode = decode_seen) -> sources.Picture:
    """Decodes the image of a serialized tf.train.Example, with features named as FFHQ's or TFDS's.

    Raises:
      BadImageError: it has no image, or one that cannot be used.
    """
    features = _parsed(content)
    if "shape" in features and "data" in features:
        return sources.Picture(_raw_image(features))
    for key in _IMAGE_KEYS:
        if key in features:
            image, notes = decode(_only(features, key, bytes))
            labels = [_only(features, name, int) for name in _LABEL_KEYS if name in features]
            return sources.Picture(image, label=[*labels, sources.NO_LABEL][0], notes=notes)
    raise BadImageError(
        f"no image among its features {sorted(features)}; known are {', '.join(_IMAGE_KEYS)}, or "
        "shape and data together"
    )


def tfrecord_files(path: str | os.PathLike[str], image_size: int) -> list[str]:
    """Lists the TFRecord files at `path`: a file, a pattern with `*`, or a folder of them.

    A folder may have a file for each resolution (`ffhq-r02.tfrecords` to `ffhq-r10.tfrecords`, for
    4 to 1024 pixels). The result then is that of the smallest one that is at least `image_size`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: all resolutions are below `image_size`.
    """
    path = os.fspath(path)
    is_folder = storage.is_folder(path)
    if is_folder or "*" in os.path.basename(path):
        files = storage.matches(*((path, "*.tfrecord*") if is_folder else os.path.split(path)))
    else:
        files = [path] if storage.exists(path) else []
    if not files:
        raise FileNotFoundError(
            f"no TFRecord file at {path!r}: give a file, a pattern such as 'DIR/train-*', or "
            "a folder with files that have .tfrecord in their names"
        )
    levels = [re.search(r"-r(\d\d)\.tfrecords$", file) for file in files]
    if not is_folder or not all(levels):
        return files
    sizes = {2 ** int(level[1]): file for level, file in zip(levels, files, strict=True) if level}
    if max(sizes) < image_size:
        raise ValueError(
            f"{path!r} has resolutions {sorted(sizes)}, all under the {image_size} pixels of "
            "config.data.image_size; get the file of a larger one"
        )
    return [sizes[min(size for size in sizes if size >= image_size)]]


def tfrecords(files: Sequence[str], progress: Callable[[], None] = lambda: None) -> Records:
    """Finds the images in TFRecord files by walking over the headers of all records.

    That takes some seconds for a million records on a disk; in a bucket it reads the files whole.

    Args:
      files: the files.
      progress: called after each file.

    Raises:
      ValueError: a file is no TFRecord file.
    """
    found = []
    with futures.ThreadPoolExecutor(16) as pool:
        for places in pool.map(lambda file: np.array([*_walk(file)], np.int64), files):
            found.append(places.reshape(-1, 2))
            progress()
    file = np.repeat(np.arange(len(files), dtype=np.int32), list(map(len, found)))
    flat = np.concatenate([*found, np.zeros((0, 2), np.int64)])
    return Records(files, {"file_index": file, "offset": flat[:, 0], "size": flat[:, 1]})


def open_records(files: Sequence[str], index: str | os.PathLike[str] | None) -> Records:
    """Returns the images in TFRecord files, as listed in the file `index` if it is there."""

    def walk() -> Mapping[str, np.ndarray]:
        with tqdm.tqdm(
            total=len(files), desc="reading headers", unit="file", file=sys.stderr, delay=2.0
        ) as bar:
            return tfrecords(files, bar.update).to_arrays()

    opened = functools.partial(Records, files)
    return opened(index_file.load_or_make(index, "\n".join(files), walk, opened))


def _walk(path: str) -> Iterator[tuple[int, int]]:
    """Yields offset and size of the content of each record."""
    end = storage.size(path)
    position = 0
    with storage.open_read(path) as file:
        while position < end:
            header = file.read(_HEADER.size).ljust(_HEADER.size, b"\0")
            size, checksum = _HEADER.unpack(header)
            if checksum != _masked_checksum(header[:8]):
                if position == 0:
                    raise ValueError(f"{path} is not a TFRecord file (or a compressed one)")
                yield position, _LOST
                return
            # Up to 2^64. A record that is longer than the file fails when it is read.
            yield position + _HEADER.size, min(size, end)
            position += _HEADER.size + size + _CHECKSUM.size
            if position < end:  # else it may be too large to seek
                file.seek(position)


def _masked_checksum(data: bytes) -> int:
    """Computes TFRecord's checksum: CRC-32C, rotated and shifted, as data may hold checksums."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_record(path: str, offset: int, size: int) -> bytes:
    """Reads the content of one record and compares its checksum.

    Raises:
      BadImageError: the file is missing, or the record is damaged.
    """
    if size == _LOST:
        raise BadImageError(
            f"damaged record at byte {offset} of {path}, after which nothing can be found"
        )
    data = read_content(path, offset, size + _CHECKSUM.size)
    content, checksum = data[:size], data[size:]
    if len(checksum) < _CHECKSUM.size:
        raise BadImageError(f"truncated: {path} ends in the middle of the record at byte {offset}")
    if _CHECKSUM.unpack(checksum)[0] != _masked_checksum(content):
        raise BadImageError(
            f"damaged: the record at byte {offset} of {path} is not what its checksum says"
        )
    return content


def write_record(content: bytes) -> bytes:
    """Returns the bytes of one record in a TFRecord file."""
    length = struct.pack("<Q", len(content))
    return b"".join(part + _CHECKSUM.pack(_masked_checksum(part)) for part in (length, content))


def serialize_example(features: Mapping[str, bytes | int]) -> bytes:
    """Returns a serialized tf.train.Example with one value for each feature."""
    example = tf_example_generated_pb2.Example()
    for name, value in features.items():
        feature = example.features.feature[name]
        kind = feature.bytes_list if isinstance(value, bytes) else feature.int64_list
        kind.value.append(value)
    return example.SerializeToString(deterministic=True)


def _parsed(data: bytes) -> dict[str, list[Any]]:
    """Returns the values of each feature of a serialized tf.train.Example."""
    try:
        example = tf_example_generated_pb2.Example.FromString(data)
    except Exception as error:  # protobuf's DecodeError, of its own or of its C implementation
        raise BadImageError(f"no tf.train.Example: {error}") from error
    return {
        name: list(getattr(feature, feature.WhichOneof("kind")).value)
        for name, feature in example.features.feature.items()
        if feature.WhichOneof("kind")
    }


def _raw_image(features: Mapping[str, list[Any]]) -> UInt8[np.ndarray, "height width 3"]:
    """Returns an image that is stored as StyleGAN's: 8-bit channels, rows, columns."""
    shape, data = features["shape"], _only(features, "data", bytes)
    is_shape = len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape)
    if not is_shape or shape[0] != 3 or math.prod(shape) != len(data):
        raise BadImageError(
            f"feature shape {shape} does not describe the {len(data)} bytes of feature data as "
            "(3, height, width)"
        )
    image = np.empty((*shape[1:], 3), np.uint8)
    for channel, plane in enumerate(np.frombuffer(data, np.uint8).reshape(shape)):
        image[..., channel] = plane  # which takes a third of the time of one transposition
    return image


def _only(features: Mapping[str, list[Any]], key: str, kind: type[T]) -> T:
    """Returns the only value of a feature."""
    values = features[key]
    if len(values) != 1 or not isinstance(values[0], kind):
        raise BadImageError(
            f"its feature {key} has {len(values)} values where one of type {kind.__name__} is "
            "expected"
        )
    return values[0]
