"""Tables and pictures of a comparison, from the files that it left."""

from __future__ import annotations

import io
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from scipy import stats

from launch.comparison import upscale
from sr3_jax.evaluation.report import grids, intervals
from sr3_jax.metrics import registry, samples

Methods = Mapping[str, Sequence[pathlib.Path]]  # folders of the samples of each program

_SCORES = ("psnr", "ssim", "consistency", "gradient_energy")
_SHARES = ("improvement", "omission", "hallucination")
_NUM_RESAMPLED = 500
_NUM_PICTURES, _CROP = 6, 48
_MOST_BYTES = 400_000


def scored_as(name: str) -> str:
    """Returns a program's name in --mode=score, which makes a row `bicubic` itself."""
    return "bicubic_files" if name == "bicubic" else name


def write(folder: pathlib.Path, methods: Methods) -> None:
    """Writes tables.md, and of photographs pictures.jpg, into the folder of a set."""
    about = {name: json.loads((folder / f"made/{name}.json").read_bytes()) for name in methods}
    rows = {name: _title(name) for name in methods}
    if folder.name.startswith("classes"):
        columns = _of_classes(folder, ["reference", *methods])
        text = _table({"reference": "the reference itself", **rows}, columns)
    else:
        scores = json.loads((folder / "score" / "images.json").read_bytes())["scores"]
        shares = _table(rows, _of_scores(scores, methods, _SHARES))
        text = f"{_table(rows, _of_photographs(folder, methods, scores))}\nDetail:\n\n{shares}"
        draw(folder, methods)
    count = len([*(folder / "input").glob("*.png")])
    text = f"{count} pictures; means with 95 % intervals.\n\n{text}\n{_programs(folder, about)}"
    (folder / "tables.md").write_text(text)
    print(f"{text}\nwritten: {folder / 'tables.md'}")


def _title(name: str) -> str:
    """Returns what a program is called; a network of ours is what the command calls it."""
    return upscale.PROGRAMS[name].title if name in upscale.PROGRAMS else name


def _of_scores(
    scores: Mapping[str, Mapping[str, Sequence[float]]], methods: Methods, names: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Returns columns of some metrics of --mode=score."""
    columns = {}
    for metric in map(registry.find, names):
        values = {name: scores[scored_as(name)][metric.name] for name in methods}
        columns[f"{metric.heading} {metric.arrow}"] = _means(values, metric.write)
    return columns


def _of_photographs(
    folder: pathlib.Path,
    methods: Methods,
    scores: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[str, dict[str, str]]:
    columns = _of_scores(scores, methods, _SCORES)
    energy = {name: _energy_scores(folder, made) for name, made in methods.items()}
    columns["energy score ↓"] = _means(energy, "{:.3f}".format)
    if found := _features(folder, methods):
        distances = {name: each["distance"] for name, each in found.items()}
        columns["perceptual distance ↓"] = _means(distances, "{:.4f}".format)
        columns["Fréchet distance ↓"] = {
            name: _of_distribution(each, found["reference"])
            for name, each in found.items()
            if name != "reference"
        }
    return columns


def _of_classes(folder: pathlib.Path, names: Sequence[str]) -> dict[str, dict[str, str]]:
    ranks = {name: each["rank"] for name, each in _features(folder, names).items()}
    return {
        f"top-{most} ↑": {name: _share(rank < most) for name, rank in ranks.items()}
        for most in (1, 5)
    }


def _share(are_right: np.ndarray) -> str:
    """Returns a share with Wilson's interval, which stays within 0 and 1."""
    found = stats.binomtest(int(are_right.sum()), len(are_right))
    low, high = found.proportion_ci(method="wilson")
    return f"{found.statistic:.3f} ({low:.3f} to {high:.3f})"


def _features(folder: pathlib.Path, names: Sequence[str]) -> dict[str, Mapping[str, np.ndarray]]:
    """Returns what launch.comparison.features left, of the reference, too; empty without."""
    paths = {name: folder / "features" / f"{name}.npz" for name in ("reference", *names)}
    if not all(path.exists() for path in paths.values()):
        return {}
    return {name: dict(np.load(path)) for name, path in paths.items()}


def _means(values: Mapping[str, Sequence[float]], write_: Callable[[float], str]) -> dict[str, str]:
    """Returns the mean of each program with its interval."""
    cells = {}
    for name, numbers in values.items():
        mean, low, high = intervals.of_mean(numbers)[:3]
        cells[name] = f"{write_(mean)} ({write_(low)} to {write_(high)})"
    return cells


def _energy_scores(folder: pathlib.Path, made: Sequence[pathlib.Path]) -> list[float]:
    """Returns the energy score of each picture; of a program that does not draw, its one answer's.

    They are kept beside the pictures until these change.
    """
    kept = made[0].with_name(f"{made[0].name}.energy.json")
    paths = sorted((folder / "reference").glob("*.png"))
    state = [(each / path.name).stat().st_mtime for each in made for path in paths]
    if kept.exists() and (found := json.loads(kept.read_bytes()))["state"] == state:
        return found["scores"]
    scores = []
    for path in paths:
        drawn = [upscale.read(each / path.name)[None] for each in made]
        drawn = drawn * 2 if len(drawn) == 1 else drawn
        scores.append(samples.mean_energy_score(np.stack(drawn), upscale.read(path)[None]))
    kept.write_text(json.dumps({"state": state, "scores": scores}))
    return scores


def _of_distribution(made: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray]) -> str:
    """Returns the Frechet distance with a percentile bootstrap over pictures.

    A picture is drawn with its reference, so that a program that returns references has 0 always.
    """
    count = len(made["mean"])
    draws = np.random.default_rng(0).integers(count, size=(_NUM_RESAMPLED, count))
    distance = lambda rows: frechet_distance(  # noqa: E731
        *_moments(made, rows), *_moments(real, rows)
    )
    low, high = np.quantile([distance(rows) for rows in draws], [0.025, 0.975])
    return f"{distance(np.arange(count)):.1f} ({low:.1f} to {high:.1f})"


