"""What pretrained networks say of a job's images, and the report of those made from nothing."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from sr3_jax.config import Config, image_sets
from sr3_jax.data import folders, storage
from sr3_jax.evaluation import evaluator, scoring
from sr3_jax.evaluation.pretrained import common, process
from sr3_jax.evaluation.report import page, provenance, tables
from sr3_jax.inference import cascade
from sr3_jax.jobs import shared


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to measure of images made from nothing.

    Attributes:
      config: its sections `evaluation`, and `data` of the last stage; see `judge`.
      paper_tables: whose figures stand beside.
    """

    config: Config
    paper_tables: tuple[str, ...] = ()


def judge(
    config: Config,
    workdir: epath.Path,
    methods: Mapping[str, common.Images],
    reference: common.Images | None,
    labels: Sequence[int] = (),
) -> process.Judged:
    """What the networks of `config.evaluation.feature_metrics` say, if any.

    Args:
      config: its sections `evaluation`, and `data` for statistics of the training images.
      workdir: of the run, where those are kept.
      methods: images by name.
      reference: what each should be; None where there is no such thing.
      labels: of the references.
    """
    wanted, given = config.evaluation, config.evaluation.fid_reference
    if not wanted.feature_metrics:
        return process.Judged({}, {}, [])
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
    return process.judge(
        methods=methods,
        reference=reference,
        labels=labels,
        metrics=wanted.feature_metrics,
        weights=wanted.weights,
        **of_fid,
    )


def check_generated(measure: Wanted, num_images: int) -> None:
    """Whether FID can be measured of so many images made from nothing, before they are made.

    Raises:
      FileNotFoundError: what to compare with is missing, or the weights are.
      ValueError: another metric, nothing to compare with, or too few images.
    """
    config, wanted = measure.config, measure.config.evaluation
    given = wanted.fid_reference
    if wanted.feature_metrics != ("fid",):
        raise ValueError(
            f"config.evaluation.feature_metrics = {wanted.feature_metrics}: of images that were "
            "made from nothing only ('fid',) can be measured"
        )
    if not given:
        raise ValueError(
            "config.evaluation.fid_reference is empty; give `train`, a folder of images, or an "
            ".npz file of statistics"
        )
    if num_images < 10:
        raise ValueError(
            f"num_images = {num_images}: FID and IS need at least 10, the paper 50,000"
        )
    for path in (given if given != "train" else "", wanted.weights["fid"]):
        if path and not storage.exists(path):
            raise FileNotFoundError(f"{path} of config.evaluation does not exist")
    if given == "train":
        image_sets.training_source(config)
    for number in measure.paper_tables:
        tables.paper_rows(number)


def report_generated(
    measure: Wanted,
    stages: Sequence[cascade.Stage],
    images: common.Images,
    output: epath.Path,
) -> None:
    """Measures FID and the Inception score of a cascade's images, and writes what they are.

    `report.md` has them beside the paper's, `metrics.json` the numbers; the table is printed.
    """
    said = judge(measure.config, epath.Path(stages[-1].workdir), {"ours": images}, None)
    means = {"ours": {**said.means["ours"], "n": len(images)}}
    lines = [f"# {len(images)} images of {stages[-1].image_size} pixels", evaluator.table(means)]
    for number in measure.paper_tables:
        found = tables.paper_rows(number)
        rows = {row["method"]: row["cells"] for row in found["rows"]}
        headings = [column.heading for column in found["columns"]]
        lines += [
            f"## The paper's Table {number}: {found['task']}",
            "\n".join(
                [
                    f"| method | {' | '.join(headings)} |",
                    "|---" * (len(headings) + 1) + "|",
                    *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
                ]
            ),
            "\n".join(f"- {statement}" for statement in found["protocol"]),
        ]
    how = [
        f"Stage {i}: {stage.workdir}, step {stage.step}, {stage.image_size} pixels, "
        f"{stage.config.sampling.num_steps} steps of {stage.config.sampling.sampler}."
        for i, stage in enumerate(stages, 1)
    ]
    made = provenance.collect()
    lines += [
        "## How ours were made and measured",
        "\n".join(
            f"- {page.markdown_safe(line)}"
            for line in (*how, *said.protocol, *(f"{k}: {v}" for k, v in made.items()))
        ),
    ]
    storage.write_whole(output / "report.md", ("\n\n".join(lines) + "\n").encode())
    evaluator.write_json(means, output / "metrics.json")
    print(evaluator.table(means))
    print(f"report: {output / 'report.md'}")
