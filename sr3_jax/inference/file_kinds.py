"""What upscaling knows of a kind of files, pictures or arrays: how they are read and written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from sr3_jax import scaling
from sr3_jax.inference.manifest import Record

MOST_FRAMES = 40  # of an animation


@runtime_checkable
class Resolver(Protocol):
    """The part of `SuperResolver` that is used here; that class imports this module."""

    batch_size: int
    factor: int | float
    white_level: int
    num_channels: int
    num_maps: int
    scalings: scaling.Scalings | None
    variables: tuple[str, ...]
    map_variables: tuple[str, ...]
    check_fits: Callable[..., None]
    nfe: Callable[..., int]
    num_refinements: Callable[..., int]
    start: Callable[..., Iterator[Callable[[], tuple[np.ndarray, list[np.ndarray]]]]]


class Fetched(NamedTuple):
    """An input, its opened file or its content, and the bytes that its images will take."""

    record: Record
    file: Any
    num_bytes: int


class Decoded(NamedTuple):
    """An input's file, its images for the network, and their maps, if it takes some."""

    record: Record
    file: Any
    images: np.ndarray  # [n, height, width, c]
    maps: np.ndarray | None = None  # [n or 1, new_height, new_width, m]


class Refined(NamedTuple):
    """An input and what the network made of it."""

    input: Decoded
    record: Record
    samples: np.ndarray  # [n, samples, new_height, new_width, d]
    frames: np.ndarray  # on the way from noise, of the first sample; [n, frames, ...]


@runtime_checkable
class Kind(Protocol):
    """The files of a kind: how they are read and written. Their methods run in threads.

    They raise `image_files.BadImageError`, OSError or ValueError for a file that cannot be
    upscaled, before it is refined.
    """

    def fetch(self, record: Record, path: str) -> Fetched:
        """Reads a file; one whose result memory cannot hold fails before it is decoded."""

    def decode(self, unit: Fetched) -> Decoded:
        """Decodes a file; one whose output could not be written fails before it is refined."""

    def write(self, unit: Refined) -> Record:
        """Writes the outputs; the first, whose presence marks completion, last."""
