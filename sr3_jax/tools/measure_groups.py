r"""Compares groups of people, or of anything, in an evaluation.

    sr3 evaluate --workdir=DIR --config.evaluation.num_samples=2
    python -m sr3_jax.tools.measure_groups --workdir=DIR --groups=groups.csv \
        [--embedding=FILE.py:FUNCTION]

groups.csv has a column `name`, of the images of DIR/evaluation/images.json, and one for each
attribute, such as `age` or `skin`; an empty cell leaves an image out. For each attribute and metric
the tool gives the mean of each group with its interval, and how likely so large a difference
between groups is if they do not differ, whatever their sizes: a permutation test of the largest
standardised difference, corrected by Holm for the number of tests. Groups may also differ in what
is in their pictures, and in how these were taken; the test does not know of that.

FUNCTION takes RGB images, uint8 [n, height, width, 3], and returns vectors [n, d] that are near for
one person. With it there is the identity distance, 1 - cosine of output and reference. No network
for it comes with this package: those for faces are trained on people who were not asked, and are
less exact for some groups than for others, which the distance then shows, too.

`DIR/evaluation/groups.md` and `groups.json` get the result.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import flags, logging
from etils import epath
from jaxtyping import Float, UInt8

from sr3_jax import command_line
from sr3_jax.data import image_files, storage, user_functions
from sr3_jax.evaluation import evaluator
from sr3_jax.evaluation.report import intervals, markdown
from sr3_jax.metrics import registry

Embedding = Callable[[UInt8[np.ndarray, "n h w 3"]], Float[np.ndarray, "n d"]]

DISTANCE = "identity_distance"
_METRICS = ("psnr", "consistency", "energy_score", "hallucination")
_FEWEST = 10  # images of a group
_NUM_PERMUTATIONS = 4000
_BATCH = 32


class Comparison(NamedTuple):
    """A metric by the groups of an attribute.

    Attributes:
      means: the mean of each group, with its interval of 95 %.
      largest: the groups of the lowest and the highest mean.
      p_value: how likely so large a difference is between equal groups.
      adjusted: the same, corrected for the number of comparisons.
    """

    attribute: str
    metric: str
    means: dict[str, intervals.Interval]
    largest: tuple[str, str]
    p_value: float
    adjusted: float


def read_groups(text: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the group of each image by attribute; empty where the table says none.

    Raises:
      ValueError: there is no column `name`, a line has too many cells, a name is unknown or comes
        twice, or no attribute has two groups of ten images.
    """
    reader = csv.DictReader(io.StringIO(text))
    rows, columns = list(reader), reader.fieldnames or []
    if "name" not in columns or len(columns) < 2:
        raise ValueError(
            f"--groups has the columns {', '.join(columns) or 'none'}; give `name` and one for "
            "each attribute, with commas between"
        )
    if any(None in row for row in rows):
        line = next(i for i, row in enumerate(rows, start=2) if None in row)
        raise ValueError(f"--groups: line {line} has more cells than there are columns")
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["name"] in found:
            raise ValueError(f"--groups has {row['name']!r} twice")
        found[row["name"]] = row
    if unknown := found.keys() - set(names):
        raise ValueError(
            f"--groups names {len(unknown)} images that were not evaluated, such as "
            f"{min(unknown)!r}; names are those of images.json, such as {names[0]!r}"
        )
    groups = {}
    for attribute in (column for column in columns if column != "name"):
        of_images = [(found.get(name, {}).get(attribute) or "").strip() for name in names]
        sizes = {group: of_images.count(group) for group in sorted({*of_images} - {""})}
        few = [f"{group} ({size})" for group, size in sizes.items() if size < _FEWEST]
        if len(sizes) - len(few) < 2:
            logging.warning(
                "%s is left out: it has fewer than two groups of %d images: %s",
                attribute,
                _FEWEST,
                ", ".join(f"{group} ({size})" for group, size in sizes.items()) or "none",
            )
            continue
        if few:
            logging.warning("%s: groups of too few images are left out: %s", attribute, few)
        kept = {group for group, size in sizes.items() if size >= _FEWEST}
        groups[attribute] = [group if group in kept else "" for group in of_images]
    if not groups:
        raise ValueError(
            f"--groups: no attribute of {', '.join(columns[1:])} has two groups of {_FEWEST} images"
        )
    return groups


def compare(
    groups: Mapping[str, Sequence[str]],
    scores: Mapping[str, Sequence[float]],
    num_permutations: int = _NUM_PERMUTATIONS,
) -> list[Comparison]:
    """Compares the groups of each attribute in each metric.

    Args:
      groups: the group of each image by attribute, empty for none.
      scores: the number of each image by metric; those that are not finite are left out.
      num_permutations: random permutations of the test.
    """
    found = []
    for attribute, of_images in groups.items():
        for metric, numbers in scores.items():
            values, names = np.asarray(numbers, np.float64), np.asarray(of_images)
            kept = np.isfinite(values) & (names != "")
            values, names = values[kept], names[kept]
            order, number = np.unique(names, return_inverse=True)
            means = {
                str(group): intervals.of_mean(values[number == i].tolist())
                for i, group in enumerate(order)
            }
            lowest, highest = (pick(means, key=lambda g: means[g].mean) for pick in (min, max))
            p_value = _p_value(values, number, len(order), num_permutations)
            found.append(Comparison(attribute, metric, means, (lowest, highest), p_value, 1.0))
    # Holm: the smallest by their number, the next by one less, and none below one before.
    adjusted, least = {}, 0.0
    for rank, i in enumerate(np.argsort([each.p_value for each in found], kind="stable")):
        least = max(least, min(1.0, found[i].p_value * (len(found) - rank)))
        adjusted[i] = least
    return [each._replace(adjusted=adjusted[i]) for i, each in enumerate(found)]


