"""Labelled pictures of results: grids of columns, and strips of the refinement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt, UInt8
from PIL import Image, ImageDraw, ImageFont

from sr3_jax.data import degrade
from sr3_jax.data.image_files import to_8_bits, write_image

_TILE = 192  # pixels; smaller images are enlarged by whole factors
_MOSAIC_TILE, _MOSAIC_MOST = 64, 256
_GAP = 6
_TITLE_HEIGHT = 28
_LINE_HEIGHT = 20


def grid(
    columns: Mapping[str, UInt[np.ndarray, "n _h _w 3"]],
    names: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws a labelled column for each entry and a row for each image on a white sheet.

    Images are enlarged to one size by repeating pixels.

    Args:
      columns: images by label, of 8 or 16 bits.
      names: texts under the rows; what does not fit is cut off.
      notes: lines of text at the foot.
    """
    largest = max((images.shape[1:3] for images in columns.values()), key=math.prod)
    times = max(1, round(_TILE / max(largest)))
    tile = tall, wide = tuple(times * side for side in largest)
    rows = len(next(iter(columns.values())))
    row_height = tall + (_LINE_HEIGHT if names else _GAP)
    width = _GAP + len(columns) * (wide + _GAP)
    foot = _TITLE_HEIGHT + rows * row_height
    height = foot + (_GAP + len(notes) * _LINE_HEIGHT if notes else 0)
    sheet = np.full((height, width, 3), 255, np.uint8)
    for i, images in enumerate(columns.values()):
        left = _GAP + i * (wide + _GAP)
        for j, image in enumerate(images):
            top = _TITLE_HEIGHT + j * row_height
            sheet[top : top + tall, left : left + wide] = _enlarge(image, tile)
    canvas = Image.fromarray(sheet)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(16)
    for i, label in enumerate(columns):
        middle = _GAP + i * (wide + _GAP) + wide // 2
        draw.text((middle, _TITLE_HEIGHT // 2), label, "black", font, anchor="mm")
    small = ImageFont.load_default(13)
    lines = {_TITLE_HEIGHT + j * row_height + tall: name for j, name in enumerate(names or ())}
    lines |= {foot + _GAP + i * _LINE_HEIGHT: note for i, note in enumerate(notes)}
    for top, text in lines.items():
        draw.text((_GAP, top + _LINE_HEIGHT // 2), text, "black", small, anchor="lm")
    return np.array(canvas)


def mosaic(images: UInt[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Draws images side by side in about as many rows as columns.

    Images have 8 or 16 bits. Small ones are enlarged by repeating pixels, large ones shrunk by
    area to 256 pixels.
    """
    columns = math.ceil(math.sqrt(len(images)))
    if images.shape[1] > _MOSAIC_MOST:
        images = degrade.by_area(images, _MOSAIC_MOST)
    side = images.shape[1] * max(1, _MOSAIC_TILE // images.shape[1])
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (side + 2) - 2, columns * (side + 2) - 2, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (n * (side + 2) for n in divmod(i, columns))
        sheet[top : top + side, left : left + side] = _enlarge(image, (side, side))
    return sheet


def stacked(sheets: Sequence[UInt8[np.ndarray, "_h _w 3"]]) -> UInt8[np.ndarray, "h w 3"]:
    """Puts sheets one below the other."""
    width = max(sheet.shape[1] for sheet in sheets)
    filled = (
        np.pad(sheet, [(0, 0), (0, width - sheet.shape[1]), (0, 0)], constant_values=255)
        for sheet in sheets
    )
    return np.concatenate(list(filled))


def save(sheet: UInt8[np.ndarray, "h w 3"], path: epath.PathLike, comment: str = "") -> None:
    """Writes a picture as PNG with a comment, whole or not at all."""
    write_image(sheet, epath.Path(path), comment=comment)


def _enlarge(
    image: UInt[np.ndarray, "h w 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    places = (
        (np.arange(new) + 0.5) * old // new for new, old in zip(size, image.shape, strict=False)
    )
    return to_8_bits(image)[np.ix_(*(place.astype(int) for place in places))]
