"""Half an hour of measurements on a GPU; gpu_day.sh says how to call it."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = os.environ.get("TINY") == "1"
MAIN = [sys.executable, "-m", "sr3_jax.main", "--num_processes=1"]
BENCHMARK = [sys.executable, "-m", "sr3_jax.tools.benchmark"]
PART_BYTES = 15 << 20
# What a training, an evaluation and an upscaling import.
PACKAGES = (
    *("jax", "flax", "optax", "orbax", "grain", "ml_collections", "jaxtyping", "numpy", "PIL"),
    *("absl", "etils", "fsspec", "tqdm", "tensorboard", "jinja2"),
)
# Two kinds of devices add up float32 numbers in different orders.
TOLERANCE = 2e-3

# The networks of Table A.1: flags of the benchmark, and how many images are tried at first.
NETWORKS = {
    "16 to 128": ("128", "1,2,4,8,8", "3", "3", 128, 64),
    "64 to 256": ("128", "1,2,4,4,8,8", "3", "4", 256, 16),
    "64 to 512": ("64", "1,2,4,8,8,16,16", "3", "5", 512, 8),
    "256 to 1024": ("16", "1,2,4,8,16,32,32,32", "2", "6", 1024, 8),
}
if TINY:
    NETWORKS = {"tiny": ("8", "1", "1", "", 16, 2)}


class Day:
    """Runs stages and keeps what they find."""

    def __init__(self, out: pathlib.Path, minutes: float) -> None:
        self.out, self.work = out, out.parent / f"{out.name}_work"
        out.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(parents=True, exist_ok=True)
        self.end = time.monotonic() + 60 * minutes
        self.figures: dict[str, dict] = {}

    def left(self) -> float:
        """Returns the seconds that are left."""
        return self.end - time.monotonic()

    def run(self, command: list[str], limit: float, stop: bool = False, **variables: str) -> str:
        """Runs a command; what it prints goes to the log, too.

        Args:
          command: to run in the project's root.
          limit: seconds, after which it is asked to stop, and ended a minute later.
          stop: whether being asked to stop is no failure.
          variables: of the environment.

        Raises:
          RuntimeError: it failed.
        """
        environment = os.environ | {"PYTHONUNBUFFERED": "1"} | variables
        begin, said = time.monotonic(), self.work / "said.txt"
        with said.open("wb") as file:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
            try:
                process.wait(max(1.0, min(limit, self.left())))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        # A progress bar overwrites its line; only its last state is kept.
        lines = said.read_text(errors="replace").split("\n")
        text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
        with (self.out / "log.txt").open("a") as log:
            log.write(f"$ {' '.join(command)}\n{text}\n[status {process.returncode}, ")
            log.write(f"{time.monotonic() - begin:.1f} s]\n\n")
        if process.returncode and not (stop and process.returncode == 75):
            last = [line for line in text.splitlines() if line.strip()][-1:]
            raise RuntimeError(f"status {process.returncode}: {' '.join(last)[:500]}")
        return text

    def stage(self, name: str, do: Callable[[dict], None]) -> None:
        """Runs a stage, which adds its figures to the dictionary that it gets."""
        print(f"{name} ({self.left() / 60:.1f} minutes left) ...", flush=True)
        found, begin = {}, time.monotonic()
        self.figures[name] = found
        try:
            do(found)
            found["outcome"] = "passed"
        except Exception as error:  # the next stage may still tell something
            found["outcome"] = f"FAILED: {type(error).__name__}: {error}"
        found["minutes"] = round((time.monotonic() - begin) / 60, 2)
        print(f"  {found['outcome']}", flush=True)
        (self.out / "figures.json").write_text(json.dumps(self.figures, indent=2) + "\n")
        (self.out / "report.md").write_text(self.report())

    def report(self) -> str:
        """Returns all figures as Markdown."""
        lines = ["# A GPU day", ""]
        for name, found in self.figures.items():
            lines += [f"## {name}", ""]
            for key, value in found.items():
                if isinstance(value, dict):
                    value = "; ".join(f"{k} {v}" for k, v in value.items())
                lines += [f"- {key}: {value}"]
            lines.append("")
        return "\n".join(lines)

    def devices(self, found: dict) -> None:
        """Names the devices."""
        code = "from sr3_jax import parallel as p; p.check_accelerator(); print(p.describe())"
        found["devices"] = self.run([sys.executable, "-c", code], 120).strip().splitlines()[-1]
        if shutil.which("nvidia-smi"):
            query = "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm"
            said = self.run(["nvidia-smi", query, "--format=csv,noheader"], 60)
            found["nvidia-smi"] = said.strip()

    def training(self, found: dict) -> None:
        """Trains a small network with default flags, resumes, evaluates, and upscales a picture."""
        draw_pictures(self.work / "pictures", 24, 96)
        flags = [
            "--config=configs/quickstart.py",
            f"--workdir={self.work / 'small'}",
            "--config.data.source=folder",
            f"--config.data.path={self.work / 'pictures'}",
            "--config.data.num_eval_images=8",
            "--config.evaluation.image_size=64",
            f"--config.train.log_every_steps={2 if TINY else 20}",
            "--config.train.num_warmup_steps=2",
            "--config.train.num_decay_steps=2",
            "--config.sampling.num_steps=4",
            *(["--config.model.channels=8", "--config.model.multipliers=1,"] if TINY else []),
            *(["--config.train.batch_size=4", "--config.evaluation.num_images=2"] if TINY else []),
        ]
        first, second = (4, 6) if TINY else (100, 120)
        begin = time.monotonic()
        said = self.run(
            [*MAIN, *flags, f"--config.train.num_steps={first}"], 420, JAX_LOG_COMPILES="1"
        )
        found["seconds, all"] = round(time.monotonic() - begin, 1)
        compiled = re.findall(r"Finished XLA compilation of (\S+) in ([\d.]+) sec", said)
        found["seconds, compiling"] = round(sum(float(seconds) for _, seconds in compiled), 1)
        found["programs compiled"] = len(compiled)
        longest = sorted(compiled, key=lambda pair: -float(pair[1]))[:3]
        found["longest to compile"] = {name: f"{float(s):.1f} s" for name, s in longest}
        found["evaluation"] = " ".join(line for line in said.splitlines() if "| sr3 |" in line)
        said = self.run([*MAIN, *flags, f"--config.train.num_steps={second}"], 300)
        if f"resuming at step {first}" not in said:
            raise RuntimeError(f"it did not resume at step {first}")
        found["resumed"] = f"at step {first}"
        upscale = [f"--input={self.work / 'pictures' / '0.png'}", f"--output={self.work / 'up'}"]
        self.run([*MAIN, "--mode=upscale", flags[1], *upscale], 300)
        found["upscaled"] = (self.work / "up" / "0.png").exists()

    def numbers(self, found: dict) -> None:
        """Compares a small network's output, gradient and sample with the CPU's."""
        import numpy as np

        given = os.environ.get("JAX_PLATFORMS", "")
        # The first of these is used; the other one helps.
        here = given if not given or "cpu" in given else f"{given},cpu"
        for name, platform in (("here", here), ("cpu", "cpu")):
            code = [sys.executable, "launch/gpu_probe.py", "numbers", str(self.work / name)]
            self.run(code, 240, JAX_PLATFORMS=platform)
        here, cpu = (np.load(self.work / f"{name}.npz") for name in ("here", "cpu"))
        for key in cpu:
            error = np.abs(here[key] - cpu[key]).max() / np.abs(cpu[key]).max()
            found[f"largest difference, {key}"] = f"{error:.1e} of the largest value"
            if not error < TOLERANCE:
                raise RuntimeError(f"{key} differs by {error:.1e}, more than {TOLERANCE}")

    def networks(self, found: dict) -> None:
        """Times the paper's networks, beside PyTorch's where that is there."""
        peer = []
        if os.environ.get("PEER_PYTHON"):
            peer = ["--peer=diffusers", f"--peer_python={os.environ['PEER_PYTHON']}"]
        results = self.work / "benchmark.json"
        share = self.left() * 0.5 / len(NETWORKS)
        for name, (channels, multipliers, blocks, attention, size, batch) in NETWORKS.items():
            flags = [f"--channels={channels}", f"--multipliers={multipliers}"]
            flags += [f"--num_blocks={blocks}", f"--attention_levels={attention}"]
            flags += [f"--image_size={size}", "--repeats=5", f"--json={results}"]
            flags += [f"--dtype={'float32' if TINY else 'bfloat16'}"]
            end = time.monotonic() + share
            while batch:
                command = [*BENCHMARK, *flags, f"--batch_size={batch}", *peer]
                try:
                    limit = end - time.monotonic()
                    self.run(command, limit, XLA_PYTHON_CLIENT_PREALLOCATE="false")
                except RuntimeError as error:
                    found[f"{name}, batch {batch}"] = f"failed: {error}"
                    is_memory = "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error)
                    if is_memory and batch > 1 and time.monotonic() < end - 60:
                        batch //= 2
                        continue
                    break
                found[f"{name}, batch {batch}"] = summary(json.loads(results.read_text()))
                break

    def profile(self, found: dict) -> None:
        """Finds the ten kernels that take longest in a training step of the 64 to 256 network."""
        flags = ["--config=configs/imagenet_64_256.py", "--config.train.batch_size=16"]
        if TINY:
            flags = ["--config=configs/quickstart.py", "--config.train.batch_size=2"]
            flags += ["--config.model.channels=8", "--config.model.multipliers=1,"]
            flags += ["--config.data.image_size=16", "--config.data.low_resolution=4"]
        script = [sys.executable, "launch/gpu_probe.py", "profile", str(self.work / "profile")]
        said = self.run([*script, *flags], 420)
        for line in said.splitlines():
            if line.startswith("kernel: "):
                seconds, name = line.removeprefix("kernel: ").split(" ", 1)
                found[name] = f"{1e3 * float(seconds):.3f} ms a step"

    def upscaling(self, found: dict) -> None:
        """Times upscaling from file to file, by the network of the small training."""
        for steps in (2,) if TINY else (4, 20, 100):
            flags = ["--what=upscale", f"--workdir={self.work / 'small'}", f"--steps={steps}"]
            flags += [f"--images={2 if TINY else 64}", "--size=16x16" if TINY else "--size=64x64"]
            said = self.run([*BENCHMARK, *flags, "--repeats=1" if TINY else "--repeats=3"], 240)
            lines = [line.strip() for line in said.splitlines() if "image" in line]
            found[f"{steps} calls"] = " | ".join(lines[:4])

    def real_training(self, found: dict) -> None:
        """Trains for the minutes that are left, and packs the network into files to take away."""
        folder = os.environ.get("DATA")
        if not folder:
            folder = str(self.work / "pictures")
            found["note"] = "of drawn pictures: DATA names no photographs"
        workdir = self.work / "real"
        flags = [
            "--config=configs/bsds500_16_64.py",
            f"--workdir={workdir}",
            f"--config.data.path={folder}",
            "--config.data.num_eval_images=16",
            "--config.checkpoint.every_steps=200",
            "--config.checkpoint.keep_last=1",
            "--config.checkpoint.keep_best=1",
            "--config.sampling.num_steps=20",
            "--config.train.batch_size=32",
        ]
        if TINY:
            small = {"model.channels": 8, "model.multipliers": "1,"}
            small |= {"train.num_steps": 2, "train.batch_size": 2, "evaluation.num_images": 2}
            small |= {"train.num_warmup_steps": 0, "train.num_decay_steps": 0}
            small |= {"evaluation.image_size": 64, "sampling.num_steps": 2}
            flags += [f"--config.{key}={value}" for key, value in small.items()]
        # A few minutes are for the evaluation, which a training that is stopped does not come to.
        said = self.run([*MAIN, *flags], self.left() - 240, stop=True)
        found["steps"] = re.findall(r"(\d+)/\d+ \[", said)[-1:]
        if not (workdir / "evaluation" / "metrics.json").exists():
            self.run([*MAIN, "--mode=evaluate", flags[1]], self.left() - 60)
        scores = json.loads((workdir / "evaluation" / "metrics.json").read_text())
        found["PSNR, bicubic and sr3"] = [round(row["psnr"], 2) for row in scores.values()]
        for picture in sorted(workdir.glob("evaluation/samples.png")):
            shutil.copy(picture, self.out / "samples.png")
        archive = shutil.make_archive(str(self.work / "network"), "gztar", workdir)
        data = pathlib.Path(archive).read_bytes()
        for i in range(0, len(data), PART_BYTES):
            part = self.out / f"network.tar.gz.{i // PART_BYTES}"
            part.write_bytes(data[i : i + PART_BYTES])
        found["network"] = f"{len(data) / 1e6:.1f} MB; cat network.tar.gz.* | tar -xz -C WORKDIR"


def summary(results: dict) -> dict[str, str]:
    """Returns the benchmark's figures of a network, for the report."""
    made = {"parameters": f"{results['sr3_jax']['parameters'] / 1e6:.0f} M"}
    for side in ("sr3_jax", "diffusers"):
        for name in ("forward", "train"):
            at = results.get(side, {}).get(name)
            if not at:
                continue
            made[f"{side} {name}"] = f"{1e3 * at['seconds']:.1f} ms"
            if results["peak_flops"]:
                share = at["flops_per_second"] / results["peak_flops"]
                made[f"{side} {name}, of the peak"] = f"{share:.1%}"
    if memory := results.get("memory_bytes"):
        made["memory, at most"] = f"{memory / 1e9:.1f} GB"
    for name, ratio in results.get("ratio", {}).items():
        made[f"sr3_jax / diffusers, {name}"] = f"{ratio['rounds']:.2f} in time"
    return made


