"""Upscalings that people at a page ask for: one after another, each for a page that is open."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging

from sr3_jax.data import image_files
from sr3_jax.inference import host_images, inputs, upscale_files, visualization
from sr3_jax.inference.super_resolver import SuperResolver

MOST_SAMPLES = 8
_NUM_SNAPSHOTS = 24  # of a refinement, at most
_SECONDS_BETWEEN = 0.3  # them, at least
_LONGEST_NAME = 150  # bytes of a file name that are kept
_INPUT = "input"  # folder of the picture that was sent


class _Stopped(Exception):
    """The upscaling is not wanted any more."""


@dataclasses.dataclass
class Upscaling:
    """A picture to be upscaled, and what came of it so far.

    Attributes:
      folder: its files.
      name: name of the picture's file.
      options: those of `sr3 upscale`; `num_samples` are written as files of their own.
      status: `waiting`, `running`, `done`, `failed` or `stopped`.
      share: of the work, done.
      message: what went wrong, or what was not kept.
      views: what can be looked at, PNG files by their names.
      files: results at full depth, as they may be kept.
      seconds: duration so far.
      version: rises with every change.
    """

    folder: pathlib.Path
    name: str
    options: inputs.UpscaleOptions
    status: str = "waiting"
    share: float = 0.0
    message: str = ""
    views: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    files: list[pathlib.Path] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    size: tuple[int, int] = (0, 0)  # of the result, width and height
    version: int = 0
    _is_unwanted: bool = False

    def change(self, **changes: Any) -> None:
        """Sets attributes, and raises the version."""
        for name, value in changes.items():
            setattr(self, name, value)
        self.version += 1

    def stop(self) -> None:
        """Asks for its end."""
        self._is_unwanted = True

    def check(self) -> None:
        """Raises _Stopped if its end was asked for."""
        if self._is_unwanted:
            raise _Stopped


class Upscalings:
    """A thread that does upscalings one after another, in the order in which they were asked for.

    The result of sample k is what `sr3 upscale --seed=SEED+k` writes for a file of that name.
    """

    def __init__(self, resolver: SuperResolver) -> None:
        """Makes the folder of all files; `close` removes it."""
        self.resolver = resolver
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="sr3_demo_"))
        self._waiting: collections.deque[Upscaling] = collections.deque()
        self._current: Upscaling | None = None
        self._changed = threading.Condition()
        self._is_open = True
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def add(self, name: str, content: bytes, steps: int, seed: int, samples: int) -> Upscaling:
        """Puts a picture at the end of the queue.

        Raises:
          ValueError: the content is no picture, or is too large; or the options are not possible.
        """
        if not 1 <= samples <= MOST_SAMPLES:
            raise ValueError(f"{samples} samples; ask for 1 to {MOST_SAMPLES}")
        options = inputs.UpscaleOptions(steps, seed)
        self.resolver.nfe(steps)  # raises if the schedule cannot have them
        opened = image_files.open_file(content)
        try:
            self.resolver.check_fits(opened.shape[:2])
        except ValueError as error:
            why = str(error).partition("; use")[0]
            raise ValueError(f"{why}; send a smaller picture, or a part of it") from error
        name = safe_name(name)
        folder = pathlib.Path(tempfile.mkdtemp(dir=self._folder))
        (folder / _INPUT).mkdir()
        (folder / _INPUT / name).write_bytes(content)
        options = dataclasses.replace(options, num_samples=samples)
        added = Upscaling(folder, name, options)
        with self._changed:
            self._waiting.append(added)
            self._changed.notify()
        return added

    def ahead_of(self, upscaling: Upscaling) -> int:
        """Returns how many are before it in the queue."""
        with self._changed:
            if upscaling not in self._waiting:
                return 0
            return self._waiting.index(upscaling) + (self._current is not None)

    def stop(self, upscaling: Upscaling) -> None:
        """Ends an upscaling; one that is at work ends after its call of the network."""
        upscaling.stop()
        with self._changed:
            if upscaling in self._waiting:
                self._waiting.remove(upscaling)
                upscaling.change(status="stopped")

    def forget(self, upscaling: Upscaling) -> None:
        """Ends an upscaling and removes its files."""
        self.stop(upscaling)
        with self._changed:
            self._changed.wait_for(lambda: self._current is not upscaling, timeout=60)
        shutil.rmtree(upscaling.folder, ignore_errors=True)

    def stop_all(self) -> None:
        """Asks all to end, without waiting."""
        for upscaling in [*self._waiting, self._current]:
            if upscaling:
                upscaling.stop()

    def close(self) -> None:
        """Ends all, and removes the folder."""
        self.stop_all()
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        self._thread.join(timeout=60)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._current = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or not self._is_open)
                if not self._is_open:
                    return
                self._current = one = self._waiting.popleft()
            begin = time.monotonic()
            try:
                one.change(status="running")
                self._upscale(one, begin)
                one.change(status="done", share=1.0)
            except _Stopped:
                one.change(status="stopped")
            except (ValueError, OSError, MemoryError) as error:
                one.change(status="failed", message=str(error))
            except Exception:
                logging.exception("upscaling failed")
                why = "the server met an error of its own, which its terminal shows"
                one.change(status="failed", message=why)
            one.change(seconds=time.monotonic() - begin)

    def _upscale(self, one: Upscaling, begin: float) -> None:
        resolver, count, path = (
            self.resolver,
            one.options.num_samples,
            one.folder / _INPUT / one.name,
        )
        read = image_files.read_picture(str(path))
        height, width = host_images.output_size(read.pixels.shape[:2], resolver.factor)
        one.change(size=(width, height))
        self._show(one, "input", read)
        large = host_images.resized(read.pixels[None], resolver.factor, (height, width))[0]
        self._show(one, "bicubic", read.scaled(large, _scaled_alpha(read, large), resolver.factor))
        samples, notes = [], []
        for k in range(count):
            made = self._sample(one, k, begin, notes)
            one.files.append(made)
            shown = image_files.read_picture(str(made))
            self._show(one, f"sample {k + 1}" if count > 1 else "result", shown)
            samples.append(shown.pixels)
            one.views.pop("refinement", None)
            if k:
                drawn = visualization.uncertainty(visualization.deviation(np.stack(samples)))
                drawn = drawn[:height]  # without the legend
                self._show(one, "deviation", image_files.Picture(np.ascontiguousarray(drawn)))
        one.change(message="; ".join(dict.fromkeys(notes)))

    def _sample(self, one: Upscaling, k: int, begin: float, notes: list[str]) -> pathlib.Path:
        """Writes a sample as `sr3 upscale` does; returns its path."""
        count, output = one.options.num_samples, one.folder / f"sample_{k}"
        options = dataclasses.replace(one.options, seed=one.options.seed + k, num_samples=1)

        def progress(share: float) -> None:
            one.check()
            one.change(share=one.share + share / count, seconds=time.monotonic() - begin)

        next_at = 0.0

        def watch(y_t: np.ndarray) -> None:
            nonlocal next_at
            if (now := time.monotonic()) >= next_at:
                self._show(one, "refinement", image_files.Picture(y_t[0]))
                # Pictures of the way take a tenth of the time at most.
                next_at = now + max(_SECONDS_BETWEEN, 10 * (time.monotonic() - now))

        one.check()
        watched = _Watched(self.resolver, watch)
        source = inputs.find_inputs(one.folder / _INPUT / one.name)
        (record,) = upscale_files.upscale_files(watched, source, output, options, progress)
        if record.error:
            raise ValueError(record.error)
        notes.append(record.note)
        return output / record.output

    def _show(self, one: Upscaling, name: str, picture: image_files.Picture) -> None:
        """Adds a view, or replaces it by a file of another name, since browsers keep pictures."""
        path = one.folder / f"{name.replace(' ', '_')}_{one.version}.png"
        seen = image_files.Picture(
            _as_rgb(picture.pixels),
            None if picture.alpha is None else image_files.to_8_bits(picture.alpha),
            icc_profile=None if picture.is_grey else picture.icc_profile,
        )
        image_files.write_picture(seen, path)
        others = {other: views for other, views in one.views.items() if other != name}
        before = one.views.get(name)
        one.change(views={**others, name: path})
        if before:
            before.unlink(missing_ok=True)


class _Watched:
    """A resolver whose refinement is watched; see `file_kinds.Resolver`."""

    def __init__(self, resolver: SuperResolver, watch: Callable[[np.ndarray], None]) -> None:
        self._resolver, self._watch = resolver, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._resolver, name)

    def start(self, images: np.ndarray, steps: int | None, seed: Any, **how: Any) -> Iterator:
        how["num_snapshots"] = min(_NUM_SNAPSHOTS, self._resolver.nfe(steps) + 1)
        return self._resolver.start(images, steps, seed, watch=self._watch, **how)


def _scaled_alpha(read: image_files.Picture, large: np.ndarray) -> np.ndarray | None:
    if read.alpha is None:
        return None
    scale = large.shape[0] / read.alpha.shape[0]
    return host_images.resized(read.alpha[None, ..., None], scale, large.shape[:2])[0, ..., 0]


def _as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels in 8 bits and three colours, as browsers show them."""
    return np.broadcast_to(image_files.to_8_bits(pixels), (*pixels.shape[:2], 3)).copy()


def safe_name(name: str) -> str:
    """Returns the last part of a file name, as a file may be called on this machine."""
    name = re.split(r"[\\/]", name)[-1]
    forbidden = r"[\x00-\x1f\x7f]" if os.name != "nt" else r'[\x00-\x1f\x7f<>:"|?*]'
    name = re.sub(forbidden, "_", name).strip(". ") or "picture"
    stem, dot, suffix = name.rpartition(".") if "." in name else (name, "", "")
    suffix = dot + suffix[:10]
    stem = stem.encode()[: _LONGEST_NAME - len(suffix.encode())].decode(errors="ignore")
    return stem + suffix
