"""Calibration of a trained network on held-out images: `--mode=calibrate`."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from etils import epath

from sr3_jax import conformal, parallel, sizes
from sr3_jax.config import Config, image_sets, schedules
from sr3_jax.data import resumable, sources, storage
from sr3_jax.evaluation import coverage, evaluator, outputs
from sr3_jax.evaluation.report import grids, markdown, provenance
from sr3_jax.inference import cascade, confidence, visualization
from sr3_jax.jobs import fields, held_out, shared

if TYPE_CHECKING:  # imported only where images are read: it takes seconds
    from sr3_jax.data.pipeline import Pipeline

FOLDER = "calibration"
_FEWEST = 20  # images
_SHOWN = 6  # images, in a picture
_DIGITS = 10  # that identify an image, hexadecimal
_SHOWN_CONFIDENCE = 0.9


def calibrate(
    config: Config, workdir: epath.Path, sampling: Mapping[str, Any], *, only_check: bool = False
) -> None:
    """Makes intervals that hold a promised share of the truth, and shows what they hold.

    Held-out images are drawn by `config.seed` and dealt out: a quarter gives the intervals' shape,
    half their width, and the last quarter is used for nothing but to count what they hold. All
    samples are kept in `workdir/calibration/images`, so the same command goes on. At the end
    `workdir/calibration.json` holds the intervals for upscaling, `calibration/report.md` the
    tables, `coverage.json` their numbers, `coverage.png` their picture, and `samples.png` some
    images.

    With `only_check`, the intervals that are there are held against all images drawn, and
    `calibration/check` gets the same files.

    Args:
      config: config of the run; `config.calibration` has the options.
      workdir: workdir of the run.
      sampling: keys of `config.sampling`, before those of `inference.json` and of the config.
      only_check: whether the intervals stay as they are.

    Raises:
      FileNotFoundError: there are no intervals to check.
      ValueError: the network has no samples, or too few images are usable.
      HeldError: another calibration is at work in the workdir.
      StoppedError: a signal asked to stop.
    """
    check(config)
    there = confidence.read(workdir) if only_check else None
    count = there.num_samples if there else config.calibration.num_samples
    of_samples = dataclasses.replace(config.evaluation, num_samples=count)
    config = dataclasses.replace(config, evaluation=of_samples)
    with shared.holding(workdir / FOLDER, "calibration"):
        shared.check_same_config(config)
        stage = cascade.open_stage(workdir, config=config, **sampling)
        if there:
            there.check(stage.fingerprint(), workdir)
        _calibrate(stage, workdir, there)


def check(config: Config) -> None:
    """Raises ValueError for a network that cannot be calibrated."""
    if not config.has_source:
        raise ValueError("the network makes images from nothing, so that no truth is known of them")
    if config.predicts_image:
        raise ValueError(
            f"config.method = {config.method!r} gives one answer, and intervals are made of "
            "samples; calibrate a network of method sr3"
        )
    if size := config.evaluation.network_input:
        raise ValueError(
            f"config.evaluation.network_input = {size} resizes what upscaling does not; set it to 0"
        )


def _calibrate(
    stage: cascade.Stage, workdir: epath.Path, there: confidence.Calibrated | None
) -> None:
    config, folder = stage.config, workdir / FOLDER / ("check" if there else "")
    shared.list_images(config, workdir, training=False)
    source = image_sets.evaluation_source(config, workdir / shared.INDEX)
    if not there:
        _check_enough(len(source))  # before any long work
    resolver = stage.load()
    drawn = np.random.default_rng(config.seed).permutation(len(source))
    source = sources.Subset(source, np.sort(drawn[: config.calibration.num_images or None]))
    pipeline = image_sets.make_pipeline(
        config,
        source,
        resolver.batch_size * jax.process_count(),
        config.evaluation_size,
        downsampling=config.evaluation.downsampling,
        signed=False,
    )
    shared.check_same_images(pipeline)
    numbers = []
    with shared.progress_bar("calibrate", pipeline.num_images) as bar:
        fingerprint = held_out.fingerprint(config, workdir, resolver)
        network = held_out.Network(config, resolver, fingerprint, bar)
        method = outputs.kept(
            evaluator.Method(network.run, config.num_samples),
            config.method,
            folder / "images",
            fingerprint,
            takes_classes=resolver.num_classes > 0,
        )
        batches = shared.with_known_classes(
            pipeline, pipeline.evaluation_batches(), resolver.num_classes
        )
        batches = outputs.with_inputs(held_out.counted(batches, bar), folder / "images")
        for batch in batches:
            inputs = evaluator.inputs_of(batch)
            if len(inputs.index):
                method.run(inputs)
            numbers.append(np.where(batch["weight"] > 0, batch["index"], -1))
    shared.count_unusable(pipeline)
    found = parallel.of_all_processes(np.concatenate(numbers))
    found = np.sort(found[found >= 0])
    if jax.process_index() == 0:
        images = _Images(folder / "images", config, found.tolist(), source, pipeline.dtype)
        _conclude(stage, workdir, folder, images, pipeline, there)
    parallel.wait_for_all()


class _Images(NamedTuple):
    """Held-out images and their samples, read from files when they are asked for."""

    folder: epath.Path
    config: Config
    numbers: Sequence[int]
    source: sources.Source
    dtype: np.dtype

    def samples(self, number: int) -> np.ndarray:
        """Returns the samples [k, h, w, c] of an image of the set."""
        name = self.config.method
        names = [name, *(f"{name}_sample_{k}" for k in range(1, self.config.num_samples))]
        return np.stack([self.read(each, number) for each in names])

    def read(self, name: str, number: int) -> np.ndarray:
        """Returns an image of the set; `name` is `input`, `reference`, or a method."""
        return outputs.Files(self.folder / name, [number], self.dtype)[0]

    def digest(self, number: int) -> str:
        """Returns what identifies an image, whatever window is cut out of it."""
        pixels = np.ascontiguousarray(self.source[number].read().image)
        return resumable.digest(pixels.tobytes())[:_DIGITS]

    def each(self, numbers: Sequence[int]) -> Iterator[coverage.Image]:
        """Yields images with centre and deviation of their samples."""
        for number in numbers:
            samples = confidence.in_units(self.samples(number))
            truth = confidence.in_units(self.read("reference", number))
            yield coverage.Image(
                np.asarray(truth, np.float64),
                conformal.center(samples),
                conformal.local_deviation(samples),
                len(samples),
            )


def _conclude(
    stage: cascade.Stage,
    workdir: epath.Path,
    folder: epath.Path,
    images: _Images,
    pipeline: Pipeline,
    there: confidence.Calibrated | None,
) -> None:
    """Makes the intervals of the samples, or takes those there are, and tells what they hold."""
    config, tested = stage.config, list(images.numbers)
    if made := there:
        used = set(made.about["used"])
        tested = [number for number in tested if images.digest(number) not in used]
        if not tested:
            raise ValueError(
                "calibration has used all of these images, so they say nothing new; give others by "
                "--config.data.eval_path"
            )
        what = (
            f"The intervals are those of {confidence.FILE}. All figures are of {len(tested)} "
            "images that did not make them; "
            f"{len(images.numbers) - len(tested)} that did are left out."
        )
    else:
        made, tested = _made(stage, images)
        what = (
            f"{made.about['num_fitted']} images gave the shape of the intervals "
            f"({made.about['shape']}), {made.about['num_calibrated']} their width. All figures are "
            f"of {len(tested)} others."
        )
    measured = coverage.measure(made.calibration, images.each(tested))
    evaluator.write_json(coverage.as_json(measured), folder / "coverage.json")
    coverage.draw(measured, folder / "coverage.png")
    _draw_samples(images, made.calibration, tested[:_SHOWN], folder / "samples.png")
    text = coverage.tables(measured)
    units = "levels of 255" if config.has_levels else "the units of the data"
    protocol = [
        what,
        f"Intervals are around the mean of {made.num_samples} samples, in {units}.",
        *provenance.protocol(config, pipeline, schedules.sampler(config).nfe),
        *(
            f"{name}: {fact}"
            for name, fact in provenance.collect(checkpoint_step=stage.step).items()
        ),
    ]
    report = f"# Coverage of intervals\n\n{text}\n{markdown.bullets(protocol)}\n"
    storage.write_whole(folder / "report.md", report.encode())
    print(text)
    if not there:  # written last: with it, upscaling keeps the promises
        made.write(workdir / confidence.FILE)
        print(f"intervals: {workdir / confidence.FILE}")
    print(f"report: {folder / 'report.md'}; drawn: coverage.png, samples.png beside it")


def _check_enough(count: int) -> None:
    if count < _FEWEST:
        raise ValueError(
            f"{count} held-out images can be used; calibration takes {_FEWEST} at least, and 200 "
            "for intervals that are hardly wider than they have to be; give more by "
            "config.data.eval_path or config.data.num_eval_images"
        )


def _made(stage: cascade.Stage, images: _Images) -> tuple[confidence.Calibrated, list[int]]:
    """Makes the intervals; returns them, and the images that are left to look at.

    Raises:
      ValueError: there are too few images.
    """
    config, count = stage.config, len(images.numbers)
    _check_enough(count)
    dealt = np.random.default_rng([config.seed, 1]).permutation(images.numbers).tolist()
    part = count // 4
    fitted, counted, tested = dealt[:part], dealt[part:-part], dealt[-part:]
    shaping = ((each.truth - each.center, each.deviation) for each in images.each(fitted))
    channels = conformal.fit(shaping, config.calibration.shape)
    risks = [
        conformal.risk(each.truth - each.center, each.deviation, channels)
        for each in images.each(counted)
    ]
    calibration = conformal.Calibration(channels, np.array(risks))
    about = {
        "shape": config.calibration.shape,
        "image_size": list(sizes.sides(config.evaluation_size)),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "num_fitted": len(fitted),
        "num_calibrated": len(counted),
        "checkpoint_step": stage.step,
        "used": [images.digest(number) for number in (*fitted, *counted)],
    }
    made_with = confidence.sampled(stage.fingerprint())
    made = confidence.Calibrated(calibration, config.num_samples, made_with, about)
    return made, tested


def _draw_samples(
    images: _Images, calibration: conformal.Calibration, numbers: Sequence[int], path: epath.Path
) -> None:
    """Draws inputs, means, ends of the intervals, their half-widths, and where the truth is out."""
    try:
        band = calibration.choose(conformal.Promise(_SHOWN_CONFIDENCE))
    except ValueError:
        return  # too few images for this promise
    columns: dict[str, list[np.ndarray]] = {}
    for number in numbers:
        samples, truth = images.samples(number), images.read("reference", number)
        lower, upper = confidence.interval(samples, band)
        is_out = ((truth < lower) | (truth > upper)).any(axis=-1)
        half = band.half_widths(conformal.local_deviation(confidence.in_units(samples)))
        shown = {
            "input": images.read("input", number),
            "mean of samples": samples.mean(axis=0).astype(samples.dtype),
            "lower": lower,
            "upper": upper,
            "reference": truth,
        }
        if images.config.scalings:
            shown = fields.drawn(
                {name: each[None] for name, each in shown.items()}, images.config.scalings.image
            )
            shown = {name: each[0] for name, each in shown.items()}
        width = np.nan_to_num(half.mean(axis=-1) / max(float(np.nanmax(half)), 1e-30))
        shown["half-width"] = visualization.coloured(width)
        shown["truth outside"] = np.where(is_out[..., None], np.uint8(255), np.uint8(0)).repeat(
            3, -1
        )
        for name, each in shown.items():
            columns.setdefault(name, []).append(each)
    order = [*itertools.islice(columns, 4), "half-width", "truth outside", "reference"]
    grids.save(grids.grid({name: np.stack(columns[name]) for name in order}), path)
