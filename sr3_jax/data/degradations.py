"""Degradations of low resolutions, as photographs of the web have: blur, noise, JPEG and others.

Each is drawn for each example by `draw`, and done by `degraded`: blur of the high resolution, then
resizing, noise, and compression, in the order in which a camera and a web page do them.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Float32, UInt
from PIL import Image

BLURS = ("gaussian", "anisotropic", "disk", "motion")
RESIZERS = ("bicubic", "bilinear", "area", "lanczos")
NOISES = ("colour", "grey", "shot")

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}
_NARROWEST = 0.25  # of an anisotropic Gaussian, across to along
_REACH = 3.0  # standard deviations that a Gaussian kernel reaches

Kernel = Float[np.ndarray, "side side"]


@dataclasses.dataclass(frozen=True)
class Options:
    """The range of each degradation; the fields are those of `config.degradation`."""

    share: float = 1.0
    blur: tuple[float, float] = (0.0, 0.0)
    blur_kernels: tuple[str, ...] = ("gaussian",)
    resize_kernels: tuple[str, ...] = ("bicubic",)
    noise: tuple[float, float] = (0.0, 0.0)
    noise_kinds: tuple[str, ...] = ("colour",)
    jpeg: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The degradation of one example.

    Attributes:
      blur: kernel, and its standard deviation in pixels of the low resolution.
      angle: direction of the kernel, in radians.
      narrowing: width of an anisotropic Gaussian across this direction, as a share of that along.
      resizer: kernel of the resizing.
      noise: kind, and standard deviation in levels of 8 bits.
      quality: quality of the JPEG; 0: none.
      seed: seed of the noise.
    """

    blur: tuple[str, float] = ("gaussian", 0.0)
    angle: float = 0.0
    narrowing: float = 1.0
    resizer: str = "bicubic"
    noise: tuple[str, float] = ("colour", 0.0)
    quality: int = 0
    seed: int = 0

    def __str__(self) -> str:
        """What is done, as text: disk blur 1.2, area, grey noise 4.1, JPEG 63."""
        parts = []
        if self.blur[1]:
            parts.append(f"{self.blur[0]} blur {self.blur[1]:.2g}")
        parts.append(self.resizer)
        if self.noise[1]:
            parts.append(f"{self.noise[0]} noise {self.noise[1]:.2g}")
        if self.quality:
            parts.append(f"JPEG {self.quality}")
        return ", ".join(parts)


def draw(options: Options, seed: tuple[int, ...]) -> Drawn | None:
    """Draws the degradation of an example, uniformly from its ranges; None for none.

    NumPy promises that what a seed gives does not change from version to version.
    """
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    # All are drawn whatever the options, so that one range does not change what others give.
    share, of_blur, of_noise, of_quality, angle, narrowing = random.uniform(size=6)
    kinds = random.uniform(size=3)
    if share >= options.share:
        return None
    blur, resizer, noise = (
        of[int(share * len(of))]
        for of, share in zip(
            (options.blur_kernels, options.resize_kernels, options.noise_kinds), kinds, strict=True
        )
    )
    between = lambda ends, share: ends[0] + share * (ends[1] - ends[0])  # noqa: E731
    return Drawn(
        (blur, between(options.blur, of_blur)),
        angle * math.pi,
        between((_NARROWEST, 1.0), narrowing),
        resizer,
        (noise, between(options.noise, of_noise)),
        round(between(options.jpeg, of_quality)),
        int(random.randint(2**31)),
    )


def alone(options: Options) -> Mapping[str, Drawn]:
    """Returns each degradation that can be drawn alone, at the greatest of its range, by name."""
    found = {}
    if options.blur[1]:
        for kind in options.blur_kernels:
            narrow = _NARROWEST if kind == "anisotropic" else 1.0
            drawn = Drawn((kind, options.blur[1]), angle=math.pi / 6, narrowing=narrow)
            found[f"{kind} blur {options.blur[1]:.2g}"] = drawn
    for kind in options.resize_kernels:
        found[kind] = Drawn(resizer=kind)
    if options.noise[1]:
        for kind in options.noise_kinds:
            found[f"{kind} noise {options.noise[1]:.2g}"] = Drawn(noise=(kind, options.noise[1]))
    for quality in sorted({n for n in options.jpeg if n}):
        found[f"JPEG {quality}"] = Drawn(quality=quality)
    return found


