"""Packs a folder of images into a few large files: `python -m sr3_jax.tools.prepare_data`.

    python -m sr3_jax.tools.prepare_data --input=FOLDER --output=DIR --image_size=256

resizes the largest central square of each image to 256 pixels (by area, as training does) and
writes TFRecord files of PNGs, which training reads in any order (`--config.data.source=tfrecord
--config.data.path=DIR`), with the same batches as from the folder. It is meant for millions of
files and for buckets. It can be stopped at any time; the same command goes on. `--check` reads the
files again and compares checksums.
"""

from __future__ import annotations

import os
import sys
from concurrent import futures
from typing import Any

import tqdm
from absl import flags

from sr3_jax import command_line, worker_processes
from sr3_jax.data import folders, locks, prepared

_INPUT = flags.DEFINE_string("input", None, "Folder of images, at any depth.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the files.")
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 0, "Side of the squares kept; 0: the files as they are, for random crops.", 0
)
_IMAGES_PER_FILE = flags.DEFINE_integer("images_per_file", 1000, "At most.", 1)
_NUM_WORKERS = flags.DEFINE_integer("num_workers", 0, "Processes; 0: one a core.", 0)
_CHECK = flags.DEFINE_bool("check", False, "Compare the files of --output with their checksums.")


def prepare(plan: prepared.Plan, num_workers: int) -> dict[str, Any]:
    """Writes the missing files of `plan` in `num_workers` processes; returns the manifest.

    Raises:
      FileExistsError: the folder holds other files.
      locks.HeldError: another command is at work in the folder.
      OSError: a file cannot be written.
      ValueError: no image is usable, or the folder lies in that of the images.
    """
    prepared.check_place(plan)
    with locks.hold(plan.output, "prepare_data", "--output"):
        missing = prepared.begin(plan)
        done = plan.num_files - len(missing)
        with (
            tqdm.tqdm(
                total=len(plan.images),
                initial=min(done * plan.images_per_file, len(plan.images)),
                desc="prepare",
                unit="image",
                dynamic_ncols=True,
                file=sys.stderr,
            ) as bar,
            worker_processes.pool(num_workers, _begin, (plan,)) as pool,
        ):
            tasks = [pool.submit(_write, part) for part in missing]
            for task in futures.as_completed(tasks):
                bar.update(sum(task.result()))
        return prepared.finish(plan)


def _begin(plan: prepared.Plan) -> None:
    """Gives a worker the plan, with all names in it, once."""
    global _plan
    _plan = plan


def _write(part: int) -> tuple[int, int]:
    return prepared.write_file(_plan, part)


def main(_: list[str]) -> int | None:
    """Prepares, or checks; returns the exit status."""
    if not _OUTPUT.value or not (_INPUT.value or _CHECK.value):
        raise ValueError("--input=FOLDER and --output=DIR are needed")
    output = os.path.expanduser(_OUTPUT.value)
    if _CHECK.value:
        wrong = list(prepared.damaged_files(output))
        print("\n".join(wrong) or f"{output} is whole")
        return command_line.FAILED if wrong else None
    images = folders.folder(_INPUT.value)
    plan = prepared.Plan(images, output, _IMAGE_SIZE.value, _IMAGES_PER_FILE.value)
    manifest = prepare(plan, _NUM_WORKERS.value or os.cpu_count() or 1)
    print(
        f"{manifest['count']} images in {len(manifest['files'])} files in {output}; left out: "
        f"{manifest['too_small']} too small, {manifest['damaged']} damaged (skipped.txt)"
    )


if __name__ == "__main__":
    command_line.run(main)
