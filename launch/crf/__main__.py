"""A fully connected CRF over samples of SR3: the experiment of docs/crf.md.

    python -m launch.crf PHOTOS_VAL PHOTOS_TEST --workdir=runs/crf

Windows of 128x128 pixels from the middle of photographs are reduced four times by bicubic, and a
network draws samples of each. The two forms of launch/crf/forms.py make one picture of them, as do
simpler methods. Settings are chosen on PHOTOS_VAL; PHOTOS_TEST and rendered words give the figures.
Written to the workdir: samples and settings, which a second run reads, table.md and pictures.jpg.
Where rapidocr-onnxruntime is installed, it reads the words.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import scipy.ndimage
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from launch.crf import forms
from sr3_jax import SuperResolver
from sr3_jax.data import degrade, image_files, resampling
from sr3_jax.evaluation.report import grids, intervals
from sr3_jax.metrics import full_reference
from sr3_jax.metrics import samples as sample_metrics

SIDE, FACTOR = 128, 4
_LEAST_GAIN = 0.5  # dB over one sample that a setting must make, so that it does something
_FONT_SIZES = (18, 22, 26, 30)  # a letter x is half as high, and an eighth of that in the source
_WORDS = (
    "station harbour window yellow figure garden market bridge quick sample kernel letter museum"
)

Measured = dict[str, np.ndarray]  # of each window, by the measure's name
# Makes a picture of samples, the source, and the number of the sample that goes before others.
Method = Callable[[forms.Samples, forms.Picture, int], forms.Picture]
Boxes = list[tuple[str, tuple[slice, slice]]]  # words, and where they are


def _form_a(drawn: forms.Samples, around: forms.Picture, **settings: float) -> forms.Picture:
    # A variance below that of rounding to bytes would hold a pixel where chance put it.
    variance = drawn.var(0, ddof=min(1, len(drawn) - 1)) + 1 / 255**2
    return forms.continuous(around, variance, drawn.mean(0), **settings)


def _form_b(drawn: forms.Samples, around: forms.Picture, **settings: float) -> forms.Picture:
    return forms.labels(drawn, **settings)


def _bilateral(
    drawn: forms.Samples, around: forms.Picture, *, place: float, colour: float
) -> forms.Picture:
    """The bilateral filter, which is one update of form A with one weight for all pixels."""
    weight, even = 2 * np.pi * place**2, np.ones_like(around)  # the kernel's height at 0 becomes 1
    kernel = {"weight": weight, "place": place, "colour": colour}
    return forms.continuous(around, even, around, **kernel, iterations=1)


def _tuned_method(
    drawn: forms.Samples,
    low: forms.Picture,
    first: int,
    *,
    name: str,
    consistent: bool,
    around: str = "mean",
    **settings: float,
) -> forms.Picture:
    centre = drawn.mean(0) if around == "mean" else drawn[first]
    made = np.asarray(_TRIED[name][0](drawn, centre, **settings), np.float32)
    if not consistent:
        return made
    return resampling.make_consistent(made[None], low[None], clip=False)[0]


# Settings that are tried; also whether the result is moved to the nearest of which the downsampling
# is the source.
_CONSISTENT = {"consistent": (False, True)}
_AROUND = {"around": ("mean", "sample"), **_CONSISTENT}
_OF_KERNEL = {"place": (0.7, 1.5, 3.0), "colour": (0.03, 0.1, 0.3)}
_OF_A = {"weight": (0.3, 1.0, 3.0, 10.0, 30.0), "robust": (0.05, 1e3)}  # the second is quadratic
_WEIGHTS = (0.0, 0.3, 1.0, 3.0, 10.0)
_OF_B = {"density": _WEIGHTS, "pair": _WEIGHTS, "potts": (0.0, 2.0, 10.0)}
_TRIED = {
    "bilateral filter": (_bilateral, _AROUND | _OF_KERNEL),
    "CRF A": (_form_a, _AROUND | _OF_A | _OF_KERNEL),
    "CRF B": (_form_b, _CONSISTENT | _OF_B | _OF_KERNEL),
}
_pretrained = functools.cache(SuperResolver.pretrained)
_CRITERIA = ("most PSNR", "sharp")

# Two lines by rising gradient energy: the mean with more and more of the sample, and the mean
# sharpened more and more.
_BLENDS: list[Method] = [
    lambda d, _, i, a=a: a * d[i] + (1 - a) * d.mean(0) for a in np.arange(0, 1.41, 0.1)
]
_SHARPENED: list[Method] = [
    lambda d, _, i, b=b: (
        (1 + b) * d.mean(0) - b * scipy.ndimage.gaussian_filter(d.mean(0), 1, axes=(0, 1))
    )
    for b in np.arange(0, 4, 0.5)
]


class Windows(NamedTuple):
    """Reference, source and K samples of n windows, and the words they show, if any."""

    high: UInt8[np.ndarray, "n h w 3"]
    low: UInt8[np.ndarray, "n h2 w2 3"]
    drawn: UInt8[np.ndarray, "n k h w 3"]
    boxes: list[Boxes] | None = None

    def some(self, count: int) -> Windows:
        """Returns evenly spaced windows."""
        step = max(1, (len(self.high) - 1) // (count - 1))
        return Windows(*(each[::step][:count] for each in self[:3]))

    def made(self, method: Method, first: int) -> UInt8[np.ndarray, "n h w 3"]:
        """Returns what a method makes of each window."""
        drawn, low = (each.astype(np.float32) / 255 for each in (self.drawn, self.low))
        made = [np.asarray(method(*each, first)) for each in zip(drawn, low, strict=True)]
        return np.rint(np.clip(np.stack(made) * 255, 0, 255)).astype(np.uint8)


def _measured(method: Method, of: Windows, reads: Any = None, outputs: int = 2) -> Measured:
    """Measures what a method makes of each window, the mean over its outputs.

    One output gives PSNR and gradient energy alone. Two are scored as samples, too (`energy`).
    """
    if getattr(method, "keywords", {"around": ""}).get("around", "mean") == "mean":
        made = [of.made(method, 0)] * outputs  # all outputs are the same
    else:
        made = [of.made(method, i) for i in range(outputs)]
    over = lambda measure, *given: np.mean([measure(each, *given) for each in made], 0)  # noqa: E731
    found = {"PSNR": over(full_reference.psnr, of.high)}
    found["gradient"] = over(full_reference.gradient_energy, of.high)
    if outputs > 1:
        found["edges"] = over(_edge_psnr, of.high)
        found["energy"] = sample_metrics.energy_scores(np.stack(made), of.high)
        found["consistency"] = over(full_reference.consistency, of.low)
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

    def found(picture: np.ndarray, word: str) -> int:
        text, _ = reads(picture[..., ::-1], use_det=False, use_cls=False)
        text = text[0][0].strip().lower() if text else ""
        blocks = difflib.SequenceMatcher(None, text, word).get_matching_blocks()
        return sum(block.size for block in blocks)

    of_each = [
        [(found(p[box], w), len(w)) for w, box in of] for p, of in zip(made, boxes, strict=True)
    ]
    return [np.divide(*np.sum(of, 0)) for of in of_each]


def _at_equal_gradient(line: list[Measured], found: Measured, name: str) -> np.ndarray:
    """Returns a measure of a line where each window has the gradient energy that is found."""
    along = np.maximum.accumulate([step["gradient"] for step in line]).T
    values = np.array([step[name] for step in line]).T
    return np.array([*map(np.interp, found["gradient"], along, values)])


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
        draw = _pretrained(network).sample_many
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

    `most PSNR` is what it says. `sharp` is the most PSNR over the blend of the sample and the mean
    that has the same gradient energy, among settings that have at least half of what a sample has
    over the mean, and gain `_LEAST_GAIN` over one sample: to do nothing lies on the line.
    """
    line = [_measured(step, of, outputs=1) for step in _BLENDS]
    sample, mean = (
        _measured(method, of, outputs=1)
        for method in (lambda d, _, i: d[i], lambda d, *_: d.mean(0))
    )
    least = sample["PSNR"].mean() + _LEAST_GAIN
    sharp = (sample["gradient"].mean() + mean["gradient"].mean()) / 2
    chosen = {}
    for name, (_, axes) in _TRIED.items():
        tried = [dict(zip(axes, each, strict=True)) for each in itertools.product(*axes.values())]
        rows = []
        for index in np.random.default_rng(0).permutation(len(tried))[:most_tries]:
            found = _measured(
                functools.partial(_tuned_method, name=name, **tried[index]), of, outputs=1
            )
            over = found["PSNR"] - _at_equal_gradient(line, found, "PSNR")
            means = [float(each.mean()) for each in (found["PSNR"], over, found["gradient"])]
            rows.append((*means, tried[index]))
            print(name, *np.round(means, 3), tried[index], flush=True)
        able = [row for row in rows if row[0] >= least and row[2] >= sharp] or rows
        best = max(rows, key=lambda row: row[0]), max(able, key=lambda row: row[1])
        chosen |= {
            f"{name}, {c}": {"name": name, **row[3]} for c, row in zip(_CRITERIA, best, strict=True)
        }
    return chosen


