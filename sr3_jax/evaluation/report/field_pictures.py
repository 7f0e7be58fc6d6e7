"""Pictures of numbers of any range: colour maps of each channel, and power spectra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Num, UInt8
from PIL import Image, ImageDraw, ImageFont

from sr3_jax.evaluation.report import grids
from sr3_jax.inference import visualization

_MISSING = 128  # grey
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 460, 300, 64, 40, 28  # of a plot, in pixels
_LINES = ((30, 30, 30), (30, 110, 200), (200, 60, 40), (40, 140, 70), (150, 80, 170))


def colour(
    values: Num[np.ndarray, "h w c"], least: Sequence[float], greatest: Sequence[float]
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws the first three channels as red, green and blue, or the only one by a colour map.

    `least` and `greatest` are the ends of each channel's scale. What is missing is grey.
    """
    ends = np.array(least, np.float64), np.array(greatest, np.float64)
    share = np.clip((values - ends[0]) / (ends[1] - ends[0]), 0.0, 1.0)
    known = np.isfinite(share)
    share = np.where(known, share, 0.0)
    if values.shape[-1] < 3:
        drawn, known = visualization.coloured(share[..., 0]), known[..., :1]
    else:
        drawn, known = np.rint(255 * share[..., :3]).astype(np.uint8), known[..., :3]
    return np.where(known.all(axis=-1, keepdims=True), drawn, np.uint8(_MISSING))


def sheet(
    columns: Mapping[str, Num[np.ndarray, "n _h _w c"]], labels: Sequence[str], most_rows: int = 6
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws a row for each image and channel, and a column for each method.

    A row's colours span the reference's values, which stand below it.
    """
    reference = columns["reference"]
    count, channels = reference.shape[0], reference.shape[-1]
    rows = [(i, c) for i in range(count) for c in range(channels)][:most_rows]
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    names = []
    for i, c in rows:
        known = reference[i, ..., c][np.isfinite(reference[i, ..., c])]
        least, greatest = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        greatest = max(greatest, least + 1e-30)
        names.append(f"{labels[c]}: dark {least:.4g}, light {greatest:.4g}")
        for name, images in columns.items():
            drawn[name].append(colour(images[i, ..., c : c + 1], [least], [greatest]))
    return grids.grid({name: np.stack(images) for name, images in drawn.items()}, names)


def spectra(
    wavelength: Float[np.ndarray, " n"],
    power: Mapping[str, Float[np.ndarray, "n c"]],
    labels: Sequence[str],
    most_channels: int = 6,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws the power by wavelength of each method, a panel for each channel; both axes are log."""
    panels = [
        _panel(wavelength, {name: of[:, c] for name, of in power.items()}, label)
        for c, label in list(enumerate(labels))[:most_channels]
    ]
    columns = min(3, len(panels))
    blank = np.full_like(panels[0], 255)
    panels += [blank] * (-len(panels) % columns)
    rows = [np.concatenate(panels[i : i + columns], axis=1) for i in range(0, len(panels), columns)]
    return np.concatenate(rows)


def _panel(
    wavelength: Float[np.ndarray, " n"], power: Mapping[str, Float[np.ndarray, " n"]], label: str
) -> UInt8[np.ndarray, "h w 3"]:
    canvas = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    found = np.concatenate([values[values > 0] for values in power.values()])
    if not found.size:
        draw.text((_LEFT, _TOP), f"{label}: no power", "black", font)
        return np.array(canvas)
    low, high = math.floor(np.log10(found.min())), math.ceil(np.log10(found.max()))
    low, high = max(low, high - 8), max(high, low + 1)
    left, right = np.log2(wavelength.max()), np.log2(wavelength.min())
    box = (_LEFT, _TOP, _WIDTH - 12, _HEIGHT - _BOTTOM)

    def place(wave: float, value: float) -> tuple[float, float]:
        x = (np.log2(wave) - left) / min(right - left, -1e-9)
        y = (np.clip(np.log10(max(value, 1e-300)), low, high) - low) / (high - low)
        return box[0] + x * (box[2] - box[0]), box[3] - y * (box[3] - box[1])

    draw.rectangle(box, outline=(160, 160, 160))
    for exponent in range(low, high + 1, max(1, (high - low) // 4)):
        at = place(float(wavelength[0]), 10.0**exponent)[1]
        draw.line([(box[0], at), (box[2], at)], (225, 225, 225))
        draw.text((box[0] - 6, at), f"1e{exponent}", "black", font, anchor="rm")
    for wave in (2.0**n for n in range(math.ceil(right), math.floor(left) + 1)):
        at = place(wave, 1.0)[0]
        draw.line([(at, box[1]), (at, box[3])], (225, 225, 225))
        draw.text((at, box[3] + 4), f"{wave:g}", "black", font, anchor="ma")
    middle = (box[0] + box[2]) / 2
    draw.text((middle, _HEIGHT - 4), "wavelength in pixels", "black", font, anchor="mb")
    draw.text((middle, 4), f"power of {label}", "black", ImageFont.load_default(13), anchor="ma")
    for i, (name, values) in enumerate(power.items()):
        shade = _LINES[i % len(_LINES)]
        pairs = zip(wavelength.tolist(), values.tolist(), strict=True)
        points = [place(w, v) for w, v in pairs if v > 0]
        draw.line(points, shade, 2)
        top = box[3] - 8 - 15 * (len(power) - i)
        draw.line([(box[0] + 8, top), (box[0] + 26, top)], shade, 3)
        draw.text((box[0] + 32, top), name, "black", font, anchor="lm")
    return np.array(canvas)
