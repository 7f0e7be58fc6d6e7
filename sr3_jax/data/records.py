"""Sources of TFRecord files: FFHQ's, TFDS's, and those that `tools.prepare_data` writes.

A TFRecord file is a row of records, each with its length before it and checksums of both
(https://www.tensorflow.org/tutorials/load_data/tfrecord). It has no table of contents, so the
headers are walked over once; after that, any record is one read away. Needs no TensorFlow.
"""

import math
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple, TypeVar

import google_crc32c
import numpy as np
from jaxtyping import UInt8
from tensorflow_datasets.proto import tf_example_generated_pb2

from sr3_jax.data import index_file, sources, storage
from sr3_jax.data.picture import BadImageError, decode_seen

T = TypeVar("T")

# What TFDS, TensorFlow's ImageNet and `prepare_data` call an encoded image and its class.
_IMAGE_KEYS = ("image", "image/encoded", "hr")
_LABEL_KEYS = ("label", "image/class/label")

_HEADER = struct.Struct("<QI")  # of a record: its length, and the checksum of that
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEADER.size
# Where a file is damaged from a header on: nothing after it can be found.
_LOST = -1


class Records(sources.LazySource):
    """Images in TFRecord files, one in each record; takes 20 bytes of memory for each."""

    def __init__(self, files: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        """Use `tfrecords` to make one.

        Args:
            files: the files, in order.
            arrays: of each record its `file_index` (a position in `files`), `offset` and `size` in
                bytes.

        Raises:
            KeyError: an array is missing.
            ValueError: the arrays are damaged.
        """
        self.files = tuple(files)
        self._file = index_file.check_column(arrays, "file_index", (np.int32, np.int64))
        self._offset, self._size = (
            index_file.check_column(arrays, key, (np.int64,), len(self._file))
            for key in ("offset", "size")
        )
        in_order = np.concatenate([[0], self._file, [len(files) - 1]])
        if len(self._file) and (np.diff(in_order) < 0).any():
            raise ValueError(f"file_index is not in order within [0, {len(files)})")
        if (self._offset < 0).any() or (self._size < _LOST).any():
            raise ValueError("a record has a negative offset or size")
        self._first = np.searchsorted(self._file, np.arange(len(files)))

    def __len__(self) -> int:
        return len(self._file)

    def ref(self, index: int) -> "RecordRef":
        """See `LazySource`."""
        file = int(self._file[index])
        number = index - int(self._first[file])
        return RecordRef(self.files[file], number, int(self._offset[index]), int(self._size[index]))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Where the records lie, to be kept in a file."""
        return {"file_index": self._file, "offset": self._offset, "size": self._size}


class RecordRef(NamedTuple):
    """An image in a TFRecord file; see `sources.ImageRef`.

    Attributes:
        path: of the file.
        number: of the record in it, from 0.
        offset: of the record's content, in bytes.
        size: of that.
    """

    path: str
    number: int
    offset: int
    size: int

    @property
    def name(self) -> str:
        """See `ImageRef`."""
        return f"{os.path.basename(self.path)}#{self.number}"

    def read(self) -> sources.Picture:
        """See `ImageRef`."""
        return picture(read_record(self.path, self.offset, self.size))


def picture(content: bytes) -> sources.Picture:
    """The image of a serialized tf.train.Example, whose features are as FFHQ or TFDS name them.

    Raises:
        BadImageError: it has none, or it cannot be used.
    """
    features = parse_example(content)
    if "shape" in features and "data" in features:
        return sources.Picture(_raw_image(features))
    for key in _IMAGE_KEYS:
        if key in features:
            data = _only(features, key, bytes)
            image, notes = decode_seen(data)
            return sources.Picture(image, label=_label(features), notes=notes)
    raise BadImageError(
        f"no image among its features {sorted(features)}; known are {', '.join(_IMAGE_KEYS)}, or "
        "shape and data together"
    )


def tfrecord_files(path: str | os.PathLike[str], image_size: int) -> list[str]:
    """The TFRecord files that `path` means: a file, a pattern with `*`, or a folder of them.

    Of a folder in which each resolution has a file of its own (`ffhq-r02.tfrecords` to
    `ffhq-r10.tfrecords`, for 4 to 1024 pixels), that of the smallest resolution that is not
    under `image_size`.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where all resolutions are under `image_size`.
    """
    path = os.fspath(path)
    is_folder = storage.is_folder(path)
    if "*" in os.path.basename(path):
        files = storage.matches(*os.path.split(path))
    elif is_folder:
        files = storage.matches(path, "*.tfrecord*")
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
    """The images in TFRecord files, found by walking over the headers of all records.

    Locally that takes some seconds for a million records; in a bucket it reads the files whole.

    Args:
        files: the files.
        progress: called after each file.

    Raises:
        ValueError: a file that is no TFRecord file.
    """

    def walk(file: str) -> list[tuple[int, int]]:
        found = list(_walk(file))
        progress()
        return found

    with futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(walk, files))
    counts = [len(records) for records in found]
    flat = np.array([record for records in found for record in records], np.int64).reshape(-1, 2)
    file = np.repeat(np.arange(len(files), dtype=np.int32), counts)
    return Records(files, {"file_index": file, "offset": flat[:, 0], "size": flat[:, 1]})


def _walk(path: str) -> Iterator[tuple[int, int]]:
    """Offset and size of the content of each record."""
    end = storage.size(path)
    position = 0
    with storage.open_read(path) as file:
        while position < end:
            header = file.read(_HEADER.size)
            if not _is_header(header):
                if position == 0:
                    raise ValueError(f"{path} is not a TFRecord file (or a compressed one)")
                yield position, _LOST
                return
            size = _HEADER.unpack(header)[0]
            # Up to 2^64; one that is longer than the file is cut off, as reading it tells.
            yield position + _HEADER.size, min(size, end)
            position += _HEADER.size + size + _CHECKSUM.size
            if position < end:  # else perhaps farther away than there can be files
                file.seek(position)


def _is_header(data: bytes) -> bool:
    if len(data) < _HEADER.size:
        return False
    return _HEADER.unpack(data)[1] == _masked_checksum(data[:8])


def _masked_checksum(data: bytes) -> int:
    """TFRecord's: a rotated and shifted CRC-32C, so that one of data with checksums is no worse."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_record(path: str, offset: int, size: int) -> bytes:
    """The content of one record.

    Raises:
        BadImageError: missing file, or a damaged record.
    """
    if size == _LOST:
        raise BadImageError(
            f"damaged record at byte {offset} of {path}, after which nothing can be found"
        )
    try:
        data = storage.read(path, offset, size + _CHECKSUM.size)
    except FileNotFoundError as error:
        raise BadImageError(f"no such file: {path}") from error
    content, checksum = data[:size], data[size:]
    if len(checksum) < _CHECKSUM.size:
        raise BadImageError(f"truncated: {path} ends in the middle of the record at byte {offset}")
    if _CHECKSUM.unpack(checksum)[0] != _masked_checksum(content):
        raise BadImageError(
            f"damaged: the record at byte {offset} of {path} is not what its checksum says"
        )
    return content


def write_record(content: bytes) -> bytes:
    """The bytes of one record in a TFRecord file."""
    length = struct.pack("<Q", len(content))
    return b"".join(part + _CHECKSUM.pack(_masked_checksum(part)) for part in (length, content))


def parse_example(data: bytes) -> dict[str, list[Any]]:
    """A serialized tf.train.Example: the values of each feature.

    Raises:
        BadImageError: it is none.
    """
    try:
        example = tf_example_generated_pb2.Example.FromString(data)
    except Exception as error:  # protobuf's DecodeError, of its own or of its C implementation
        raise BadImageError(f"no tf.train.Example: {error}") from error
    return {
        name: list(getattr(feature, feature.WhichOneof("kind")).value)
        for name, feature in example.features.feature.items()
        if feature.WhichOneof("kind")
    }


def serialize_example(features: Mapping[str, bytes | int]) -> bytes:
    """A tf.train.Example of one value for each feature."""
    example = tf_example_generated_pb2.Example()
    for name, value in features.items():
        feature = example.features.feature[name]
        kind = feature.bytes_list if isinstance(value, bytes) else feature.int64_list
        kind.value.append(value)
    return example.SerializeToString(deterministic=True)


def _raw_image(features: Mapping[str, list[Any]]) -> UInt8[np.ndarray, "height width 3"]:
    """StyleGAN's: 8-bit channels, rows, columns."""
    shape, data = features["shape"], _only(features, "data", bytes)
    is_shape = len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape)
    if not is_shape or shape[0] != 3 or math.prod(shape) != len(data):
        raise BadImageError(
            f"feature shape {shape} does not describe the {len(data)} bytes of feature data as "
            "(3, height, width)"
        )
    image = np.empty((*shape[1:], 3), np.uint8)
    for channel, plane in enumerate(np.frombuffer(data, np.uint8).reshape(shape)):
        image[..., channel] = plane  # a third of the time of one transposition
    return image


def _label(features: Mapping[str, list[Any]]) -> int:
    for key in _LABEL_KEYS:
        if key in features:
            return _only(features, key, int)
    return sources.NO_LABEL


def _only(features: Mapping[str, list[Any]], key: str, kind: type[T]) -> T:
    """The one value of a feature."""
    values = features[key]
    if len(values) != 1 or not isinstance(values[0], kind):
        raise BadImageError(
            f"its feature {key} has {len(values)} values where one of type {kind.__name__} is "
            "expected"
        )
    return values[0]
