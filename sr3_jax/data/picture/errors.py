"""How picture files are refused: the error, and the limit on their size."""

import contextlib
import os
from collections.abc import Iterator

MAX_MEGAPIXELS = "SR3_MAX_MEGAPIXELS"  # the environment variable

# Twice Pillow's PIL.Image.MAX_IMAGE_PIXELS, above which Pillow itself refuses a file.
_DEFAULT_MEGAPIXELS = 178.95697
_LONGEST = 180  # characters of a decoder's own message


class BadImageError(ValueError):
    """The image cannot be used; the message is a short reason."""


def max_pixels() -> int:
    """The number of pixels above which a picture is refused, of the environment or the default.

    Raises:
        ValueError: the environment variable is no positive number.
    """
    text = os.environ.get(MAX_MEGAPIXELS, "")
    try:
        megapixels = float(text or _DEFAULT_MEGAPIXELS)
        if megapixels > 0:
            return int(megapixels * 1e6)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{MAX_MEGAPIXELS}={text!r}; set it to a number of megapixels, such as 500")


def check_pixels(width: int, height: int) -> None:
    """Raises BadImageError where a picture has no pixels, or more than `max_pixels`."""
    if width < 1 or height < 1:
        raise BadImageError(f"{width}x{height} pixels; there is nothing to decode")
    if width * height > (limit := max_pixels()):
        raise BadImageError(
            f"{width}x{height} pixels are {width * height / 1e6:.1f} megapixels, and the limit is "
            f"{limit / 1e6:.1f}; if you trust the file, set the environment variable "
            f"{MAX_MEGAPIXELS} to more"
        )


@contextlib.contextmanager
def reasons() -> Iterator[None]:
    """Makes a BadImageError with a reason of one line of whatever a decoder raises."""
    try:
        yield
    except (BadImageError, MemoryError):
        raise
    except Exception as error:
        # Depending on where the data is broken, decoders raise OSError, SyntaxError, struct.error,
        # KeyError, pyvips.Error and more; none but the bytes can be the cause.
        text = " ".join(str(error).split()) or type(error).__name__
        raise BadImageError(f"cannot be decoded: {text[:_LONGEST]}") from error
