"""Makes the tables of docs/tpu.md and docs/generation.md from the compiler's reports.

    python -m sr3_jax.tools.aot_table --reports=docs/tpu --document=docs/tpu.md

compiles every program that has no file in `--reports` yet (two to ten minutes each on two cores),
in a process of its own, by aot_report with `--quick`. It then writes the table of all configs and
topologies into `--document`, between two marks, the table of whole cascades into `--cascades`, and
the chart of the shares of the peak into `--chart`.
Stopped and started again, it compiles what is missing; remove a file to compile it again.
`--only=REGEX` restricts what is compiled, `--render_only` compiles nothing.
"""

from __future__ import annotations

import importlib
import io
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags

from sr3_jax import command_line, parallel
from sr3_jax.config import cascades
from sr3_jax.data import storage
from sr3_jax.evaluation.report import markdown
from sr3_jax.tools.aot import STEPS_OF_THE_PAPER

_REPORTS = flags.DEFINE_string("reports", "docs/tpu", "Folder of the reports.")
_DOCUMENT = flags.DEFINE_string("document", "docs/tpu.md", "File of the table.")
_CASCADES = flags.DEFINE_string("cascades", "docs/generation.md", "File of the table of cascades.")
_CHART = flags.DEFINE_string("chart", "docs/images/tpu_share.png", "File of the chart of shares.")
_ONLY = flags.DEFINE_string("only", "", "Compile only programs whose name matches this.")
_RENDER_ONLY = flags.DEFINE_bool("render_only", False, "Compile nothing.")

_CONFIGS = (
    "ffhq_16_128",
    "imagenet_64_256",
    "imagenet_56_224",
    "ffhq_64_512",
    "ffhq_256_1024",
)
_BASES = ("ffhq_64_base", "imagenet_64_base")
# Stages of cascades in order; compiled for one host, too, on which a few pictures are made.
_STAGES = (*_BASES, "imagenet_64_256", "ffhq_256_1024")
# Configs that differ in their images alone, and so have the same programs.
SAME_PROGRAMS = {"imagenet_64_256": "ffhq_64_256"}
_BATCH_OF_THE_PAPER = ("v3:8x8", "v4:4x4x4", "v5e:8x8", "v5p:4x4x4", "v6e:8x8")
_ONE_HOST = "v3:2x2"
_BEGIN, _END = "<!-- aot_table: begin -->\n", "<!-- aot_table: end -->\n"
# Rows of the table of cascades.
_WHOLE_CASCADES = ("cascade_ffhq_1024", "cascade_imagenet_256")
_SETTINGS = ("v3-8x8-sample", "v3-2x2-sample", "v3-2x2-sample_one")
_CORES_OF_A_CHIP = 2  # of v3, which all settings are on
_CALLS_OF_STUDENTS = 4


def programs() -> Iterator[tuple[str, list[str]]]:
    """Yields each program's name and the flags of its report, in the order of the table."""
    pod, *others = _BATCH_OF_THE_PAPER
    yield from (_program(config, pod, "train") for config in _CONFIGS)
    for config in _CONFIGS:
        yield _program(config, _ONE_HOST, "train", 32, "--largest_batch")
    # Four images a core: with two, a TPU pads each of them to two (docs/tpu.md).
    yield from (_program(config, pod, "sample", 512) for config in _CONFIGS)
    for config in _BASES:
        yield _program(config, pod, "train")
        # A batch that fits; the largest one would be too slow for training.
        yield _program(config, _ONE_HOST, "train", 128)
        yield _program(config, pod, "sample", 512)
    yield from (_program(config, _ONE_HOST, "sample", 32) for config in _STAGES)
    # A single picture on eight cores, which share its height.
    yield from (_program(config, _ONE_HOST, "sample_one", 1) for config in _STAGES)
    for topology in others:
        yield from (_program(config, topology, "train") for config in _CONFIGS)


def _program(
    config: str, topology: str, kind: str, batch_size: int | None = None, *more: str
) -> tuple[str, list[str]]:
    arguments = [f"--config=configs/{config}.py", f"--topology={topology}", "--quick"]
    if kind != "train":
        arguments.append("--mode=sample")
    if batch_size:
        arguments.append(f"--config.train.batch_size={batch_size}")
    return f"{config}-{topology.replace(':', '-')}-{kind}", [*arguments, *more]


