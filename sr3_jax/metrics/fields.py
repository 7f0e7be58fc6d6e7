"""Metrics of numbers of any range, such as weather fields: each channel by itself, in its units.

Missing values (NaN) of the reference or of an output are left out, pixel by pixel. Results are
`[b, c]`, NaN where no value is left.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64, Num

from sr3_jax import image_ops, sizes

Images = Num[np.ndarray, "b h w c"]
Samples = Num[np.ndarray, "k b h w c"]
Numbers = Float64[np.ndarray, "b c"]


def rmse(images: Images, reference: Images) -> Numbers:
    """Root mean square error."""
    return np.sqrt(_mean(np.square(_difference(images, reference))))


def bias(images: Images, reference: Images) -> Numbers:
    """Mean error."""
    return _mean(_difference(images, reference))


def correlation(images: Images, reference: Images) -> Numbers:
    """Pearson's correlation over pixels; NaN where either is constant."""
    known = np.isfinite(_difference(images, reference))
    parts = (np.where(known, part, np.nan).astype(np.float64) for part in (images, reference))
    one, other = (part - _mean(part)[:, None, None] for part in parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _mean(one * other) / np.sqrt(_mean(one * one) * _mean(other * other))


def consistency(images: Images, low_resolution: Num[np.ndarray, "b _h _w _d"]) -> Numbers:
    """Root mean square difference of the input and the output made small again, by bicubic."""
    small = _resized(images, low_resolution.shape[1:3])
    return rmse(small, low_resolution[..., : images.shape[-1]])


def crps(samples: Samples, reference: Images) -> Numbers:
    """Continuous ranked probability score of an ensemble, the mean over pixels.

    E|X - y| - E|X - X'| / 2 over members X and pairs of different members (the fair score, Ferro
    2014), so that its expectation does not depend on the number of members. It is proper, in the
    units of the channel; of a single member it is the absolute error.
    """
    return _mean(_crps(np.asarray(samples, np.float64), np.asarray(reference, np.float64)))


def spread_skill(samples: Samples, reference: Images) -> Numbers:
    """Spread of an ensemble over the error of its mean: 1 where members are as far as the truth.

    sqrt((k + 1) / k mean of variances) / rmse of the mean (Fortin et al. 2014, Eq. 15): below 1 the
    ensemble is too sure. That of a single member is 0.
    """
    count = len(samples)
    variance = np.asarray(samples, np.float64).var(axis=0, ddof=min(1, count - 1))
    variance = np.where(np.isfinite(reference), variance, np.nan)
    error = rmse(np.asarray(samples, np.float64).mean(axis=0), reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(_mean(variance) * (count + 1) / count) / error


def spectrum(images: Images) -> tuple[Float[np.ndarray, " n"], Float64[np.ndarray, "b n c"]]:
    """Power by wavelength, in pixels: the mean over rings of the 2-D Fourier transform.

    The mean of each channel is taken away, and the image is tapered by a Hann window, so that its
    borders, which do not meet, make no power of their own. The sum over all wave numbers is the
    variance. Missing values are filled with the mean: spectra compare if the same are missing.
    """
    b, height, width, channels = images.shape
    values = np.asarray(images, np.float64)
    values = np.nan_to_num(values - _mean(values)[:, None, None])
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[None, 1:-1]
    window /= np.sqrt(np.mean(np.square(window)))
    power = np.abs(np.fft.fft2(values * window[..., None], axes=(1, 2))) ** 2
    power /= (height * width) ** 2
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    # A ring for each wave of the shorter side, up to the shortest wave that both axes have.
    shorter = min(height, width)
    ring = np.rint(frequency * shorter).astype(int)
    rings = np.arange(1, shorter // 2 + 1)
    found = np.stack([power[:, ring == n].mean(axis=1) for n in rings], axis=1)
    return shorter / rings, found.reshape(b, len(rings), channels)


def spectral_distance(images: Images, reference: Images) -> Numbers:
    """Root mean square difference of the spectra in decibels, over wavelengths.

    Wavelengths without power in either are left out.
    """
    known = np.isfinite(_difference(images, reference))
    parts = (np.where(known, part, np.nan) for part in (images, reference))
    (_, one), (_, other) = map(spectrum, parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        decibels = 10.0 * (np.log10(one) - np.log10(other))
    decibels = np.where(np.isfinite(decibels), decibels, np.nan)
    return np.sqrt(_ignoring(np.nanmean, np.square(decibels), 1))


def interpolated(
    low: Num[np.ndarray, "b h w _d"], factor: int | float, channels: int
) -> Float[np.ndarray, "b h2 w2 c"]:
    """Returns the baseline: the first channels by bicubic, NaN where they are not known."""
    return _resized(low[..., :channels], sizes.scaled(low.shape[1:3], factor))


def _resized(images: Images, size: tuple[int, int]) -> Float[np.ndarray, "b h2 w2 c"]:
    resize = lambda whole: np.asarray(image_ops.resize_bicubic(whole, size))  # noqa: E731
    # float32 holds differences from the mean alone of values with a large offset.
    offset = np.nan_to_num(_mean(images))[:, None, None]
    made, known = image_ops.resize_known((images - offset).astype(np.float32), resize)
    return np.where(known, made + offset, np.nan).astype(np.float32)


def _crps(samples: Float64[np.ndarray, "k ..."], truth: Float64[np.ndarray, ...]) -> np.ndarray:
    count = len(samples)
    wrong = np.abs(samples - truth).mean(axis=0)
    if count == 1:
        return wrong
    # Of sorted members, the sum of |X_i - X_j| over pairs weighs each by its rank.
    rank = 2.0 * np.arange(count) - count + 1
    apart = np.tensordot(rank, np.sort(samples, axis=0), axes=1) / (count * (count - 1))
    return wrong - apart


def _difference(images: Images, reference: Images) -> Float64[np.ndarray, "b h w c"]:
    return np.asarray(images, np.float64) - np.asarray(reference, np.float64)


def _mean(values: Images) -> Numbers:
    return _ignoring(np.nanmean, np.asarray(values, np.float64), (1, 2))


def _ignoring(reduce: Callable, values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    with warnings.catch_warnings():  # of means of nothing, which are NaN
        warnings.simplefilter("ignore", RuntimeWarning)
        return reduce(values, axis=axis)
