"""Files of arrays as inputs and outputs of upscaling: units, type, nodata and places are kept."""

from __future__ import annotations

import dataclasses
import os
from typing import NamedTuple

import numpy as np
from absl import logging
from etils import epath

from sr3_jax.data import array_source, arrays, resumable, storage
from sr3_jax.inference import confidence
from sr3_jax.inference.file_kinds import Decoded, Fetched, Refined, Resolver
from sr3_jax.inference.inputs import ENDS, UpscaleOptions
from sr3_jax.inference.manifest import Record

_MUCH = 0.01  # share of values beyond the range of the training data without a warning
_MOST_READ = 1 << 30  # bytes of a file whose content is read for its digest


class ArrayFiles(NamedTuple):
    """The files of networks of numbers; see `file_kinds.Kind`. All images of a file are upscaled.

    Of several samples, the output is their mean, and beside it lies each sample.
    """

    resolver: Resolver
    output: epath.Path
    options: UpscaleOptions

    def fetch(self, record: Record, path: str) -> Fetched:
        options = self.options
        if os.path.isfile(path) and os.path.getsize(path) <= _MOST_READ:
            record = dataclasses.replace(record, input_digest=resumable.digest(storage.read(path)))
        file = arrays.open_file(path, self.resolver.num_channels, self.resolver.variables)
        height, width, channels = file.shape
        if channels != self.resolver.num_channels:
            raise ValueError(
                f"it has {channels} channels, and the network takes {self.resolver.num_channels}"
            )
        count = len(file) * options.num_samples
        self.resolver.check_fits((height, width), num_samples=count)
        return Fetched(record, file, 8 * len(file) * height * width * channels)

    def decode(self, unit: Fetched) -> Decoded:
        file, record, maps = unit.file, unit.record, None
        images = np.stack([file.read(i) for i in range(len(file))])
        if self.options.maps:
            path = array_source.map_of(self.options.maps, record.input)
            of = arrays.open_file(path, self.resolver.num_maps, self.resolver.map_variables)
            if len(of) not in (1, len(file)):
                raise ValueError(f"its file of maps has {len(of)} images, and it has {len(file)}")
            maps = np.stack([of.read(i) for i in range(len(of))])
        notes = []
        outside = self.resolver.scalings.source.outside(images)
        for i in np.flatnonzero(outside > _MUCH):
            least, greatest = (
                getattr(self.resolver.scalings.source, name)[i] for name in ("least", "greatest")
            )
            notes.append(
                f"{outside[i]:.0%} of {file.names[i]} are outside {least:g} to {greatest:g}, the "
                "range of the training data"
            )
        if notes:
            logging.warning("%s: %s", storage.shown(record.input), "; ".join(notes))
        return Decoded(dataclasses.replace(record, note="; ".join(notes)), file, images, maps)

    def write(self, unit: Refined) -> Record:
        record, file, samples = unit.record, unit.input.file, unit.samples
        made, *others = (self.output / name for name in self.options.output_names(record.input))
        factor, band = self.resolver.factor, self.options.band
        members = others[: -len(ENDS)] if band else others
        if band:
            ends = zip(*(confidence.interval(each, band) for each in samples), strict=True)
            for path, images in zip(others[-len(ENDS) :], ends, strict=True):
                file.write(path, list(images), factor)
        for k, path in enumerate(members):
            file.write(path, list(samples[:, k]), factor)
        file.write(made, list(samples.mean(axis=1) if len(members) else samples[:, 0]), factor)
        return record
