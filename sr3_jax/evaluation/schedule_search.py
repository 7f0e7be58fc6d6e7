"""The search for an inference schedule and a sampler: proposals, trials, and the best of them.

As in the paper (section 4.5 and Figure 12), but for samplers as well, they are chosen after
training, for a number of network calls, by a metric of held-out images. Optuna (a tree-structured
Parzen estimator) proposes trials from all finished ones of the same number of calls, after a few
that are known to be good.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from sr3_jax.config import migration
from sr3_jax.data import resumable, storage
from sr3_jax.evaluation.report import markdown
from sr3_jax.metrics.registry import METRICS, current

# Ranges that include the grid of Karras et al.
_SIGMA_MIN, _SIGMA_MAX, _RHO = (0.002, 0.2), (20.0, 120.0), (1.5, 12.0)
_STARTUP = 8  # random trials before the first proposal of the estimator


@dataclasses.dataclass(frozen=True)
class Trial:
    """One row of the table.

    Attributes:
      calls: network calls for one image.
      sampling: keys of `config.sampling`.
      status: `done`, or `refused` if they give no valid schedule.
      reason: reason of a refusal.
      metrics: metrics of the held-out images, by name.
      seconds_per_image: time of sampling.
    """

    calls: int
    sampling: dict[str, Any]
    status: str
    reason: str = ""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds_per_image: float = math.nan

    def __post_init__(self):
        sampling = migration.migrate({"sampling": self.sampling})["sampling"]
        if "search" in sampling:
            sampling["search"] = migration.migrate({"sampling": sampling["search"]})["sampling"]
        object.__setattr__(self, "sampling", sampling)
        object.__setattr__(self, "metrics", current(self.metrics))


class Trials:
    """The table of trials, written after each trial, so that a search goes on."""

    def __init__(self, path: epath.PathLike, fingerprint: resumable.Fingerprint) -> None:
        """Reads the table, if there is one.

        Args:
          path: path of a JSONL file; its first row is the fingerprint.
          fingerprint: weights, images and metric of all trials.

        Raises:
          ValueError: the file has another fingerprint, or is damaged.
        """
        self._path, self._fingerprint = path, fingerprint
        rows, damaged = resumable.read_rows(path, dict)
        try:
            self.rows = [resumable.from_json(Trial, row) for row in rows[1:]]
        except ValueError as error:
            damaged.append(f"{path} is damaged: {error}")
        if damaged:
            raise ValueError(f"{damaged[0]}; mend it, or remove it to search anew")
        if differ := fingerprint.differences(rows[0] if rows else None):
            raise ValueError(
                f"{path} has trials of something else: {'; '.join(differ)}. Remove it, or ask for "
                "what it was made with"
            )

    def add(self, trial: Trial) -> None:
        """Adds a row, and writes the table."""
        self.rows.append(trial)
        resumable.write_rows(self._path, [self._fingerprint.values, *self.rows])

    def of(self, calls: int) -> list[Trial]:
        """Returns the rows of a number of network calls."""
        return [row for row in self.rows if row.calls == calls]

    def best(
        self, metric: str, calls: int | None = None, beside: Trial | None = None
    ) -> Trial | None:
        """Returns the best finished trial of a number of calls or of all; None if there is none.

        `beside` counts as one more row.
        """
        rows = [*self.rows, *([] if beside is None else [beside])]
        rows = [r for r in rows if r.status == "done" and calls in (None, r.calls)]
        return min(rows, key=lambda row: _badness(row, metric), default=None)


def chosen(trials: Trials, metric: str, tolerance: float, budgets: Sequence[int]) -> Trial | None:
    """Returns the best trial of the fewest calls within a share of the best of all budgets.

    None if no trial of the budgets is done.
    """
    done = [_badness(row, metric) for n in budgets if (row := trials.best(metric, n)) is not None]
    return _fewest_calls(trials, metric, budgets, min(done), tolerance) if done else None


def speedup(trials: Trials, metric: str, reference_calls: int, tolerance: float) -> str:
    """Returns a sentence on the fewest calls that are as good as the paper's sampler.

    As good means within a share `tolerance`. Empty if none is, or the reference was not tried.
    """
    reference = next((r for r in trials.of(reference_calls) if r.status == "done"), None)
    if reference is None:
        return ""
    budgets = {row.calls for row in trials.rows} - {reference_calls}
    row = _fewest_calls(trials, metric, budgets, _badness(reference, metric), tolerance)
    if row is None:
        return ""
    times = reference.seconds_per_image / row.seconds_per_image
    return (
        f"{row.calls} calls ({describe(row.sampling)}) are within {tolerance:.0%} of "
        f"{reference_calls} of {describe(reference.sampling)}: {metric} "
        f"{row.metrics[metric]:.4g} and {reference.metrics[metric]:.4g}, in "
        f"{row.seconds_per_image:.3g} and {reference.seconds_per_image:.3g} s for an "
        f"image: {times:.0f} times faster"
    )


def _fewest_calls(
    trials: Trials, metric: str, budgets: Collection[int], badness: float, tolerance: float
) -> Trial | None:
    """Returns the best trial of the fewest calls within a share `tolerance` of a badness."""
    limit = badness + tolerance * abs(badness)
    best = (trials.best(metric, calls) for calls in sorted(budgets))
    return next((row for row in best if row and _badness(row, metric) <= limit), None)


def propose(trials: Trials, metric: str, calls: int, seed: int) -> dict[str, Any]:
    """Proposes keys of `config.sampling` for the next trial of a number of calls. Deterministic."""
    done = trials.of(calls)
    first = _known(calls)
    if len(done) < len(first):
        return first[len(done)]
    import optuna  # late: it takes half a second

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Another seed for each proposal: the study is made anew from the table each time.
        sampler = optuna.samplers.TPESampler(
            seed=seed + len(done), n_startup_trials=_STARTUP, multivariate=True, group=True
        )
    direction = "maximize" if METRICS[metric].is_higher_better else "minimize"
    study = optuna.create_study(sampler=sampler, direction=direction)
    for row in done:
        parameters = row.sampling.get("search")
        if row.status == "done" and parameters:
            _tell(study, optuna, parameters, row.metrics[metric], calls)
    trial = study.ask()
    found = _suggest(trial, calls)
    return found | {"search": dict(trial.params)}


def _badness(trial: Trial, metric: str) -> float:
    return METRICS[metric].badness(trial.metrics[metric])


def _known(calls: int) -> list[dict[str, Any]]:
    """Returns the first trials: the paper's, and those good on Gaussians (docs/sampling.md)."""
    noise = {"schedule": "log_snr", "sigma_min": 0.02, "sigma_max": 20.0}
    known = [
        {"sampler": "ancestral", "variance": "fixed_large", "schedule": "respaced"},
        {"sampler": "ancestral", "variance": "fixed_small", **noise},
        {"sampler": "ddim", "eta": 0.0, **noise},
        {"sampler": "dpmpp_2m", "eta": 0.0, **noise},
        {"sampler": "dpmpp_2m", "eta": 1.0, **noise},
    ]
    if calls % 2 and calls > 2:
        known.append({"sampler": "heun", **noise})
    return [row | {"num_steps": _steps(row["sampler"], calls)} for row in known]


