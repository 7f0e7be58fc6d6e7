"""Intervals with a promise, for a network that was calibrated: `calibration.json` of its folder.

`--mode=calibrate` writes the file. It fits one network, one way of sampling it, and one number of
samples; with another, the intervals would promise what nobody has looked at, so it is refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Num

from sr3_jax import conformal, released
from sr3_jax.data import resumable, storage
from sr3_jax.inference.inputs import UpscaleOptions

FILE = "calibration.json"

# Keys of `config.sampling` by which a result hardly changes, and which follow the picture's size.
_FREE = ("batch_size", "tile_size", "tile_overlap")
_SEAL = "digest"  # of all else in the file
_PARTS = 10_000  # of a share of values, in the file
_LARGEST = 255  # the range of levels of any depth


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """The content of a file.

    Attributes:
      calibration: the family of intervals; of levels in units of 255.
      num_samples: samples of each image.
      made_with: the network and its sampling (`loading.fingerprint`).
      about: what it was made of, for people.
    """

    calibration: conformal.Calibration
    num_samples: int
    made_with: Mapping[str, Any]
    about: Mapping[str, Any]

    def check(self, fingerprint: resumable.Fingerprint, path: epath.PathLike) -> None:
        """Raises ValueError unless a network and its sampling are those of the file in `path`."""
        now = dataclasses.replace(fingerprint, values=sampled(fingerprint))
        if differ := now.differences(self.made_with):
            raise ValueError(
                f"{epath.Path(path) / FILE} is of another network or sampling: "
                f"{'; '.join(differ)}. Calibrate again with these options (--mode=calibrate takes "
                "--steps, --sampler and --sampling), or leave them out"
            )

    def write(self, path: epath.PathLike) -> None:
        """Writes the file, whole or not at all; risks are rounded up."""
        family = [
            {"centres": _short(each.centres), "radii": [_short(row) for row in each.radii]}
            for each in self.calibration.channels
        ]
        risks = [
            [math.ceil(share * _PARTS - 1e-6) for share in row] for row in self.calibration.risks
        ]
        content = {
            "about": self.about,
            "num_samples": self.num_samples,
            "made_with": self.made_with,
            "channels": family,
            f"risks_of_{_PARTS}": risks,
        }
        storage.write_whole(path, (json.dumps(content | {_SEAL: _seal(content)}) + "\n").encode())


def sampled(fingerprint: resumable.Fingerprint) -> dict[str, Any]:
    """Returns the values of a fingerprint that intervals depend on."""
    return {key: value for key, value in fingerprint.values.items() if key not in _FREE}


def read(workdir: epath.PathLike) -> Calibrated:
    """Reads the calibration of the network in a folder.

    Raises:
      FileNotFoundError: it was not calibrated.
      ValueError: the file is damaged.
    """
    path = epath.Path(workdir) / FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{workdir} has no {FILE}, so that no confidence can be promised; run --mode=calibrate "
            f"on it first{_copy_of(workdir)}"
        )
    try:
        found = json.loads(storage.read(path))
        if found.pop(_SEAL) != _seal(found):
            raise ValueError("its content was changed")
        channels = tuple(
            conformal.Channel(tuple(each["centres"]), tuple(map(tuple, each["radii"])))
            for each in found["channels"]
        )
        risks = np.array(found[f"risks_of_{_PARTS}"]) / _PARTS
        calibration = conformal.Calibration(channels, risks)
        return Calibrated(
            calibration, int(found["num_samples"]), dict(found["made_with"]), found["about"]
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove it and run --mode=calibrate again"
        ) from error


def with_band(
    options: UpscaleOptions,
    workdir: epath.PathLike,
    promise: conformal.Promise,
    samples: int | None = None,
) -> UpscaleOptions:
    """Returns options of upscaling that also write intervals.

    Args:
      options: the other options.
      workdir: folder of the network.
      promise: what they are to promise.
      samples: number of samples that the user asks for, if any.

    Raises:
      FileNotFoundError: the network was not calibrated.
      ValueError: the promise takes more calibration images, or the options are of other images
        than those of calibration.
    """
    found = read(workdir)
    if options.factor is not None:
        raise ValueError(
            f"--factor={options.factor:g} resizes what the intervals are of; leave it out, or "
            "leave --confidence out"
        )
    if samples not in (None, found.num_samples):
        raise ValueError(
            f"--samples={samples}, but the network was calibrated with {found.num_samples}; leave "
            "--samples out, or calibrate again with --config.calibration.num_samples"
        )
    made = found.calibration.choose(promise)
    return dataclasses.replace(options, num_samples=found.num_samples, band=made)


def in_units(images: Num[np.ndarray, "*n h w c"]) -> Num[np.ndarray, "*n h w c"]:
    """Returns levels of 8 or 16 bits in units of 255; other numbers as they are."""
    if images.dtype.kind == "f":
        return images
    return images * np.float64(_LARGEST / np.iinfo(images.dtype).max)


def interval(
    samples: Num[np.ndarray, "k h w c"], band: conformal.Band
) -> tuple[Num[np.ndarray, "h w c"], Num[np.ndarray, "h w c"]]:
    """Returns lower and upper ends of the intervals, of the samples' type.

    Levels are rounded outward, so that no interval gets narrower.
    """
    lower, upper = band.interval(in_units(samples))
    if samples.dtype.kind == "f":
        return lower.astype(samples.dtype), upper.astype(samples.dtype)
    largest = np.iinfo(samples.dtype).max
    scale = largest / _LARGEST
    ends = np.floor(lower * scale + 1e-6), np.ceil(upper * scale - 1e-6)
    lower, upper = (np.clip(end, 0, largest).astype(samples.dtype) for end in ends)
    return lower, upper


def _seal(content: Mapping[str, Any]) -> str:
    """Returns a digest of the content: edited intervals would promise what nobody has counted."""
    return resumable.digest(json.dumps(content, sort_keys=True).encode())


def _copy_of(workdir: epath.PathLike) -> str:
    if released.is_for_results(workdir):
        return ""
    name = epath.Path(workdir).name
    return f", in a copy: mkdir -p runs && cp -rL {workdir} runs/{name}"


def _short(numbers: tuple[float, ...]) -> list[float]:
    return [float(f"{number:.4g}") for number in numbers]
