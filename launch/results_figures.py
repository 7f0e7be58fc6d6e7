"""Draws what launch/results.sh measured: curves, spectra and pictures, and the log as a table.

    python -m launch.results_figures WORKDIR

WORKDIR has the trainings `sr3` and `regression`, and in `test` their evaluations. Written beside
them: figures.png, pictures.jpg, log.csv.
"""

import csv
import pathlib
import sys

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sr3_jax.evaluation import evaluator
from sr3_jax.evaluation.report import grids

_TAGS = ("loss", "validation_loss", "validation_psnr")
_NUM_PICTURES = 6
_NUM_BANDS = 32  # up to half a cycle a pixel

Log = dict[str, dict[int, float]]  # by tag and step


def main(workdir: pathlib.Path) -> None:
    """Draws all of it."""
    logs = {method: _read_log(workdir / method) for method in ("regression", "sr3")}
    _write_log(logs, workdir / "log.csv")
    made = workdir / "test" / "sr3" / "evaluation" / "images"
    images = {name: _read_images(made / name) for name in ("input", "reference", "sr3")}
    images["regression"] = _read_images(workdir / "test/regression/evaluation/images/regression")
    size = images["reference"].shape[1:3]
    images["bicubic"] = evaluator.resize(images["input"], size)
    factor = size[0] // images["input"].shape[1]
    _draw_figures(logs, images, factor, workdir / "figures.png")
    columns = ("input", "bicubic", "regression", "sr3", "reference")
    # Evenly spaced through the set, so that nobody chose them.
    rows = np.linspace(0, len(images["input"]) - 1, _NUM_PICTURES).round().astype(int)
    sheet = grids.grid({name: images[name][rows] for name in columns})
    Image.fromarray(sheet).save(workdir / "pictures.jpg", quality=88)


def _read_log(run: pathlib.Path) -> Log:
    events = EventAccumulator(str(run), {"scalars": 0})
    events.Reload()
    return {
        tag: {e.step: e.value for e in events.Scalars(tag)}
        for tag in _TAGS
        if tag in events.Tags()["scalars"]
    }


def _write_log(logs: dict[str, Log], path: pathlib.Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "step", *_TAGS])
        for method, log in logs.items():
            for step in sorted({step for values in log.values() for step in values}):
                values = (log.get(tag, {}).get(step) for tag in _TAGS)
                writer.writerow([method, step, *("" if v is None else f"{v:.5g}" for v in values)])


def _read_images(folder: pathlib.Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def _draw_figures(
    logs: dict[str, Log], images: dict[str, np.ndarray], factor: int, path: pathlib.Path
) -> None:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, psnr, spectra = figure.subplots(1, 3)
    for tag, label, style in (("loss", "training", "-"), ("validation_loss", "held out", ".-")):
        loss.plot(*zip(*logs["sr3"][tag].items(), strict=True), style, label=label)
    loss.set(title="SR3: L1 of the noise", xlabel="step")
    loss.legend()
    psnr.plot(*zip(*logs["regression"]["validation_psnr"].items(), strict=True), ".-")
    psnr.set(title="regression: PSNR (dB), held out", xlabel="step")
    reference = _power(images["reference"])
    frequencies = (np.arange(_NUM_BANDS) + 0.5) / (2 * _NUM_BANDS)
    for name in ("bicubic", "regression", "sr3"):
        spectra.plot(frequencies, 10 * np.log10(_power(images[name]) / reference), label=name)
    spectra.axhline(0, color="black", linewidth=0.8)
    # Beyond it the input holds nothing.
    spectra.axvline(1 / (2 * factor), color="grey", linewidth=0.8, linestyle=":")
    spectra.set(title="power over the reference's (dB), test", xlabel="cycles a pixel")
    spectra.legend()
    figure.savefig(path, dpi=90)


def _power(images: np.ndarray) -> np.ndarray:
    """Mean power of luminance in bands of frequency, from 0 to half a cycle a pixel."""
    total = 0.0
    for image in images:
        luminance = np.asarray(Image.fromarray(image).convert("L"), float) / 255
        window = np.outer(*(np.hanning(n) for n in luminance.shape))
        total = total + np.abs(np.fft.fft2((luminance - luminance.mean()) * window)) ** 2
    rows, columns = (np.fft.fftfreq(n) for n in total.shape)
    band = (np.hypot(rows[:, None], columns) * 2 * _NUM_BANDS).astype(int).ravel()
    # The corners hold frequencies beyond half a cycle.
    return (np.bincount(band, total.ravel()) / np.bincount(band))[:_NUM_BANDS]


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
