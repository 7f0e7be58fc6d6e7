"""Pictures as inputs and outputs of upscaling: alpha, profile, EXIF and depth are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from sr3_jax.data import depth, image_files, resumable, storage
from sr3_jax.inference import confidence, host_images, visualization
from sr3_jax.inference.file_kinds import MOST_FRAMES, Decoded, Fetched, Refined, Resolver
from sr3_jax.inference.inputs import UpscaleOptions
from sr3_jax.inference.manifest import Record

_MUCH = 5.0  # levels of 255 that colours may be shifted without a warning


class PictureFiles(NamedTuple):
    """The files of networks of levels; see `file_kinds.Kind`.

    A network of one channel takes grey pictures alone.
    """

    resolver: Resolver
    output: epath.Path
    options: UpscaleOptions

    def fetch(self, record: Record, path: str) -> Fetched:
        content, options = storage.read(path), self.options
        record = dataclasses.replace(record, input_digest=resumable.digest(content))
        opened = image_files.open_file(content)
        self.resolver.check_fits(
            opened.shape[:2],
            factor=options.factor,
            num_samples=options.num_samples,
            num_snapshots=MOST_FRAMES if options.animate else 0,
        )
        return Fetched(record, content, opened.bytes_decoded)

    def decode(self, unit: Fetched) -> Decoded:
        resolver, record = self.resolver, unit.record
        factor = self.options.factor or resolver.factor
        read = image_files.decode_picture(unit.file)
        image_files.check_writable(read, self.output / record.input, float(factor), **self._format)
        notes = []
        if factor != resolver.factor:
            when = "before" if factor > resolver.factor else "after"
            by = factor / resolver.factor
            notes.append(f"resized by {by:g} {when} the network's {resolver.factor:g}")
        pixels = image_files.fill_transparent(read)
        if pixels.dtype == np.uint16:
            white, largest = resolver.white_level, int(pixels.max())
            if white and largest > white:
                notes.append(f"values above the network's white level of {white} were clipped")
            elif not white and 0 < largest < depth.SMALL_PART:
                notes.append(f"values reach {largest} of 65535, so that the network saw it dark")
            pixels = depth.convert(pixels, np.uint16, white)
        if resolver.num_channels == 1:
            if not read.is_grey:
                raise ValueError("it has colours, and the network takes grey pictures alone")
            pixels = pixels[..., :1]
        return Decoded(dataclasses.replace(record, note="; ".join(notes)), read, pixels[None])

    @property
    def _format(self) -> dict[str, Any]:
        """The arguments of `image_files.write_picture` that set the encoding."""
        return {"format": self.options.format, "quality": self.options.quality}

    def write(self, unit: Refined) -> Record:
        record, (before,), read = unit.record, unit.input.images, unit.input.file
        (samples,), (frames,), options = unit.samples, unit.frames, self.options
        after = samples[0]
        if len(samples) > 1:
            after = np.rint(samples.mean(0, dtype=np.float64)).astype(samples.dtype)
        alpha = read.alpha
        scale = float(options.factor or after.shape[0] / before.shape[0])
        if alpha is not None:
            layer = host_images.resized(alpha[None, ..., None], scale, after.shape[:2])
            alpha = layer[0, ..., 0]
        _, *beside = (self.output / name for name in options.output_names(record.input))
        if len(samples) > 1:
            drawn = visualization.uncertainty(visualization.deviation(samples))
            image_files.write_picture(image_files.Picture(drawn), beside[0])
        if options.band:
            ends = confidence.interval(samples, options.band)
            for path, end, outward in zip(beside[1:], ends, (np.floor, np.ceil), strict=False):
                drawn = read.scaled(self._as_read(end, read, outward), alpha, scale)
                image_files.write_picture(drawn, path, format="png")
        if options.animate:
            frames = frames if frames.shape[-1] == 3 else frames.repeat(3, -1)
            visualization.write_animation(list(frames), beside[-1])
        large = read.scaled(self._as_read(after, read), alpha, scale)
        # The name is the input's: the writer appends what the format wants.
        path = self.output / record.input
        image_files.write_picture(large, path, **self._format)
        lost = image_files.not_kept(large, path, options.format)
        shift = _colour_shift(before, after)
        if abs(shift) > _MUCH:
            name = storage.shown(record.input)
            logging.warning("%s: colours are shifted by %.1f levels of 255", name, shift)
        notes = (record.note, lost and f"not kept: {', '.join(lost)}")
        return dataclasses.replace(
            record, note="; ".join(filter(None, notes)), colour_shift=round(shift, 3)
        )

    def _as_read(
        self,
        pixels: np.ndarray,
        read: image_files.Picture,
        to_whole: Callable[[np.ndarray], np.ndarray] = np.rint,
    ) -> np.ndarray:
        """Returns results on the scale of the file, and without colours where it has none."""
        white = self.resolver.white_level
        if pixels.dtype == np.uint16 and white:
            pixels = to_whole(pixels * (white / 65535)).astype(np.uint16)
        if read.is_grey:
            pixels = to_whole(pixels.mean(-1, keepdims=True)).astype(pixels.dtype).repeat(3, -1)
        return pixels


def _colour_shift(before: np.ndarray, after: np.ndarray) -> float:
    means = (image.mean((0, 1), dtype=np.float64) for image in (after, before))
    shift = np.subtract(*means) * 255 / np.iinfo(before.dtype).max
    return float(shift[np.argmax(np.abs(shift))])
