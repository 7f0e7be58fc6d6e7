"""Pictures of uncertainty, and animations of the refinement."""

from __future__ import annotations

import io

import numpy as np
from etils import epath
from jaxtyping import Float, UInt, UInt8
from PIL import Image, ImageDraw, ImageFont

from sr3_jax.data import storage

# A colour map of increasing lightness, interpolated between these colours.
_COLOURS = np.array(
    [(0, 0, 10), (60, 15, 110), (150, 40, 110), (225, 90, 50), (250, 175, 40), (252, 253, 200)]
)
_LEGEND = 28  # height of the legend in pixels
_LONGEST = 640  # longest side of an animation in pixels; larger frames are reduced
_MILLISECONDS, _LAST_MILLISECONDS = 80, 2500  # durations of a frame


def deviation(samples: UInt[np.ndarray, "k h w 3"]) -> Float[np.ndarray, "h w"]:
    """Returns the standard deviation of k samples in [0, 1] (with k - 1), mean over colours."""
    largest = np.iinfo(samples.dtype).max
    return (samples.astype(np.float32) / largest).std(0, ddof=1).mean(-1)


def uncertainty(deviation: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h2 w 3"]:
    """Draws a deviation with its scale below: black is certain, light is uncertain.

    The scale ends at the 99.5th percentile, but at 1 % at least, so that rounding noise stays dark.
    """
    top = max(0.01, float(np.percentile(deviation, 99.5)))
    share = np.clip(deviation / top, 0, 1)
    height, width = deviation.shape
    ramp = np.broadcast_to(np.linspace(0, 1, width), (_LEGEND // 2, width))
    legend = Image.new("RGB", (width, _LEGEND), "black")
    legend.paste(Image.fromarray(coloured(ramp)), (0, 0))
    draw, font = ImageDraw.Draw(legend), ImageFont.load_default(11)
    draw.text((2, _LEGEND // 2), "0", "white", font)
    text = f"{top:.1%} of the range"
    draw.text((width - draw.textlength(text, font) - 2, _LEGEND // 2), text, "white", font)
    return np.concatenate([coloured(share), np.asarray(legend)])


def write_animation(frames: list[UInt[np.ndarray, "h w 3"]], path: epath.PathLike) -> None:
    """Writes uint8 or uint16 frames as a GIF, whole or not at all; the last is shown longer."""
    shown = []
    for frame in frames:
        if frame.dtype == np.uint16:
            frame = np.rint(frame / 257).astype(np.uint8)
        image = Image.fromarray(frame)
        image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.BOX)
        shown.append(image)
    # All frames use the colours of the result.
    palette = shown[-1].quantize(256, dither=Image.Dither.NONE)
    shown = [image.quantize(palette=palette) for image in shown]
    durations = [_MILLISECONDS] * (len(shown) - 1) + [_LAST_MILLISECONDS]
    options = dict(save_all=True, append_images=shown[1:], duration=durations, loop=0)
    data = io.BytesIO()
    shown[0].save(data, "GIF", optimize=False, **options)
    storage.write_whole(str(path), data.getvalue())


def coloured(share: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Draws numbers in [0, 1] by the colour map: dark is 0, light is 1."""
    stops = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(share, stops, c) for c in _COLOURS.T], -1).round().astype(np.uint8)