def _moments(features: Mapping[str, np.ndarray], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and covariance over the positions of pictures, which count alike."""
    weights = np.bincount(rows, minlength=len(features["mean"])) / len(rows)
    mean = weights @ features["mean"]
    return mean, np.tensordot(weights, features["second"], 1) - np.outer(mean, mean)


def frechet_distance(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray
) -> float:
    """Returns the squared 2-Wasserstein distance between two normal distributions."""
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    products = np.maximum(np.linalg.eigvalsh(root @ other_covariance @ root), 0)
    traces = np.trace(covariance) + np.trace(other_covariance)
    return float(np.square(mean - other_mean).sum() + traces - 2 * np.sqrt(products).sum())


def _table(rows: Mapping[str, str], columns: Mapping[str, Mapping[str, str]]) -> str:
    """Returns a table of Markdown, of titles of rows and cells by column and row."""
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, title in rows.items():
        lines.append(f"| {title} | " + " | ".join(cells[name] for cells in columns.values()) + " |")
    return "\n".join(lines) + "\n"


def _programs(folder: pathlib.Path, about: Mapping[str, Mapping[str, str]]) -> str:
    """Returns a table of what the programs are, and how long they take."""
    known = upscale.PROGRAMS
    columns = {"version": {}, "made on": {}, "seconds per picture, median": {}, "licence": {}}
    for name, facts in about.items():
        paths = (folder / "made" / name).glob("*.png")
        seconds = np.median([upscale.comment(path)["seconds"] for path in paths])
        cores = "1 core" if facts["threads"] == 1 else f"{facts['threads']} cores"
        columns["version"][name] = facts["version"]
        columns["made on"][name] = facts["date"]
        columns["seconds per picture, median"][name] = f"{seconds:.2g} ({cores})"
        columns["licence"][name] = known[name].licence if name in known else "this project's"
    titles = {name: _title(name) for name in about}
    processors = " and ".join(sorted({facts["processor"] for facts in about.values()}))
    return f"{_table(titles, columns)}\nProcessor: {processors}.\n"


def draw(folder: pathlib.Path, methods: Methods) -> None:
    """Draws windows of six pictures at 400 % as made by each program, into pictures.jpg.

    Pictures are evenly spaced through the set, and each window is where the reference has the most
    gradient energy; so nobody chose them.
    """
    paths = sorted((folder / "reference").glob("*.png"))
    rows = np.linspace(0, len(paths) - 1, min(_NUM_PICTURES, len(paths))).round().astype(int)
    names = [paths[i].name for i in rows]
    windows = [_liveliest(upscale.read(folder / "reference" / name)) for name in names]
    of = {_title(name): made[0] for name, made in methods.items()}
    columns = {
        title: np.stack([upscale.read(made / n)[w] for n, w in zip(names, windows, strict=True)])
        for title, made in {**of, "reference": folder / "reference"}.items()
    }
    (folder / "pictures.jpg").write_bytes(jpeg(grids.grid(columns), _MOST_BYTES))


def jpeg(sheet: UInt8[np.ndarray, "h w 3"], most_bytes: int) -> bytes:
    """Returns a picture as a JPEG, of the best quality that fits into so many bytes."""
    for quality in range(92, 20, -4):
        file = io.BytesIO()
        Image.fromarray(sheet).save(file, "JPEG", quality=quality)
        if file.tell() <= most_bytes:
            break
    return file.getvalue()


def _liveliest(image: np.ndarray) -> tuple[slice, slice]:
    """Returns the window of the most gradient energy."""
    energy = sum(g**2 for g in np.gradient(image.mean(-1), axis=(0, 1)))
    sums = np.pad(energy.cumsum(0).cumsum(1), [(1, 0), (1, 0)])
    inside = sums[_CROP:, _CROP:] - sums[:-_CROP, _CROP:] - sums[_CROP:, :-_CROP]
    top, left = np.unravel_index(np.argmax(inside + sums[:-_CROP, :-_CROP]), inside.shape)
    return slice(top, top + _CROP), slice(left, left + _CROP)
