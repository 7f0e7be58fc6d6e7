"""Evaluation of a trained network, and scores of images that any program made."""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from sr3_jax import parallel, sizes
from sr3_jax.config import Config, image_sets
from sr3_jax.data import folders, locks, storage
from sr3_jax.evaluation import evaluator, outputs, scoring
from sr3_jax.evaluation.pretrained import common
from sr3_jax.evaluation.report import grids, markdown, page, provenance, tables
from sr3_jax.inference.super_resolver import SuperResolver
from sr3_jax.jobs import features, fields, generating, held_out, shared
from sr3_jax.metrics import registry


def evaluate(config: Config, workdir: epath.Path) -> None:
    """Scores a checkpoint (`config.evaluation.checkpoint`) on held-out images; prints the table.

    Writes into `workdir/evaluation`: every image (`evaluation.outputs`), so that an evaluation of
    the same weights and sampling goes on; `metrics.json` (means by method), `images.json` (the
    numbers of each image), `samples.png` and, for SR3, `refinement.png`. For a network without a
    source see `generating.evaluate`.
    """
    features.check(config)
    if not config.has_source:
        generating.evaluate(config, workdir)
        return
    with shared.holding(workdir / "evaluation", "evaluation"):
        _evaluate(config, workdir)


def _evaluate(config: Config, workdir: epath.Path) -> None:
    shared.check_same_config(config)
    folder = workdir / "evaluation"
    images = folder / "images"
    resolver = SuperResolver.from_config(config, workdir / "checkpoints")
    shared.list_images(config, workdir, training=False)
    pipeline = image_sets.evaluation_pipeline(
        config,
        resolver.batch_size * jax.process_count(),
        index_dir=workdir / shared.INDEX,
        signed=False,
    )
    scoring, baseline = _scoring(config, workdir), evaluator.bicubic(resolver.factor)
    if not config.has_levels:
        baseline = evaluator.interpolation(resolver.factor, config.data.channels)
    shared.check_same_images(pipeline)
    name = config.method
    size, low = (sizes.text(each, short=True) for each in pipeline.sizes)
    with shared.progress_bar("evaluate", pipeline.num_images) as bar:
        fingerprint = held_out.fingerprint(config, workdir, resolver)
        network = held_out.Network(config, resolver, fingerprint, bar, folder / "refinement.png")
        made = evaluator.Method(network.run, config.num_samples)
        classes = resolver.num_classes
        method = outputs.kept(
            made, name, images, fingerprint, network.lacks_strip, takes_classes=classes > 0
        )
        batches = shared.with_known_classes(pipeline, pipeline.evaluation_batches(), classes)
        evaluation = evaluator.evaluate(
            {"bicubic": baseline, name: method},
            outputs.with_inputs(held_out.counted(batches, bar), images),
            scoring=scoring,
            share=parallel.of_all_processes,
        )
    shared.count_unusable(pipeline)
    if jax.process_index() == 0:
        for skipped, reason in pipeline.skipped.items():
            logging.warning("not scored: %s: %s", skipped, reason)
        numbers = evaluation.index.tolist()
        keys = ("input", "reference", name)
        found = {key: outputs.Files(images / key, numbers, pipeline.dtype) for key in keys}
        found["bicubic"] = outputs.Upsampled(found["input"], found["reference"])
        names = [pipeline.name(number) for number in numbers]
        if rows := range(min(config.evaluation.num_pictures, len(numbers))):
            shown = {
                shared.LABELS.get(key, key): np.stack([found[key][i] for i in rows])
                for key in ("input", "bicubic", name, "reference")
            }
            if config.has_levels:
                grids.save(grids.grid(shown), folder / "samples.png")
            else:
                fields.save_sheets(shown, found, scoring.labels, folder)
        if not config.has_levels:
            found = fields.coloured(found, config.scalings.image)
        _conclude(
            workdir,
            folder,
            config,
            tables.Results(evaluation.means, names, evaluation.of_images),
            found,
            labels=evaluation.labels.tolist(),
            title=f"{shared.LABELS.get(name, name)}: {low} to {size} pixels",
            protocol=provenance.protocol(config, pipeline, resolver.nfe()),
            checkpoint_step=resolver.checkpoint_step,
            files=[outputs.file_of(number, pipeline.dtype) for number in numbers],
            figures={} if config.has_levels or not rows else fields.FIGURES,
        )
    parallel.wait_for_all()


