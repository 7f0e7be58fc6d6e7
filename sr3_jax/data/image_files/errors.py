"""The error for pictures that cannot be used, and the limit on their size."""

import contextlib
import os
from collections.abc import Iterator

MAX_MEGAPIXELS = "SR3_MAX_MEGAPIXELS"  # an environment variable

# Twice Pillow's PIL.Image.MAX_IMAGE_PIXELS, above which Pillow itself refuses a file.
_DEFAULT_MEGAPIXELS = 178.95697
_LONGEST = 180  # characters of a decoder's own message


class BadImageError(ValueError):
    """The image cannot be used; the message is a short reason."""


def max_pixels() -> int:
    """Returns the largest number of pixels that is read, from the environment or by default.

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
    """Raises BadImageError if a picture has no pixels, or more than `max_pixels`."""
    if width < 1 or height < 1:
        raise BadImageError(f"{width}x{height} pixels; there is nothing to decode")
    if width * height > (limit := max_pixels()):
        raise BadImageError(
            f"{width}x{height} pixels are {width * height / 1e6:.1f} megapixels, and the limit is "
            f"{limit / 1e6:.1f}; if you trust the file, set the environment variable "
            f"{MAX_MEGAPIXELS} to more"
        )


@contextlib.contextmanager
def decoder_errors(what: str = "cannot be decoded") -> Iterator[None]:
    """Turns any error of a decoder into a BadImageError of one line, which begins with `what`."""
    try:
        yield
    except (BadImageError, MemoryError):
        raise
    except Exception as error:
        # Decoders raise OSError, SyntaxError, struct.error, KeyError, pyvips.Error and more,
        # depending on where the data is broken. Only the bytes can be the cause.
        text = " ".join(str(error).split()) or type(error).__name__
        raise BadImageError(f"{what}: {text[:_LONGEST]}") from error
