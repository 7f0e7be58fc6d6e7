"""The pictures on which limits show: drawn ones of every size, and parts of photographs.

A subject is a reference and what is known of it: the words on it and where they stand, the
frequencies of its stripes, the place of its line. What is drawn depends on nothing but this file
and the fonts that come with matplotlib.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import skimage
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from launch.comparison.upscale import FACTOR
from sr3_jax.data import degrade, image_files

Rgb = UInt8[np.ndarray, "height width 3"]
Box = tuple[int, int, int, int]  # left, top, right, bottom

SIDE = 128  # of pictures of stripes, grids and lines
_PAGE = 256
FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")
_LETTERS = 4  # of each word, so that all words weigh alike
_WORDS = (
    "able army away back bank best blue body book busy cake call city cold cost dark deep door "
    "east edge face farm fish food game gold hand help hour just king lake life long milk moon "
    "name next open park quiz rain road salt ship snow team tree unit view walk wind year zero"
).split()


@dataclasses.dataclass(frozen=True)
class Subject:
    """One picture: `kind` is a table, `group` a column of it, `truth` what a measure needs."""

    kind: str
    group: str
    name: str
    image: Rgb
    truth: dict[str, Any] = dataclasses.field(default_factory=dict)


# Photographs with letters: parts of them, and lines within the photograph as read by eye.
_LETTERS_IN = {
    "page.png": ((0, 0, 384, 188), {(2, 8, 302, 40): "Region-based segmentation"}),
    "test/226043.jpg": (
        (8, 172, 296, 272),
        {(16, 225, 68, 258): "1257", (145, 188, 193, 231): "282", (229, 232, 281, 264): "1447"},
    ),
    "train/78019.jpg": (
        (164, 124, 480, 188),
        {(331, 141, 475, 163): "VIKING LINE", (171, 149, 218, 170): "TALLINK"},
    ),
    "train/153093.jpg": (
        (180, 244, 480, 304),
        {
            (193, 266, 242, 282): "CITY OF",
            (182, 279, 254, 295): "EDINBURGH",
            (354, 253, 399, 269): "CITY OF",
            (345, 267, 408, 283): "EDINBURGH",
            (406, 256, 475, 284): "OMEGA",
        },
    ),
    "test/caltech101/cup_image_0048.webp": (
        (20, 30, 116, 130),
        {
            (31, 42, 102, 60): "RETURNED",
            (31, 62, 73, 80): "PEACE",
            (31, 82, 77, 100): "CORPS",
            (31, 103, 107, 121): "VOLUNTEER",
        },
    ),
    "test/caltech101/stop_sign_image_0045.webp": (
        (0, 40, 156, 120),
        {(15, 50, 143, 110): "STOP"},
    ),
    "val/caltech101/stop_sign_image_0017.webp": (
        (20, 40, 176, 112),
        {(40, 50, 143, 104): "STOP"},
    ),
}

# Other photographs by kind and group: parts of them, and by what they are shrunk before.
_PARTS = (
    ("windows", "", "test/223060.jpg", (150, 60, 342, 252), 1),
    ("windows", "", "test/78098.jpg", (190, 20, 382, 180), 1),
    ("windows", "", "test/140006.jpg", (60, 120, 252, 312), 1),
    ("windows", "", "val/102061.jpg", (80, 90, 272, 282), 1),
    ("windows", "", "val/119082.jpg", (288, 0, 480, 192), 1),
    ("windows", "", "val/148026.jpg", (60, 250, 252, 442), 1),
    ("windows", "", "val/86000.jpg", (70, 30, 262, 222), 1),
    ("windows", "", "train/277095.jpg", (60, 40, 252, 232), 1),
    ("windows", "", "train/61086.jpg", (20, 130, 212, 322), 1),
    ("windows", "", "train/274007.jpg", (20, 0, 212, 192), 1),
    ("windows", "", "train/97017.jpg", (100, 100, 292, 292), 1),
    ("windows", "", "train/198023.jpg", (150, 0, 310, 160), 1),
    ("windows", "", "motorcycle_left.png", (44, 104, 236, 264), 1),
    ("fur", "fur", "test/160067.jpg", (170, 110, 314, 254), 1),
    ("fur", "fur", "test/326085.jpg", (150, 240, 294, 384), 1),
    ("fur", "fur", "test/69022.jpg", (90, 80, 234, 224), 1),
    ("fur", "fur", "test/247012.jpg", (120, 110, 264, 254), 1),
    ("fur", "fur", "test/183066.jpg", (140, 80, 284, 224), 1),
    ("fur", "fur", "val/163085.jpg", (310, 60, 454, 204), 1),
    ("fur", "fur", "val/69015.jpg", (60, 20, 204, 164), 1),
    ("fur", "fur", "test/15062.jpg", (190, 10, 334, 154), 1),
    ("fur", "fur", "chelsea.png", (20, 150, 164, 294), 1),
    ("fur", "hair", "train/198023.jpg", (30, 40, 174, 184), 1),
    ("fur", "hair", "train/198004.jpg", (120, 30, 264, 174), 1),
    ("fur", "hair", "train/181018.jpg", (30, 110, 174, 254), 1),
    ("fur", "hair", "test/388006.jpg", (20, 0, 164, 144), 1),
    ("fur", "hair", "train/388016.jpg", (90, 60, 234, 204), 1),
    ("fur", "hair", "astronaut.png", (150, 10, 294, 154), 1),
    ("glasses", "18", "00031.png", (32, 32, 480, 480), 4),
    ("glasses", "36", "00031.png", (32, 32, 480, 480), 2),
    ("glasses", "72", "00031.png", (32, 32, 480, 480), 1),
    ("glasses", "14", "train/65019.jpg", (228, 20, 340, 132), 1),
)

# Where the glasses are within those parts, before they are shrunk.
_GLASSES = {"00031.png": (50, 168, 348, 244), "train/65019.jpg": (26, 44, 86, 68)}


def drawn(tiny: bool = False) -> Iterator[Subject]:
    """Yields what is drawn: letters, stripes, grids and lines; of `tiny` a few of each."""
    yield from letters({2: 1} if tiny else {2: 4, 3: 4, 4: 4, 6: 4, 8: 6, 12: 4})
    angles = np.arange(8) * 22.5 + 7
    for wavelength in (2.5, 4) if tiny else (1.5, 1.8, 2.2, 2.5, 3, 4, 8):
        for i, angle in enumerate(angles[:2] if tiny else angles):
            yield stripes("stripes", wavelength, [angle], i)
    for wavelength in () if tiny else (2.2, 3, 4, 8):
        for i, angle in enumerate(angles[:4]):
            yield stripes("grids", wavelength, [angle, angle + 90], i)
    for width in (1,) if tiny else (0.5, 1, 2, 3):
        for i, angle in enumerate(angles[:2] if tiny else angles):
            yield line(width, angle, i)


def photographed(
    folders: Sequence[pathlib.Path], tiny: bool = False
) -> tuple[list[Subject], list[str]]:
    """Returns parts of photographs, and the names of photographs that were not found.

    Each is looked for in the folders, then among those that come with scikit-image. Of `tiny` these
    alone are taken.
    """
    within = [*folders, pathlib.Path(skimage.__file__).parent / "data"]
    found, missing = [], []
    parts = [("photographed", "", name, box, 1) for name, (box, _) in _LETTERS_IN.items()]
    for kind, group, name, box, shrunk in (*parts, *_PARTS):
        path = next((each / name for each in within if (each / name).is_file()), None)
        if path is None:
            missing.append(name)
            continue
        if tiny and path.parent != within[-1]:
            continue
        left, top, right, bottom = box
        image = image_files.read_rgb(str(path))[top:bottom, left:right]
        size = image.shape[0] // shrunk, image.shape[1] // shrunk
        image = degrade.by_area(np.ascontiguousarray(image), size)
        truth = {}
        if kind == "photographed":
            truth["lines"] = _moved(_LETTERS_IN[name][1], left, top)
        elif kind == "glasses":
            truth["box"] = [side // shrunk for side in _GLASSES[name]]
        stem = name.replace("/", "_").rpartition(".")[0]
        extra = f"_{shrunk}" if shrunk > 1 else ""
        found.append(Subject(kind, group, f"{kind}_{stem}{extra}", image, truth))
    return found, sorted({*missing})


def _moved(lines: dict[Box, str], left: int, top: int) -> list[dict[str, Any]]:
    return [
        {"box": [x0 - left, y0 - top, x1 - left, y1 - top], "text": text}
        for (x0, y0, x1, y1), text in lines.items()
    ]


def letters(pages: dict[int, int]) -> Iterator[Subject]:
    """Yields pages of words of four letters, as many as `pages` has for each height of an x.

    The height is in pixels of the low resolution. Pages alternate between dark letters and light
    ones, plain ground and a photograph of little contrast, and change their font; one word of two
    is random letters, so that nothing can guess it.
    """
    ground = image_files.read_rgb(str(pathlib.Path(skimage.__file__).parent / "data/coffee.png"))
    ground = ground[100 : 100 + _PAGE, :_PAGE].astype(np.float32)
    for height, count in pages.items():
        for page in range(count):
            random = np.random.default_rng([height, page])
            font = font_of(FONTS[(page + page // 4) % len(FONTS)], height * FACTOR)
            is_light, is_photograph = page % 2, page // 2 % 2
            level = 60.0 if is_light else 200.0
            image = np.full((_PAGE, _PAGE, 3), level, np.float32)
            if is_photograph:
                image += 0.25 * (ground - ground.mean())
            sheet = Image.fromarray(degrade.to_levels(image, np.uint8))
            draw, lines = ImageDraw.Draw(sheet), []
            ink = (235, 230, 210) if is_light else (25, 25, 50)
            wide = round(5.1 * height * FACTOR) + 2 * FACTOR
            tall = height * FACTOR * 9 // 4
            for row in range(_PAGE // tall):
                for column in range(max(1, _PAGE // wide)):
                    word = random.choice(_WORDS)
                    if (row + column) % 2:
                        word = "".join(random.choice([*"abcdefghijklmnopqrstuvwxyz"], _LETTERS))
                    left = column * wide + FACTOR + int(random.integers(FACTOR))
                    middle = row * tall + tall // 2 + int(random.integers(FACTOR))
                    draw.text((left, middle), word, ink, font, anchor="lm")
                    x0, y0, x1, y1 = draw.textbbox((left, middle), word, font, anchor="lm")
                    margin = height * FACTOR // 3
                    box = [int(x0) - margin, int(y0) - margin, int(x1) + margin, int(y1) + margin]
                    box = np.clip(box, 0, _PAGE).tolist()
                    is_word = word in _WORDS
                    lines.append({"box": box, "text": word, "is_word": is_word})
            name = f"letters_{height:02d}_{page:02d}"
            yield Subject("letters", str(height), name, np.array(sheet), {"lines": lines})


def font_of(name: str, x_height: float) -> ImageFont.FreeTypeFont:
    """Returns a font of matplotlib's in the size in which an x has a height, in pixels."""
    path = pathlib.Path(matplotlib.get_data_path()) / "fonts/ttf" / f"{name}.ttf"
    _, top, _, bottom = ImageFont.truetype(str(path), 1000).getbbox("x")
    return ImageFont.truetype(str(path), round(1000 * x_height / (bottom - top)))