def _p_value(values: np.ndarray, number: np.ndarray, count: int, num_permutations: int) -> float:
    rng = np.random.default_rng(0)
    seen = _largest_difference(values[None], number, count)[0]
    drawn = rng.permuted(np.broadcast_to(values, (num_permutations, len(values))), axis=1)
    above = (_largest_difference(drawn, number, count) >= seen - 1e-12).sum()
    return float((above + 1) / (num_permutations + 1))


def _largest_difference(values: np.ndarray, number: np.ndarray, count: int) -> np.ndarray:
    """Returns the largest difference of two groups' means, over its standard error (Welch)."""
    member = np.equal.outer(number, np.arange(count)).astype(np.float64)
    sizes = member.sum(axis=0)
    mean = values @ member / sizes
    variance = np.maximum(np.square(values) @ member / sizes - np.square(mean), 1e-30)
    error = variance / (sizes - 1)
    difference = np.abs(mean[:, :, None] - mean[:, None, :])
    return (difference / np.sqrt(error[:, :, None] + error[:, None, :])).max(axis=(1, 2))


def identity_distances(
    embedding: Embedding, outputs: Sequence[epath.Path], references: Sequence[epath.Path]
) -> list[float]:
    """Returns 1 - cosine between the vectors of each output and its reference."""
    found: list[float] = []
    for first in range(0, len(outputs), _BATCH):
        vectors = []
        for paths in (outputs, references):
            images = [image_files.read_rgb(str(p)) for p in paths[first : first + _BATCH]]
            try:
                made = np.asarray(embedding(image_files.to_8_bits(np.stack(images))), np.float64)
            except Exception as error:
                raise ValueError(f"--embedding failed or returned no numbers: {error!r}") from error
            if made.ndim != 2 or len(made) != len(images):
                raise ValueError(
                    f"--embedding returned shape {made.shape} for {len(images)} images; it must "
                    "return a vector for each"
                )
            if not (np.isfinite(made).all() and made.any(axis=1).all()):
                raise ValueError("--embedding returned a vector of zeros, or numbers not finite")
            vectors.append(made / np.linalg.norm(made, axis=1, keepdims=True))
        found += (1.0 - (vectors[0] * vectors[1]).sum(axis=1)).tolist()
    return found


def table(comparisons: Sequence[Comparison]) -> str:
    """Returns the comparisons in Markdown: a table for each, and what it says."""
    texts = []
    for each in comparisons:
        metric = registry.find(each.metric)
        rows = [
            [
                markdown.safe(group),
                mean.num_finite,
                *(metric.write(x) for x in (mean.mean, mean.low, mean.high)),
            ]
            for group, mean in each.means.items()
        ]
        heading = [markdown.safe(each.attribute), "n", metric.heading, "from", "to (95 %)"]
        low, high = each.largest
        texts.append(markdown.table(heading, rows))
        difference = metric.write(each.means[high].mean - each.means[low].mean)
        texts.append(
            f"{markdown.safe(high)} less {markdown.safe(low)}: {difference}; "
            f"p = {each.p_value:.3g}, {each.adjusted:.3g} for all {len(comparisons)} together."
        )
    return "\n\n".join(texts) + "\n"


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags; not on import, so that the module can be used beside other tools."""
    of = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "Folder of the run, which was evaluated.", **of)
    flags.DEFINE_string("groups", None, "CSV file: name, and a column for each attribute.", **of)
    meaning = "MODULE:FUNCTION or FILE.py:FUNCTION that makes vectors of faces."
    flags.DEFINE_string("embedding", None, meaning, **of)


def main(_: list[str], given: flags.FlagValues = flags.FLAGS) -> None:
    """Compares, prints, and writes."""
    if not given.workdir or not given.groups:
        raise ValueError("--workdir=DIR and --groups=FILE are needed; see --help")
    folder = epath.Path(given.workdir) / "evaluation"
    if not (folder / "images.json").exists():
        raise FileNotFoundError(f"{folder} has no images.json; run --mode=evaluate first")
    evaluated = json.loads(storage.read(folder / "images.json"))
    method = next(name for name in reversed(evaluated["scores"]) if name != "bicubic")
    scores = registry.current(evaluated["scores"][method])
    try:
        text = storage.read(given.groups).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--groups={given.groups} is not UTF-8; save it so ({error})") from error
    groups = read_groups(text, evaluated["names"])
    scores = {name: scores[name] for name in _METRICS if name in scores}
    if given.embedding:
        try:
            function = user_functions.find(given.embedding)
        except ValueError as error:
            raise ValueError(f"--embedding={given.embedding}: {error}") from error
        outputs, references = (
            [folder / "images" / name / file for file in evaluated["files"]]
            for name in (method, "reference")
        )
        scores[DISTANCE] = identity_distances(function, outputs, references)
    found = compare(groups, scores)
    text = table(found)
    values = [
        each._asdict() | {"means": {group: mean._asdict() for group, mean in each.means.items()}}
        for each in found
    ]
    evaluator.write_json(values, folder / "groups.json")
    storage.write_whole(folder / "groups.md", text.encode())
    print(text)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    define_flags()
    command_line.run(main)