def _suggest(trial: Any, calls: int) -> dict[str, Any]:
    """Draws a point of the search space, with only the options of its sampler and schedule."""
    samplers = ["ancestral", "ddim", "dpmpp_2m", *(["heun"] if calls % 2 and calls > 2 else [])]
    found: dict[str, Any] = {"sampler": trial.suggest_categorical("sampler", samplers)}
    if found["sampler"] == "ancestral":
        found["variance"] = trial.suggest_categorical("variance", ["fixed_large", "fixed_small"])
    if found["sampler"] in ("ddim", "dpmpp_2m"):
        found["eta"] = trial.suggest_float("eta", 0.0, 1.0)
    found["schedule"] = trial.suggest_categorical("schedule", ["karras", "log_snr", "noise_level"])
    found["sigma_max"] = trial.suggest_float("sigma_max", *_SIGMA_MAX, log=True)
    if found["schedule"] != "noise_level":
        found["sigma_min"] = trial.suggest_float("sigma_min", *_SIGMA_MIN, log=True)
    if found["schedule"] == "karras":
        found["rho"] = trial.suggest_float("rho", *_RHO, log=True)
    return found | {"num_steps": _steps(found["sampler"], calls)}


def _tell(study: Any, optuna: Any, parameters: Mapping[str, Any], value: float, calls: int) -> None:
    fixed = optuna.trial.FixedTrial(dict(parameters))
    _suggest(fixed, calls)
    study.add_trial(
        optuna.trial.create_trial(
            params=fixed.params, distributions=fixed.distributions, value=value
        )
    )


def _steps(sampler: str, calls: int) -> int:
    return (calls + 1) // 2 if sampler == "heun" else calls


