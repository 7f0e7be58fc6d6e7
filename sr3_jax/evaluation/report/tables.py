"""Results, and the tables of a report: means, differences, and the paper's figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sr3_jax.evaluation.report import intervals, paper
from sr3_jax.metrics import registry

# A mean of float32 numbers that was taken otherwise is still the same mean.
_SAME_MEAN = 1e-4


@dataclasses.dataclass(frozen=True)
class Results:
    """Results of an evaluation.

    Attributes:
      means: means by method and metric (`metrics.registry`); `reference` has the references' own.
      names: names of the images, in order.
      of_images: values by method and metric, one number for each image; metrics of sets,
        such as FID, are in `means` alone.
    """

    means: Mapping[str, Mapping[str, float | int]]
    names: list[str]
    of_images: Mapping[str, Mapping[str, Sequence[float | int]]]


def check(results: Results) -> None:
    """Checks that results fit together.

    Raises:
      ValueError: they do not.
    """
    if not results.means:
        raise ValueError("results of no method: there is nothing to report")
    if "input" in results.means:
        raise ValueError("a method called 'input': that is what the picture is called")
    for method, by_metric in results.of_images.items():
        for metric, values in by_metric.items():
            if metric not in results.means.get(method, {}):
                raise ValueError(
                    f"{metric} of {method!r} is there for each image, but its mean is not in means"
                )
            if len(values) != len(results.names):
                raise ValueError(
                    f"{metric} of {method!r} has {len(values)} numbers for "
                    f"{len(results.names)} images"
                )


def is_of_images(metric: str) -> bool:
    """Returns whether it is a metric of images, with intervals and differences."""
    return registry.find(metric).of != "run"


def metric_names(results: Results) -> list[str]:
    """Returns the metrics with a mean, in the order of tables, but for those of single channels."""
    return registry.in_order(
        {m for row in results.means.values() for m in row if not registry.label_of(m)}
    )


def scores_of(results: Results, method: str) -> dict[str, Sequence[float]]:
    """Returns a method's numbers of each image, by metric in the order of tables.

    Those of single channels are left out.
    """
    by_metric = results.of_images.get(method, {})
    whole = {metric for metric in by_metric if not registry.label_of(metric)}
    return {m: by_metric[m] for m in registry.in_order(whole)}


def channel_rows(means: Mapping[str, Mapping[str, float | int]]) -> dict[str, Any] | None:
    """Returns the table of means by channel, a row for each channel and method; None without."""
    names = {m for row in means.values() for m in row}
    labels = list(dict.fromkeys(filter(None, map(registry.label_of, _as_measured(means)))))
    if not labels:
        return None
    # A column for each metric; the unit of a channel stands in its label.
    columns = [
        name
        for name, metric in registry.METRICS.items()
        if metric.of in ("field", "ensemble") and registry.of_channel(name, labels[0]) in names
    ]
    rows = []
    for label in labels:
        of_channel = {column: registry.of_channel(column, label) for column in columns}
        best = {c: _best(means, name) for c, name in of_channel.items()}
        for method, own in means.items():
            cells = [
                {"mean": registry.find(name).write(float(own[name])), "best": method in best[c]}
                if name in own
                else {"mean": "", "best": False}
                for c, name in of_channel.items()
            ]
            if any(cell["mean"] for cell in cells):
                rows.append({"channel": label, "method": method, "cells": cells})
    return {"columns": [registry.find(column) for column in columns], "rows": rows}


def as_text(table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns heading and rows of the table of `channel_rows`."""
    rows = [
        [row["channel"], row["method"], *(cell["mean"] for cell in row["cells"])]
        for row in table["rows"]
    ]
    return ["channel", "method", *(column.title for column in table["columns"])], rows


def _as_measured(means: Mapping[str, Mapping[str, float | int]]) -> list[str]:
    """Returns the metrics of the method that has most, in their order."""
    return list(max(means.values(), key=len, default={}))


