"""Pictures that an evaluation makes of numbers of any range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8

from sr3_jax import scaling
from sr3_jax.evaluation import evaluator
from sr3_jax.evaluation.report import field_pictures, grids
from sr3_jax.metrics import fields

FIGURES = {
    "samples.png": "Channels of the first images, each on the scale of its reference.",
    "spectra.png": "Power spectra, the means over images. A blurred field lacks power in short "
    "waves, and a noisy one has too much.",
}
_MOST_SPECTRA = 64  # images whose spectra are averaged


class Coloured(Sequence):
    """Pictures of numbers, each made when it is asked for."""

    def __init__(self, values: Sequence[np.ndarray] | np.ndarray, units: scaling.Scaling) -> None:
        self._values, self._units = values, units

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, position: int) -> UInt8[np.ndarray, "h w 3"]:
        count = len(self._units.least)
        values = self._values[position][..., :count]
        return field_pictures.colour(values, self._units.least, self._units.greatest)


def drawn(
    images: Mapping[str, np.ndarray], units: scaling.Scaling
) -> dict[str, UInt8[np.ndarray, "n _h _w 3"]]:
    """Returns pictures of the numbers of each method, as arrays; see `coloured`."""
    pictures = {name: Coloured(values, units) for name, values in images.items()}
    return {name: np.stack([each[i] for i in range(len(each))]) for name, each in pictures.items()}


def coloured(
    images: Mapping[str, Sequence[np.ndarray]], units: scaling.Scaling
) -> dict[str, Coloured]:
    """Returns pictures of the numbers of each method, on the scale of the training data."""
    return {name: Coloured(values, units) for name, values in images.items()}


def save_sheets(
    shown: Mapping[str, np.ndarray],
    found: Mapping[str, Sequence[np.ndarray]],
    labels: Sequence[str],
    folder: epath.Path,
) -> None:
    """Writes `samples.png`, channel by channel, `spectra.png`, and its numbers, `spectra.json`.

    Args:
      shown: the numbers of some images by method; with `input` and `reference`.
      found: those of all images.
      labels: labels of the channels.
      folder: the folder of the evaluation.
    """
    count = len(labels)
    sheet = field_pictures.sheet({k: v[..., :count] for k, v in shown.items()}, labels)
    grids.save(sheet, folder / "samples.png")
    # The reference first, which the others are compared with.
    names = ["reference", *(key for key in found if key not in ("reference", "input"))]
    power, wavelength = dict.fromkeys(names, 0.0), np.zeros(0)
    num_images = min(_MOST_SPECTRA, len(found["reference"]))
    for i in range(num_images):
        images = np.stack([found[name][i] for name in names])
        images = np.where(np.isfinite(images).all(axis=0), images, np.nan)
        wavelength, of_image = fields.spectrum(images)
        for name, of in zip(names, of_image, strict=True):
            power[name] = power[name] + of / num_images
    grids.save(field_pictures.spectra(wavelength, power, labels), folder / "spectra.png")
    numbers = {name: of.T.tolist() for name, of in power.items()}
    evaluator.write_json(
        {"wavelength": wavelength.tolist(), "channels": list(labels), "power": numbers},
        folder / "spectra.json",
    )
