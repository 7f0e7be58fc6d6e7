"""Upscaling a file or a folder of any size, on one machine or many, so that it can be stopped."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
from absl import logging
from etils import epath

from sr3_jax import parallel
from sr3_jax.config import run_file, sampling_recipe, schedules, with_sampling
from sr3_jax.data import sources, storage
from sr3_jax.inference import files, loading, manifest, reading, recipes
from sr3_jax.inference.super_resolver import SuperResolver
from sr3_jax.jobs import shared

Engine = Literal["local", "ray"]

# Up to so many pictures the bar moves with every network call, for which each is waited for.
_FEW = 32
_MOST_NAMED = 20  # files, in one message


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
        config = run_file.load(workdir / "config.json")
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
    """Upscales what has no output yet, or whose input has changed; returns how many inputs failed.

    Every output is written whole or not at all, so that what was done by a job that was stopped, or
    killed, need not be done again. `output/manifest.jsonl` has the status of each input. Nothing is
    replaced that this program did not write there, and never an input (docs/guarantees.md).

    Args:
      workdir: of a training run.
      input_path: an image, or a folder of them; local or a URL.
      output: a folder, made where missing.
      options: how.
      sampling: keys of `config.sampling`, before those of `inference.json` and of the config.
      engine: `local` uses the devices of this process, and where there are several processes each
        takes its share; `ray` a cluster (`jobs.ray_engine`).
      engine_options: of `ray_engine.run`.
      overwrite: make outputs anew that are there, whoever wrote them.

    Raises:
      ValueError: an output would be one of the inputs, two inputs would have one output, or the
        folder has outputs made in another way, or files that this program did not write.
      HeldError: another job is at work in the folder.
      OSError: the folder takes no files.
      StoppedError: a signal asked to stop.
    """
    output = epath.Path(storage.absolute(output))
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"--output={storage.shown(output)} is a file; give a folder")
    inputs = reading.find_inputs(input_path, output)
    _check_outputs(inputs, input_path, output, options)
    work, recipe, older = _plan(workdir, output, options, dict(sampling or {}))
    if not overwrite:
        recipes.check(output, recipe, older)
    with shared.holding(output, "upscaling"):
        if jax.process_index() == 0:
            _prepare(inputs, input_path, output, recipe, options, overwrite=overwrite)
        parallel.wait_for_all()
        names = manifest.planned(output)
        missing = [ref for ref in inputs if ref.name in names]
        if len(missing) < len(inputs) and jax.process_index() == 0:
            print(f"{len(inputs) - len(missing)} of {len(inputs)} outputs are there already")
        share = missing[jax.process_index() :: jax.process_count()]
        rows = manifest.Manifest(output)
        # Pictures by their names, of formats that are not read.
        unread = getattr(inputs, "unread", ())
        for name in unread if jax.process_index() == 0 else ():
            suffix = os.path.splitext(name)[1]
            error = f"files of this format ({suffix}) are not read; convert it, to PNG for example"
            rows.add(manifest.Record(name, "", "failed", error))
        try:
            with (
                parallel.StopSignal(alone=True) as stop,
                shared.progress_bar("upscale", len(share)) as bar,
            ):
                if share and engine == "ray":
                    from sr3_jax.jobs import ray_engine  # late: ray is optional

                    records = ray_engine.run(work, share, **(engine_options or {}))
                    _collect(records, rows, stop, functools.partial(shared.advance, bar, 1.0))
                elif share:
                    _upscale_here(work, share, rows, stop, bar)
        finally:
            rows.flush()
        parallel.wait_for_all()
        if jax.process_index() != 0:
            return 0
        return _conclude(output, [*(ref.name for ref in inputs), *unread])


def _prepare(
    inputs: sources.Source,
    input_path: epath.Path,
    output: epath.Path,
    recipe: Mapping[str, Any],
    options: files.Options,
    *,
    overwrite: bool,
) -> None:
    """Finds what is to be made, and writes recipe and plan: with them, that files can be written.

    Raises:
      ValueError: a file in the place of an output is not one that this program wrote there.
    """
    damage = manifest.damage(output)
    if overwrite and (damage or recipes.differs(output, recipe)):
        manifest.forget(output)
    elif damage:
        raise ValueError(damage)
    manifest.merge(output)
    manifest.remove_partials(output)
    names = {ref.name: reading.output_names(ref.name, options) for ref in inputs}
    versions = storage.states(input_path if input_path.is_dir() else input_path.parent, names)
    found = manifest.survey(output, inputs, names, versions, overwrite=overwrite)
    if found.unknown:
        raise ValueError(
            f"{len(found.unknown)} files in {storage.shown(output)} would be replaced, which this "
            "program did not write or which were changed since: "
            f"{shared.listed(found.unknown)}. Move them, give another folder, or --overwrite to "
            "replace them"
        )
    recipes.keep(output, recipe)
    manifest.keep_plan(output, found.tasks)


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
    records: Iterator[manifest.Record],
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
) -> tuple[Work, dict[str, Any], dict[str, Any]]:
    """Checks what was asked for before any weights are loaded, and fixes what may change.

    Returns:
      The work; its recipe, which is all that decides what an input becomes; and what stood in
      recipes before networks had digests.
    """
    workdir = epath.Path(storage.absolute(workdir))
    config = run_file.load(workdir / "config.json")
    if not config.has_source:
        raise ValueError(
            f"the network of {workdir} makes images from nothing, so it upscales none; use "
            "--mode=generate"
        )
    sampling = run_file.tuned(workdir, config) | sampling
    changed = with_sampling(config, sampling)
    schedules.sampler(changed, options.steps)
    step = loading.find(config, workdir / "checkpoints", None)
    network = loading.weights_digest(config, workdir / "checkpoints", step)
    how = sampling_recipe(changed)
    given = dataclasses.asdict(options)
    how["num_steps"] = given.pop("steps") or how["num_steps"]
    recipe = {"network": network, **given, **how}
    work = Work(str(workdir), step, sampling, str(output), options)
    return work, recipe, {"workdir": str(workdir), "checkpoint": step}


def _check_outputs(
    inputs: sources.Source, input_path: epath.Path, output: epath.Path, options: files.Options
) -> None:
    """Checks that each output is a file of its own, and none of the inputs.

    Raises:
      ValueError: names the input and the output.
    """
    made: dict[str, str] = {}
    for ref in inputs:
        for name in reading.output_names(ref.name, options):
            if name in made:
                raise ValueError(
                    f"{storage.shown(made[name])} and {storage.shown(ref.name)} would both become "
                    f"{storage.shown(name)}; rename one of them"
                )
            made[name] = ref.name
    folder = input_path if input_path.is_dir() else input_path.parent
    proposal = f"give another folder, such as --output={storage.shown(folder)}_upscaled"
    if input_path.is_dir() and storage.is_same_file(input_path, output):
        raise ValueError(
            f"--output={storage.shown(output)} is the folder of the inputs, "
            f"--input={storage.shown(input_path)}, whose pictures would be replaced; {proposal}"
        )
    paths = {ref.path for ref in inputs}
    for of_output, of_input in storage.same_files((output / name for name in made), paths):
        raise ValueError(
            f"the output {storage.shown(of_output)} is the input {storage.shown(of_input)}, which "
            f"would be replaced; {proposal}"
        )


def _conclude(output: epath.Path, names: Sequence[str]) -> int:
    """Makes the manifest, prints how many outputs there are, and returns how many inputs failed."""
    manifest.merge(output)
    wanted = set(names)
    rows = [row for row in manifest.read(output) if row.input in wanted]
    failed = [row for row in rows if row.status == "failed"]
    print(f"{len(rows) - len(failed)} of {len(names)} images are in {storage.shown(output)}")
    for row in failed[:_MOST_NAMED]:
        print(f"failed: {storage.shown(row.input)}: {storage.shown(row.error)}")
    if len(failed) > _MOST_NAMED:
        print(f"and {len(failed) - _MOST_NAMED} more: {storage.shown(output / manifest.NAME)}")
    missing = len(names) - len(rows)
    if missing:
        logging.error("%d inputs have neither output nor row; run the command again", missing)
    return len(failed) + missing
