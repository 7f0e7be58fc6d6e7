"""What is measured on a picture where the truth is known. Functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.ndimage
import scipy.signal
from jaxtyping import Float, UInt8
from skimage import feature, transform

from launch.comparison.upscale import FACTOR

Rgb = UInt8[np.ndarray, "height width 3"]
Vector = tuple[float, float]  # cycles per pixel, down and right
Segment = tuple[tuple[float, float], tuple[float, float]]  # ends (x, y)

_NEAR_ANGLE, _NEAR = 5.0, 2.0  # degrees and pixels at which two segments are the same line


def brightness(image: Rgb) -> Float[np.ndarray, "height width"]:
    """Returns the brightness (Rec. 601) of a picture, from 0 to 1."""
    return (image @ np.array([0.299, 0.587, 0.114])) / 255


def character_errors(read: str, text: str) -> float:
    """Returns the character error rate: changes that make `read` of `text`, per letter of it.

    Changes are those of Levenshtein: a letter more, less, or another. Letters and digits count, in
    upper or lower case alike. The rate may exceed 1.

    Raises:
      ValueError: `text` has neither a letter nor a digit.
    """
    plain = ["".join(c for c in each.lower() if c.isalnum()) for each in (read, text)]
    if not plain[1]:
        raise ValueError(f"{text!r} has no letter or digit, so errors cannot be counted per letter")
    changes = [*range(len(plain[1]) + 1)]
    for i, letter in enumerate(plain[0], start=1):
        before, changes = changes, [i]
        for j, other in enumerate(plain[1]):
            changes.append(min(before[j] + (letter != other), before[j + 1] + 1, changes[j] + 1))
    return changes[-1] / len(plain[1])


class Spectrum(NamedTuple):
    """What a spectrum says of stripes whose frequencies are known."""

    is_right: bool  # the strongest frequency is one of them
    is_alias: bool  # it is what one of them becomes in the low resolution
    angle_error: float  # of the strongest frequency, degrees
    amplitude: float  # at the known frequencies, levels of 1
    false: float  # share of energy that is neither there nor at their sums and multiples


def spectrum(image: Rgb, vectors: Sequence[Vector], factor: int = FACTOR) -> Spectrum:
    """Compares a picture's strongest frequency with known ones.

    The brightness is weighed by a Hann window and filled up to four times its size, so frequencies
    are resolved to a quarter of a bin. Two frequencies are the same when they are nearer than one
    bin: one cycle in the width of the picture. One above half a cycle per pixel of the input
    cannot be told from its alias there (`factor` pixels become one).
    """
    values = brightness(image)
    sides = values.shape
    window = np.outer(*map(scipy.signal.windows.hann, sides))
    values = (values - (values * window).sum() / window.sum()) * window
    padded = [4 * side for side in sides]
    power = np.abs(np.fft.fft2(values, padded)) ** 2
    grid = np.stack(np.meshgrid(*map(np.fft.fftfreq, padded), indexing="ij"), axis=-1)
    bin_ = 1 / min(sides)
    power[np.linalg.norm(grid, axis=-1) < 2 * bin_] = 0  # slow changes are no stripes
    peak = grid[np.unravel_index(np.argmax(power), power.shape)]

    def away(vector: np.ndarray) -> float:
        return min(np.linalg.norm(peak - vector), np.linalg.norm(peak + vector))

    true = [np.array(vector) for vector in vectors]
    nearest = min(true, key=away)
    folded = [((v * factor + 0.5) % 1 - 0.5) / factor for v in true]
    is_right = bool(away(nearest) < bin_)
    is_alias = not is_right and bool(min(map(away, folded)) < bin_)
    angles = [np.rad2deg(np.arctan2(*v)) for v in (peak, nearest)]
    near = [np.linalg.norm(grid - s * v, axis=-1) < 2 * bin_ for v in true for s in (1, -1)]
    at_first = np.any(near, axis=0)
    # Stripes with sharp edges have multiples of their frequency, too, and grids sums of these; the
    # directions of a grid are at right angles.
    nearest_sum = sum(np.rint(grid @ v / (v @ v))[..., None] * v for v in true)
    at_all = np.linalg.norm(grid - nearest_sum, axis=-1) < 2 * bin_
    amplitude = float(np.sqrt(power[at_first].sum()))
    false = float(power[~at_all].sum() / power.sum())
    return Spectrum(is_right, is_alias, _between(*angles), amplitude, false)


def _between(angle: float, other: float) -> float:
    """Returns the angle between two directions without sense, in degrees from 0 to 90."""
    return float(np.abs((angle - other + 90) % 180 - 90))


class Line(NamedTuple):
    """What became of a line: the share that is there, its contrast, how far it strays (pixels)."""

    kept: float
    contrast: float
    strays: float


def line(image: Rgb, reference: Rgb, angle: float, middle: float, width: float) -> Line:
    """Follows a dark line whose place is known, through a picture and its reference.

    The picture is sampled along the line and up to 10 pixels beside it. A place is kept where the
    line has at least half of the reference's contrast, over its width. What strays is the centre of
    darkness across the line, as a root mean square over the places.
    """
    towards = np.array([np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))])
    across = np.array([towards[1], -towards[0]])
    reach = width / 2 + 10
    along = np.arange(-40, 40.5, 0.5)
    beside = np.arange(-reach, reach + 0.5, 0.5)
    # Pixel i has its centre at i + 0.5.
    places = middle - 0.5 + along[:, None, None] * towards + beside[None, :, None] * across
    inside = np.abs(beside) <= max(width / 2 - 0.5, 0.5)
    outside = np.abs(beside) > width / 2 + 5
    contrasts, centres = [], []
    for each in (image, reference):
        sampled = scipy.ndimage.map_coordinates(
            brightness(each), places.transpose(2, 0, 1), order=1
        )
        darkness = np.median(sampled[:, outside], axis=1, keepdims=True) - sampled
        contrasts.append(darkness[:, inside].mean(axis=1))
        near = np.where(np.abs(beside) < width / 2 + 5, np.maximum(darkness, 0), 0)
        centres.append((near @ beside) / np.maximum(near.sum(axis=1), 1e-3))
    ratio = contrasts[0] / np.median(contrasts[1])
    strays = float(np.sqrt(np.mean((centres[0] - centres[1]) ** 2)))
    return Line(float(np.mean(ratio >= 0.5)), float(ratio.mean()), strays)


def segments(image: Rgb) -> list[Segment]:
    """Returns straight lines of at least 20 pixels: Canny's edges by a Hough transform."""
    edges = feature.canny(brightness(image), sigma=1.5)
    return transform.probabilistic_hough_line(
        edges, threshold=10, line_length=20, line_gap=3, rng=np.random.default_rng(0)
    )


