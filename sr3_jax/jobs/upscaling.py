"""Upscaling a file or a folder."""

from __future__ import annotations

import functools

import jax
from etils import epath

from sr3_jax.inference import files
from sr3_jax.inference.super_resolver import SuperResolver
from sr3_jax.jobs import shared


def upscale(
    workdir: epath.Path,
    input_path: epath.Path,
    output: epath.Path,
    steps: int | None,
    seed: int,
) -> int:
    """Upscales a file or a folder; returns how many inputs failed."""
    inputs = files.find_inputs(input_path)[jax.process_index() :: jax.process_count()]
    resolver = SuperResolver.from_workdir(workdir)
    with shared.progress_bar("upscale", len(inputs)) as bar:
        report = files.upscale_files(
            resolver,
            inputs,
            output,
            steps=steps,
            seed=seed,
            progress=functools.partial(shared.advance, bar),
        )
    print(f"{len(report.written)} of {len(inputs)} images written to {output}")
    for name, reason in report.failed.items():
        print(f"failed: {name}: {reason}")
    return len(report.failed)
