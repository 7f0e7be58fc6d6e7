"""Shows what upscaling gets wrong; launch/limits.sh says how it is called."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

from launch.comparison import upscale
from launch.limits import subjects, tables
from sr3_jax import released
from sr3_jax.commands import shared
from sr3_jax.data import degrade

_READER = pathlib.Path(".venv/ocr/bin/python")
_NETWORKS = {
    "photos_4x": "photos_4x",
    "photos_4x_5": "photos_4x",
    "photos_4x_quick": "photos_4x_quick",
}


def main(options: argparse.Namespace) -> None:
    """Makes the pictures, measures them, and writes tables.md and pictures.jpg."""
    networks = options.networks or _NETWORKS
    steps = dict(options.steps if options.networks else {"photos_4x_5": "5", **options.steps})
    if taken := networks.keys() & {"bicubic", "reference", "input"}:
        _fail(f"--networks: {taken.pop()} is there anyway; give another name")
    for name, calls in steps.items():
        if name not in networks:
            _fail(f"--steps={name}=...: --networks has no {name} (there is {', '.join(networks)})")
        if not str(calls).isdecimal() or int(calls) < 1:
            _fail(f"--steps={name}={calls}: give a number of calls, 1 or more")
    for name, workdir in networks.items():
        if not (released.locate(workdir) / "config.json").exists():
            _fail(f"--networks={name}={workdir}: there is no network (config.json is missing)")
    for folder in options.folders:
        if not folder.is_dir():
            _fail(f"{folder} is no folder")
    found, missing = subjects.photographed(options.folders, options.tiny)
    if missing and not options.tiny:
        print(f"left out, since no folder has them: {', '.join(missing)}")
    chosen = [*subjects.drawn(options.tiny), *found]
    workdir = pathlib.Path(os.environ.get("WORKDIR", "runs/limits"))
    folder = workdir / ("tiny" if options.tiny else "whole")
    _prepare(chosen, folder)
    _upscaled("bicubic", "bicubic", folder, options)
    for name, given in networks.items():
        calls = [f"--steps={steps[name]}"] if name in steps else []
        _upscaled("network", name, folder, options, f"--workdir={given}", *calls)
    methods = ["bicubic", *networks]
    if options.no_ocr or not _READER.exists():
        print(f"letters are not read: {'--no_ocr' if options.no_ocr else f'no {_READER}'}")
    else:
        for name in (*methods, "reference"):
            _read(folder, name)
    tables.write(chosen, folder, methods)


def _fail(text: str) -> NoReturn:
    """Ends the program with status 2."""
    print(f"error: {text}", file=sys.stderr)
    raise SystemExit(2)


def _prepare(chosen: Sequence[subjects.Subject], folder: pathlib.Path) -> None:
    """Writes references, inputs of a quarter of their size, and subjects.json."""
    for name in ("reference", "input", "made", "read"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for subject in chosen:
        image, file = subject.image, f"{subject.name}.png"
        size = image.shape[0] // upscale.FACTOR, image.shape[1] // upscale.FACTOR
        small = degrade.to_levels(degrade.resize_bicubic(image, size), image.dtype)
        for kind, pixels in (("reference", image), ("input", small)):
            path = folder / kind / file
            if not path.exists() or not np.array_equal(upscale.read(path), pixels):
                upscale.write(pixels, path)
    kept = {f"{subject.name}.png" for subject in chosen}
    for path in (folder / "input").glob("*.png"):
        if path.name not in kept:  # of an earlier run with other photographs
            path.unlink()
    about = [dataclasses.asdict(dataclasses.replace(s, image=None)) for s in chosen]
    (folder / "subjects.json").write_text(json.dumps(about, default=float, indent=1))


def _upscaled(
    program: str, name: str, folder: pathlib.Path, options: argparse.Namespace, *flags: str
) -> None:
    """Upscales the inputs by a program of launch.comparison.upscale."""
    command = [sys.executable, "-m", "launch.comparison.upscale", program, folder / "input"]
    command += [folder / "made" / name, f"--threads={options.threads}", *flags]
    if status := subprocess.run([*map(str, command)]).returncode:
        raise SystemExit(status)


def _read(folder: pathlib.Path, name: str) -> None:
    """Has letters read, unless they were since the last picture was made."""
    made = folder / "reference" if name == "reference" else folder / "made" / name
    out, listed = folder / "read" / f"{name}.json", folder / "subjects.json"
    newest = max(path.stat().st_mtime for path in made.glob("*.png"))
    if out.exists() and out.stat().st_mtime > newest:
        return
    command = [_READER, "-m", "launch.limits.ocr", listed, made, out]
    subprocess.run([*map(str, command)], check=True)


def _pairs(text: str) -> Mapping[str, str]:
    """Returns values by name."""
    try:
        return shared.pairs("networks", [part for part in text.split(",") if part])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    made = argparse.ArgumentParser(prog="bash launch/limits.sh", description=__doc__)
    meaning = "where photographs are; what no folder has is left out"
    made.add_argument("folders", nargs="*", type=pathlib.Path, metavar="FOLDER", help=meaning)
    meaning = "networks that enlarge 4 times (default: those of the package)"
    made.add_argument(
        "--networks", type=_pairs, default={}, metavar="NAME=WORKDIR,...", help=meaning
    )
    meaning = "network calls of each; default: as tuned"
    made.add_argument("--steps", type=_pairs, default={}, metavar="NAME=CALLS,...", help=meaning)
    made.add_argument("--threads", type=int, default=upscale.num_cores())
    meaning = "a few drawn pictures, and scikit-image's photographs"
    made.add_argument("--tiny", action="store_true", help=meaning)
    made.add_argument("--no_ocr", action="store_true", help="without reading letters")
    return made


if __name__ == "__main__":
    main(parser().parse_args())
