"""Reads the tensors of files that torch.save writes, without torch and without running them.

Such a file is a zip archive: a pickle that names tensors, and the numbers of each storage. A pickle
may call any function by its name. Here it can name those alone that make tensors, each replaced by
a function of this module, and what it makes is plain data.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from sr3_jax.data import storage

_TYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


# Tensors may share numbers, such as those of tied layers, and each gets an array of its own.
_MOST_COPIES = 8


class _Storage(NamedTuple):
    type_name: str
    key: str


class _Tensor(NamedTuple):
    """A tensor as the pickle describes it; nothing of it is checked yet."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


def read(path: epath.PathLike) -> Any:
    """Returns what a file holds, such as a dictionary of arrays; all else in it is plain data.

    Args:
      path: a file of torch 1.6 or newer.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no such archive, is damaged, or asks for anything but tensors; names
        what it asks for.
    """
    content = storage.read(path)
    if content[:1] == b"\x80":
        raise ValueError(
            f"{path} is of torch before 1.6, or a plain pickle, which can run any program. If you "
            "trust it, let torch write it anew: "
            "torch.save(torch.load(FILE, weights_only=True), FILE)"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _read(archive)
    except _RefusedError as error:
        raise ValueError(
            f"{path} asks for {error}, which no file of weights needs and which can run a program; "
            "nothing of it was run. Get the weights from a place that you trust"
        ) from error
    except _UnknownTypeError as error:
        raise ValueError(
            f"{path} has numbers of the type {error}; those that are read are "
            f"{', '.join(f'torch.{name}' for name in _TYPES)}"
        ) from error
    # A damaged pickle may raise any exception.
    except Exception as error:
        raise ValueError(
            f"{path} is no whole file of torch.save ({type(error).__name__}: {error}); fetch it "
            "again"
        ) from error


class _RefusedError(Exception):
    """The name of what a pickle asked for."""


class _UnknownTypeError(Exception):
    """The name of a type of numbers."""


class _Unpickler(pickle.Unpickler):
    """Makes dictionaries, lists, numbers and texts, `_Storage` and `_Tensor`, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in _MAKERS:
            return _MAKERS[name]
        if module == "torch" and name in _TYPES:
            return name
        if module == "torch" and name.endswith("Storage"):
            raise _UnknownTypeError(f"torch.{name}")
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, type_name, key, *_ = pid
        if kind != "storage":
            raise _RefusedError(str(kind))
        return _Storage(type_name, key)


def _make_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


def _make_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


_MAKERS = {"_rebuild_tensor_v2": _make_tensor, "_rebuild_parameter": _make_parameter}


def _read(archive: zipfile.ZipFile) -> Any:
    infos = {info.filename: info for info in archive.infolist()}
    (name,) = [name for name in infos if name.endswith("/data.pkl") and name.count("/") == 1]
    folder = name.removesuffix("data.pkl")
    order = f"{folder}byteorder"  # absent in files of torch before 2.1
    if order in infos and archive.read(order) != b"little":
        raise ValueError("its numbers are big-endian")
    if packed := [n for n, info in infos.items() if info.compress_type != zipfile.ZIP_STORED]:
        raise ValueError(f"{packed[0]} is compressed, which torch never does")

    most = _MOST_COPIES * sum(info.file_size for info in infos.values())
    made: dict[int, Any] = {}  # what became of a value, by its identity

    def array(tensor: _Tensor) -> np.ndarray:
        nonlocal most
        found = np.frombuffer(
            archive.read(f"{folder}data/{tensor.storage.key}"), _TYPES[tensor.storage.type_name]
        )
        shape, strides = tuple(map(int, tensor.shape)), tuple(map(int, tensor.strides))
        last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        count = math.prod(shape)
        if min((tensor.offset, *shape, *strides)) < 0 or max(last + 1, count) > found.size:
            raise ValueError(f"a tensor of shape {shape} reaches beyond its {found.size} numbers")
        most -= count * found.itemsize
        if most < 0:
            raise ValueError(f"its tensors take more than {_MOST_COPIES} times the file's memory")
        bytes_ = tuple(stride * found.itemsize for stride in strides)
        return np.lib.stride_tricks.as_strided(found[tensor.offset :], shape, bytes_).copy()

    def plain(value: Any) -> Any:
        # Once for each value: a list of two references to one list, and so on, would never end.
        if id(value) not in made:
            made[id(value)] = convert(value)
        return made[id(value)]

    def convert(value: Any) -> Any:
        if isinstance(value, _Tensor):
            return array(value)
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    with archive.open(name) as file:
        found = _Unpickler(file).load()  # kept, so that identities stay
        return plain(found)
