"""Metrics of pretrained networks for a job's images; the report of images made from nothing."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from sr3_jax.config import Config, image_sets, in_words, resolve
from sr3_jax.data import folders, storage
from sr3_jax.evaluation import evaluator, scoring
from sr3_jax.evaluation.pretrained import common, process
from sr3_jax.evaluation.report import markdown, provenance, tables
from sr3_jax.inference import cascade
from sr3_jax.jobs import shared
from sr3_jax.metrics import registry


@dataclasses.dataclass(frozen=True)
class GeneratedMetrics:
    """The metrics of images made from nothing.

    Attributes:
      config: its sections `evaluation`, and `data` of the last stage; see `measure`.
      paper_tables: tables of the paper to print beside them.
    """

    config: Config
    paper_tables: tuple[str, ...] = ()


def check(config: Config) -> None:
    """Checks that the packages and files of `config.evaluation.feature_metrics` are there.

    Raises:
      ValueError: naming what is missing.
    """
    if missing := list(resolve.metrics(config.evaluation, config.evaluation.feature_metrics)):
        raise ValueError(in_words(missing))


def measure(
    config: Config,
    workdir: epath.Path,
    methods: Mapping[str, common.Images],
    reference: common.Images | None,
    labels: Sequence[int] = (),
) -> common.Measured:
    """Computes the metrics of `config.evaluation.feature_metrics`, if any.

    Args:
      config: its sections `evaluation`, and `data` for statistics of the training images.
      workdir: workdir of the run, which keeps those statistics.
      methods: images by name.
      reference: reference of each image; None for images made from nothing.
      labels: labels of the references.
    """
    wanted, given = config.evaluation, config.evaluation.fid_reference
    if not wanted.feature_metrics:
        return common.Measured()
    of_fid: dict[str, Any] = {}
    if given == "train":
        # Kept, since they take hours for ImageNet.
        index = workdir / shared.INDEX
        sizes = [config.evaluation_size, wanted.weights["fid"]]
        data = json.dumps([config.data.source, config.data.path, *sizes])
        kept = index / f"inception_{hashlib.sha256(data.encode()).hexdigest()[:12]}.npz"
        make = functools.partial(image_sets.central_training_images, config, index)
        of_fid = {"fid_reference": str(kept), "make_fid_reference": make}
    elif given.endswith(".npz"):
        of_fid = {"fid_reference": given}
    elif given:
        of_fid = {"fid_reference": scoring.Read(folders.folder(given))}
    inputs = common.Inputs(methods, reference, labels, **of_fid)
    return process.measure(wanted.feature_metrics, inputs, wanted.weights)


def check_generated(wanted: GeneratedMetrics, num_images: int) -> None:
    """Checks that images made from nothing can be measured, before they are made.

    Raises:
      ValueError: a metric needs references or labels, its packages or files are missing, or there
        are too few images.
    """
    config, options = wanted.config, wanted.config.evaluation
    possible = registry.options(without=("reference", "labels"))
    if not set(options.feature_metrics) <= set(possible):
        raise ValueError(
            f"config.evaluation.feature_metrics = {options.feature_metrics}: of images that were "
            f"made from nothing only {possible} can be measured"
        )
    if not options.fid_reference:
        raise ValueError(
            "config.evaluation.fid_reference is empty; give `train`, a folder of images, or an "
            ".npz file of statistics"
        )
    if num_images < 10:
        raise ValueError(
            f"num_images = {num_images}: FID and IS need at least 10 (the paper took 50,000); give "
            "more with --num_images, or with --config.evaluation.num_images for a single network"
        )
    check(config)
    if options.fid_reference == "train":
        image_sets.training_source(config)
    for number in wanted.paper_tables:
        tables.paper_rows(number)


def report_generated(
    wanted: GeneratedMetrics,
    stages: Sequence[cascade.Stage],
    images: common.Images,
    output: epath.Path,
) -> None:
    """Measures a cascade's images; writes `report.md` and `metrics.json`, and prints the table."""
    found = measure(wanted.config, epath.Path(stages[-1].workdir), {"ours": images}, None)
    means = {"ours": {**found.means["ours"], "n": len(images)}}
    lines = [f"# {len(images)} images of {stages[-1].image_size} pixels", evaluator.table(means)]
    for number in wanted.paper_tables:
        table = tables.paper_rows(number)
        lines += [
            f"## The paper's Table {number}: {table['task']}",
            markdown.table(
                ["method", *(column.heading for column in table["columns"])],
                ([row["method"], *row["cells"]] for row in table["rows"]),
            ),
            "\n".join(f"- {statement}" for statement in table["protocol"]),
        ]
    how = [
        f"Stage {i}: {stage.workdir}, step {stage.step}, {stage.image_size} pixels, "
        f"{stage.config.sampling.num_steps} steps of {stage.config.sampling.sampler}."
        for i, stage in enumerate(stages, 1)
    ]
    made = (f"{name}: {value}" for name, value in provenance.collect().items())
    lines += [
        "## How ours were made and measured",
        markdown.bullets([*how, *found.protocol, *made]),
    ]
    storage.write_whole(output / "report.md", ("\n\n".join(lines) + "\n").encode())
    evaluator.write_json(means, output / "metrics.json")
    print(evaluator.table(means))
    print(f"report: {output / 'report.md'}")