def stripes(kind: str, wavelength: float, angles: Sequence[float], number: int) -> Subject:
    """Draws stripes, or with two angles a grid of bars, of a wavelength in low-resolution pixels.

    `angles` are of the direction in which brightness changes, in degrees. Half of a wavelength is
    dark in stripes, a third in grids. `truth` has the frequencies (down, right) in cycles per
    pixel.
    """
    frequency = 1 / (wavelength * FACTOR)
    vectors = [(frequency * np.sin(a), frequency * np.cos(a)) for a in np.deg2rad(angles)]
    share = 1 / 2 if len(angles) == 1 else 1 / 3

    def dark(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        phases = [rows * y + columns * x + 0.13 * number for y, x in vectors]
        return np.any([phase % 1 < share for phase in phases], axis=0)

    image = _painted(dark)
    name = f"{kind}_{wavelength}_{number}"
    return Subject(kind, f"{wavelength:g}", name, image, {"vectors": vectors})


def line(width: float, angle: float, number: int) -> Subject:
    """Draws a dark line of a width in low-resolution pixels through the middle.

    `angle` is that of its direction, in degrees, clockwise from the row.
    """
    direction = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    middle = SIDE / 2 + (number * 0.618 % 1 - 0.5) * FACTOR  # not always the same within a pixel

    def dark(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        away = (rows - middle) * direction[1] - (columns - middle) * direction[0]
        return np.abs(away) < width * FACTOR / 2

    truth = {"angle": float(angle), "middle": middle, "width": width * FACTOR}
    return Subject("lines", f"{width:g}", f"lines_{width}_{number}", _painted(dark), truth)


def _painted(dark: Any) -> Rgb:
    """Paints a drawing of two colours; each pixel is the mean of 8x8 points."""
    points = (np.arange(SIDE * 8) + 0.5) / 8
    inside = dark(points[:, None], points[None]).astype(np.float32)
    share: Float[np.ndarray, "h w"] = inside.reshape(SIDE, 8, SIDE, 8).mean((1, 3))
    colours = np.array([[205, 200, 190], [55, 60, 70]], np.float32)
    image = colours[0] + share[..., None] * (colours[1] - colours[0])
    return degrade.to_levels(image, np.uint8)