def draw_pictures(folder: pathlib.Path, count: int, size: int) -> None:
    """Draws smooth noise and edges, to train on where there are no photographs."""
    import numpy as np
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rng = np.random.default_rng(i)
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(picture)
        for _ in range(8):
            corners = [tuple(map(int, rng.integers(0, size, 2))) for _ in range(3)]
            draw.polygon(corners, fill=tuple(map(int, rng.integers(0, 256, 3))))
        picture.save(folder / f"{i}.png")


def main() -> int:
    """Runs all stages; returns 1 where one failed."""
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "gpu_day").resolve()
    if (out / "figures.json").exists():
        print(f"error: {out} has the figures of a day; give another folder", file=sys.stderr)
        return 2
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"error: {sys.executable} lacks {', '.join(missing)}; install them, or give another "
            "Python, as PYTHON=.venv/bin/python",
            file=sys.stderr,
        )
        return 2
    day = Day(out, float(os.environ.get("MINUTES", "28")))
    day.stage("devices", day.devices)
    day.stage("small training", day.training)
    day.stage("numbers against the CPU's", day.numbers)
    day.stage("the paper's networks", day.networks)
    day.stage("longest kernels of a training step", day.profile)
    day.stage("upscaling", day.upscaling)
    day.stage("training for the minutes that are left", day.real_training)
    print(f"see {out / 'report.md'}")
    return int(any(found["outcome"] != "passed" for found in day.figures.values()))


if __name__ == "__main__":
    sys.exit(main())
