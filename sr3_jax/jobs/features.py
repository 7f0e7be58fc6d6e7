"""Measures a job's images with pretrained networks; the report of images made from nothing."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from sr3_jax.config import Config, image_sets
from sr3_jax.data import folders, storage
from sr3_jax.evaluation import evaluator, scoring
from sr3_jax.evaluation.pretrained import common, process
from sr3_jax.evaluation.report import markdown, provenance, tables
from sr3_jax.inference import cascade
from sr3_jax.jobs import shared
from sr3_jax.metrics import registry


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to measure of images made from nothing.

    Attributes:
      config: its sections `evaluation`, and `data` of the last stage; see `measure`.
      paper_tables: whose figures stand beside.
    """

    config: Config
    paper_tables: tuple[str, ...] = ()


def check_installed(options: Sequence[str], key: str = "evaluation.feature_metrics") -> None:
    """Checks that what pretrained networks need is installed, without importing it.

    Args:
      options: of `registry.options()`.
      key: of the config, which asks for them.

    Raises:
      ImportError: naming the library that is not there.
    """
    for metric in registry.of("network"):
        if metric.option in options and importlib.util.find_spec(metric.package) is None:
            raise ImportError(
                f"config.{key} asks for {metric.option!r}, which needs {metric.package}: "
                "pip install -e '.[eval]', or leave it out"
            )


def measure(
    config: Config,
    workdir: epath.Path,
    methods: Mapping[str, common.Images],
    reference: common.Images | None,
    labels: Sequence[int] = (),
) -> common.Measured:
    """Measures what `config.evaluation.feature_metrics` asks for, if anything.

    Args:
      config: its sections `evaluation`, and `data` for statistics of the training images.
      workdir: of the run, where those are kept.
      methods: images by name.
      reference: what each should be; None where there is no such thing.
      labels: of the references.
    """
    wanted, given = config.evaluation, config.evaluation.fid_reference
    if not wanted.feature_metrics:
        return common.Measured()
    of_fid: dict[str, Any] = {}
    if given == "train":
        # Taken once and kept: for ImageNet that takes hours.
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


def check_generated(wanted: Wanted, num_images: int) -> None:
    """Checks that so many images made from nothing can be measured, before they are made.

    Raises:
      FileNotFoundError: what to compare with is missing, or the weights are.
      ImportError: see `check_installed`.
      ValueError: a metric that needs references or labels, nothing to compare with, or too few
        images.
    """
    config, options = wanted.config, wanted.config.evaluation
    given, possible = options.fid_reference, registry.options(without=("reference", "labels"))
    if not set(options.feature_metrics) <= set(possible):
        raise ValueError(
            f"config.evaluation.feature_metrics = {options.feature_metrics}: of images that were "
            f"made from nothing only {possible} can be measured"
        )
    if not given:
        raise ValueError(
            "config.evaluation.fid_reference is empty; give `train`, a folder of images, or an "
            ".npz file of statistics"
        )
    if num_images < 10:
        raise ValueError(
            f"num_images = {num_images}: FID and IS need at least 10 (the paper took 50,000); give "
            "more with --num_images, or with --config.evaluation.num_images for a single network"
        )
    for key in ("fid_reference", "inception_weights"):
        path = getattr(options, key)
        if path not in ("", "train") and not storage.exists(path):
            raise FileNotFoundError(
                f"config.evaluation.{key} = {path!r} does not exist; give the path of one that does"
            )
    check_installed(options.feature_metrics)
    if given == "train":
        image_sets.training_source(config)
    for number in wanted.paper_tables:
        tables.paper_rows(number)


def report_generated(
    wanted: Wanted,
    stages: Sequence[cascade.Stage],
    images: common.Images,
    output: epath.Path,
) -> None:
    """Measures FID and the Inception score of a cascade's images, and writes what they are.

    `report.md` has them beside the paper's, `metrics.json` the numbers; the table is printed.
    """
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
