"""Upscaling a file or a folder of any size, on one machine or many, so that it can be stopped."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
from absl import logging
from etils import epath

from sr3_jax import config_file, factory, parallel, sampling_factory
from sr3_jax.data import sources
from sr3_jax.inference import files, manifest
from sr3_jax.inference.super_resolver import SuperResolver
from sr3_jax.jobs import shared
from sr3_jax.training import checkpoint

Engine = Literal["local", "ray"]

# Up to so many pictures the bar moves with every network call, for which each is waited for.
_FEW = 32


@dataclasses.dataclass(frozen=True)
class Work:
    """All that a worker has to know, wherever it is.

    Attributes:
      workdir: of the training run.
      step: of its checkpoint.
      sampling: keys of `config.sampling` to use instead of the config's.
      output: the folder of outputs.
      options: how files are upscaled.
    """

    workdir: str
    step: int
    sampling: Mapping[str, Any]
    output: str
    options: files.Options

    def load(self) -> SuperResolver:
        """Loads the network onto this process's devices."""
        parallel.keep_compiled()
        workdir = epath.Path(self.workdir)
        config = config_file.load(workdir / "config.json")
        checkpoints = workdir / "checkpoints"
        return SuperResolver.from_config(config, checkpoints, self.step, **self.sampling)


def upscale(
    workdir: epath.Path,
    input_path: epath.Path,
    output: epath.Path,
    options: files.Options = files.Options(),  # noqa: B008  (frozen)
    *,
    sampling: Mapping[str, Any] | None = None,
    engine: Engine = "local",
    engine_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> int:
    """Upscales what has no output yet, or one picture; returns how many inputs failed.

    Every output is written whole or not at all, so that what was done by a job that was stopped, or
    killed, need not be done again. `output/manifest.jsonl` says what became of each input.

    Args:
      workdir: of a training run.
      input_path: an image, or a folder of them; local or a URL.
      output: a folder, made where missing.
      options: how.
      sampling: keys of `config.sampling`, before those of `inference.json` and of the config.
      engine: `local` uses the devices of this process, and where there are several processes each
        takes its share; `ray` a cluster (`jobs.ray_engine`).
      engine_options: of `ray_engine.run`.
      overwrite: make outputs anew that are there.

    Raises:
      ValueError: two inputs would have one output, or the folder has outputs made in another way.
      StoppedError: a signal asked to stop.
    """
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"--output={output} is a file; give a folder")
    inputs = files.find_inputs(input_path)
    _check_names(inputs)
    work = _plan(workdir, output, options, dict(sampling or {}))
    # A single picture is made whenever it is asked for.
    is_single = not input_path.is_dir()
    if jax.process_index() == 0 and not is_single:
        manifest.check_recipe(output, _recipe(work), overwrite=overwrite)
        if overwrite:
            for name in manifest.existing(output) & {files.output_name(r.name) for r in inputs}:
                (output / name).unlink()
    parallel.wait_for_all()
    there = set() if is_single else manifest.existing(output)
    share = list(inputs)[jax.process_index() :: jax.process_count()]
    missing = [ref for ref in share if files.output_name(ref.name) not in there]
    if len(missing) < len(share):
        print(f"{len(share) - len(missing)} of {len(share)} outputs are there already")
    rows = manifest.Manifest(output)
    try:
        with parallel.StopSignal() as stop, shared.progress_bar("upscale", len(missing)) as bar:
            if missing and engine == "ray":
                from sr3_jax.jobs import ray_engine  # late: ray is optional

                records = ray_engine.run(work, missing, **(engine_options or {}))
                _collect(records, rows, stop, functools.partial(shared.advance, bar, 1.0))
            elif missing:
                _upscale_here(work, missing, rows, stop, bar)
    finally:
        rows.flush()
    parallel.wait_for_all()
    if jax.process_index() != 0:
        return 0
    return _conclude(output, [ref.name for ref in inputs])


def _upscale_here(
    work: Work,
    missing: Sequence[sources.FileRef],
    rows: manifest.Manifest,
    stop: parallel.StopSignal,
    bar: Any,
) -> None:
    """On the devices of this process."""
    resolver = work.load()
    each_call = len(missing) <= _FEW or jax.default_backend() == "cpu"

    def advance(share: float) -> None:
        shared.check_signal(stop)
        shared.advance(bar, share)

    records = files.upscale_files(
        resolver, missing, work.output, work.options, advance if each_call else None
    )
    _collect(records, rows, stop, (lambda: None) if each_call else lambda: shared.advance(bar, 1.0))


def _collect(
    records: Iterator[files.Record],
    rows: manifest.Manifest,
    stop: parallel.StopSignal,
    done: Callable[[], None],
) -> None:
    for record in records:
        rows.add(record)
        done()
        shared.check_signal(stop)


def _plan(
    workdir: epath.Path, output: epath.Path, options: files.Options, sampling: dict[str, Any]
) -> Work:
    """Checks what was asked for before any weights are loaded, and fixes what may change."""
    config = config_file.load(workdir / "config.json")
    if not factory.has_source(config):
        raise ValueError(
            f"the network of {workdir} makes images from nothing, so it upscales none; use "
            "--mode=generate"
        )
    sampling = sampling_factory.tuned(workdir, config) | sampling
    changed = sampling_factory.changed(config, sampling)
    sampling_factory.sampler(changed, options.steps)
    if not (workdir / "checkpoints").is_dir():
        raise FileNotFoundError(f"{workdir / 'checkpoints'} does not exist: train first")
    checkpointer = checkpoint.Checkpointer(workdir / "checkpoints", read_only=True)
    step = checkpointer.find(factory.checkpoint(config))
    checkpointer.close()
    return Work(str(workdir), step, sampling, str(output), options)


def _recipe(work: Work) -> dict[str, Any]:
    """All that decides what an input becomes."""
    config = config_file.load(epath.Path(work.workdir) / "config.json")
    changed = sampling_factory.changed(config, work.sampling)
    how = sampling_factory.recipe(changed)
    options = dataclasses.asdict(work.options)
    how["num_steps"] = options.pop("steps") or how["num_steps"]
    return {"workdir": work.workdir, "checkpoint": work.step, **options, **how}


def _check_names(inputs: sources.Source) -> None:
    seen: dict[str, str] = {}
    for ref in inputs:
        name = files.output_name(ref.name)
        if name in seen:
            raise ValueError(
                f"{seen[name]} and {ref.name} would both become {name}; rename one of them"
            )
        seen[name] = ref.name


def _conclude(output: epath.Path, names: Sequence[str]) -> int:
    """Makes the manifest, says what became of the inputs, and how many failed."""
    counts = manifest.merge(output, names)
    failed = counts.get("failed", 0)
    print(f"{len(names) - failed} of {len(names)} images are in {output}")
    if failed:
        wanted = set(names)
        rows = [r for r in manifest.read(output) if r.status == "failed" and r.input in wanted]
        for row in rows[:20]:
            print(f"failed: {row.input}: {row.error}")
        if len(rows) > 20:
            print(f"and {len(rows) - 20} more: {output / manifest.NAME}")
    missing = len(names) - sum(counts.values())
    if missing:
        logging.error("%d inputs have neither output nor row; run the command again", missing)
    return failed + missing
