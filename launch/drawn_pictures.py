"""Draws pictures of letters, stripes, grids and lines, to be trained on beside photographs.

    python -m launch.drawn_pictures PHOTOGRAPHS FOLDER [--count=2200]

Photographs of objects and flowers hold few of these, and a network that has not seen them turns
them into strokes (docs/limits.md). A picture is 176 pixels wide and high, and lies on plain ground
or on one of PHOTOGRAPHS. It depends on its number and on these photographs. Three of four have
letters, in fonts that launch/limits.sh does not measure with, and words of random letters. Pictures
that are there stay.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
import tqdm
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from launch.limits import subjects
from sr3_jax.data import degrade, image_files

Rgb = UInt8[np.ndarray, "height width 3"]
Plane = Float[np.ndarray, "height width"]

SIDE = 176
_OVER = 4  # drawn so many times as large, and shrunk by area
FONTS = (  # that come with matplotlib, but those of launch/limits.sh
    "DejaVuSans-Bold DejaVuSans-Oblique DejaVuSans-BoldOblique DejaVuSansMono-Bold "
    "DejaVuSansMono-Oblique DejaVuSerif-Bold DejaVuSerif-Italic STIXGeneralBol STIXGeneralItalic "
    "STIXGeneralBolIta cmr10 cmss10 cmtt10 cmb10 cmti10"
).split()
_LETTERS = "etaoinshrdlcumwfgypbvkjxqz"
# Roughly as often as in English, in percent.
_WEIGHTS = np.array(
    [12.7, 9.1, 8.2, 7.5, 7, 6.7, 6.3, 6.1, 6, 4.3, 4, 2.8, 2.8, 2.4, 2.4, 2.2]
    + [2, 2, 1.9, 1.5, 1, 0.8, 0.6, 0.5, 0.5, 0.5]
)


def picture(number: int, photographs: list[pathlib.Path]) -> Rgb:
    """Returns a picture, 176 pixels wide and high, by its number.

    Some grounds are taken of `photographs`, files in a fixed order.
    """
    rng = np.random.default_rng([7, number])
    ground = _ground(rng, photographs)
    kind = rng.choice(["letters", "stripes", "lines"], p=[0.75, 0.1, 0.15])
    cover = {"letters": _letters, "stripes": _stripes, "lines": _lines}[kind](rng)
    cover = np.clip(cover, 0, 1)[..., None] * rng.uniform(0.6, 1.0)
    # The ink differs from the ground, else nothing is seen.
    brightness = ground.mean()
    ink = rng.uniform(0, 70, 3) if brightness > 128 else rng.uniform(170, 255, 3)
    return degrade.to_levels(ground + cover * (ink - ground), np.uint8)


def _ground(rng: np.random.Generator, photographs: list[pathlib.Path]) -> np.ndarray:
    """Returns plain ground, with a gradient, or a photograph of less contrast."""
    level = rng.uniform(20, 110, 3) if rng.random() < 0.5 else rng.uniform(150, 250, 3)
    if rng.random() < 0.5:
        slope = rng.uniform(-30, 30, 2)
        rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
        return level + (slope[0] * rows + slope[1] * columns)[..., None]
    image = image_files.read_rgb(str(photographs[rng.integers(len(photographs))]))
    side = min(image.shape[:2])
    image = degrade.by_area(np.ascontiguousarray(image[:side, :side]), min(side, SIDE))
    image = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    values = image.astype(np.float32)
    return level + rng.uniform(0.1, 0.6) * (values - values.mean((0, 1)))


def _letters(rng: np.random.Generator) -> Plane:
    """Draws lines of text, turned by a few degrees."""
    x_height = np.exp(rng.uniform(np.log(7), np.log(45)))
    font = subjects.font_of(rng.choice(FONTS), x_height * _OVER)
    side = round(SIDE * _OVER * 1.3)
    sheet = Image.new("L", (side, side))
    draw = ImageDraw.Draw(sheet)
    step = x_height * _OVER * rng.uniform(1.9, 3.0)
    for row in range(int(side / step) + 1):
        words = " ".join(_word(rng) for _ in range(2 + int(side / (x_height * _OVER * 4))))
        draw.text((rng.uniform(-20, 20) * _OVER, row * step), words, 255, font, anchor="lm")
    turned = sheet.rotate(rng.normal() * 6, Image.Resampling.BICUBIC)
    left, top = rng.integers(side - SIDE * _OVER, size=2)
    return _shrunk(turned.crop((left, top, left + SIDE * _OVER, top + SIDE * _OVER)))


def _word(rng: np.random.Generator) -> str:
    if rng.random() < 0.15:
        return str(rng.integers(10 ** rng.integers(1, 5)))
    letters = rng.choice([*_LETTERS], rng.integers(1, 9), p=_WEIGHTS / _WEIGHTS.sum())
    word = "".join(letters)
    return rng.choice([word, word, word.capitalize(), word.upper()])


def _stripes(rng: np.random.Generator) -> Plane:
    """Draws stripes or a grid of bars in one part of the picture; waves are 9 to 60 pixels long."""
    rows, columns = np.mgrid[: SIDE * _OVER, : SIDE * _OVER] / _OVER
    angle, length = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(9), np.log(60)))
    share, is_grid = rng.uniform(0.2, 0.6), rng.random() < 0.5
    dark = np.zeros(rows.shape, bool)
    for turn in (0, np.pi / 2) if is_grid else (0,):
        phase = (rows * np.sin(angle + turn) + columns * np.cos(angle + turn)) / length
        dark |= (phase + rng.random()) % 1 < share
    top, left = rng.integers(-SIDE // 2, SIDE // 2, 2)
    dark &= (rows > top) & (columns > left)
    return _shrunk(Image.fromarray(np.uint8(255 * dark)))


def _lines(rng: np.random.Generator) -> Plane:
    """Draws a few lines and outlines of polygons, 1 to 8 pixels wide."""
    sheet = Image.new("L", (SIDE * _OVER, SIDE * _OVER))
    draw = ImageDraw.Draw(sheet)
    for _ in range(rng.integers(2, 9)):
        width = round(np.exp(rng.uniform(0, np.log(8))) * _OVER)
        points = rng.uniform(-0.2, 1.2, (rng.integers(2, 5), 2)) * SIDE * _OVER
        draw.line([*map(tuple, points)], 255, width, joint="curve")
    return _shrunk(sheet)


def _shrunk(sheet: Image.Image) -> Plane:
    values = np.asarray(sheet, np.float32) / 255
    return values.reshape(SIDE, _OVER, SIDE, _OVER).mean((1, 3))


def main(options: argparse.Namespace) -> None:
    """Draws what the folder lacks."""
    known = (".png", ".jpg", ".jpeg", ".webp")
    found = options.photographs.rglob("*")
    photographs = sorted(path for path in found if path.suffix.lower() in known)
    if not photographs:
        raise SystemExit(f"error: {options.photographs} has no pictures ({', '.join(known)})")
    options.folder.mkdir(parents=True, exist_ok=True)
    for number in tqdm.trange(options.count, desc="draw", unit="picture"):
        path = options.folder / f"{number:06d}.png"
        if not path.exists():
            image_files.write_image(picture(number, photographs), path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=pathlib.Path, help="grounds are taken of these")
    parser.add_argument("folder", type=pathlib.Path, help="where the pictures land")
    parser.add_argument("--count", type=int, default=2200)
    main(parser.parse_args())
