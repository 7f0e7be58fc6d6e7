"""The image of a TIFF file: checks of its tags, and its pixels."""

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from sr3_jax.data.image_files import metadata, pillow, tiff
from sr3_jax.data.image_files.errors import BadImageError
from sr3_jax.data.image_files.picture import Opened, to_8_bits
from sr3_jax.data.image_files.vips import open_buffer

# Name and number of the bands of each PhotometricInterpretation.
_COLOURS = {
    0: ("grey", 1),
    1: ("grey", 1),
    2: ("RGB", 3),
    3: ("a palette", 1),
    5: ("CMYK", 4),
    6: ("YCbCr", 3),
}
_OTHER_COLOURS = {4: "a mask", 8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab", 32803: "a raw sensor"}
_WHITE_IS_ZERO, _PALETTE, _CMYK = 0, 3, 5
_UNSIGNED, _SIGNED, _FLOATS, _UNDEFINED = 1, 2, 3, 4  # of SampleFormat
_SMALLER, _MASK = 1, 4  # bits of NewSubfileType
_LOSSY = (6, 7, 34892, 50001)  # of Compression: JPEG, WebP

Tags = dict[int, tiff.Entry]


def open_tiff(data: bytes) -> Opened:
    """Reads the tags of a TIFF file.

    Raises:
      BadImageError: it has several pages, or bands or pixels that networks do not take.
    """
    file = tiff.Tiff(data)
    pages = file.pages()
    if not pages:
        raise BadImageError("no image in it")
    kinds = [file.number(page, tiff.SUBFILE_TYPE, 0) for page in pages]
    others = sum(bool(kind & (_SMALLER | _MASK)) for kind in kinds[1:])
    if len(pages) - others > 1:
        raise BadImageError(
            f"{len(pages) - others} pages, and networks take one picture from a file; save each "
            "page as a file of its own, for instance with tiffsplit"
        )
    tags = pages[0]
    photometric = file.number(tags, tiff.PHOTOMETRIC, -1)
    if photometric not in _COLOURS:
        what = _OTHER_COLOURS.get(photometric, f"PhotometricInterpretation {photometric}")
        raise BadImageError(f"its pixels are {what}; save it as grey or RGB")
    stored_bits = _checked_bits(file, tags, photometric)
    kept = metadata.of_tiff(data, file, tags)
    kept.is_lossless = file.number(tags, tiff.COMPRESSION, 1) not in _LOSSY
    if others:
        kept.notes.append("smaller versions or masks in the file")
    profile = kept.icc_profile
    if photometric == _CMYK:
        metadata.convert_cmyk(kept)
    size = file.number(tags, tiff.WIDTH, 0), file.number(tags, tiff.LENGTH, 0)
    colours = 3 if photometric in (_PALETTE, _CMYK) else _COLOURS[photometric][1]
    return Opened(
        size,
        colours + _has_alpha(file, tags, photometric),
        8 if stored_bits <= 8 or photometric == _CMYK else 16,
        lambda: _decode(data, size, photometric, profile),
        kept,
    )


def _decode(
    data: bytes, size: tuple[int, int], photometric: int, profile: bytes | None
) -> Shaped[np.ndarray, "height width *bands"]:
    """Decodes the pixels as stored, of 8 or 16 bits: grey or RGB, then alpha."""
    image = open_buffer("tiffload_buffer", data)
    if (image.width, image.height) != size:
        raise BadImageError("its tags contradict each other")
    values = image.numpy()
    if photometric == _PALETTE and values.ndim == 2:  # of greys
        return np.repeat(values[..., np.newaxis], 3, axis=2)
    if photometric == _CMYK:
        inks = np.ascontiguousarray(to_8_bits(values))
        inks = Image.frombuffer("CMYK", size, inks, "raw", "CMYK", 0, 1)
        return pillow.converted(inks, "RGB", pillow.cmyk_transform(profile))
    if values.dtype not in (np.uint8, np.uint16):
        low, high = values.min(), values.max()
        if low < 0 or high > 65535:
            raise BadImageError(f"pixels from {low} to {high}; at most 16 bits are supported")
        values = values.astype(np.uint16)
    return values


def _has_alpha(file: tiff.Tiff, tags: Tags, photometric: int) -> bool:
    """Returns whether a band of alpha follows the colours; refuses other bands."""
    colours, count = _COLOURS[photometric]
    samples = file.number(tags, tiff.SAMPLES, count)
    # For each band after the colours: 1 and 2 mean alpha, 0 has no stated meaning.
    meanings = file.numbers(tags.get(tiff.EXTRA_SAMPLES))
    if samples == count:
        return False
    if samples == count + 1 and meanings in ((1,), (2,)) and photometric not in (_PALETTE, _CMYK):
        return True
    if samples < count:
        raise BadImageError(f"{samples} bands, where {colours} has {count}")
    num_alpha = sum(meaning in (1, 2) for meaning in meanings)
    unknown = samples - count - num_alpha
    parts = [colours, f"{num_alpha} of alpha"] if num_alpha else [colours]
    parts += [f"{unknown} of no stated meaning"] if unknown else []
    raise BadImageError(
        f"{samples} bands ({' and '.join(parts)}), and networks take 3 of RGB or 1 of grey, with "
        "one of alpha or without; save those to be seen, for instance with gdal_translate -b 1 "
        "-b 2 -b 3, or say in ExtraSamples that the last is alpha"
    )


def _checked_bits(file: tiff.Tiff, tags: Tags, photometric: int) -> int:
    """Returns the bits of each band; refuses types that are no unsigned integers."""
    kinds = set(file.numbers(tags.get(tiff.SAMPLE_FORMAT), _UNSIGNED))
    if _FLOATS in kinds:
        raise BadImageError("floating-point pixels have no defined range; save it as 16-bit")
    if len(kinds) > 1 or not kinds <= {_UNSIGNED, _SIGNED, _UNDEFINED}:
        raise BadImageError(f"pixels of SampleFormat {sorted(kinds)}; save it as 8 or 16-bit")
    bits = set(file.numbers(tags.get(tiff.BITS), 1))
    if len(bits) > 1 or not bits <= {1, 2, 4, 8, 16, 32}:
        found = " and ".join(map(str, sorted(bits)))
        raise BadImageError(f"{found} bits for each band; save it with 8 or 16")
    stored = int(bits.pop())
    if kinds == {_SIGNED} and (stored < 16 or photometric == _WHITE_IS_ZERO):
        raise BadImageError(f"signed {stored}-bit pixels; save it as unsigned")
    return stored
