"""What else there is to see of an upscaled picture: where it is a guess, and how it came to be."""

from __future__ import annotations

import io

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8, UInt16
from PIL import Image, ImageDraw, ImageFont

from sr3_jax.data import storage

# From sure to guessed; between them colours are mixed. Lightness rises throughout.
_COLOURS = np.array(
    [(0, 0, 10), (60, 15, 110), (150, 40, 110), (225, 90, 50), (250, 175, 40), (252, 253, 200)]
)
_LEGEND = 28  # pixels
_LONGEST = 640  # side of an animation; larger ones are shown smaller
_MILLISECONDS, _LAST_MILLISECONDS = 80, 2500  # that a frame is shown


def deviation(
    samples: UInt8[np.ndarray, "k h w 3"] | UInt16[np.ndarray, "k h w 3"],
) -> Float[np.ndarray, "h w"]:
    """Standard deviation between samples (with k - 1), mean over colours; the range is [0, 1]."""
    largest = np.iinfo(samples.dtype).max
    return (samples.astype(np.float32) / largest).std(0, ddof=1).mean(-1)


def uncertainty(deviation: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h2 w 3"]:
    """A picture of a deviation, with its scale below: black is sure, light is a guess.

    The scale ends at the 99.5th percentile, and at 1 % at least: noise of a level is not drawn
    as if it meant something.
    """
    top = max(0.01, float(np.percentile(deviation, 99.5)))
    share = np.clip(deviation / top, 0, 1)
    height, width = deviation.shape
    ramp = np.broadcast_to(np.linspace(0, 1, width), (_LEGEND // 2, width))
    legend = Image.new("RGB", (width, _LEGEND), "black")
    legend.paste(Image.fromarray(_coloured(ramp)), (0, 0))
    draw, font = ImageDraw.Draw(legend), ImageFont.load_default(11)
    draw.text((2, _LEGEND // 2), "0", "white", font)
    text = f"{top:.1%} of the range"
    draw.text((width - draw.textlength(text, font) - 2, _LEGEND // 2), text, "white", font)
    return np.concatenate([_coloured(share), np.asarray(legend)])


def write_animation(
    frames: list[UInt8[np.ndarray, "h w 3"]] | list[UInt16[np.ndarray, "h w 3"]],
    path: epath.PathLike,
) -> None:
    """Writes a GIF, whole or not at all, in which the last frame stays for a while."""
    shown = []
    for frame in frames:
        if frame.dtype == np.uint16:
            frame = np.rint(frame / 257).astype(np.uint8)
        image = Image.fromarray(frame)
        image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.BOX)
        shown.append(image)
    # The colours of the result, to which all else leads.
    palette = shown[-1].quantize(256, dither=Image.Dither.NONE)
    shown = [image.quantize(palette=palette) for image in shown]
    durations = [_MILLISECONDS] * (len(shown) - 1) + [_LAST_MILLISECONDS]
    data = io.BytesIO()
    shown[0].save(
        data,
        "GIF",
        save_all=True,
        append_images=shown[1:],
        duration=durations,
        loop=0,
        optimize=False,
    )
    storage.write_whole(str(path), data.getvalue())


def _coloured(share: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    stops = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(share, stops, c) for c in _COLOURS.T], -1).round().astype(np.uint8)
