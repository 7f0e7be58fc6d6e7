"""Search for an inference schedule and a sampler: what to try, what was tried, what was best.

The search is the paper's (section 4.5 and Figure 12), of more than schedules: noise and sampler are
chosen after training, for a number of network calls, by how good held-out images become. Proposals
are made by Optuna (a tree-structured Parzen estimator) from all finished trials of the same number
of calls, after a few that are known to be good.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from sr3_jax.config import migration
from sr3_jax.data import resumable, storage
from sr3_jax.evaluation.report import markdown
from sr3_jax.metrics.registry import METRICS, current

# Of Karras et al.'s grid for sure, and what has to be left for the last step.
_SIGMA_MIN, _SIGMA_MAX, _RHO = (0.002, 0.2), (20.0, 120.0), (1.5, 12.0)
_STARTUP = 8  # trials before proposals lean on what was found


@dataclasses.dataclass(frozen=True)
class Trial:
    """One row of the table.

    Attributes:
      calls: of the network, for one image.
      sampling: keys of `config.sampling` that were tried.
      status: `done`, or `refused`: no schedule can be made of them, such as one that does not end
        in noise.
      reason: of a refusal.
      metrics: of the held-out images, by name.
      seconds_per_image: that sampling took.
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
    """The table of trials, kept whole in a file after each, so that a search goes on."""

    def __init__(self, path: epath.PathLike, fingerprint: resumable.Fingerprint) -> None:
        """Reads what is there.

        Args:
          path: of a JSONL file; its first row is the fingerprint.
          fingerprint: what trials have in common: weights, images, metric.

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
        """Rows of so many network calls."""
        return [row for row in self.rows if row.calls == calls]

    def best(
        self, metric: str, calls: int | None = None, beside: Trial | None = None
    ) -> Trial | None:
        """The best that is done, of so many calls or of all; None where there is none.

        `beside` counts as one more row.
        """
        rows = [*self.rows, *([] if beside is None else [beside])]
        rows = [r for r in rows if r.status == "done" and calls in (None, r.calls)]
        return min(rows, key=lambda row: _badness(row, metric), default=None)


def chosen(trials: Trials, metric: str, tolerance: float, budgets: Sequence[int]) -> Trial | None:
    """The best trial of the fewest calls whose metric is within a share of the best of all.

    None where no trial of the budgets is done.
    """
    best = [row for n in sorted(budgets) if (row := trials.best(metric, n)) is not None]
    if not best:
        return None
    limit = min(_badness(row, metric) for row in best)
    limit += tolerance * abs(limit)
    return next(row for row in best if _badness(row, metric) <= limit)


def speedup(trials: Trials, metric: str, reference_calls: int, tolerance: float) -> str:
    """Says how much faster the fewest calls are that are as good as the paper's sampler.

    As good is: no worse by more than a share, `tolerance`. Empty where none is, or the reference is
    not there.
    """
    reference = next((r for r in trials.of(reference_calls) if r.status == "done"), None)
    if reference is None:
        return ""
    wanted = _badness(reference, metric)
    wanted += tolerance * abs(wanted)
    for calls in sorted({row.calls for row in trials.rows} - {reference_calls}):
        row = trials.best(metric, calls)
        if row is not None and _badness(row, metric) <= wanted:
            times = reference.seconds_per_image / row.seconds_per_image
            return (
                f"{calls} calls ({describe(row.sampling)}) are within {tolerance:.0%} of "
                f"{reference_calls} of {describe(reference.sampling)}: {metric} "
                f"{row.metrics[metric]:.4g} and {reference.metrics[metric]:.4g}, in "
                f"{row.seconds_per_image:.3g} and {reference.seconds_per_image:.3g} s for an "
                f"image: {times:.0f} times faster"
            )
    return ""


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
    """Where to begin: the paper's, and what is good on Gaussians (docs/sampling.md)."""
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
    """One point of the space; only options that matter to the sampler and schedule are asked."""
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
    """In a few words."""
    options = [f"{k} {sampling[k]:.3g}" for k in ("eta",) if sampling.get(k)]
    if sampling["sampler"] == "ancestral":
        options.append(f"{sampling['variance']} variance")
    noise = [f"{k} {sampling[k]:.3g}" for k in ("sigma_min", "sigma_max", "rho") if k in sampling]
    return (
        f"{' '.join([sampling['sampler'], *options])}; {' '.join([sampling['schedule'], *noise])}"
    )


def draw(trials: Trials, metric: str, path: epath.PathLike, reference_calls: int = 0) -> None:
    """Quality against network calls and against seconds, of each sampler the best (Figure 12).

    A dashed line is the paper's sampler in `reference_calls`, where it was tried. What is far worse
    than the rest is left out, and said to be.
    """
    import io

    from matplotlib import ticker  # late: it takes a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    rows = [row for row in trials.rows if row.status == "done"]
    compared = [row for row in rows if row.calls != reference_calls]
    sign = -1 if METRICS[metric].is_higher_better else 1
    for name in sorted({row.sampling["sampler"] for row in compared}):
        of_it = [row for row in compared if row.sampling["sampler"] == name]
        best = [
            min((r for r in of_it if r.calls == n), key=lambda r: _badness(r, metric))
            for n in sorted({row.calls for row in of_it})
        ]
        for axis, place in zip(axes, ("calls", "seconds_per_image"), strict=True):
            x, y = zip(*((getattr(r, place), r.metrics[metric]) for r in best), strict=True)
            (line,) = axis.plot(x, y, "o-", label=name)
            x, y = zip(*((getattr(r, place), r.metrics[metric]) for r in of_it), strict=True)
            axis.plot(x, y, ".", color=line.get_color(), alpha=0.25)
    for row in trials.of(reference_calls):
        if row.status != "done":
            continue
        for axis in axes:
            axis.axhline(row.metrics[metric], color="black", ls="--", lw=1)
        said = f"{row.sampling['sampler']} in {row.calls} calls: {row.seconds_per_image:.3g} s"
        axes[1].annotate(
            said,
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
    """Shows from the best to somewhat beyond what 9 of 10 trials reach."""
    ordered = sorted(losses)
    best, usual = ordered[0], ordered[int(0.9 * (len(ordered) - 1))]
    room = 0.15 * (usual - best) or 0.01 * abs(best) or 1.0
    low, high = best - room, usual + 2 * room
    axis.set_ylim(*sorted((sign * low, sign * high)))
    if beyond := sum(loss > high for loss in losses):
        axis.set_title(f"{beyond} of {len(losses)} trials are worse than is shown", fontsize=9)