def _conclude(
    workdir: epath.Path,
    folder: epath.Path,
    config: Config,
    results: tables.Results,
    images: Mapping[str, common.Images],
    *,
    labels: Sequence[int],
    title: str,
    protocol: list[str],
    checkpoint_step: int | None = None,
    files: Sequence[str] | None = None,
    figures: Mapping[str, str] = types.MappingProxyType({}),
    people: Mapping[str, Any] | None = None,
) -> None:
    """Measures with pretrained networks, writes numbers and report, and prints the table."""
    methods = {name: images[name] for name in results.means}
    found = features.measure(config, workdir, methods, images["reference"], labels)
    rows = [*(["reference"] if found.means.get("reference") else []), *results.means]
    means, of_images = (
        {name: {**ours.get(name, {}), **theirs.get(name, {})} for name in rows}
        for ours, theirs in (
            (results.means, found.means),
            (results.of_images, found.of_images),
        )
    )
    pixels = []
    if config.has_levels:
        of_these = [m.title for m in registry.of("image") if "border" in m.needs]
        pixels = [
            f"{' and '.join(of_these)}: of "
            f"{'Y of YCbCr' if config.evaluation.luminance else 'RGB'}, "
            f"{config.evaluation.crop_border} pixels left out at each side."
        ]
    page.write(
        folder,
        tables.Results(means, results.names, of_images),
        title=title,
        picture=lambda name, i: images[name][i],
        provenance=provenance.collect(config=config, checkpoint_step=checkpoint_step),
        protocol=[
            *protocol,
            *pixels,
            *found.protocol,
        ],
        paper_table=config.evaluation.paper_table,
        with_input="input" in images,
        figures=figures,
        people=people,
    )
    each = {"names": results.names} | ({"files": list(files)} if files else {})
    evaluator.write_json(each | {"scores": of_images}, folder / "images.json")
    # Written last: its presence marks completion.
    evaluator.write_json(means, folder / "metrics.json")
    print(evaluator.table(means))
    if by_channel := tables.channel_rows(means):
        print(markdown.table(*tables.as_text(by_channel)))
    print(f"report: {folder / 'report.html'}")


def _scoring(config: Config, workdir: epath.Path) -> evaluator.Pictures | evaluator.Fields:
    """Returns how outputs are scored."""
    if config.has_levels:
        return evaluator.Pictures(config.evaluation.luminance, config.evaluation.crop_border)
    labels = image_sets.channel_labels(config, workdir / shared.INDEX)
    return evaluator.Fields(labels, config.units.deviation[: len(labels)])


def score(
    config: Config | None,
    workdir: epath.Path,
    reference: str,
    outputs: Mapping[str, str],
    low_resolution: str | None = None,
    people: Mapping[str, Any] | None = None,
) -> None:
    """Scores folders of images that any program made; prints the table.

    Writes `metrics.json` (means by method), `images.json` (the numbers of each image),
    `report.html` and `report.md` into `workdir`.

    Args:
      config: its section `evaluation` says what is measured; None for the defaults.
      workdir: folder of the results.
      reference: folder of the references.
      outputs: folder of each program's images, by the name of the program.
      low_resolution: folder of the programs' inputs.
      people: the section of a human study (`study.report.values`).

    Raises:
      ValueError: images cannot be scored, `workdir` lies among them, or it has files of these
        names that no scoring wrote.
      HeldError: another scoring is at work in `workdir`.
    """
    if jax.process_index() != 0:
        return
    for folder in filter(None, (reference, low_resolution, *outputs.values())):
        if storage.is_within(workdir, folder):
            raise ValueError(
                f"--workdir={workdir} lies in {folder}, so that pictures of the report would be "
                "scored next time; give a folder outside"
            )
    if not _has_metrics(workdir):
        for name in ("metrics.json", "images.json", "report.html", "report.md", "report"):
            if (workdir / name).exists():
                raise ValueError(
                    f"{workdir / name} would be replaced, and it is of no scoring, which would "
                    "have left its means in metrics.json; give another --workdir"
                )
    config = config or Config()
    with locks.hold(workdir, "scoring"):
        features.check(config)
        target = folders.folder(reference)
        with shared.progress_bar("score", len(target)) as bar:
            scores = scoring.score_folders(
                target,
                {name: folders.folder(path) for name, path in outputs.items()},
                folders.folder(low_resolution) if low_resolution else None,
                luminance=config.evaluation.luminance,
                border=config.evaluation.crop_border,
                progress=functools.partial(bar.update, 1),
            )
        protocol = [f"Images: {reference}, as they are."]
        given = ({"Inputs": low_resolution} if low_resolution else {}) | {**outputs}
        protocol += [f"{name}: {path}, matched by name." for name, path in given.items()]
        if any(bits != [8] for bits in scores.bits.values()):
            each = (f"{name} {' and '.join(map(str, bits))}" for name, bits in scores.bits.items())
            protocol.append(
                f"Bits: {', '.join(each)}. Nothing was rounded: a value counts as a share of the "
                "largest of its type, so that 8 bits and the same at 16 score the same."
            )
        _conclude(
            workdir,
            workdir,
            config,
            tables.Results(scores.means, scores.names, scores.of_images),
            scores.images,
            labels=scores.labels,
            title=f"{', '.join(outputs)}: {len(scores.names)} images",
            protocol=protocol,
            people=people,
        )


def _has_metrics(folder: epath.Path) -> bool:
    """Returns whether a folder has the means by method that an evaluation or a scoring leaves."""
    try:
        found = json.loads((folder / "metrics.json").read_bytes())
        return any("n" in means for means in found.values())
    except (OSError, ValueError, TypeError, AttributeError):
        return False
