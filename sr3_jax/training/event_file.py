"""TensorBoard's event files, written by the `tensorboard` package; TensorFlow is not needed."""

from __future__ import annotations

import io
import sys
import time
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from absl import logging
from jaxtyping import UInt8
from PIL import Image

if TYPE_CHECKING:
    from tensorboard.summary.writer import event_file_writer


class EventFile:
    """A new event file in a folder."""

    def __init__(self, folder: str | None) -> None:
        """Makes the file in `folder`, local or in a bucket.

        With None, or without `tensorboard`, which is logged, nothing is written.
        """
        self._file: event_file_writer.EventFileWriter | None = None
        if folder is None:
            return
        # If this module exists, TensorBoard does not import TensorFlow, which takes seconds.
        name = "tensorboard.compat.notf"
        sys.modules.setdefault(name, types.ModuleType(name))
        try:
            from tensorboard.summary.writer import event_file_writer
        except ImportError as error:
            logging.warning("TensorBoard gets no curves (%s); pip install tensorboard", error)
            return
        self._file = event_file_writer.EventFileWriter(folder)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars by name."""
        self._add(step, {name: {"simple_value": value} for name, value in scalars.items()})

    def write_image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Adds a picture."""
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, "PNG")
        height, width, channels = image.shape
        content = {"height": height, "width": width, "colorspace": channels}
        self._add(step, {name: {"image": content | {"encoded_image_string": encoded.getvalue()}}})

    def flush(self) -> None:
        """Writes everything added so far to the file."""
        if self._file is not None:
            self._file.flush()

    def _add(self, step: int, values: Mapping[str, dict]) -> None:
        if self._file is None:
            return
        from tensorboard.compat.proto import event_pb2

        summary = {"value": [{"tag": name, **value} for name, value in values.items()]}
        self._file.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))