def mean_rows(results: Results) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the rows of the table of means, and notes on single cells."""
    notes: list[str] = []
    rows = [{"method": method, "cells": []} for method in results.means]
    for metric in metric_names(results):
        best = _best(results.means, metric)
        for row, (method, own) in zip(rows, results.means.items(), strict=True):
            if metric not in own:
                row["cells"].append({"mean": "", "interval": "", "best": False})
                continue
            known = registry.find(metric)
            found = results.of_images.get(method, {}).get(metric)
            mean = float(own[metric])
            cell = {"mean": known.write(mean), "interval": "", "best": method in best}
            if found is not None and is_of_images(metric):
                cell["interval"], remarks = _interval(found, mean, known)
                notes += [f"{method}, {known.heading}: {remark}." for remark in remarks]
            row["cells"].append(cell)
    return rows, notes


def _interval(
    values: Sequence[float], mean: float, metric: registry.Metric
) -> tuple[str, list[str]]:
    """Returns the interval as text, and remarks on it."""
    found = intervals.of_mean(values)
    remarks = []
    if found.num_infinite or found.num_nan:
        kinds = {"infinite": found.num_infinite, "nan": found.num_nan}
        which = " and ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        remarks.append(
            f"of {len(values)} numbers {which}; the interval is of the other {found.num_finite}, "
            f"whose mean is {metric.write(found.mean)}"
        )
    elif not math.isclose(found.mean, mean, rel_tol=_SAME_MEAN, abs_tol=1e-9):
        return "", ["no interval, since it is not the mean of the images' numbers"]
    if math.isnan(found.low):
        return "", [*remarks, "no interval from fewer than two numbers"]
    return f"{metric.write(found.low)} to {metric.write(found.high)}", remarks


def _best(means: Mapping[str, Mapping[str, float | int]], metric: str) -> set[str]:
    """Returns the methods with the best mean; none without a competitor.

    None either if a mean is not finite: one image that equals its reference makes the mean PSNR
    infinite, which says nothing of the others.
    """
    known = registry.find(metric)
    found = {m: row[metric] for m, row in means.items() if metric in row}
    if known.best is None or len(found) < 2 or not all(map(math.isfinite, found.values())):
        return set()
    badness = {method: known.badness(value) for method, value in found.items()}
    return {method for method, value in badness.items() if value == min(badness.values())}


def differences(results: Results, main: str) -> dict[str, Any] | None:
    """Returns the table of the main method minus each other one, on the same images."""
    own = {m: values for m, values in scores_of(results, main).items() if is_of_images(m)}
    rows = []
    for method in results.means:
        theirs = results.of_images.get(method, {})
        if method == main or not own.keys() & theirs.keys():
            continue
        cells = [
            _difference(registry.find(metric), values, theirs[metric]) if metric in theirs else None
            for metric, values in own.items()
        ]
        rows.append({"method": method, "cells": cells})
    return {"columns": [registry.find(metric) for metric in own], "rows": rows} if rows else None


def _difference(
    metric: registry.Metric, values: Sequence[float], others: Sequence[float]
) -> dict[str, str]:
    found = intervals.of_difference(values, others)
    low, high = found.interval.low, found.interval.high
    cell = {
        "mean": metric.write(found.interval.mean, signed=True),
        "interval": "",
        "verdict": "",
        "count": f"higher in {found.num_higher} of {len(values)}",
        "left_out": "",
    }
    if not math.isnan(low):
        cell["interval"] = " to ".join(metric.write(end, signed=True) for end in (low, high))
    if metric.is_higher_better is not None:
        wins = found.num_higher if metric.is_higher_better else found.num_lower
        cell["count"] = f"better in {wins} of {len(values)}"
        if not math.isnan(low):
            gain = (low, high) if metric.is_higher_better else (-high, -low)
            cell["verdict"] = "better" if gain[0] > 0 else "worse" if gain[1] < 0 else "not decided"
    if found.interval.num_finite < len(values):
        cell["left_out"] = f"mean of {found.interval.num_finite} finite ones"
    return cell


def paper_rows(number: str) -> dict[str, Any]:
    """Returns one of the paper's tables, with the digits as printed.

    Raises:
      ValueError: the table is unknown.
    """
    table = paper.table(number)
    metrics = registry.in_order({metric for row in table.rows.values() for metric in row})
    return {
        "number": number,
        "task": table.task,
        "link": paper.LINK,
        "name": paper.NAME,
        "protocol": table.protocol,
        "columns": [registry.find(metric) for metric in metrics],
        "rows": [
            {"method": method, "cells": [printed.get(metric, "") for metric in metrics]}
            for method, printed in table.rows.items()
        ],
    }
