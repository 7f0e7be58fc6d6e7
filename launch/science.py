"""Fields of weather whose conditional distribution is known: the example of docs/science.md.

    python -m launch.science make FOLDER [--train=4096] [--test=64]
    python -m launch.science best
    python -m launch.science compare WORKDIR

Temperature t = 285 - 0.0065 z + 3 a (K) and humidity q = 8 + 2 (0.6 a + 0.8 b) (g/kg) lie over an
elevation z = 500 + 300 c (m), all of 32x32 pixels. a, b and c are independent Gaussian fields,
whose power falls with the wave number as k^-4, k^-3 and k^-4. The source is their 8x8 bicubic
reduction, which is linear. So given the source and z, t and q are Gaussian, with a mean and a
covariance that linear algebra gives.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib

import numpy as np
import scipy.linalg
import xarray

from sr3_jax.data import degrade

SIZE, LOW = 32, 8
_PERIOD = 128  # of the torus that fields are cut out of, so that their borders do not meet
_LAPSE, _T, _Q = 0.0065, 3.0, 2.0  # K/m; deviations of t and q
_SHARED = 0.6  # correlation of t and q, without elevation
_SLOPES = {"a": 4.0, "b": 3.0, "c": 4.0}


@functools.cache
def _power(slope: float) -> np.ndarray:
    """Returns the power of each wave of the torus; it is flat above a quarter of its size."""
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(_PERIOD) * _PERIOD] * 2))
    power = (1.0 + np.square(frequency / 4.0)) ** (-slope / 2.0)
    return power / power.sum()


def _draw(rng: np.random.Generator, slope: float, count: int) -> np.ndarray:
    """Draws fields, [count, SIZE, SIZE]."""
    noise = rng.normal(size=(count, _PERIOD, _PERIOD))
    waves = np.fft.fft2(noise) * np.sqrt(_power(slope)) * _PERIOD
    return np.fft.ifft2(waves).real[:, :SIZE, :SIZE]


def _covariance(slope: float) -> np.ndarray:
    """Returns the covariance of the pixels of a field, [SIZE^2, SIZE^2]."""
    lags = np.fft.ifft2(_power(slope)).real * _PERIOD**2
    y, x = (part.ravel() for part in np.mgrid[:SIZE, :SIZE])
    return lags[y[:, None] - y, x[:, None] - x]


def _reduction() -> np.ndarray:
    """Returns the matrix of the bicubic reduction, [LOW^2, SIZE^2]."""
    unit = np.eye(SIZE * SIZE, dtype=np.float32).reshape(-1, SIZE, SIZE, 1)
    return degrade.resize_bicubic(unit, LOW).reshape(SIZE * SIZE, LOW * LOW).T.astype(np.float64)


@functools.cache
def _posterior(name: str) -> np.ndarray:
    """Returns the covariance of a field given its reduction."""
    prior, down = _covariance(_SLOPES[name]), _reduction()
    gain = scipy.linalg.solve(down @ prior @ down.T, down @ prior, assume_a="pos").T
    return prior - gain @ down @ prior


def best() -> dict[str, float]:
    """Returns the least CRPS that a forecast can have, by variable.

    It is that of the true conditional distribution: of a normal one, sigma / sqrt(pi).
    """
    of_a, of_b = (np.maximum(np.diag(_posterior(name)), 0.0) for name in ("a", "b"))
    own = 1.0 - _SHARED**2
    deviations = {
        "t": _T * np.sqrt(of_a),
        "q": _Q * np.sqrt(_SHARED**2 * of_a + own * of_b),
    }
    return {name: float(each.mean() / np.sqrt(np.pi)) for name, each in deviations.items()}


def make(folder: pathlib.Path, num_train: int, num_test: int) -> None:
    """Writes fields and elevation, of training and test, as NetCDF."""
    folder.mkdir(parents=True, exist_ok=True)
    for half, count, seed in (("train", num_train, 0), ("test", num_test, 1)):
        rng = np.random.default_rng(seed)
        a, b, c = (_draw(rng, _SLOPES[name], count) for name in "abc")
        z = 500.0 + 300.0 * c
        t = 285.0 - _LAPSE * z + _T * a
        q = 8.0 + _Q * (_SHARED * a + np.sqrt(1.0 - _SHARED**2) * b)
        axes = ("time", "y", "x")
        of = lambda values, units: (axes, values.astype(np.float32), {"units": units})  # noqa: B023, E731
        xarray.Dataset({"t": of(t, "K"), "q": of(q, "g/kg")}).to_netcdf(
            folder / f"{half}.nc", engine="h5netcdf"
        )
        xarray.Dataset({"z": of(z, "m")}).to_netcdf(folder / f"{half}_z.nc", engine="h5netcdf")


def compare(workdir: pathlib.Path) -> str:
    """Returns the scores of an evaluation beside the best, as a Markdown table."""
    found = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    lines = ["| | method | CRPS | of the best | spread over skill |", "|---|---|---|---|---|"]
    for name, least in best().items():
        lines.append(f"| {name} | best attainable | {least:.4f} | 1 | 1 |")
        for method, row in found.items():
            (key,) = (key for key in row if key.startswith(f"crps[{name}") and key.endswith("]"))
            ratio = row[key.replace("crps", "spread_skill")]
            share = row[key] / least
            lines.append(f"| {name} | {method} | {row[key]:.4f} | {share:.3f} | {ratio:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Does what the command says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("make", "best", "compare"))
    parser.add_argument("path", nargs="?", type=pathlib.Path)
    parser.add_argument("--train", type=int, default=4096, help="number of training fields")
    parser.add_argument("--test", type=int, default=64, help="number of test fields")
    given = parser.parse_args()
    if given.command != "best" and given.path is None:
        parser.error(f"{given.command} needs a path")
    if given.command == "make":
        make(given.path, given.train, given.test)
    elif given.command == "best":
        print(json.dumps(best()))
    else:
        print(compare(given.path))


if __name__ == "__main__":
    main()
