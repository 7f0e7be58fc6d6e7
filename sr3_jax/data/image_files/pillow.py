"""Pixels of Pillow's images, converted strip by strip so that little memory is used beside them."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms

_ROWS = 256  # of a strip


def pixels(image: Image.Image) -> UInt8[np.ndarray, "height width bands"]:
    """Decodes an image of any 8-bit mode to grey or RGB, then alpha; CMYK becomes sRGB."""
    image.load()
    if image.mode == "CMYK":
        return converted(image, "RGB", cmyk_transform(image.info.get("icc_profile")))
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    return converted(image, mode + "A" * image.has_transparency_data)


def cmyk_transform(profile: bytes | None) -> ImageCms.ImageCmsTransform | None:
    """Returns the transform from a profile to sRGB; None if it is no whole profile of CMYK."""
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


def converted(
    image: Image.Image, mode: str, transform: ImageCms.ImageCmsTransform | None = None
) -> UInt8[np.ndarray, "height width bands"]:
    """Converts an image to a mode, by a transform or by Pillow's plain formula."""
    values = np.empty((image.height, image.width, len(mode)), np.uint8)
    for top in range(0, image.height, _ROWS):
        strip = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
        if transform is not None:
            strip = ImageCms.applyTransform(strip, transform)
        values[top : top + _ROWS] = np.atleast_3d(np.asarray(strip.convert(mode)))
    return values