def share_found(wanted: Sequence[Segment], given: Sequence[Segment]) -> float:
    """Returns the share of the length of `wanted` that lies on `given`; nan without any.

    A point lies on a segment that passes within 2 pixels and whose direction differs by at most 5
    degrees.
    """
    found = total = 0
    for start, end in (map(np.array, segment) for segment in wanted):
        length = np.linalg.norm(end - start)
        points = start + np.linspace(0, 1, int(length) + 1)[:, None] * (end - start)
        direction = np.rad2deg(np.arctan2(*(end - start)[::-1]))
        is_near = np.zeros(len(points), bool)
        for first, last in (map(np.array, segment) for segment in given):
            way = last - first
            if _between(np.rad2deg(np.arctan2(*way[::-1])), direction) > _NEAR_ANGLE:
                continue
            share = np.clip((points - first) @ way / (way @ way), 0, 1)
            is_near |= np.linalg.norm(points - first - share[:, None] * way, axis=1) <= _NEAR
        found, total = found + is_near.sum(), total + len(points)
    return found / total if total else np.nan


def length(found: Sequence[Segment]) -> float:
    """Returns the length of all segments together, in pixels."""
    return float(sum(np.linalg.norm(np.subtract(*segment)) for segment in found))


class Texture(NamedTuple):
    """A texture against its reference: see `texture`."""

    coherence: float
    turned: float
    detail: float


def texture(image: Rgb, reference: Rgb, upsampled: Rgb) -> Texture:
    """Compares strands by structure tensors (sigma of 2 pixels), and detail by its correlation.

    Returns:
      coherence: how much gradients agree in direction, weighed by their energy; a ratio to the
        reference's.
      turned: the mean angle to the reference's direction, in degrees, weighed by its energy and
        coherence; 45 for directions at random.
      detail: the correlation of what the two have beyond the upsampled input; nan if `image` is
        that.
    """
    coherences, directions, weights = [], [], []
    for each in (image, reference):
        rows, mixed, columns = feature.structure_tensor(brightness(each), sigma=2, order="rc")
        difference, energy = np.hypot(rows - columns, 2 * mixed), rows + columns
        coherences.append(difference.sum() / energy.sum())
        directions.append(np.rad2deg(np.arctan2(2 * mixed, columns - rows)) / 2)
        weights.append(difference)
    turned = np.abs((directions[0] - directions[1] + 90) % 180 - 90)
    ours, theirs = (brightness(each) - brightness(upsampled) for each in (image, reference))
    detail = np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] if ours.std() > 1e-6 else np.nan
    return Texture(
        float(coherences[0] / coherences[1]),
        float(np.average(turned, weights=weights[1])),
        float(detail),
    )
