"""A fully connected CRF over samples of SR3: the experiment of docs/limits.md.

    python -m launch.crf PHOTOS_VAL PHOTOS_TEST --workdir=runs/crf

Windows of 128x128 pixels from the middle of photographs are reduced four times by bicubic, and a
network draws samples of each. Two forms of the CRF of Krähenbühl and Koltun (2011) make one picture
of them. Their kernels are Gaussians of place and colour, summed exactly over a square window
(`RADIUS` pixels to each side) in place of the whole picture. Settings are chosen on PHOTOS_VAL;
PHOTOS_TEST and rendered words give the figures. Written to the workdir: the samples (a second run
reads them), settings.json, table.md and pictures.jpg.
"""

from __future__ import annotations

import argparse
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

from sr3_jax import SuperResolver
from sr3_jax.data import degrade, image_files
from sr3_jax.evaluation.report import grids, intervals
from sr3_jax.metrics import full_reference
from sr3_jax.metrics import samples as sample_metrics

RADIUS = 7  # of the kernels, in pixels; the widest Gaussian that is tried has 7 % left there
ITERATIONS = 10  # of mean field, as in the paper
SIDE, FACTOR = 128, 4
_LEAST_GAIN = 0.5  # dB over one sample that a setting must make, so that it does something
_FONT_SIZES = (14, 18, 24, 32)  # a letter x is half as high, and an eighth of that in the source
_WORDS = (
    *("station", "harbour", "window", "yellow", "figure", "garden", "market", "bridge", "quick"),
    *("sample", "kernel", "letter", "museum", "travel", "winter", "orange", "paper", "north"),
)

Picture = Float[Array | np.ndarray, "h w c"]
Samples = Float[np.ndarray, "k h w c"]
Measured = dict[str, np.ndarray]  # of each picture, by the measure's name
Method = Callable[[Samples, int], Picture]  # makes a picture of samples, the i-th before others


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
    drawn: Float[Array | np.ndarray, "k h w c"],
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
    at = jnp.arange(-radius, radius + 1)
    line = jnp.exp(-0.5 * jnp.square(at / place))
    line = line / line.sum()
    unary = density * jnp.sum(jnp.square(drawn - mean), -1) / twice

    def update(_, q):
        expected = jnp.einsum("khw,khwc->hwc", q, drawn)
        add = lambda sums, neighbour: sums + neighbour[1] * neighbour[0]  # noqa: E731
        total = _sum(add, jnp.zeros_like(expected), expected, kernels)
        # The sum over j and b of k_ij q_j(b) |s_a(i) - s_b(j)|^2, less what is the same for all a.
        apart = share * jnp.square(drawn) - 2.0 * drawn * total
        same = jax.vmap(lambda p: _smooth(p, line))(q) - jnp.square(line[radius]) * q
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


def _smooth(plane, line):
    rows = jax.vmap(lambda row: jnp.convolve(row, line, mode="same"))(plane)
    return jax.vmap(lambda row: jnp.convolve(row, line, mode="same"))(rows.T).T


def _mean(drawn: Samples, first: int) -> Picture:
    return drawn.mean(0)


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


def _grid(**axes: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(axes, each, strict=True)) for each in itertools.product(*axes.values())]


_AROUND = {"around": ("mean", "sample")}
_OF_KERNEL = {"place": (0.7, 1.5, 3.0), "colour": (0.03, 0.1, 0.3)}
_OF_FILTER = {"sigma_color": (0.02, 0.05, 0.1, 0.2), "sigma_spatial": (0.7, 1.5, 3.0)}
_OF_A = {"weight": (0.1, 0.3, 1.0, 3.0), "robust": (0.05, 1e3)}  # the second is quadratic
_OF_B = {"density": (0.0, 0.3, 1.0, 3.0), "pair": (0.3, 1.0, 3.0, 10.0), "potts": (0.0, 2.0, 10.0)}
_TRIED = {
    "bilateral filter": (_bilateral, _grid(**_AROUND, **_OF_FILTER)),
    "CRF A": (_form_a, _grid(**_AROUND, **_OF_A, **_OF_KERNEL)),
    "CRF B": (_form_b, _grid(**_OF_B, **_OF_KERNEL)),
}


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


def _blurred(picture: Picture, sigma: float) -> Picture:
    return scipy.ndimage.gaussian_filter(picture, (sigma, sigma, 0))