def table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the reports as a Markdown table, in the order of `programs`; some may be missing."""
    rows = []
    for row in (reports[name] for name, _ in programs() if name in reports):
        memory = row["hbm_bytes_per_core"]
        cells = [
            ", ".join(filter(None, (row["config"], SAME_PROGRAMS.get(row["config"])))),
            f"{row['topology']} ({row['num_cores']})",
            row["mode"],
            row["batch_size"],
            f"{memory / 1e9:.2f} GB" if memory else "",
        ]
        if not row["fits"]:
            cells[-1] += " **does not fit**"
            rows.append(cells + [""] * 5)
            continue
        # A star marks roofline's sum, where the compiler gives no estimate.
        star = " *" if row["estimated_step_seconds"] is None else ""
        seconds = _seconds(row)
        days = seconds * STEPS_OF_THE_PAPER / 86_400
        rows.append(
            [
                *cells,
                f"{seconds:.4f} s{star}",
                f"{1 / seconds:.2f}{star}",
                f"{row['share_of_peak']:.1%}" if not star else "",
                f"{days:.1f}{star}" if row["mode"] == "train" else "",
                f"{row['bytes_per_core'] / 1e9:.1f} GB",
            ]
        )
    headings = (
        "config, topology (cores), program, batch, memory per core, step, steps/s, share of peak, "
        "days for 1M steps, bytes moved per core"
    )
    return markdown.table(headings.split(", "), rows) + "\n"


def _seconds(row: Mapping[str, Any]) -> float:
    """Returns the seconds of a step: the compiler's estimate, or else roofline's sum."""
    parts = row["parts"].values()
    return row["estimated_step_seconds"] or sum(part["seconds"] for part in parts)


def cascade_table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the times of whole cascades as a Markdown table, by the steps of their configs.

    The last two columns are of cascades of students, whose stages take four calls each.
    Guidance, transfers of images and the loading of networks are not included.
    """
    lines = []
    same = {other: name for name, other in SAME_PROGRAMS.items()}
    for cascade in _WHOLE_CASCADES:
        config = cascades.read(importlib.import_module(f"configs.{cascade}").get_config())
        stages = [
            (same.get(name, name), stage.sampling["num_steps"])
            for stage in config.stages
            for name in [stage.workdir.rpartition("/")[2]]
        ]
        for setting in _SETTINGS:
            rows = [(reports.get(f"{name}-{setting}"), steps) for name, steps in stages]
            if not all(row for row, _ in rows):
                continue
            total = sum(steps * _seconds(row) for row, steps in rows)
            few = sum(_CALLS_OF_STUDENTS * _seconds(row) for row, _ in rows)
            batch, num_cores = (rows[0][0][key] for key in ("batch_size", "num_cores"))
            each = " + ".join(f"{steps} x {_seconds(row) * 1e3:.2f} ms" for row, steps in rows)
            cores = f"{rows[0][0]['topology']} ({num_cores})"
            rates = (batch / seconds * _CORES_OF_A_CHIP / num_cores for seconds in (total, few))
            rate, rate_of_few = (f"{number:.2g}" for number in rates)
            of_all = f"{total:.1f} s", f"{total / batch:.3f} s", rate
            lines.append((cascade, cores, batch, each, *of_all, f"{few:.2f} s", rate_of_few))
    headings = (
        "cascade, cores, images at once, steps times a step's time, in all, an image, images/s a "
        f"chip, {_CALLS_OF_STUDENTS} calls a stage: in all, images/s a chip"
    )
    return markdown.table(headings.split(", "), lines) + "\n"


def share_of_peak(row: Mapping[str, Any]) -> float:
    """Returns the share of the chip's peak that a program reaches, by `_seconds`."""
    peak = parallel.peak_flops(f"TPU {row['topology'].partition(':')[0]}")
    return row["share_of_peak"] or row["model_flops_per_core"] / _seconds(row) / peak


