"""The origin of a result: protocol, code, config, checkpoint, machine and command."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import jax

import sr3_jax
from sr3_jax import sizes
from sr3_jax.config import Config, schedules, to_json

if TYPE_CHECKING:  # imported only where images are read: it takes seconds
    from sr3_jax.data.pipeline import Pipeline

_PACKAGE = pathlib.Path(__file__).resolve().parents[2]
_GIT_SECONDS = 20


def protocol(config: Config, pipeline: Pipeline, steps: int) -> list[str]:
    """Returns the protocol of the evaluation, one statement for each step."""
    c, (size, low) = config.data, map(sizes.text, pipeline.sizes)
    window = "square" if len(set(pipeline.sizes[0])) == 1 else "window of that shape"
    cut = f"the largest central {window}, resized by area to {size}"
    if config.crops_at_full_resolution:
        cut = f"{size} pixels from the middle"
    made = "made of these by bicubic with anti-aliasing"
    if c.low_path or c.eval_low_path:
        made = "those that come with the images"
    what = f"in {8 * pipeline.dtype.itemsize} bits" if config.has_levels else "as numbers"
    held_out = c.eval_path or f"held out of {c.path or c.source}"
    statements = [
        f"Images: {held_out}; {cut}.",
        f"Inputs: {low}, {made}, {what}.",
        *(f"{count} images: {loss}." for loss, count in pipeline.reader.losses.items()),
    ]
    if config.evaluation.downsampling == "matlab":
        statements.append("Inputs were made as by MATLAB's imresize: mirrored at the borders.")
    if config.degradation.is_active:
        values = json.dumps(dataclasses.asdict(config.degradation))
        statements.append(
            "Inputs were degraded, each by values drawn from config.degradation, in place of "
            f"bicubic alone: {values}. Consistency and the bicubic baseline are of these inputs."
        )
    if side := config.evaluation.network_input:
        statements.append(
            f"Inputs were resized to {side}x{side} by bicubic for the network, and its images to "
            f"{size}."
        )
    if not config.predicts_image:
        statements.append(
            f"Sampling: {schedules.sampler_name(config)}, {steps} network calls, noise schedule "
            f"{config.sampling.schedule!r}, seed {config.seed}."
        )
    if config.num_samples > 1:
        statements.append(f"Samples: {config.num_samples} of each image; means are over all.")
    if config.sampling.consistent:
        statements.append(
            "Outputs were moved to the nearest image whose downsampling is the input."
        )
    return statements


def collect(*, config: Config | None = None, checkpoint_step: int | None = None) -> dict[str, str]:
    """Returns facts of this run by name.

    Args:
      config: config of the run; the facts have it as JSON.
      checkpoint_step: step of the checkpoint that was used.
    """
    devices = jax.devices()
    found = {
        "commit": commit(),
        "sr3_jax": sr3_jax.__version__,
        "command": shlex.join(sys.orig_argv),
        "date": datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds"),
    }
    if checkpoint_step is not None:
        found["checkpoint"] = f"step {checkpoint_step}"
    found |= {
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "processes": str(jax.process_count()),
        "processor": f"{_processor()}, {os.cpu_count()} logical cores",
        "system": platform.platform(),
        "Python": platform.python_version(),
        "jax": f"{jax.__version__}, jaxlib {jax.lib.__version__}",
    }
    if config is not None:
        found["config"] = to_json(config)
    return found


def commit(package: pathlib.Path = _PACKAGE) -> str:
    """Returns the git commit of a package's checkout, and whether its folder differs from it.

    "unknown, ..." if there is none: a package that is not at the top of a repository was installed
    there, and the commit of that repository says nothing about it.
    """
    root = package.resolve().parent
    try:
        top = pathlib.Path(_git(root, "rev-parse", "--show-toplevel"))
        if top.resolve() != root:
            return "unknown, not a git checkout"
        name = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", package.name)
    except FileNotFoundError:
        return "unknown, git is not installed"
    except subprocess.TimeoutExpired:
        return f"unknown, git gave no answer in {_GIT_SECONDS} s"
    except subprocess.CalledProcessError as error:
        if "not a git repository" in error.stderr:
            return "unknown, not a git checkout"
        return f"unknown, git: {error.stderr.strip()}"
    return f"{name} (modified: {package.name}/ differs from the commit)" if changed else name


def _git(folder: pathlib.Path, *arguments: str) -> str:
    # A hook's GIT_DIR names another repository. Git shall write no locks, and speak English.
    variables = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    return subprocess.run(
        ["git", "-C", str(folder), *arguments],
        env=variables | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=_GIT_SECONDS,
        check=True,
    ).stdout.strip()


def _processor() -> str:
    """Returns the processor's name; kernels of ARM give none."""
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