def table(trials: Trials, metric: str, calls: Sequence[int]) -> str:
    """Returns a Markdown table: for each number of calls the paper's sampler and the best trial."""
    names = dict.fromkeys((metric, *METRICS))
    shown = [n for n in names if any(n in row.metrics for row in trials.rows)]
    rows = []
    for count in calls:
        done = [row for row in trials.of(count) if row.status == "done"]
        first, best = done[:1], trials.best(metric, count)
        for row in first + [best for one in first if one is not best]:
            cells = [f"{row.metrics[n]:.4g}" for n in shown]
            rows.append([count, describe(row.sampling), *cells, f"{row.seconds_per_image:.3g}"])
    return markdown.table(["calls", "sampling", *shown, "seconds per image"], rows)


def describe(sampling: Mapping[str, Any]) -> str:
    """Returns a short description of keys of `config.sampling`."""
    options = [f"{k} {sampling[k]:.3g}" for k in ("eta",) if sampling.get(k)]
    if sampling["sampler"] == "ancestral":
        options.append(f"{sampling['variance']} variance")
    noise = [f"{k} {sampling[k]:.3g}" for k in ("sigma_min", "sigma_max", "rho") if k in sampling]
    return (
        f"{' '.join([sampling['sampler'], *options])}; {' '.join([sampling['schedule'], *noise])}"
    )


def draw(trials: Trials, metric: str, path: epath.PathLike, reference_calls: int = 0) -> None:
    """Draws quality against network calls and seconds for the best of each sampler (Figure 12).

    A dashed line is the paper's sampler in `reference_calls`. Trials far worse than the rest lie
    outside; the title counts them.
    """
    from matplotlib import ticker  # late: it takes a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    rows = [row for row in trials.rows if row.status == "done"]
    sign = -1 if METRICS[metric].is_higher_better else 1
    by_sampler: dict[str, list[Trial]] = {}
    for row in sorted(rows, key=lambda row: (row.sampling["sampler"], row.calls)):
        if row.calls != reference_calls:
            by_sampler.setdefault(row.sampling["sampler"], []).append(row)
    for name, tried in by_sampler.items():
        groups = itertools.groupby(tried, key=lambda row: row.calls)
        best = [min(group, key=lambda row: _badness(row, metric)) for _, group in groups]
        for axis, place in zip(axes, ("calls", "seconds_per_image"), strict=True):
            points = lambda some, at=place: (  # noqa: E731
                [getattr(row, at) for row in some],
                [row.metrics[metric] for row in some],
            )
            (line,) = axis.plot(*points(best), "o-", label=name)
            axis.plot(*points(tried), ".", color=line.get_color(), alpha=0.25)
    for row in (row for row in rows if row.calls == reference_calls):
        for axis in axes:
            axis.axhline(row.metrics[metric], color="black", ls="--", lw=1)
        axes[1].annotate(
            f"{row.sampling['sampler']} in {row.calls} calls: {row.seconds_per_image:.3g} s",
            (1, row.metrics[metric]),
            xycoords=("axes fraction", "data"),
            xytext=(-4, -13),
            textcoords="offset points",
            ha="right",
        )
    _limit([_badness(row, metric) for row in rows], sign, axes[0])
    better = "lower" if sign > 0 else "higher"
    axes[0].set_ylabel(f"{METRICS[metric].title} ({better} is better)")
    axes[0].set_xlabel("network calls for an image")
    axes[1].set_xlabel("seconds for an image")
    for one in axes:
        one.set_xscale("log")
        one.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        one.xaxis.set_major_formatter("{x:g}")
        one.xaxis.set_minor_formatter(ticker.NullFormatter())
        one.grid(alpha=0.3)
    axes[0].legend(title="best of each sampler", loc="upper right" if sign > 0 else "lower right")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    storage.write_whole(str(path), data.getvalue())


def _limit(losses: Sequence[float], sign: int, axis: Any) -> None:
    """Limits an axis to the best nine of ten trials, and somewhat beyond."""
    ordered = sorted(losses)
    best, usual = ordered[0], ordered[int(0.9 * (len(ordered) - 1))]
    room = 0.15 * (usual - best) or 0.01 * abs(best) or 1.0
    low, high = best - room, usual + 2 * room
    axis.set_ylim(*sorted((sign * low, sign * high)))
    if beyond := sum(loss > high for loss in losses):
        axis.set_title(f"{beyond} of {len(losses)} trials are worse than is shown", fontsize=9)
