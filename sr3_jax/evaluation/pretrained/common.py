"""Inputs, results, libraries and weights of the metrics of pretrained networks."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tqdm
from etils import epath
from jaxtyping import UInt, UInt8

from sr3_jax.data import image_files, storage


@runtime_checkable
class Images(Protocol):
    """RGB images of 8 or 16 bits, each read when it is asked for; IndexError after the last."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> UInt[np.ndarray, "h w 3"]: ...


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The images that networks measure.

    Attributes:
      methods: images by the name of their method.
      reference: reference of each image; None for images made from nothing.
      labels: class of each reference, from 0.
      fid_reference: references of FID, or a file of their statistics; None for `reference`.
      make_fid_reference: returns the images of that file, if it does not exist yet.
    """

    methods: Mapping[str, Images]
    reference: Images | None = None
    labels: Sequence[int] = ()
    fid_reference: Images | str | None = None
    make_fid_reference: Callable[[], Iterable[UInt[np.ndarray, "_h _w 3"]]] | None = None

    @property
    def rows(self) -> dict[str, Images]:
        """The references, if there are any, and each method's images, by name."""
        return ({} if self.reference is None else {"reference": self.reference}) | {**self.methods}


class Measured:
    """Results of networks.

    Attributes:
      means: means by method and metric; `reference` is the references' own row.
      of_images: values by method and metric, one number for each image; metrics of sets have none.
      protocol: statements on how they were measured.
    """

    def __init__(self, methods: Iterable[str] = ()) -> None:
        """Takes the names of the rows in their order."""
        self.means: dict[str, dict[str, float]] = {name: {} for name in methods}
        self.of_images: dict[str, dict[str, list[float]]] = {name: {} for name in self.means}
        self.protocol: list[str] = []

    def add(self, method: str, **of_images: list[float]) -> None:
        """Adds the numbers of each image, by metric, and their means."""
        for metric, values in of_images.items():
            self.of_images.setdefault(method, {})[metric] = values
            self.means.setdefault(method, {})[metric] = float(np.mean(values))

    def add_all(self, other: Measured) -> None:
        """Adds other results of the same rows."""
        for method, means in other.means.items():
            self.means[method] |= means
            self.of_images[method] |= other.of_images.get(method, {})
        self.protocol += other.protocol


def bar(name: str, images: Iterable[Any]) -> tqdm.tqdm:
    """Returns the images, which move a bar as they are read."""
    return tqdm.tqdm(images, desc=name, unit="image", dynamic_ncols=True)


def checked(
    images: Images | Iterable[UInt[np.ndarray, "_h _w 3"]],
) -> Iterator[UInt8[np.ndarray, "_h _w 3"]]:
    """Yields each image in the 8 bits that pretrained networks take.

    Raises:
      ValueError: an image is not RGB of 8 or 16 bits.
    """
    for i, image in enumerate(images):
        if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"image {i} is {image.dtype} {image.shape}, not uint8 or uint16 [h, w, 3]"
            )
        yield image_files.to_8_bits(image)


@contextlib.contextmanager
def local_copy(path: epath.PathLike) -> Iterator[str]:
    """Yields the path of a file, or of a copy of it if it is in a bucket.

    Raises:
      FileNotFoundError: there is no such file.
    """
    path = os.path.expanduser(path)
    if not storage.exists(path):
        raise FileNotFoundError(f"{path} does not exist; give the path of a file")
    if not storage.is_url(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / os.path.basename(path)
        copy.write_bytes(storage.read(path))
        yield str(copy)


@contextlib.contextmanager
def naming_weights(network: str, weights: epath.PathLike | None) -> Iterator[None]:
    """Adds the names of network and weights to errors of loading.

    Raises:
      OSError: the weights could not be downloaded.
      ValueError: the weights are not the network's.
    """
    try:
        yield
    # The libraries do not document their errors, and pickle may raise any.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if weights is None:
            raise OSError(
                f"the weights of {network} could not be downloaded ({reason}); download them "
                "elsewhere and give their path"
            ) from error
        raise ValueError(f"{weights} holds no weights of {network}: {reason}") from error


def libraries() -> tuple[ModuleType, ModuleType]:
    """Returns the modules torch and torch_fidelity, which are imported here alone.

    Raises:
      ImportError: one of them is not installed.
    """
    try:
        import torch
        import torch_fidelity
    except ImportError as error:
        raise ImportError(
            f"FID, Inception score and LPIPS need torch-fidelity ({error}): "
            "pip install 'sr3_jax[eval]'"
        ) from error
    return torch, torch_fidelity


def device() -> str:
    """Returns the device that torch computes on."""
    torch, _ = libraries()
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Computes without gradients and without TF32, so that scores do not depend on the machine."""
    torch, _ = libraries()
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def tensor(images: UInt8[np.ndarray, "n h w 3"], device: str) -> Any:
    """Returns images as torch's networks take them: uint8 [n, 3, h, w]."""
    torch, _ = libraries()
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)
