"""Compares programs on the same pictures; launch/comparison.sh says how it is called."""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import NoReturn

import numpy as np

from launch.comparison import tables, upscale
from sr3_jax import released
from sr3_jax.commands import shared
from sr3_jax.config import run_file
from sr3_jax.data import degrade, image_files, windows

_PEERS = pathlib.Path(".venv/peers")
_SIDE = 224  # of the pictures that are classified, as in the paper's Table 3


def main(options: argparse.Namespace) -> None:
    """Makes the pictures, scores them, and writes tables.md and pictures.jpg."""
    networks, programs = options.networks, [*upscale.PROGRAMS]
    programs.remove("network")
    if taken := networks.keys() & upscale.PROGRAMS.keys():
        _fail(f"--networks: a program is called {taken.pop()}; give another name")
    wanted = options.only or [*programs, *networks]
    if unknown := {*wanted} - {*programs, *networks}:
        known = ", ".join([*programs, *networks])
        _fail(f"--only={','.join(sorted(unknown))}: known are {known}")
    for given in filter(None, (options.photographs, options.classes)):
        if not pathlib.Path(given).is_dir():
            _fail(f"{given} is no folder")
    if not options.no_features or any(_is_peer(name, networks) for name in wanted):
        subprocess.run(["bash", "launch/comparison/peers.sh"], check=True)
    workdir = pathlib.Path(os.environ.get("WORKDIR", "runs/comparison"))
    sets = (("photographs", options.photographs), ("classes", options.classes))
    for (kind, given), count in zip(sets, options.images, strict=True):
        if not given:
            continue
        folder = _prepare(pathlib.Path(given), workdir, kind, count)
        methods = {}
        for name in wanted:
            num_samples = options.samples if kind == "photographs" else 1
            if made := _upscaled(name, networks.get(name), folder, num_samples, options):
                methods[name] = made
        if not methods:
            _fail("none of the programs and networks can run")
        if kind == "photographs":
            _score(folder, methods)
        if not options.no_features:
            for name in ("reference", *methods):
                _measure(folder, name, kind)
        elif kind == "classes":
            print("pictures of classes have no table without features")
            continue
        tables.write(folder, methods)


def _fail(text: str) -> NoReturn:
    """Ends the program with status 2."""
    print(f"error: {text}", file=sys.stderr)
    raise SystemExit(2)


def _is_peer(name: str, networks: dict[str, str]) -> bool:
    return name not in networks and upscale.PROGRAMS[name].is_peer


