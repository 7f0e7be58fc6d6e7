"""Upscaling a file or a folder of any size, on one machine or many, so that it can be stopped."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
from absl import logging
from etils import epath

from sr3_jax import conformal, parallel, released
from sr3_jax.config import run_file, schedules
from sr3_jax.data import resumable, sources, storage
from sr3_jax.inference import cascade, confidence, inputs, manifest, upscale_files
from sr3_jax.inference.inputs import UpscaleOptions
from sr3_jax.jobs import ray_engine, shared
from sr3_jax.jobs.ray_engine import Work

Engine = Literal["local", "ray"]

_MOST_NAMED = 20  # files, in one message


def upscale(
    workdir: epath.Path,
    input_path: epath.Path,
    output: epath.Path,
    options: UpscaleOptions = UpscaleOptions(),  # noqa: B008  (frozen)
    *,
    sampling: Mapping[str, Any] | None = None,
    engine: Engine = "local",
    engine_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> int:
    """Upscales inputs without an output, and changed ones; returns the number that failed.

    Every output is written whole or not at all, so the same command goes on where a job was stopped
    or killed. `output/manifest.jsonl` has the status of each input. Only files that this program
    wrote are replaced, and never an input (docs/guarantees.md).

    Args:
      workdir: workdir of a training run.
      input_path: an image, or a folder of them; local or a URL.
      output: a folder, which need not exist.
      options: options of upscaling files.
      sampling: keys of `config.sampling`, before those of `inference.json` and of the config.
      engine: `local` uses the devices of this process, or of each process for its share; `ray` a
        cluster (`jobs.ray_engine`).
      engine_options: options of `ray_engine.run`.
      overwrite: replaces all existing outputs, whoever wrote them.

    Raises:
      ValueError: an output would be one of the inputs, two inputs would have one output, or the
        folder has outputs made in another way or files of other programs.
      HeldError: another job is at work in the folder.
      OSError: the folder takes no files.
      StoppedError: a signal asked to stop.
    """
    output = epath.Path(storage.absolute(output))
    options = inputs.for_network(options, run_file.load(released.locate(workdir) / "config.json"))
    found = inputs.find_inputs(input_path, output, are_arrays=options.are_arrays)
    _check_outputs(found, input_path, output, options)
    network = cascade.open_stage(storage.absolute(workdir), **(sampling or {}))
    if not network.config.has_source:
        raise ValueError(
            f"the network of {workdir} makes images from nothing, so it upscales none; use "
            "--mode=generate"
        )
    schedules.sampler(network.config, options.steps)
    if options.band:
        confidence.read(network.workdir).check(_sampled(network, options), workdir)
    work, fingerprint = Work(network, str(output), options), _fingerprint(network, options)
    if not overwrite:
        fingerprint.check(output)
    unread = getattr(found, "unread", ())  # pictures of formats that are not read
    with shared.holding(output, "upscaling", "--output"):
        if jax.process_index() == 0:
            _prepare(found, input_path, output, fingerprint, options, overwrite=overwrite)
        parallel.wait_for_all()
        planned = {task.input for task in manifest.read_plan(output)}
        missing = [ref for ref in found if ref.name in planned]
        rows = manifest.Manifest(output)
        if jax.process_index() == 0:
            if len(missing) < len(found):
                print(f"{len(found) - len(missing)} of {len(found)} outputs are there already")
            for name in unread:
                kind = f"files of this format ({os.path.splitext(name)[1]}) are not read"
                why = f"{kind}; convert it, to PNG for example"
                rows.add(manifest.Record(name, "", "failed", why))
        share = missing[jax.process_index() :: jax.process_count()]
        try:
            for record in _upscale(work, share, engine, engine_options or {}):
                rows.add(record)
        finally:
            rows.flush()
        parallel.wait_for_all()
        if jax.process_index() != 0:
            return 0
        return _conclude(output, [*(ref.name for ref in found), *unread])


def _upscale(
    work: Work,
    missing: Sequence[sources.FileRef],
    engine: Engine,
    engine_options: Mapping[str, Any],
) -> Iterator[manifest.Record]:
    """Yields the record of each input as it is done; raises StoppedError if a signal asks."""
    if not missing:
        return
    stop, is_local = parallel.StopSignal(alone=True), engine == "local"
    progress = shared.progress_of("upscale", len(missing), stop, by_calls=is_local)
    with progress as (after_call, after_image):
        if is_local:
            with stop:
                records = upscale_files.upscale_files(
                    work.load(), missing, work.output, work.options, after_call
                )
                for record in records:
                    yield record
                    after_image()
        else:
            for record in ray_engine.run(work, missing, stop, **engine_options):
                yield record
                after_image()


def _prepare(
    found: sources.Source,
    input_path: epath.Path,
    output: epath.Path,
    fingerprint: resumable.Fingerprint,
    options: UpscaleOptions,
    *,
    overwrite: bool,
) -> None:
    """Finds what is to be made; writes fingerprint and plan, which shows that files can be written.

    Raises:
      ValueError: a file in the place of an output was not written by this program.
    """
    damage = manifest.damage(output)
    if overwrite and (damage or not fingerprint.fits(output)):
        manifest.forget(output)
    elif damage:
        raise ValueError(damage)
    manifest.merge(output)
    resumable.remove_partials(output)
    names = {ref.name: options.output_names(ref.name) for ref in found}
    versions = storage.states(input_path if input_path.is_dir() else input_path.parent, names)
    stale = _left_of_others(output, options, names) if overwrite else []
    tasks, unknown = manifest.survey(output, found, names, versions, overwrite=overwrite)
    if unknown:
        raise ValueError(
            f"{len(unknown)} files in {storage.shown(output)} would be replaced, which this "
            "program did not write or which were changed since: "
            f"{shared.listed(unknown)}. Move them, give another folder, or --overwrite to "
            "replace them"
        )
    for path in stale:
        storage.remove(path)
    fingerprint.keep(output)
    manifest.keep_plan(output, tasks)


def _left_of_others(
    output: epath.Path, options: UpscaleOptions, names: Mapping[str, Sequence[str]]
) -> list[epath.Path]:
    """Returns files that a run with other options wrote beside its outputs, and this one will not.

    Ends of intervals, for instance. They would lie beside a new picture, and be of the old one.
    """
    try:
        before = resumable.read_fingerprint(output) or {}
    except ValueError:
        return []
    former = dataclasses.replace(
        options,
        format=before.get("format"),
        num_samples=before.get("num_samples", 1),
        animate=before.get("animate", False),
        band=conformal.Band((), ()) if "confidence" in before else None,
    )
    made = {name for of_input in names.values() for name in of_input}
    beside = {name for ref in names for name in former.output_names(ref)[1:]}
    return [output / name for name in sorted(beside - made) if storage.exists(output / name)]


def _fingerprint(network: cascade.Stage, options: UpscaleOptions) -> resumable.Fingerprint:
    """Returns everything that decides what an input becomes."""
    how, given = _sampled(network, options), dataclasses.asdict(options)
    del given["steps"], given["band"]
    for name in ("maps", "are_arrays"):  # which came later than other outputs
        if not given[name]:
            del given[name]
    if options.band:
        given |= dataclasses.asdict(options.band.promise)
        given["intervals"] = resumable.digest(repr(options.band).encode())
    return dataclasses.replace(how, values={**how.values, **given})


def _sampled(network: cascade.Stage, options: UpscaleOptions) -> resumable.Fingerprint:
    """Returns the fingerprint of the network, in the number of steps of the options."""
    how = network.fingerprint()
    steps = options.steps or how.values["num_steps"]
    return dataclasses.replace(how, values={**how.values, "num_steps": steps})


def _check_outputs(
    found: sources.Source, input_path: epath.Path, output: epath.Path, options: UpscaleOptions
) -> None:
    """Checks that each output is a file of its own, and none of the inputs.

    Raises:
      ValueError: names the input and the output.
    """
    made: dict[str, str] = {}
    for ref in found:
        for name in options.output_names(ref.name):
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
    paths = {ref.path for ref in found}
    for of_output, of_input in storage.same_files((output / name for name in made), paths):
        raise ValueError(
            f"the output {storage.shown(of_output)} is the input {storage.shown(of_input)}, which "
            f"would be replaced; {proposal}"
        )


def _conclude(output: epath.Path, names: Sequence[str]) -> int:
    """Makes the manifest, prints a summary, and returns the number of inputs that failed."""
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