def _edge_psnr(made: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """PSNR of the tenth of the pixels that have the reference's largest gradients."""
    grey = reference.mean(-1)
    steep = np.hypot(*(scipy.ndimage.sobel(grey, axis) for axis in (1, 2)))
    is_edge = steep >= np.quantile(steep, 0.9, axis=(1, 2), keepdims=True)
    error = np.square((made.astype(np.float64) - reference) / 255).mean(-1)
    return -10 * np.log10((error * is_edge).sum((1, 2)) / is_edge.sum((1, 2)))


class Windows(NamedTuple):
    """Reference, source and K samples of n windows, and the lines of text they show, if any."""

    high: UInt8[np.ndarray, "n h w 3"]
    low: UInt8[np.ndarray, "n h2 w2 3"]
    drawn: UInt8[np.ndarray, "n k h w 3"]
    lines: list[list[tuple[int, int, str]]] | None = None  # of each: first row, last row, text


def _measured(method: Method, of: Windows, reads: Any = None, outputs: int = 2) -> Measured:
    """Measures what a method makes of each window, the mean over its outputs.

    One output gives PSNR and gradient energy alone; two give `energy`, too, as if they were samples.
    """
    drawn = of.drawn.astype(np.float32) / 255
    made = np.stack([[np.asarray(method(w, i)) for w in drawn] for i in range(outputs)])
    made = np.rint(np.clip(made * 255, 0, 255)).astype(np.uint8)
    over = lambda measure, *given: np.mean([measure(each, *given) for each in made], 0)  # noqa: E731
    found = {
        "PSNR": over(full_reference.psnr, of.high),
        "gradient": over(full_reference.gradient_energy, of.high),
    }
    if outputs > 1:
        found["edges"] = over(_edge_psnr, of.high)
        found["consistency"] = over(full_reference.consistency, of.low)
        found["energy"] = sample_metrics.energy_scores(made, of.high)
    if outputs > 1 and of.lines and reads:
        found["letters"] = over(lambda each: _misread(each, of.lines, reads))
    return {name: np.asarray(values, np.float64) for name, values in found.items()}


def _misread(made: np.ndarray, lines: list[list[tuple[int, int, str]]], reads: Any) -> np.ndarray:
    """Returns the share of characters that OCR gets wrong in each window (edit distance)."""
    wrong = []
    for picture, of_picture in zip(made, lines, strict=True):
        edits = 0
        for first, last, text in of_picture:
            found, _ = reads(picture[first:last, :, ::-1], use_det=False, use_cls=False)
            edits += min(_distance(found[0][0] if found else "", text), len(text))
        wrong.append(edits / sum(len(text) for *_, text in of_picture))
    return np.array(wrong)


def _distance(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


def _at_equal_gradient(line: list[Measured], found: Measured) -> Measured:
    """Returns the measures of a line where each window has the gradient energy that is found."""
    along = np.maximum.accumulate([step["gradient"] for step in line])

    def of(i: int, name: str) -> float:
        return np.interp(found["gradient"][i], along[:, i], [step[name][i] for step in line])

    return {
        name: np.array([of(i, name) for i in range(len(values))]) for name, values in found.items()
    }


def _photographs(folder: pathlib.Path, count: int, side: int) -> np.ndarray:
    """Cuts windows from the middle of evenly spaced pictures, [count, side, side, 3]."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".png", ".webp"))
    if len(paths) < count:
        raise SystemExit(f"error: {folder} has {len(paths)} pictures; it must have {count} or more")
    cut = []
    for index in np.linspace(0, len(paths) - 1, count).round().astype(int):
        picture = image_files.read_rgb(str(paths[index]))
        top, left = ((length - side) // 2 for length in picture.shape[:2])
        if min(top, left) < 0:
            raise SystemExit(f"error: {paths[index]} is smaller than {side} pixels")
        cut.append(picture[top : top + side, left : left + side])
    return np.stack(cut)


def _words(count: int, side: int) -> tuple[np.ndarray, list[list[tuple[int, int, str]]]]:
    """Renders windows of words in DejaVu Sans, each of one size and two colours."""
    rng = np.random.default_rng(0)
    windows, lines = [], []
    path = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    for number in range(count):
        size = _FONT_SIZES[number % len(_FONT_SIZES)]
        font, pitch = ImageFont.truetype(str(path), size), round(1.5 * size)
        dark, light = rng.integers(0, 80, 3), rng.integers(176, 256, 3)
        paper, ink = (light, dark) if rng.random() < 0.7 else (dark, light)
        canvas = Image.new("RGB", (side, side), tuple(paper.tolist()))
        draw, of_window = ImageDraw.Draw(canvas), []
        for top in range(0, side - pitch + 1, pitch):
            fitting = [w for w in _WORDS if font.getlength(w) < side - 8] or ["it"]
            text = str(rng.choice(fitting))
            left = int(rng.integers(3, side - 4 - font.getlength(text)))
            draw.text((left, top + pitch / 2), text, tuple(ink.tolist()), font, anchor="lm")
            of_window.append((top, top + pitch, text))
        windows.append(np.asarray(canvas))
        lines.append(of_window)
    return np.stack(windows), lines


def _sampled(
    high: np.ndarray, path: pathlib.Path, name: str, num: int, steps: int | None
) -> Windows:
    """Returns windows with samples of a network, from `path` if a former run left them there."""
    low = degrade.to_levels(
        degrade.resize_bicubic(high.astype(np.float32), high.shape[1] // FACTOR), np.uint8
    )
    if path.exists():
        kept = np.load(path)["drawn"]
        if kept.shape != (len(high), num, *high.shape[1:]):
            raise SystemExit(f"error: {path} has samples of another run; use another --workdir")
        return Windows(high, low, kept)
    resolver = SuperResolver.pretrained(name)
    drawn = np.stack(
        [resolver.sample_many(each, num, steps, seed) for seed, each in enumerate(low)]
    )
    with path.with_suffix(".part").open("wb") as file:
        np.savez_compressed(file, drawn=drawn)
    path.with_suffix(".part").rename(path)
    return Windows(high, low, drawn)


def _tuned(of: Windows, most_tries: int) -> dict[str, dict[str, Any]]:
    """Chooses settings of each method by two criteria.

    `most PSNR` is what it says. `over the blends` is the most PSNR over the blend of the sample and
    the mean that has the same gradient energy, among settings that gain `_LEAST_GAIN` over one
    sample: to do nothing lies on the line.
    """
    line = [_measured(step, of, outputs=1) for step in _blends()]
    sample = _measured(lambda drawn, i: drawn[i], of, outputs=1)["PSNR"].mean()
    chosen = {}
    for name, (method, tried) in _TRIED.items():
        some = np.random.default_rng(0).permutation(len(tried))[:most_tries]
        rows = []
        for settings in (tried[i] for i in some):
            found = _measured(functools.partial(method, **settings), of, outputs=1)
            over = found["PSNR"] - _at_equal_gradient(line, found)["PSNR"]
            means = found["PSNR"].mean(), over.mean(), found["gradient"].mean()
            rows.append((*map(float, means), settings))
            print(name, *(f"{mean:.3f}" for mean in rows[-1][:3]), settings, flush=True)
        able = [row for row in rows if row[0] >= sample + _LEAST_GAIN] or rows
        best = {"most PSNR": max(rows, key=lambda r: r[0])}
        best["over the blends"] = max(able, key=lambda r: r[1])
        chosen |= {f"{name}, {criterion}": row[3] for criterion, row in best.items()}
    return chosen


def _methods(settings: dict[str, dict[str, Any]], num: int) -> dict[str, Method]:
    methods: dict[str, Method] = {
        "one sample": lambda drawn, i: drawn[i],
        f"mean of {num // 2}": lambda drawn, _: drawn[: num // 2].mean(0),
        f"mean of {num}": lambda drawn, _: drawn.mean(0),
    }
    for name, chosen in settings.items():
        method, _ = _TRIED[name.partition(",")[0]]
        methods[name] = functools.partial(method, **chosen)
    return methods


def _table(title: str, methods: dict[str, Method], of: Windows, reads: Any) -> str:
    """Measures all methods; returns a Markdown table, with 95 % intervals of the means."""
    blends, sharpened = (
        [_measured(step, of, reads) for step in steps()] for steps in (_blends, _sharpened)
    )
    found = {name: _measured(method, of, reads) for name, method in methods.items()}
    names = list(next(iter(found.values())))
    columns = [*names, *(f"{name} - blend" for name in names if name != "gradient")]
    columns.append("PSNR - sharpened mean")
    lines = [f"{title}, {len(of.high)} windows", "", f"| method | {' | '.join(columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for method, own in found.items():
        blend = _at_equal_gradient(blends, own)
        cells = [own[name] for name in names]
        cells += [own[name] - blend[name] for name in names if name != "gradient"]
        cells.append(own["PSNR"] - _at_equal_gradient(sharpened, own)["PSNR"])
        shown = (intervals.of_mean(cell.tolist()) for cell in cells)
        texts = (f"{each.mean:.3f} ({each.low:.3f} to {each.high:.3f})" for each in shown)
        lines.append(f"| {method} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _sheet(methods: dict[str, Method], sets: list[Windows], rows: list[list[int]]) -> np.ndarray:
    """Draws the middle of some windows of each set, enlarged three times, by all methods."""
    high, low, drawn = (
        np.concatenate([getattr(of, name)[i] for of, i in zip(sets, rows, strict=True)])
        for name in ("high", "low", "drawn")
    )
    middle = lambda images, side: images[:, side // 4 : -side // 4, side // 4 : -side // 4]  # noqa: E731
    side = high.shape[1]
    columns = {"input": middle(low, side // FACTOR)}
    for name, method in methods.items():
        made = [np.asarray(method(each.astype(np.float32) / 255, 0)) for each in drawn]
        levels = np.rint(np.clip(np.stack(made) * 255, 0, 255)).astype(np.uint8)
        columns[name] = middle(levels, side)
    return grids.grid(columns | {"reference": middle(high, side)})


def main() -> None:
    """Samples, tunes, measures, and writes the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos_val", type=pathlib.Path, help="photographs to choose settings on")
    parser.add_argument("photos_test", type=pathlib.Path, help="photographs to report on")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="two windows of each, for tests")
    given = parser.parse_args()
    num_val, num_test, num_words, num_slow = (2, 2, 2, 2) if given.tiny else (16, 100, 40, 24)
    side, num, most_tries = (64, 4, 2) if given.tiny else (SIDE, 16, 80)
    given.workdir.mkdir(parents=True, exist_ok=True)
    pictures = {
        "val": _photographs(given.photos_val, num_val, side),
        "test": _photographs(given.photos_test, num_test, side),
        "slow": _photographs(given.photos_test, num_slow, side),
    }
    pictures["words"], lines = _words(num_words, side)
    quick = ("photos_4x_quick", num, None)
    of = {
        name: _sampled(pictures[name], given.workdir / f"{name}.npz", *network)
        for name, network in {
            **{name: quick for name in ("val", "test", "words")},
            "slow": ("photos_4x", num // 2, 2 if given.tiny else 20),
        }.items()
    }
    of["words"] = of["words"]._replace(lines=lines)
    try:
        from rapidocr_onnxruntime import RapidOCR  # optional: the column of letters

        reads = RapidOCR()
    except ImportError:
        reads = None
    kept = given.workdir / "settings.json"
    if not kept.exists():
        kept.write_text(json.dumps(_tuned(of["val"], most_tries), indent=1))
    settings = json.loads(kept.read_text())
    titles = {
        "test": f"photos_4x_quick, {num} samples, photographs",
        "words": f"photos_4x_quick, {num} samples, words",
        "slow": f"photos_4x, {num // 2} samples, photographs",
    }
    tables = []
    for name, title in titles.items():
        methods = _methods(settings, num if name != "slow" else num // 2)
        tables.append(_table(title, methods, of[name], reads))
        print(tables[-1], flush=True)
    (given.workdir / "table.md").write_text("\n\n".join(tables) + "\n")
    methods = _methods(settings, num)
    shown = {
        label: methods[name]
        for label, name in {
            "one sample": "one sample",
            f"mean of {num}": f"mean of {num}",
            "A, most PSNR": "CRF A, most PSNR",
            "A, over blends": "CRF A, over the blends",
            "B, most PSNR": "CRF B, most PSNR",
            "B, over blends": "CRF B, over the blends",
        }.items()
    }
    rows = [
        np.linspace(0, n - 1, k).round().astype(int) for n, k in ((num_test, 4), (num_words, 2))
    ]
    sheet = _sheet(shown, [of["test"], of["words"]], rows)
    Image.fromarray(sheet).save(given.workdir / "pictures.jpg", quality=85)


if __name__ == "__main__":
    main()
