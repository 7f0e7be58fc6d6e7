"""The results of an ablation, as a table and as JSON."""

from __future__ import annotations

import json
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sr3_jax.data import storage
from sr3_jax.evaluation.report import markdown
from sr3_jax.metrics import registry

# Keys that the results of bicubic upsampling depend on.
_OF_BICUBIC = ("data.", "evaluation.", "seed")


class Result(NamedTuple):
    """The result of one run.

    Attributes:
      values: values of the varied keys.
      seed: `config.seed`.
      folder: name of its workdir.
      method: the row of its network in the scores.
      training_steps: number of training steps.
      scores: scores by method and metric; None until it is done.
      failure: why it failed; empty if it did not.
    """

    values: Mapping[str, Any]
    seed: int
    folder: str
    method: str
    training_steps: int
    scores: Mapping[str, Mapping[str, Any]] | None
    failure: str

    @property
    def status(self) -> str:
        """`failed`, `pending` or `done`."""
        if self.failure:
            return "failed"
        return "pending" if self.scores is None else "done"


def text(value: Any) -> str:
    """Returns a value of a config as written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ":".join(map(text, value))
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def read_scores(path: pathlib.Path) -> Mapping[str, Mapping[str, Any]] | None:
    """Reads the results of an evaluation, if there are any."""
    if not path.exists():
        return None
    scores = json.loads(path.read_text())
    return {method: registry.current(numbers) for method, numbers in scores.items()}


def table(results: Sequence[Result]) -> str:
    """Returns a Markdown table with a row for each combination, and for bicubic upsampling.

    For several seeds, numbers are means over those that are done, with their (sample) standard
    deviation.
    """
    keys = list(results[0].values)
    methods = [row for r in results for row in (r.scores or {}).values()]
    metrics = list(dict.fromkeys(name for row in methods for name in row))
    # The time comes last, as in `evaluator.table`.
    metrics.sort(key=lambda name: name in ("n", "seconds_per_image"))
    headings = ["method", *keys, *(registry.find(name).heading for name in metrics)]
    lines = [headings + ["training steps", "status"]]
    for values, group in _groups(results, keys):
        done = [r for r in group if r.status == "done"]
        numbers = _means([r.scores[r.method] for r in done], metrics)
        steps = str(group[0].training_steps)
        lines.append([group[0].method, *values, *numbers, steps, _status(group)])
    seen = [key for key in keys if key.startswith(_OF_BICUBIC)]
    for values, group in _groups([r for r in results if r.status == "done"], seen):
        # Each seed counts once, since no other key changes it.
        of_seeds = {r.seed: r.scores["bicubic"] for r in reversed(group)}
        cells = dict(zip(seen, values, strict=True))
        numbers = _means(list(of_seeds.values()), metrics)
        lines.append(["bicubic", *(cells.get(key, "") for key in keys), *numbers, "", ""])
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return markdown.table(lines[0], lines[1:])


def write(results: Sequence[Result], folder: pathlib.Path) -> None:
    """Writes `ablation.md` and `ablation.json`, each whole or not at all."""
    storage.write_whole(folder / "ablation.md", (table(results) + "\n").encode())
    rows = [result._asdict() | {"status": result.status} for result in results]
    storage.write_whole(folder / "ablation.json", (json.dumps(rows, indent=2) + "\n").encode())


def _groups(
    results: Iterable[Result], keys: Sequence[str]
) -> Iterable[tuple[tuple[str, ...], list[Result]]]:
    """Returns results by the values of some keys, in their order."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(text(result.values[key]) for key in keys), []).append(result)
    return groups.items()


def _means(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[str]:
    cells = []
    for name in metrics:
        # Numbers that JSON lacks are there as text, such as "Infinity".
        values = [float(row[name]) for row in rows if name in row]
        cell = ""
        if values:
            mean = statistics.fmean(values)
            cell = f"{mean:.0f}" if name == "n" else f"{mean:#.4g}"
        # There is no deviation if a number is infinite, such as the PSNR of equal images.
        if len(values) > 1 and name != "n" and all(map(math.isfinite, values)):
            cell += f" ± {statistics.stdev(values):.2g}"
        cells.append(cell)
    return cells


def _status(group: Sequence[Result]) -> str:
    states = [result.status for result in group]
    failures = "; ".join(f"failed: {r.failure}" for r in group if r.failure)
    if len(set(states)) > 1:
        done = f"{states.count('done')} of {len(group)} done"
        return "; ".join(filter(None, (done, failures)))
    return failures or states[0]
