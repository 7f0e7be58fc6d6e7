"""Pictures that are upscaled for users: with depth, transparency, profile and EXIF, and back.

Training data is read by `image_file.decode`, which makes 8-bit RGB of everything. Here 16 bits stay
16 bits: Pillow, which reads and writes all else, has no 16-bit RGB, so libvips (pyvips) reads such
files. It is imported when the first one comes.
"""

import dataclasses
import io
import logging as std_logging
import struct
import types
import zlib

import numpy as np
import scipy.ndimage
from absl import logging
from etils import epath
from jaxtyping import Shaped, UInt8, UInt16
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from sr3_jax.data import image_file, storage, tiff

output_path = image_file.output_path
BadImageError = image_file.BadImageError


def header(data: bytes) -> types.SimpleNamespace:
    """Stand-in until the one reader is there."""
    with image_file.reasons(), Image.open(io.BytesIO(data)) as file:
        return types.SimpleNamespace(bytes_decoded=8 * file.width * file.height)


_KEEPS_ALPHA = ("PNG", "TIFF", "WEBP")
_KEEPS_16_BITS = ("PNG", "TIFF")
_MAX_SIDE = {"JPEG": 65500, "WEBP": 16383}

# On 6000x4000 8-bit pixels of photographs, 1 takes 2.3 s and gives 41.4 MB, 4 takes 3.8 s and gives
# 37.6 MB, 6 takes 6.6 s and gives 37.1 MB (measured with one of two cores of a virtual machine).
_PNG_LEVEL = 4


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture file's content, upright.

    Attributes:
        pixels: RGB.
        alpha: 0 is transparent; of the type of `pixels`. None where the file has no transparency.
        is_grey: the file has one channel of colour, which `pixels` repeats.
        icc_profile: of RGB, or of grey where `is_grey`.
        exif: begins with `Exif` and two zeros, as Pillow has it, and holds neither orientation,
            nor size, nor thumbnail.
    """

    pixels: UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width 3"]
    alpha: UInt8[np.ndarray, "height width"] | UInt16[np.ndarray, "height width"] | None = None
    is_grey: bool = False
    icc_profile: bytes | None = None
    exif: bytes | None = None

    def __post_init__(self):
        if self.alpha is not None and self.alpha.dtype != self.pixels.dtype:
            raise ValueError(
                f"alpha is {self.alpha.dtype} and pixels are {self.pixels.dtype}; give one type"
            )


def read_picture(path: str) -> Picture:
    """Reads a picture, local or a URL (see `storage`).

    Raises:
        BadImageError: missing file, or see `decode_picture`.
        OSError: reading failed for another reason, which says nothing about the picture.
    """
    return decode_picture(image_file.content(path))


def decode_picture(data: bytes) -> Picture:
    """Decodes a picture file.

    The EXIF orientation is applied. Grey and RGB of 16 bits stay so, and whole numbers of 32 bits
    become 16 where they fit. CMYK is converted to 8-bit sRGB by its profile, or where it has none
    by Pillow's plain formula. A profile of other pixels than the file's is left out, and so is
    EXIF that is damaged, with a warning.

    Args:
        data: content of a JPEG, PNG, WebP, BMP, TIFF or GIF file.

    Raises:
        BadImageError: as `image_file.decode`; also where 16 bits come with channels other than grey
            or RGB and alpha, or pyvips is not installed.
    """
    with image_file.reasons():
        tags = tiff.tags(data)
        if tags is not None and _is_16_bit(tags):
            return _decode_16_bit_tiff(data, tags)
    with image_file.opened(data) as file:
        exif = _exif_of(file) if tags is None else tiff.exif_of_file(data)
        profile = file.info.get("icc_profile")
        depth = data[24] if file.format == "PNG" else 8
        if depth == 16:
            values = _vips().Image.pngload_buffer(data, fail_on="error").numpy()
            return _picture(
                _upright(values, file.getexif().get(tiff.ORIENTATION, 1)), profile, exif
            )
        if depth < 8 and file.mode == "L":
            # Pillow stretches the levels to 8 bits, but not the one that is transparent.
            if isinstance(level := file.info.get("transparency"), int):
                file.info["transparency"] = level * 255 // (2**depth - 1)
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):
            return _picture(image_file.grey_16_bit(image), profile, exif)
        if image.mode == "F":
            raise image_file.BadImageError(image_file.FLOATS)
        if image.mode == "CMYK":
            image = _cmyk_to_srgb(image, profile)
        mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
        if image.has_transparency_data:
            mode += "A"
        return _picture(np.array(image.convert(mode)), profile, exif)


def check_writable(picture: Picture, path: epath.Path, scale: int | float = 1) -> None:
    """Raises ValueError where the format of a path cannot hold all of a picture.

    Args:
        picture: or what it is made from.
        path: see `output_path`.
        scale: how many times wider and higher the picture is when it is written.
    """
    path = output_path(path)
    kind = image_file.WRITERS[path.suffix.lower()]["format"]
    height, width = (round(scale * size) for size in picture.pixels.shape[:2])
    profile = picture.icc_profile
    for refused, what in (
        (picture.pixels.dtype != np.uint8 and kind not in _KEEPS_16_BITS, "16 bits a channel"),
        (picture.alpha is not None and kind not in _KEEPS_ALPHA, "transparency"),
        (profile and kind == "BMP", "a colour profile"),
        (picture.exif and kind == "BMP", "EXIF"),
        (max(height, width) > _MAX_SIDE.get(kind, 2**31 - 1), f"{width}x{height} pixels"),
    ):
        if refused:
            raise ValueError(f"{path}: {kind} cannot hold {what}; give it a name that ends in .png")
    # WebP has no grey.
    if profile and not _fits(profile, picture.is_grey and kind != "WEBP"):
        raise ValueError(
            f"{path}: icc_profile is for {profile[16:20]} and does not fit the pixels; remove it"
        )


def write_picture(picture: Picture, path: epath.Path) -> epath.Path:
    """Writes a picture in the format of its suffix, whole or not at all.

    PNG, TIFF and BMP keep every pixel. Returns the path written, see `output_path`.

    Raises:
        ValueError: see `check_writable`; or a grey picture has colours.
        OSError: writing failed.
    """
    path = output_path(path)
    check_writable(picture, path)
    options = dict(image_file.WRITERS[path.suffix.lower()])
    values = _values(picture)
    if options["format"] == "TIFF":
        data = tiff.encode(
            values,
            is_grey=picture.is_grey,
            has_alpha=picture.alpha is not None,
            icc_profile=picture.icc_profile,
            exif=picture.exif,
        )
    elif values.dtype == np.uint16:
        data = _png_of_16_bits(picture, values)
    else:
        if options["format"] == "PNG":
            options["compress_level"] = _PNG_LEVEL
        for name in ("icc_profile", "exif"):
            if getattr(picture, name):
                options[name] = getattr(picture, name)
        file = io.BytesIO()
        Image.fromarray(values).save(file, **options)
        data = file.getvalue()
    storage.write_whole(path, data)
    return path


def fill_transparent(
    picture: Picture,
) -> UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width 3"]:
    """The pixels, with the colour of the nearest visible one where alpha is 0.

    Else colours that nobody sees would bleed into edges when the picture is upscaled. Where all is
    transparent, nothing changes.
    """
    if picture.alpha is None or picture.alpha.all() or not picture.alpha.any():
        return picture.pixels
    rows, columns = scipy.ndimage.distance_transform_edt(
        picture.alpha == 0, return_distances=False, return_indices=True
    )
    return picture.pixels[rows, columns]


def _picture(
    values: Shaped[np.ndarray, "height width *channels"], profile: bytes | None, exif: bytes | None
) -> Picture:
    """Of 1 to 4 channels: grey or RGB, and alpha."""
    values = np.atleast_3d(values)
    channels = values.shape[2]
    is_grey = channels < 3
    colours = values[..., :1] if is_grey else values[..., :3]
    return Picture(
        pixels=np.repeat(colours, 3, axis=2) if is_grey else np.ascontiguousarray(colours),
        alpha=np.ascontiguousarray(values[..., -1]) if channels in (2, 4) else None,
        is_grey=is_grey,
        icc_profile=profile if _fits(profile, is_grey) else None,
        exif=exif,
    )


def _fits(profile: bytes | None, is_grey: bool) -> bool:
    return bool(profile) and profile[16:20] == (b"GRAY" if is_grey else b"RGB ")


def _values(picture: Picture) -> Shaped[np.ndarray, "height width *channels"]:
    """What a file holds; the opposite of `_picture`, but one channel has no axis."""
    pixels = picture.pixels
    if picture.is_grey:
        if (pixels[..., :1] != pixels[..., 1:]).any():
            raise ValueError("is_grey is True, but channels differ; set it False or average them")
        pixels = pixels[..., 0]
    return pixels if picture.alpha is None else np.dstack([pixels, picture.alpha])


def _exif_of(file: Image.Image) -> bytes | None:
    block = file.info.get("exif")
    if not block and (text := file.info.get("Raw profile type exif")):
        # ImageMagick's, from before PNG had a chunk for it: three lines, then hexadecimal.
        block = bytes.fromhex("".join(text.split("\n")[3:]))
    return tiff.exif_of_block(block) if block else None


def _upright(
    values: Shaped[np.ndarray, "height width *channels"], orientation: int
) -> Shaped[np.ndarray, "new_height new_width *channels"]:
    """Applies an EXIF orientation, which is 1 to 8; others mean nothing."""
    if orientation in (3, 4, 6, 7):
        values = values[::-1]
    if orientation in (2, 3, 7, 8):
        values = values[:, ::-1]
    return values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values


def _cmyk_to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if not profile or profile[16:20] != b"CMYK":
        return image.convert("RGB")
    try:
        return ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError) as error:
        logging.warning("CMYK is converted without its profile, which is damaged: %s", error)
        return image.convert("RGB")


def _is_16_bit(tags: TiffImagePlugin.ImageFileDirectory_v2) -> bool:
    sample_formats = tags.get(tiff.SAMPLE_FORMAT, (1,))
    if 3 in sample_formats:
        raise image_file.BadImageError(image_file.FLOATS)
    return (
        set(tags.get(tiff.BITS, (1,))) == {16}
        and set(sample_formats) == {1}
        and tags.get(tiff.PHOTOMETRIC) in (0, 1, 2)
    )


def _decode_16_bit_tiff(data: bytes, tags: TiffImagePlugin.ImageFileDirectory_v2) -> Picture:
    image = _vips().Image.tiffload_buffer(data, fail_on="error")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > 2 * limit:
        raise Image.DecompressionBombError(
            f"{image.width}x{image.height} pixels, more than {2 * limit}"
        )
    colours = 3 if tags[tiff.PHOTOMETRIC] == 2 else 1
    if image.format != "ushort" or not colours <= image.bands <= colours + 1:
        raise image_file.BadImageError(
            f"{image.bands} channels of {image.format}; of 16 bits, grey and RGB with alpha or "
            "without are supported"
        )
    if tags.get(tiff.EXTRA_SAMPLES) == (0,):
        # Of no stated meaning: no alpha, as in Pillow's 8 bits.
        image = image[:colours]
    values = _upright(image.numpy(), tags.get(tiff.ORIENTATION, 1))
    return _picture(values, tags.get(tiff.ICC_PROFILE), tiff.exif_of_file(data))


def _png_of_16_bits(
    picture: Picture, values: UInt16[np.ndarray, "height width *channels"]
) -> bytes:
    vips = _vips()
    space = "grey16" if picture.is_grey else "rgb16"
    image = vips.Image.new_from_array(values, interpretation=space)
    if picture.icc_profile:
        image.set_type(vips.GValue.blob_type, "icc-profile-data", picture.icc_profile)
    # Of its filters the one that takes 60% of the time of all, for files 3% larger.
    data = image.pngsave_buffer(compression=_PNG_LEVEL, filter="up", bitdepth=16, keep="icc")
    if not picture.exif:
        return data
    # By hand, since libvips would parse it and write what it knows of it.
    chunk = b"eXIf" + picture.exif.removeprefix(tiff.EXIF_PREFIX)
    size, check = struct.pack(">I", len(chunk) - 4), struct.pack(">I", zlib.crc32(chunk))
    return data[:33] + size + chunk + check + data[33:]  # behind the header, which has 33 bytes


def _vips() -> types.ModuleType:
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise image_file.BadImageError(
            f"16-bit pictures need pyvips ({error}); run: pip install 'pyvips[binary]'"
        ) from error
    # Else it would keep the files of the last calls.
    pyvips.cache_set_max(0)
    # Its warnings are of tags that nobody reads, seven times each; what matters is raised.
    std_logging.getLogger("pyvips").setLevel(std_logging.ERROR)
    return pyvips
