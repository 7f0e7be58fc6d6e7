"""A fully connected CRF over samples of SR3: the experiment of docs/limits.md.

    python -m launch.crf PHOTOS_VAL PHOTOS_TEST --workdir=runs/crf

Windows of 128x128 pixels from the middle of photographs are reduced four times by bicubic, and a
network draws samples of each. Two forms of the CRF of Krähenbühl and Koltun (2011) make one picture
of them. Their kernels are Gaussians of place and colour, summed exactly over a square window
(`RADIUS` pixels to each side) in place of the whole picture. Settings are chosen on PHOTOS_VAL;
PHOTOS_TEST and rendered words give the figures. Whatever a method makes is moved to the nearest
picture whose downsampling is the source. Written to the workdir: samples and settings, which a
second run reads, table.md and pictures.jpg. With rapidocr-onnxruntime installed, it reads letters.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import scipy.ndimage
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from skimage import restoration

from sr3_jax import SuperResolver, image_ops
from sr3_jax.data import degrade, image_files, resampling
from sr3_jax.evaluation.report import grids, intervals
from sr3_jax.metrics import full_reference
from sr3_jax.metrics import samples as sample_metrics

RADIUS = 7  # of the kernels, in pixels; the widest Gaussian that is tried has 7 % left there
ITERATIONS = 10  # of mean field, as in the paper
SIDE, FACTOR = 128, 4
_LEAST_GAIN = 0.5  # dB over one sample that a setting must make, so that it does something
_FONT_SIZES = (18, 22, 26, 30)  # a letter x is half as high, and an eighth of that in the source
_WORDS = (
    "station harbour window yellow figure garden market bridge quick sample kernel letter museum"
)

Picture = Float[Array | np.ndarray, "h w c"]
Samples = Float[Array | np.ndarray, "k h w c"]
Measured = dict[str, np.ndarray]  # of each window, by the measure's name
Method = Callable[[Samples, int], Picture]  # makes a picture of samples, the i-th before others
Boxes = list[tuple[str, tuple[slice, slice]]]  # words, and where they are


@functools.partial(jax.jit, static_argnames=("radius", "iterations"))
def continuous(
    centre: Picture,
    variance: Picture,
    guide: Picture,
    *,
    weight: float,
    place: float,
    colour: float,
    robust: float = np.inf,
    radius: int = RADIUS,
    iterations: int = ITERATIONS,
) -> Float[Array, "h w c"]:
    """Form A: mean field of a CRF whose variables are colours.

    The energy is the sum over pixels of |x_i - centre_i|^2 / (2 variance_i), plus, over pairs,
    weight k_ij |x_i - x_j|^2 / (2 v), v the mean variance. With `robust` that square is replaced by
    Geman and McClure's u^2 / (1 + (u / robust)^2), which is reweighted in each iteration. Mean
    field is exact in the means of a Gaussian CRF.

    Args:
      centre: what the unary draws to, in [0, 1].
      variance: of the network's samples.
      guide: picture of which the kernel takes its colours.
      weight: of all neighbours together, to that of the unary.
      place: deviation of the kernel in pixels.
      colour: deviation of the kernel in colour, in [0, 1].
      robust: difference of colours from which on neighbours stop to draw; infinite for a square.
      radius: pixels that the kernel reaches.
      iterations: number of updates.
    """
    kernels = _kernels(guide, place, colour, radius) * weight / jnp.mean(variance)

    def update(_, x):
        def add(sums, neighbour):
            other, kernel = neighbour
            away = jnp.sum(jnp.square(x - other), -1, keepdims=True)
            pull = kernel / jnp.square(1.0 + away / jnp.square(robust))
            return sums[0] + pull * other, sums[1] + pull

        total, share = _sum(add, (jnp.zeros_like(x), jnp.zeros_like(x[..., :1])), x, kernels)
        return (centre / variance + total) / (1.0 / variance + share)

    return jax.lax.fori_loop(0, iterations, update, centre)


@functools.partial(jax.jit, static_argnames=("radius", "iterations"))
def labels(
    drawn: Samples,
    *,
    density: float,
    pair: float,
    potts: float,
    place: float,
    colour: float,
    radius: int = RADIUS,
    iterations: int = ITERATIONS,
) -> Float[Array, "h w c"]:
    """Form B: mean field of a CRF whose label of a pixel is the sample that it is taken from.

    Unary: density |s_a(i) - m(i)|^2 / (2 v), m the samples' mean and v their mean variance. Pairs:
    by place and colour pair k_ij |s_a(i) - s_b(j)|^2 / (2 v), and by place alone potts g_ij where
    a and b differ. Returned is the mean under the marginals; as weights rise it takes one sample
    at each pixel. The order of samples does not matter.

    Args:
      drawn: the samples, in [0, 1].
      density: weight of what most samples agree on.
      pair: weight of neighbours of like colour.
      potts: weight of taking neighbours from the same sample.
      place: deviation of both kernels in pixels.
      colour: deviation of the first kernel in colour of the samples' mean.
      radius: pixels that the kernels reach.
      iterations: number of updates.
    """
    mean = jnp.mean(drawn, 0)
    twice = 2.0 * jnp.mean(jnp.square(drawn - mean)) + 1e-6
    kernels = _kernels(mean, place, colour, radius)
    share = jnp.sum(kernels, 0)
    line = jnp.exp(-0.5 * jnp.square(jnp.arange(-radius, radius + 1) / place))
    line = line / line.sum()
    unary = density * jnp.sum(jnp.square(drawn - mean), -1) / twice

    def update(_, q):
        expected = jnp.einsum("khw,khwc->hwc", q, drawn)
        add = lambda sums, neighbour: sums + neighbour[1] * neighbour[0]  # noqa: E731
        total = _sum(add, jnp.zeros_like(expected), expected, kernels)
        # The sum over j and b of k_ij q_j(b) |s_a(i) - s_b(j)|^2, less what is the same for all a.
        apart = share * jnp.square(drawn) - 2.0 * drawn * total
        near = jax.scipy.signal.convolve(q, line[None, :, None], mode="same")
        near = jax.scipy.signal.convolve(near, line[None, None, :], mode="same")
        same = near - jnp.square(line[radius]) * q  # a pixel is no neighbour of its own
        return jax.nn.softmax(-unary - pair * jnp.sum(apart, -1) / twice + potts * same, axis=0)

    q = jax.lax.fori_loop(0, iterations, update, jax.nn.softmax(-unary, axis=0))
    return jnp.einsum("khw,khwc->hwc", q, drawn)


def _kernels(guide, place, colour, radius):
    """Returns the weights of the neighbours, [offset, h, w, 1]; 0 outside and of the pixel itself.

    The Gaussian of place sums to 1.
    """
    offsets = _offsets(radius)
    near = jnp.exp(-0.5 * jnp.sum(jnp.square(offsets), -1) / place**2)
    near = jnp.where(jnp.any(offsets != 0, -1), near / near.sum(), 0.0)

    def of(_, offset):
        other = _shifted(guide, offset[0], radius, jnp.inf)
        away = jnp.sum(jnp.square(guide - other), -1, keepdims=True)
        return None, offset[1] * jnp.exp(-0.5 * away / colour**2)

    return jax.lax.scan(of, None, (offsets, near))[1]


def _sum(add, sums, x, kernels):
    """Folds `add(sums, (neighbour's x, weight))` over all offsets."""
    radius = (int(len(kernels) ** 0.5) - 1) // 2
    of = lambda sums, at: (add(sums, (_shifted(x, at[0], radius, 0.0), at[1])), None)  # noqa: E731
    return jax.lax.scan(of, sums, (_offsets(radius), kernels))[0]


def _offsets(radius):
    at = jnp.arange(-radius, radius + 1)
    return jnp.stack(jnp.meshgrid(at, at, indexing="ij"), -1).reshape(-1, 2)


def _shifted(x, offset, radius, outside):
    padded = jnp.pad(x, ((radius,) * 2, (radius,) * 2, (0, 0)), constant_values=outside)
    return jax.lax.dynamic_slice(padded, (*(offset + radius), 0), x.shape)


def _form_a(drawn: Samples, first: int, *, around: str, **settings: float) -> Picture:
    mean = drawn.mean(0)
    # A variance below that of rounding to bytes would hold a pixel where chance put it.
    variance = drawn.var(0, ddof=min(1, len(drawn) - 1)) + 1 / 255**2
    return continuous(mean if around == "mean" else drawn[first], variance, mean, **settings)


def _form_b(drawn: Samples, first: int, **settings: float) -> Picture:
    return labels(drawn, **settings)


def _bilateral(drawn: Samples, first: int, *, around: str, **settings: float) -> Picture:
    picture = drawn.mean(0) if around == "mean" else drawn[first]
    return restoration.denoise_bilateral(picture, 2 * RADIUS + 1, channel_axis=-1, **settings)


_AROUND = {"around": ("mean", "sample")}
_OF_KERNEL = {"place": (0.7, 1.5, 3.0), "colour": (0.03, 0.1, 0.3)}
_OF_FILTER = {"sigma_color": (0.02, 0.05, 0.1, 0.2), "sigma_spatial": (0.7, 1.5, 3.0)}
_OF_A = {"weight": (0.03, 0.1, 0.3, 1.0, 3.0), "robust": (0.05, 1e3)}  # the second is quadratic
_OF_B = {
    "density": (0.0, 0.3, 1.0, 3.0, 10.0),
    "pair": (0.0, 0.3, 1.0, 3.0, 10.0),
    "potts": (0.0, 2.0, 10.0),
}
_TRIED = {
    "bilateral filter": (_bilateral, _AROUND | _OF_FILTER),
    "CRF A": (_form_a, _AROUND | _OF_A | _OF_KERNEL),
    "CRF B": (_form_b, _OF_B | _OF_KERNEL),
}
_CRITERIA = ("most PSNR", "over the blends")


def _blurred(picture: Picture, sigma: float) -> Picture:
    return scipy.ndimage.gaussian_filter(picture, (sigma, sigma, 0))


def _blends() -> Iterator[Method]:
    """Yields methods by rising gradient energy: the mean blurred, then more and more sample."""
    for sigma in (2.0, 1.5, 1.2, 1.0, 0.8, 0.65, 0.5, 0.4, 0.3):
        yield lambda drawn, _, s=sigma: _blurred(drawn.mean(0), s)
    for share in np.arange(0, 1.41, 0.1):
        yield lambda drawn, i, a=share: a * drawn[i] + (1 - a) * drawn.mean(0)


def _sharpened() -> Iterator[Method]:
    """Yields methods by rising gradient energy: the mean, sharpened more and more."""
    for share in np.arange(0, 4.1, 0.25):
        yield lambda drawn, _, b=share: (1 + b) * drawn.mean(0) - b * _blurred(drawn.mean(0), 1.0)


class Windows(NamedTuple):
    """Reference, source and K samples of n windows, and the words they show, if any."""

    high: UInt8[np.ndarray, "n h w 3"]
    low: UInt8[np.ndarray, "n h2 w2 3"]
    drawn: UInt8[np.ndarray, "n k h w 3"]
    boxes: list[Boxes] | None = None

    def made(self, method: Method, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns what a method makes of each window, before and after it is made consistent."""
        drawn = self.drawn.astype(np.float32) / 255
        made = np.stack([np.asarray(method(each, first), np.float32) for each in drawn])
        signed = np.asarray(image_ops.to_signed(self.low))
        after = resampling.make_consistent(2 * made.clip(0, 1) - 1, signed)
        return tuple(np.asarray(image_ops.to_uint8(each)) for each in (2 * made - 1, after))


