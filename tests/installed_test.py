"""The package as pip installs it: a wheel in a new environment, used outside the repository."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import small_run
from PIL import Image

UV = pathlib.Path(sys.executable).parent / "uv"
COMMANDS = ("train", "evaluate", "tune_schedule", "upscale", "generate", "score", "push", "models")


@pytest.fixture(scope="module")
def sr3(tmp_path_factory):
    """Runs the console command in an empty folder; returns the finished process."""
    if not UV.exists():
        pytest.skip("uv is not installed (launch/test.sh)")
    root = tmp_path_factory.mktemp("installed")
    environment = root / "environment"
    (root / "work").mkdir()

    def uv(*arguments):
        subprocess.run([UV, *arguments], cwd=small_run.ROOT, check=True, capture_output=True)

    # Of a copy of what the wheel is made of: setuptools leaves files beside it.
    for name in ("sr3_jax", "configs", "setup.py", "pyproject.toml", "README.md"):
        subprocess.run(["cp", "-r", small_run.ROOT / name, root], check=True)
    uv("build", "--quiet", "--wheel", "--out-dir", root, root)
    (wheel,) = root.glob("*.whl")
    uv("venv", "--quiet", "--python", sys.executable, environment)
    pins = ["--constraint", small_run.ROOT / "requirements.txt"]
    uv("pip", "install", "--quiet", "--python", environment / "bin" / "python", *pins, wheel)
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*arguments):
        command = [environment / "bin" / "sr3", *arguments]
        where = {"cwd": root / "work", "env": inherited}
        return subprocess.run(command, capture_output=True, text=True, **where)

    run.folder = root / "work"
    run.environment = environment
    return run


def test_help_and_version(sr3):
    commands = sr3("--help")
    assert commands.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name} " in commands.stdout
        of_command = sr3(name, "--help")
        assert of_command.returncode == 0 and f"\nsr3 {name}" in of_command.stdout
    upscale, train = sr3("upscale", "--help").stdout, sr3("train", "--help").stdout
    assert "--factor=" in upscale and "--reference" not in upscale
    assert "--config.train.batch_size=256" in train and "--factor" not in train
    assert sr3("--version").stdout.startswith("sr3_jax 0.")
    alone = sr3()
    assert alone.returncode == 2 and "\n  upscale " in alone.stderr
    wrong = sr3("upscale", "--workdir=nowhere", "--input=a", "--output=b")
    assert wrong.returncode == 2 and "nowhere/config.json does not exist" in wrong.stderr


def test_it_is_small(sr3):
    """TensorFlow, TFDS and torch come with extras."""
    packages = next(sr3.environment.glob("lib/*/site-packages"))
    for absent in ("tensorflow", "tensorflow_datasets", "torch"):
        assert not (packages / absent).exists()
    size = sum(file.stat().st_size for file in packages.rglob("*") if file.is_file())
    assert size < 1e9


def test_it_trains_upscales_and_scores(sr3):
    flags = [flag for flag in small_run.flags()[1:] if "num_" not in flag]
    trained = sr3("train", "--config=quickstart", *flags, "--steps=2")
    assert trained.returncode == 0, trained.stderr
    run = sr3.folder / "runs" / "quickstart"
    assert (run / "checkpoints" / "2").is_dir() and (run / "evaluation" / "report.html").exists()

    small = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(small).save(sr3.folder / "small.png")
    flags = ["--workdir=runs/quickstart", "--input=small.png", "--output=large", "--steps=2"]
    upscaled = sr3("upscale", *flags)
    assert upscaled.returncode == 0, upscaled.stderr
    assert Image.open(sr3.folder / "large" / "small.png").size == (36, 24)

    # The networks of the package.
    for flag, output in (("--steps=1", "larger"), ("--workdir=photos_4x_quick", "quick")):
        upscaled = sr3("upscale", flag, "--input=small.png", f"--output={output}")
        assert upscaled.returncode == 0, upscaled.stderr
        assert Image.open(sr3.folder / output / "small.png").size == (36, 24)
    listed = sr3("models").stdout
    assert listed.startswith("photos_4x: 4x") and "environment" in listed

    outputs = ["--reference=large", "--outputs=SAME=large", "--workdir=scores"]
    scored = sr3("score", *outputs)
    assert scored.returncode == 0, scored.stderr
    assert "| SAME" in scored.stdout and (sr3.folder / "scores" / "report.html").exists()