def _table(title: str, methods: dict[str, Method], of: Windows, reads: Any) -> str:
    """Measures all methods; returns a Markdown table of means with 95 % intervals."""
    blends = [_measured(method, of, reads) for method in _BLENDS]
    sharpened = [_measured(method, of, outputs=1) for method in _SHARPENED]
    lines = []
    for name, method in methods.items():
        own = _measured(method, of, reads)
        cells = dict(own)
        for each in (name for name in own if name != "gradient"):
            cells[f"{each}, less blend"] = own[each] - _at_equal_gradient(blends, own, each)
        cells["PSNR, less mean"] = own["PSNR"] - blends[0]["PSNR"]
        cells["PSNR, less sharpened"] = own["PSNR"] - _at_equal_gradient(sharpened, own, "PSNR")
        shown = {each: intervals.of_mean(cells[each].tolist()) for each in cells}
        if not lines:
            lines = [f"{title}, {len(of.high)} windows\n", f"| method | {' | '.join(shown)} |"]
            lines.append("|---" * (len(shown) + 1) + "|")
        texts = (f"{each.mean:.3f} ({each.low:.3f} to {each.high:.3f})" for each in shown.values())
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _sheet(methods: dict[str, Method], sets: list[Windows]) -> np.ndarray:
    """Draws the middle of the first windows, enlarged three times, as all methods make them."""
    columns = {"input": [of.low for of in sets]}
    columns |= {name: [of.made(method, 0) for of in sets] for name, method in methods.items()}
    columns["reference"] = [of.high for of in sets]
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
    counts = {"val": 16, "photographs": 100, "words": 40, "slow": 16}
    side, num, most_tries, steps = SIDE, 16, 36, 20
    if given.tiny:
        counts, side, num, most_tries, steps = dict.fromkeys(counts, 2), 64, 4, 2, 2
    words, boxes = _words(counts["words"], side)
    high = {
        name: _photographs(given.photos_val if name == "val" else given.photos_test, count, side)
        for name, count in counts.items()
    } | {"words": words}
    given.workdir.mkdir(parents=True, exist_ok=True)
    quick, slow = ("photos_4x_quick", num, None), ("photos_4x", num // 2, steps)
    of = {"val": _sampled(high.pop("val"), given.workdir / "val.npz", *quick)}
    try:
        from rapidocr_onnxruntime import RapidOCR

        reads = RapidOCR()
    except ImportError:
        reads = None
    kept = given.workdir / "settings.json"
    if not kept.exists():
        kept.write_text(json.dumps(_tuned(of["val"], most_tries), indent=1))
    methods: dict[str, Method] = {
        "one sample": lambda drawn, _, i: drawn[i],
        "mean of a half": lambda drawn, *_: drawn[: len(drawn) // 2].mean(0),
        "mean": lambda drawn, *_: drawn.mean(0),
    }
    for name, settings in json.loads(kept.read_text()).items():
        methods[name] = functools.partial(_tuned_method, **settings)
    table = ""
    for name, pictures in high.items():
        network = slow if name == "slow" else quick
        of[name] = _sampled(pictures, given.workdir / f"{name}.npz", *network)
        if name == "words":
            of[name] = of[name]._replace(boxes=boxes)
        table += _table(f"{name}, {network[0]}", methods, of[name], reads) + "\n\n"
        print(table, flush=True)
    (given.workdir / "table.md").write_text(table)
    left_out = ("mean of a half", "bilateral filter, sharp", "CRF B, sharp")
    shown = {name: method for name, method in methods.items() if name not in left_out}
    sheet = _sheet(shown, [of["photographs"].some(4), of["words"].some(2)])
    Image.fromarray(sheet).save(given.workdir / "pictures.jpg", quality=66, optimize=True)


if __name__ == "__main__":
    main()
