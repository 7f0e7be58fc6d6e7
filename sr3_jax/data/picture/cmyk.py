"""CMYK to sRGB, everywhere alike: by the file's profile, or by Pillow's plain formula."""

import io
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms

_ROWS = 256  # that are converted at once, so that memory is bounded


def image_to_srgb(image: Image.Image, profile: bytes | None) -> UInt8[np.ndarray, "height width 3"]:
    """Converts an image of Pillow's of mode CMYK; see `values_to_srgb`."""
    width, height = image.size
    return _converted(width, height, profile, lambda a, b: image.crop((0, a, width, b)))


def values_to_srgb(
    values: UInt8[np.ndarray, "height width 4"], profile: bytes | None
) -> UInt8[np.ndarray, "height width 3"]:
    """Converts inks, of which 255 is the most.

    Args:
        values: cyan, magenta, yellow, black.
        profile: of CMYK; where it is None, damaged or of other pixels, the plain formula is used.
    """
    height, width = values.shape[:2]

    def rows(top: int, bottom: int) -> Image.Image:
        return Image.frombytes("CMYK", (width, bottom - top), values[top:bottom].tobytes())

    return _converted(width, height, profile, rows)


def transform(profile: bytes | None) -> ImageCms.ImageCmsTransform | None:
    """From a profile of CMYK to sRGB; None where there is none that can be used."""
    if not profile or profile[16:20] != b"CMYK":
        return None
    try:
        return ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            "CMYK",
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError):
        return None


def _converted(
    width: int, height: int, profile: bytes | None, rows: Callable[[int, int], Image.Image]
) -> UInt8[np.ndarray, "height width 3"]:
    by_profile = transform(profile)
    made = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _ROWS):
        strip = rows(top, min(top + _ROWS, height))
        if by_profile is not None:
            strip = ImageCms.applyTransform(strip, by_profile)
        made[top : top + _ROWS] = np.asarray(strip.convert("RGB"))
    return made
