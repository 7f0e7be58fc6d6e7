"""The images that a report shows, with the square where methods differ most from the reference."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt, UInt8
from PIL import Image

from sr3_jax.metrics import registry

# ("input", "reference" or a method's name, number of the image) to the image, of 8 or 16 bits
Picture = Callable[[str, int], UInt[np.ndarray, "h w 3"]]

NUM_EXTREMES = 3
NUM_MIDDLE = 2
_MOST_PICTURES = 160  # a page of so many has 10 MB; further rows are left out
# Metrics that choose images, if there are any; for the first also the middle is shown.
_CHOSEN_BY = ("psnr", "lpips", "consistency")
# The page shows pictures 192 or 160 pixels wide, whole multiples of both sides.
_PATCH, _SMALL_PATCH = 32, 16
_SMALL_IMAGE = 64
# Larger pictures are shown smaller: twice the page's 192, for screens of two pixels to one.
MOST_SHOWN = 384
_JPEG = {"format": "JPEG", "quality": 90, "subsampling": 0}
STRIP_TILE = 192  # pixels; wider pictures are made this wide
_STRIP_GAP = 8


class Choice(NamedTuple):
    """An image to show.

    Attributes:
      index: index of the image.
      reasons: such as "worst by PSNR (dB), 1 of 3".
      group: heading that it is shown under.
    """

    index: int
    reasons: list[str]
    group: str


class Patch(NamedTuple):
    """A square of the reference, in pixels."""

    top: int
    left: int
    side: int


def choose(
    scores: Mapping[str, Sequence[float]], num_columns: int
) -> tuple[list[Choice], list[str]]:
    """Chooses the images to show, each once, by the numbers of one method.

    They are the three worst and three best by each metric, and two from the middle by the first;
    all images if there are no more.

    Args:
      scores: scores of the method, by metric; not empty.
      num_columns: pictures in a row.

    Returns:
      The images, and notes on images that were left out.
    """
    directed = [m for m in scores if registry.find(m).best is not None]
    metrics = [m for m in _CHOSEN_BY if m in directed] or directed[:1]
    found: dict[int, Choice] = {}
    notes = []
    for metric in metrics:
        measure = registry.find(metric)
        badness = np.array([measure.badness(value) for value in scores[metric]])
        unknown = int(np.isnan(badness).sum())
        if unknown:
            notes.append(f"Without a rank by {measure.heading}, which is nan: {unknown}.")
        # The worst first; of equals, the first.
        order = np.argsort(-badness, kind="stable")[: len(badness) - unknown].tolist()
        for group, indices in _groups(order, with_middle=metric == metrics[0]).items():
            for i, index in enumerate(indices):
                heading = f"{group} by {measure.heading}"
                reason = f"{heading}, {i + 1} of {len(indices)}"
                found.setdefault(index, Choice(index, [], heading)).reasons.append(reason)
    kept = list(found.values())[: max(1, _MOST_PICTURES // num_columns)]
    if len(kept) < len(found):
        notes.append(
            f"{len(found) - len(kept)} more images would be shown, but for the size of this page."
        )
    return kept, notes


def _groups(order: list[int], *, with_middle: bool) -> dict[str, list[int]]:
    """Chooses images of an order from the worst to the best, by the heading of each group."""
    if with_middle and len(order) <= 2 * NUM_EXTREMES + NUM_MIDDLE:
        return {"From worst to best": order}
    count = min(NUM_EXTREMES, len(order) // 2)
    groups = {"Worst": order[:count], "Best": order[len(order) - count :][::-1]}
    begin = (len(order) - NUM_MIDDLE) // 2
    return groups | ({"Middle": order[begin : begin + NUM_MIDDLE]} if with_middle else {})


def patch_of(
    reference: UInt8[np.ndarray, "h w 3"],
    outputs: Sequence[UInt8[np.ndarray, "h w 3"]],
    factor: int | None,
) -> Patch:
    """Returns the square with the largest mean square error of all methods together.

    Args:
      reference: the image that the methods should make.
      outputs: outputs of the methods.
      factor: corners and side are multiples of it, so that the square is whole pixels of the input;
        None for any.
    """
    height, width = reference.shape[:2]
    wanted = _SMALL_PATCH if min(height, width) < _SMALL_IMAGE else _PATCH
    step = factor or 1
    side = min(max(wanted // step, 1) * step, min(height, width) // step * step)
    error = np.zeros((height, width))
    for output in outputs:
        error += np.square(output.astype(np.float64) - reference).sum(axis=-1)
    # Sums over all squares, by an integral image; exact, since they are whole numbers.
    integral = np.pad(error.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    below, above = integral[side:], integral[:-side]
    sums = below[:, side:] - below[:, :-side] - above[:, side:] + above[:, :-side]
    of_corners = sums[::step, ::step]
    top, left = np.unravel_index(int(np.argmax(of_corners)), of_corners.shape)
    return Patch(int(top) * step, int(left) * step, side)


def factor_between(small: tuple[int, ...], large: tuple[int, ...]) -> int | None:
    """Returns the whole factor between two shapes, equal in both directions; None if none."""
    (h, w), (height, width) = small[:2], large[:2]
    factor = max(1, height // h)
    return factor if (factor * h, factor * w) == (height, width) else None


def cut(
    image: UInt8[np.ndarray, "h w 3"], patch: Patch, factor: int = 1
) -> UInt8[np.ndarray, "side side 3"]:
    """Cuts a patch out of an image that is `factor` times smaller than the reference."""
    top, left, side = (n // factor for n in patch)
    return image[top : top + side, left : left + side]


def uri(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """Returns an image as a `data:` URI: PNG, or above `MOST_SHOWN` pixels shrunk to it, JPEG."""
    data = io.BytesIO()
    picture, kind = Image.fromarray(image), "png"
    if max(picture.size) > MOST_SHOWN:
        scale = MOST_SHOWN / max(picture.size)
        size = tuple(max(1, round(n * scale)) for n in picture.size)
        picture, kind = picture.resize(size, Image.Resampling.BOX, reducing_gap=None), "jpeg"
        picture.save(data, **_JPEG)
    else:
        picture.save(data, format="PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def strip(
    pictures: Sequence[UInt8[np.ndarray, "_h _w 3"]],
    patches: Sequence[UInt8[np.ndarray, "_h2 _w2 3"] | None],
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws pictures side by side at one size, enlarged by pixels, and the patch of each below."""
    height, width = pictures[-1].shape[:2]
    scale = STRIP_TILE / width
    scale = float(max(1, math.floor(scale))) if scale >= 1 else scale
    tile = (max(1, round(scale * width)), max(1, round(scale * height)))  # width, height
    across = len(pictures) * (tile[0] + _STRIP_GAP) - _STRIP_GAP
    sheet = Image.new("RGB", (across, tile[1] + _STRIP_GAP + tile[0]), "white")
    for i, (picture, patch) in enumerate(zip(pictures, patches, strict=True)):
        left = i * (tile[0] + _STRIP_GAP)
        grows = picture.shape[0] <= tile[1]
        how = Image.Resampling.NEAREST if grows else Image.Resampling.BOX
        sheet.paste(Image.fromarray(picture).resize(tile, how), (left, 0))
        if patch is not None:
            square = Image.fromarray(patch).resize((tile[0],) * 2, Image.Resampling.NEAREST)
            sheet.paste(square, (left, tile[1] + _STRIP_GAP))
    return np.array(sheet)