def degraded(
    high: UInt[np.ndarray, "h w c"], size: tuple[int, int], drawn: Drawn
) -> UInt[np.ndarray, "low_h low_w c"]:
    """Returns the low resolution of an image, with the degradation drawn, in its own type.

    Args:
      high: uint8 or uint16, of 1 or 3 channels where it is compressed.
      size: height and width of the low resolution.
      drawn: the degradation.
    """
    level = np.iinfo(high.dtype).max / 255  # a level of 8 bits
    pixels = high.astype(np.float32)
    kind, deviation = drawn.blur
    if deviation:
        kernel = kernel_of(kind, deviation * high.shape[0] / size[0], drawn.angle, drawn.narrowing)
        pixels = _convolved(pixels, kernel)
    low = _resized(pixels, size, drawn.resizer)
    kind, deviation = drawn.noise
    if deviation:
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(drawn.seed)))
        shape = (*low.shape[:2], 1) if kind == "grey" else low.shape
        noise = deviation * level * random.standard_normal(shape).astype(np.float32)
        if kind == "shot":
            noise *= np.sqrt(np.clip(low / (255 * level), 0.0, 1.0))
        low = low + noise
    rounded = np.clip(np.rint(low), 0, np.iinfo(high.dtype).max).astype(high.dtype)
    return _compressed(rounded, drawn.quality) if drawn.quality else rounded


def kernel_of(kind: str, deviation: float, angle: float = 0.0, narrowing: float = 1.0) -> Kernel:
    """Returns a kernel, whose weights add up to 1.

    Args:
      kind: one of `BLURS`.
      deviation: standard deviation along `angle`, in pixels.
      angle: direction from the x axis, in radians.
      narrowing: width of `anisotropic` across, as a share of that along.
    """
    reach = math.ceil({"disk": 2.0, "motion": math.sqrt(3.0)}.get(kind, _REACH) * deviation) + 1
    # Weights are means over parts of a pixel, so that a kernel of a pixel is right, too.
    parts = 5
    fine = (np.arange((2 * reach + 1) * parts) + 0.5) / parts - 0.5 - reach
    y, x = np.meshgrid(fine, fine, indexing="ij")
    along, across = (
        x * math.cos(angle) + y * math.sin(angle),
        y * math.cos(angle) - x * math.sin(angle),
    )
    weights = _SHAPES[kind](along / deviation, across / deviation, narrowing, 1 / deviation)
    side = 2 * reach + 1
    weights = weights.reshape(side, parts, side, parts).mean(axis=(1, 3))
    return weights / weights.sum()


def _gaussian(along: np.ndarray, across: np.ndarray, *_: float) -> np.ndarray:
    return np.exp(-0.5 * (along**2 + across**2))


def _anisotropic(along: np.ndarray, across: np.ndarray, narrowing: float, _: float) -> np.ndarray:
    return np.exp(-0.5 * (along**2 + (across / narrowing) ** 2))


def _disk(along: np.ndarray, across: np.ndarray, *_: float) -> np.ndarray:
    # The variance of a disk along an axis is a quarter of the squared radius.
    return (along**2 + across**2 <= 4.0).astype(float)


def _motion(along: np.ndarray, across: np.ndarray, _: float, pixel: float) -> np.ndarray:
    # A line of a pixel's width, and the variance of a line is a twelfth of its squared length.
    return ((np.abs(along) <= math.sqrt(3.0)) & (np.abs(across) <= 0.5 * pixel)).astype(float)


_SHAPES: Mapping[str, Callable[..., np.ndarray]] = {
    "gaussian": _gaussian,
    "anisotropic": _anisotropic,
    "disk": _disk,
    "motion": _motion,
}


def _convolved(pixels: Float32[np.ndarray, "h w c"], kernel: Kernel) -> np.ndarray:
    """Returns an image, mirrored at its borders, after a convolution."""
    import scipy.signal  # late: every command reads the names above, and this takes a second

    reach = len(kernel) // 2
    padded = np.pad(pixels, [(reach, reach), (reach, reach), (0, 0)], mode="symmetric")
    kernel = kernel.astype(np.float32)[..., None]
    return scipy.signal.fftconvolve(padded, kernel, mode="valid", axes=(0, 1))


def _resized(pixels: np.ndarray, size: tuple[int, int], resizer: str) -> np.ndarray:
    """Returns an image resized by Pillow, in floating point."""
    if pixels.shape[:2] == size:
        return pixels
    channels = (
        Image.fromarray(np.ascontiguousarray(pixels[..., i], np.float32)).resize(
            size[::-1], _RESAMPLING[resizer], reducing_gap=None
        )
        for i in range(pixels.shape[-1])
    )
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def _compressed(image: UInt[np.ndarray, "h w c"], quality: int) -> UInt[np.ndarray, "h w c"]:
    """Returns an image after JPEG compression, which has 8 bits."""
    of_level = np.iinfo(image.dtype).max // 255
    eight = np.rint(image / of_level).astype(np.uint8)
    content = io.BytesIO()
    picture = Image.fromarray(eight[..., 0] if eight.shape[-1] == 1 else eight)
    picture.save(content, format="JPEG", quality=quality)
    made = np.asarray(Image.open(content)).reshape(image.shape)
    return made.astype(image.dtype) * image.dtype.type(of_level)