def draw(reports: Mapping[str, Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draws the share of the peak of each training step at the paper's batch, by chip.

    Programs that have no report, or do not fit, have no bar.
    """
    from matplotlib import ticker  # late: it takes a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(_BATCH_OF_THE_PAPER)
    for place, topology in enumerate(_BATCH_OF_THE_PAPER):
        found = [reports.get(_program(config, topology, "train")[0]) for config in _CONFIGS]
        rows = {index: row for index, row in enumerate(found) if row and row["fits"]}
        own = any(row["estimated_step_seconds"] is None for row in rows.values())
        bars = axes.bar(
            [index + (place - len(_BATCH_OF_THE_PAPER) // 2) * width for index in rows],
            [share_of_peak(row) for row in rows.values()],
            0.9 * width,
            hatch="///" if own else None,
            edgecolor="white",
            label=f"{topology.partition(':')[0]}{' (our own sum)' if own else ''}",
        )
        axes.bar_label(bars, fmt=lambda share: f"{100 * share:.0f}", fontsize=7)
    axes.set_xticks(range(len(_CONFIGS)), [" to ".join(c.split("_")[1:]) for c in _CONFIGS])
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    axes.set_ylim(0, 1)
    axes.set_ylabel("of the data sheet's peak")
    axes.set_title("Training step, batch 256, 64 chips: estimated, not measured", fontsize=10)
    axes.legend(ncols=len(_BATCH_OF_THE_PAPER), fontsize=8, loc="upper right")
    axes.grid(axis="y", alpha=0.3)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    storage.write_whole(str(path), data.getvalue())


def write_table(document: pathlib.Path, text: str) -> None:
    """Replaces the text between the marks of `document`.

    Raises:
      ValueError: there is no such file, or it has no marks.
    """
    before, after = _around_table(document)
    new = before + _BEGIN + "\n" + text + "\n" + _END + after
    if new != document.read_text():
        storage.write_whole(document, new.encode())


def _around_table(document: pathlib.Path) -> tuple[str, str]:
    """Returns the text before the first mark and behind the second.

    Raises:
      ValueError: there is no such file, or it has no marks.
    """
    if not document.is_file():
        raise ValueError(f"{document} is no file; give one that has a table")
    text = document.read_text()
    if _BEGIN not in text or _END not in text:
        raise ValueError(f"{document} has no lines {_BEGIN!r} and {_END!r}; put them in")
    before, rest = text.split(_BEGIN, 1)
    return before, rest.split(_END, 1)[1]


def _missing(folder: pathlib.Path) -> list[tuple[str, list[str]]]:
    """Returns the programs of --only that have no report.

    Raises:
      ValueError: --only is no regular expression, or no program has such a name.
    """
    try:
        chosen = [program for program in programs() if re.search(_ONLY.value, program[0])]
    except re.error as error:
        raise ValueError(f"--only={_ONLY.value} is no regular expression: {error}") from error
    if not chosen:
        name, _ = next(programs())
        raise ValueError(
            f"--only={_ONLY.value} matches no program's name; they are CONFIG-TOPOLOGY-PROGRAM, as "
            f"{name}"
        )
    return [program for program in chosen if not (folder / f"{program[0]}.json").exists()]


def main(_: list[str]) -> None:
    """Compiles the missing programs, and writes the tables."""
    folder = pathlib.Path(_REPORTS.value)
    documents = pathlib.Path(_DOCUMENT.value), pathlib.Path(_CASCADES.value)
    for document in documents:
        _around_table(document)
    missing = [] if _RENDER_ONLY.value else _missing(folder)
    if not missing and not any(folder.glob("*.json")):
        raise ValueError(f"--reports={folder} has no reports; give the folder of the .json files")
    print(f"{len(missing)} programs to compile", flush=True)
    failed = []
    for i, (name, arguments) in enumerate(missing):
        print(f"[{i + 1}/{len(missing)}] {name}", flush=True)
        output = [f"--json={folder / name}.json"]
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "sr3_jax.tools.aot_report", *arguments, *output]
        if subprocess.run(command).returncode:
            failed.append(name)
    reports = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    for document, text in zip(documents, (table(reports), cascade_table(reports)), strict=True):
        write_table(document, text)
    draw(reports, pathlib.Path(_CHART.value))
    if failed:
        command_line.leave(command_line.FAILED, f"error: no report of {', '.join(failed)}")


if __name__ == "__main__":
    command_line.run(main)