def _prepare(source: pathlib.Path, workdir: pathlib.Path, kind: str, count: int) -> pathlib.Path:
    """Writes references and inputs, and returns their folder.

    Photographs lose up to three pixels of each direction, of classes the largest central square is
    resized to `_SIDE` pixels by area; inputs are made of these as an evaluation makes them.
    """
    paths = sorted(p for p in source.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        _fail(f"{source} has no pictures (.jpg, .jpeg, .png)")
    if kind == "classes" and {len(paths), len({_class_of(path) for path in paths})} != {1000}:
        _fail(f"{source} has {len(paths)} pictures; one of each of 1000 classes is due")
    # ImageNet's classes are in the order of their names.
    stems = [f"{i:04d}_{p.stem}" if kind == "classes" else p.stem for i, p in enumerate(paths)]
    # Evenly spaced through the set, so that nobody chose them.
    count = min(count or len(paths), len(paths))
    chosen = np.linspace(0, len(paths) - 1, count).round().astype(int)
    folder = workdir / f"{kind}_{count}"
    for name in ("reference", "input"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in chosen:
        small = folder / "input" / f"{stems[i]}.png"
        if small.exists():
            continue
        try:
            image = image_files.read_rgb(str(paths[i]))
        except (OSError, ValueError) as error:
            _fail(f"{paths[i]} cannot be read: {error}. Leave it out of the folder")
        if kind == "classes":
            left, top, right, bottom = windows.central_box(*image.shape[:2])
            image = degrade.by_area(image[top:bottom, left:right], _SIDE)
        height, width = (side // upscale.FACTOR * upscale.FACTOR for side in image.shape[:2])
        if not height or not width:
            _fail(f"{paths[i]} is smaller than {upscale.FACTOR} pixels. Leave it out of the folder")
        image = np.ascontiguousarray(image[:height, :width])
        upscale.write(image, folder / "reference" / small.name)
        size = height // upscale.FACTOR, width // upscale.FACTOR
        upscale.write(degrade.to_levels(degrade.resize_bicubic(image, size), image.dtype), small)
    return folder


def _class_of(path: pathlib.Path) -> str:
    return path.name.partition("_")[0]


def _upscaled(
    name: str,
    network: str | None,
    folder: pathlib.Path,
    num_samples: int,
    options: argparse.Namespace,
) -> list[pathlib.Path]:
    """Runs a program; returns a folder for each sample, none where the program cannot run."""
    made, steps = [folder / "made" / name], options.steps
    peer = network is None and upscale.PROGRAMS[name].is_peer
    if network is not None:
        path = released.locate(network) / "config.json"
        if not path.exists():
            print(f"{name} is left out: {network} has no network")
            return []
        config = run_file.load(path)
        if config.predicts_image:
            num_samples = 1
        if config.train.loss == "energy" or config.distillation.teacher_calls:
            steps = 0  # a student has its own
        made += [folder / "made" / f"{name}_sample_{k}" for k in range(1, num_samples)]
    python = str(_PEERS / "bin/python") if peer else sys.executable
    for sample, target in enumerate(made):
        command = [python, "-m", "launch.comparison.upscale"]
        command += ["network" if network else name, str(folder / "input"), str(target)]
        command += [f"--sample={sample}", f"--threads={options.threads}"]
        command += [f"--models={_PEERS / 'models'}", f"--modules={_PEERS / 'node'}"]
        command += [f"--workdir={network}"] if network else []
        command += [f"--steps={steps}"] if steps and network else []
        if subprocess.run(command).returncode:
            print(f"{name} is left out: it failed")
            return []
    return made


def _score(folder: pathlib.Path, methods: dict[str, list[pathlib.Path]]) -> None:
    """Scores the first sample of each program by --mode=score."""
    outputs = [f"{tables.scored_as(name)}={made[0]}" for name, made in methods.items()]
    flags = [f"--workdir={folder / 'score'}", f"--reference={folder / 'reference'}"]
    flags += [f"--low_resolution={folder / 'input'}", f"--outputs={','.join(outputs)}"]
    command = [sys.executable, "-m", "sr3_jax.main", "--mode=score"]
    subprocess.run([*command, *flags], check=True)


def _measure(folder: pathlib.Path, name: str, kind: str) -> None:
    """Has EfficientNet-lite0 look at a folder, unless it has since the last picture was made."""
    made = folder / "reference" if name == "reference" else folder / "made" / name
    out = folder / "features" / f"{name}.npz"
    newest = max(path.stat().st_mtime for path in made.glob("*.png"))
    if out.exists() and out.stat().st_mtime > newest:
        return
    command = [_PEERS / "bin/python", "-m", "launch.comparison.features", made, out]
    if kind == "photographs":
        command.append(folder / "reference")
    subprocess.run([*map(str, command)], check=True)


def _counts(text: str) -> tuple[int, int]:
    """Returns the numbers of photographs and of pictures of classes that `--images` asks for."""
    counts = text.split(",")
    if len(counts) > 2 or not all(count.isdecimal() for count in counts):
        raise argparse.ArgumentTypeError(f"{text!r} is not N or N,M, such as 25 or 25,100")
    return int(counts[0]), int(counts[-1])


def _names(text: str) -> list[str]:
    """Returns the names of a list with commas."""
    if not (found := [name for name in text.split(",") if name]):
        raise argparse.ArgumentTypeError("no name is given")
    return found


def _pairs(text: str) -> Mapping[str, str]:
    """Returns the workdirs of networks by name."""
    try:
        return shared.pairs("networks", _names(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bash launch/comparison.sh", description=__doc__)
    parser.add_argument("photographs", help="folder of pictures that are upscaled and scored")
    parser.add_argument("classes", nargs="?", help="folder of one picture of each ImageNet class")
    parser.add_argument("--networks", type=_pairs, default={}, metavar="NAME=WORKDIR,...")
    parser.add_argument("--only", type=_names, help="names of programs and networks")
    parser.add_argument(
        "--images", type=_counts, default=(0, 0), help="N of each set, or N,M of the two; 0: all"
    )
    parser.add_argument("--samples", type=int, default=2, help="of each photograph, by networks")
    meaning = "network calls of all but students; default: as tuned"
    parser.add_argument("--steps", type=int, default=0, help=meaning)
    parser.add_argument("--threads", type=int, default=upscale.num_cores())
    parser.add_argument("--no_features", action="store_true", help="without EfficientNet's")
    return parser


if __name__ == "__main__":
    main(_parser().parse_args())