def _measured(method: Method, of: Windows, reads: Any = None, outputs: int = 2) -> Measured:
    """Measures what a method makes of each window, the mean over its outputs.

    One output gives PSNR and gradient energy alone. Two are scored as samples, too (`energy`).
    """
    before, made = zip(*(of.made(method, i) for i in range(outputs)), strict=True)
    over = lambda measure, *given: np.mean([measure(each, *given) for each in made], 0)  # noqa: E731
    found = {
        "PSNR": over(full_reference.psnr, of.high),
        "gradient": over(full_reference.gradient_energy, of.high),
    }
    if outputs > 1:
        found["edges"] = over(_edge_psnr, of.high)
        found["energy"] = sample_metrics.energy_scores(np.stack(made), of.high)
        found["consistency"] = np.mean([full_reference.consistency(b, of.low) for b in before], 0)
    if outputs > 1 and of.boxes and reads:
        found["letters"] = over(_read, of.boxes, reads)
    return {name: np.asarray(values, np.float64) for name, values in found.items()}


def _edge_psnr(made: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """PSNR of the tenth of the pixels that have the reference's largest gradients."""
    grey = reference.mean(-1)
    steep = np.hypot(*(scipy.ndimage.sobel(grey, axis) for axis in (1, 2)))
    is_edge = steep >= np.quantile(steep, 0.9, axis=(1, 2), keepdims=True)
    error = np.square((made.astype(np.float64) - reference) / 255).mean(-1)
    return -10 * np.log10((error * is_edge).sum((1, 2)) / is_edge.sum((1, 2)))


def _read(made: np.ndarray, boxes: list[Boxes], reads: Any) -> list[float]:
    """Returns the share of each window's letters that OCR finds, in order."""
    shares = []
    for picture, of_picture in zip(made, boxes, strict=True):
        found = 0
        for word, box in of_picture:
            text, _ = reads(picture[box][..., ::-1], use_det=False, use_cls=False)
            text = text[0][0].strip().lower() if text else ""
            blocks = difflib.SequenceMatcher(None, text, word).get_matching_blocks()
            found += sum(block.size for block in blocks)
        shares.append(found / sum(len(word) for word, _ in of_picture))
    return shares


def _at_equal_gradient(line: list[Measured], found: Measured, name: str) -> np.ndarray:
    """Returns a measure of a line where each window has the gradient energy that is found."""
    along = np.maximum.accumulate([step["gradient"] for step in line])
    values = np.array([step[name] for step in line])
    return np.array(
        [np.interp(g, along[:, i], values[:, i]) for i, g in enumerate(found["gradient"])]
    )


def _photographs(folder: pathlib.Path, count: int, side: int) -> np.ndarray:
    """Cuts windows from the middle of evenly spaced pictures, [count, side, side, 3]."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".png", ".webp"))
    if len(paths) < count:
        raise SystemExit(f"error: {folder} has {len(paths)} pictures; give one of {count} or more")
    cut = []
    for index in np.linspace(0, len(paths) - 1, count).round().astype(int):
        picture = image_files.read_rgb(str(paths[index]))
        if min(picture.shape[:2]) < side:
            raise SystemExit(f"error: {paths[index]} is smaller than {side} pixels; leave it out")
        top, left = ((length - side) // 2 for length in picture.shape[:2])
        cut.append(picture[top : top + side, left : left + side])
    return np.stack(cut)


def _words(count: int, side: int) -> tuple[np.ndarray, list[Boxes]]:
    """Renders windows of words in DejaVu Sans, each of one size and two colours."""
    rng, windows, boxes = np.random.default_rng(0), [], []
    path = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    for number in range(count):
        font = ImageFont.truetype(str(path), _FONT_SIZES[number % len(_FONT_SIZES)])
        colours = [rng.integers(0, 80, 3).tolist(), rng.integers(176, 256, 3).tolist()]
        ink, paper = map(tuple, colours if rng.random() < 0.7 else colours[::-1])
        canvas, pitch, of_window = Image.new("RGB", (side, side), paper), int(1.5 * font.size), []
        for top in range(0, side - pitch + 1, pitch):
            wide = {word: int(font.getlength(word)) + 1 for word in [*_WORDS.split(), "it"]}
            word = str(rng.choice([each for each in wide if wide[each] < side - 10]))
            left = int(rng.integers(5, side - 4 - wide[word]))
            at = (left, top + pitch / 2)
            ImageDraw.Draw(canvas).text(at, word, ink, font, anchor="lm")
            box = (slice(top, top + pitch), slice(left - 5, left + wide[word] + 4))
            of_window.append((word, box))
        windows.append(np.asarray(canvas))
        boxes.append(of_window)
    return np.stack(windows), boxes


def _sampled(high: np.ndarray, path: pathlib.Path, network: str, num: int, steps: Any) -> Windows:
    """Returns windows with samples of a network, from `path` if a former run left them there."""
    small = degrade.resize_bicubic(high.astype(np.float32), high.shape[1] // FACTOR)
    low = degrade.to_levels(small, np.uint8)
    if not path.exists():
        draw = SuperResolver.pretrained(network).sample_many
        drawn = np.stack([draw(each, num, steps, seed) for seed, each in enumerate(low)])
        with path.with_suffix(".part").open("wb") as file:
            np.savez_compressed(file, drawn=drawn)
        path.with_suffix(".part").rename(path)
    drawn = np.load(path)["drawn"]
    if drawn.shape != (len(high), num, *high.shape[1:]):
        raise SystemExit(f"error: {path} has samples of another run; use another --workdir")
    return Windows(high, low, drawn)


def _tuned(of: Windows, most_tries: int) -> dict[str, dict[str, Any]]:
    """Chooses settings of each method, of which a random part is tried, by two criteria.

    `most PSNR` is what it says. `over the blends` is the most PSNR over the blend of the sample and
    the mean that has the same gradient energy, among settings that gain `_LEAST_GAIN` over one
    sample: to do nothing lies on the line.
    """
    line = [_measured(step, of, outputs=1) for step in _blends()]
    sample = _measured(lambda drawn, i: drawn[i], of, outputs=1)["PSNR"].mean()
    chosen = {}
    for name, (method, axes) in _TRIED.items():
        tried = [dict(zip(axes, each, strict=True)) for each in itertools.product(*axes.values())]
        rows = []
        for index in np.random.default_rng(0).permutation(len(tried))[:most_tries]:
            found = _measured(functools.partial(method, **tried[index]), of, outputs=1)
            over = found["PSNR"] - _at_equal_gradient(line, found, "PSNR")
            means = [float(each.mean()) for each in (found["PSNR"], over, found["gradient"])]
            rows.append((*means, tried[index]))
            print(name, *np.round(means, 3), tried[index], flush=True)
        able = [row for row in rows if row[0] >= sample + _LEAST_GAIN] or rows
        best = max(rows, key=lambda row: row[0]), max(able, key=lambda row: row[1])
        chosen |= {f"{name}, {c}": row[3] for c, row in zip(_CRITERIA, best, strict=True)}
    return chosen


def _table(title: str, methods: dict[str, Method], of: Windows, reads: Any) -> str:
    """Measures all methods; returns a Markdown table of means with 95 % intervals."""
    blends, sharpened = (
        [_measured(step, of, reads) for step in steps()] for steps in (_blends, _sharpened)
    )
    lines = []
    for name, method in methods.items():
        own = _measured(method, of, reads)
        cells = dict(own)
        for each in own.keys() - {"gradient", "consistency"}:
            cells[f"{each}, less blend"] = own[each] - _at_equal_gradient(blends, own, each)
        cells["PSNR, less sharpened"] = own["PSNR"] - _at_equal_gradient(sharpened, own, "PSNR")
        shown = {each: intervals.of_mean(cells[each].tolist()) for each in sorted(cells)}
        if not lines:
            lines = [f"{title}, {len(of.high)} windows\n", f"| method | {' | '.join(shown)} |"]
            lines.append("|---" * (len(shown) + 1) + "|")
        texts = (f"{each.mean:.3f} ({each.low:.3f} to {each.high:.3f})" for each in shown.values())
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _sheet(methods: dict[str, Method], sets: list[Windows], counts: list[int]) -> np.ndarray:
    """Draws the middle of evenly spaced windows of each set, enlarged three times, by all methods."""
    few = [
        of._replace(
            **{n: getattr(of, n)[:: len(of.high) // k][:k] for n in ("high", "low", "drawn")}
        )
        for of, k in zip(sets, counts, strict=True)
    ]
    columns = {"input": [of.low for of in few]}
    columns |= {name: [of.made(method, 0)[1] for of in few] for name, method in methods.items()}
    columns["reference"] = [of.high for of in few]
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    middle = lambda of, n: of[:, n // 4 : n - n // 4, n // 4 : n - n // 4]  # noqa: E731
    return grids.grid({name: middle(each, each.shape[1]) for name, each in whole.items()})


def main() -> None:
    """Samples, tunes, measures, and writes the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos_val", type=pathlib.Path, help="photographs to choose settings on")
    parser.add_argument("photos_test", type=pathlib.Path, help="photographs to report on")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="two windows of each, for tests")
    given = parser.parse_args()
    num_val, num_test, num_words, num_slow = (2, 2, 2, 2) if given.tiny else (16, 100, 40, 24)
    side, num, most_tries, steps = (64, 4, 2, 2) if given.tiny else (SIDE, 16, 96, 20)
    words, boxes = _words(num_words, side)
    test = _photographs(given.photos_test, num_test, side)
    slow = _photographs(given.photos_test, num_slow, side)
    val = _photographs(given.photos_val, num_val, side)
    given.workdir.mkdir(parents=True, exist_ok=True)
    of = {
        name: _sampled(high, given.workdir / f"{name}.npz", "photos_4x_quick", num, None)
        for name, high in {"val": val, "photographs": test, "words": words}.items()
    }
    of["words"] = of["words"]._replace(boxes=boxes)
    of["slow"] = _sampled(slow, given.workdir / "slow.npz", "photos_4x", num // 2, steps)
    try:
        from rapidocr_onnxruntime import RapidOCR

        reads = RapidOCR()
    except ImportError:
        reads = None
    kept = given.workdir / "settings.json"
    if not kept.exists():
        kept.write_text(json.dumps(_tuned(of["val"], most_tries), indent=1))
    methods: dict[str, Method] = {
        "one sample": lambda drawn, i: drawn[i],
        "mean of a half": lambda drawn, _: drawn[: len(drawn) // 2].mean(0),
        "mean": lambda drawn, _: drawn.mean(0),
    }
    for name, settings in json.loads(kept.read_text()).items():
        methods[name] = functools.partial(_TRIED[name.partition(",")[0]][0], **settings)
    tables = [_table(name, methods, of[name], reads) for name in ("photographs", "words", "slow")]
    (given.workdir / "table.md").write_text("\n\n".join(tables) + "\n")
    shown = {n: m for n, m in methods.items() if not n.startswith(("bilateral", "mean of"))}
    sheet = _sheet(shown, [of["photographs"], of["words"]], [min(4, num_test), 2])
    Image.fromarray(sheet).save(given.workdir / "pictures.jpg", quality=85)


if __name__ == "__main__":
    main()
