"""The search for an inference schedule: `--mode=tune_schedule`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from sr3_jax import parallel
from sr3_jax.config import Config, in_words, resolve, run_file, schedules, students, with_sampling
from sr3_jax.data import locks, resumable, storage
from sr3_jax.evaluation import evaluator, schedule_search
from sr3_jax.evaluation.pretrained import common, process
from sr3_jax.evaluation.report import grids
from sr3_jax.inference.super_resolver import SuperResolver
from sr3_jax.jobs import shared
from sr3_jax.metrics import registry
from sr3_jax.parallel import StoppedError

FOLDER = "tuning"
_SHOWN = 6  # images, in a picture


def tune_schedule(config: Config, workdir: epath.Path, calls: int | None) -> None:
    """Searches sampler and schedule on held-out images, by the options of `config.tuning`.

    Every trial is a row of `workdir/tuning/trials.jsonl`, so that the same command goes on. At the
    end `workdir/inference.json` holds the sampling that upscaling then uses, `tuning/table.md` the
    best of each number of network calls, `tuning/quality.png` quality against calls and seconds
    (Figure 12 of the paper), and `tuning/samples.png` images of the best.

    Args:
      config: config of the run.
      workdir: workdir of the run.
      calls: network calls for an image, in place of those of `config.tuning.calls`.

    Raises:
      ValueError: the method is a baseline, there are several processes, or the folder has trials of
        another checkpoint or other images.
      HeldError: another search is at work in the workdir.
      StoppedError: a signal asked to stop; the trial under way is lost.
    """
    if config.predicts_image:
        raise ValueError(f"config.method = {config.method!r} has no schedule to tune")
    if jax.process_count() > 1:
        raise ValueError(
            "tune_schedule runs in one process, on all its devices; use --num_processes=1"
        )
    if option := registry.METRICS[config.tuning_metric].option:
        key = "config.tuning.metric"
        if missing := list(resolve.metrics(config.evaluation, (option,), key)):
            raise ValueError(in_words(missing))
    with locks.hold(workdir / FOLDER, "tuning of schedules"):
        _tune(config, workdir, calls)


def _tune(config: Config, workdir: epath.Path, calls: int | None) -> None:
    options, metric = config.tuning, config.tuning_metric
    own = config.student_calls
    if own:
        schedules.sampler(config, calls)  # refuses other numbers
    budgets = (own,) if own else options.calls if calls is None else (calls,)
    resolver = SuperResolver.from_config(config, workdir / "checkpoints")
    images = shared.held_out(config, workdir, options.num_images)
    low, high = images.low, images.high
    folder = workdir / FOLDER
    fingerprint = resumable.Fingerprint(
        {
            "checkpoint": resolver.checkpoint_step,
            "metric": metric,
            "images": [len(high), int(low.shape[1]), int(high.shape[1])],
            "data": [config.data.eval_path or config.data.path or config.data.source, config.seed],
            "clip": config.sampling.clip,
            "consistent": config.sampling.consistent,
        }
    )
    trials = schedule_search.Trials(folder / "trials.jsonl", fingerprint)
    score = functools.partial(_score, config=config, low=low, high=high, metric=metric)
    counts = {budget: options.num_trials for budget in budgets}
    if own:
        # It samples as it was trained to: there is one way to measure, and none to search.
        logging.info("a student has its own sampling, which is measured; there is nothing to tune")
        counts = {own: 1}
    elif options.reference_calls:
        counts.setdefault(options.reference_calls, 1)
    with parallel.StopSignal() as stop:
        for budget, count in counts.items():
            left = max(0, count - len(trials.of(budget)))
            with shared.progress_bar(f"{budget} calls", left, "trials") as bar:
                while len(trials.of(budget)) < count:
                    if own:
                        sampling = {key: getattr(config.sampling, key) for key in students.KEYS}
                    else:
                        sampling = schedule_search.propose(trials, metric, budget, config.seed)
                    progress = functools.partial(shared.advance, bar)
                    trial, made = _try(
                        config, resolver, sampling, budget, score, images, stop, progress
                    )
                    best = trials.best(metric, budget, beside=trial)
                    if best is trial:  # kept before its row, since a search may take several runs
                        with storage.open_whole(folder / "images" / f"{budget}.npy") as file:
                            np.save(file, made)
                    trials.add(trial)
                    if best:
                        bar.set_postfix_str(f"{metric} {best.metrics[metric]:.4g}")
    best = schedule_search.chosen(trials, metric, options.tolerance, budgets)
    if best is None:
        raise ValueError(f"every trial was refused; {folder / 'trials.jsonl'} says why")
    table = schedule_search.table(trials, metric, sorted({r.calls for r in trials.rows}))
    storage.write_whole(folder / "table.md", table.encode())
    schedule_search.draw(trials, metric, folder / "quality.png", options.reference_calls)
    _draw_samples(folder, sorted(counts), low, high)
    found = {
        "sampling": _keys(best.sampling),
        "calls": best.calls,
        "metrics": best.metrics,
        "chosen_by": fingerprint.values,
    }
    path = workdir / run_file.INFERENCE
    storage.write_whole(path, json.dumps(found, indent=2).encode())
    print(table)
    print(f"{path}: {best.calls} calls, {schedule_search.describe(best.sampling)}")
    if faster := schedule_search.speedup(
        trials, metric, options.reference_calls, options.tolerance
    ):
        print(faster)
    drawn = f"{folder / 'quality.png'}, {folder / 'samples.png'}"
    print(f"all trials: {folder / 'trials.jsonl'}; drawn: {drawn}")


def _try(
    config: Config,
    resolver: SuperResolver,
    sampling: dict[str, Any],
    calls: int,
    score: Any,
    images: shared.HeldOut,
    stop: parallel.StopSignal,
    progress: Callable[[float], None],
) -> tuple[schedule_search.Trial, np.ndarray | None]:
    """Runs a trial; returns it with its result, and the first images; None if it is refused."""
    try:
        changed = with_sampling(config, _keys(sampling))
        schedules.sampler(changed)
    except ValueError as error:
        progress(1.0)
        return schedule_search.Trial(calls, sampling, "refused", str(error)), None
    resolver.make_sampler = functools.partial(schedules.sampler, changed)

    # Two samples of each image, of the same noise in all trials: they differ by the sampler alone.
    low, steps = images.low, sampling["num_steps"]
    twice = np.concatenate([low, low])
    label = np.tile(images.label, 2) if resolver.num_classes else None
    share = 1 / resolver.num_refinements(twice.shape, steps)

    def check() -> None:
        progress(share)
        if (number := stop.asked(0)) is not None:
            raise StoppedError(number, "the same command goes on with the next trial")

    result = resolver.sample(twice, steps, list(range(len(twice))), label=label, progress=check)
    samples = result.images.reshape(2, len(low), *result.images.shape[1:])
    seconds = result.seconds / len(twice)
    trial = schedule_search.Trial(calls, sampling, "done", "", score(samples), seconds)
    return trial, samples[0, :_SHOWN]


def _draw_samples(
    folder: epath.Path, budgets: Sequence[int], low: np.ndarray, high: np.ndarray
) -> None:
    columns = {"input": low[:_SHOWN]}
    for calls in budgets:
        path = folder / "images" / f"{calls}.npy"
        if path.exists():  # unless all trials were refused
            with path.open("rb") as file:
                columns[f"{calls} calls"] = np.load(file)
    grids.save(grids.grid(columns | {"reference": high[:_SHOWN]}), folder / "samples.png")


def _keys(sampling: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys of `config.sampling`, without those of the search."""
    return {key: value for key, value in sampling.items() if key != "search"}


def _score(
    samples: np.ndarray, *, config: Config, low: np.ndarray, high: np.ndarray, metric: str
) -> dict[str, float]:
    """Returns the metrics of two samples `[2, n, h, w, 3]`; those of images are of the first."""
    made = samples[0]
    found = {m.name: float(m.compute(samples, {"reference": high})) for m in registry.of("trial")}
    found |= {name: float(np.mean(n)) for name, n in evaluator.score(made, high, low).items()}
    if option := registry.METRICS[metric].option:
        inputs = common.Inputs({"made": list(made)}, list(high))
        measured = process.measure((option,), inputs, config.evaluation.weights)
        found[metric] = measured.means["made"][metric]
    return found
