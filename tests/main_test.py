"""The command line: errors for wrong use, and every mode end to end."""

import os
import subprocess
import sys

import forked_run
import numpy as np
import pytest
import small_run
from PIL import Image

TRAIN = ["--config=configs/quickstart.py", "--workdir=/nonexistent/never-made"]

UPSCALE = ["--mode=upscale", "--workdir=/nonexistent", "--input=a", "--output=/nonexistent/b"]
CASCADE = ["--mode=generate", "--num_images=3", "--config=configs/cascade_ffhq_1024.py"]


def _run(*flags: str, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sr3_jax.main", *flags]
    environment = os.environ | variables
    return subprocess.run(
        command, cwd=small_run.ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [*TRAIN, "--config.train.num_stpes=3", "--config.trian.loss=l1", "--config.nosuch=3"],
            "the config has 3 faults: (1) config.trian is no section of the config; did you mean "
            "train?; (2) config.train.num_stpes is no key of the config; did you mean num_steps?; "
            "(3) config.nosuch is no key",
        ),
        (
            [*TRAIN, "--config.train.num_steps=1e3", "--config.model.remat=perhaps"],
            "(1) config.train.num_steps = '1e3' is of the wrong type; give a whole number; "
            "(2) config.model.remat = 'perhaps' is of the wrong type; give True or False",
        ),
        ([*TRAIN, "--config.model.multipliers=a,b"], "multipliers = 'a,b' is of the wrong type"),
        (["--config=quickstart:regresion", *TRAIN[1:]], "did you mean regression? Use --config"),
        ([*TRAIN, "--config.train.loss=l3"], "config.train.loss = 'l3' is unknown; use one of l1"),
        ([*TRAIN, "--config.data.source=folder"], "config.data.path is empty"),
        ([*TRAIN, "--config.data.image_size=30"], "28 or 32 would do"),
        (
            [*TRAIN, "--config.model.attention_resolutions=7,"],
            "= 32 with 3 config.model.multipliers",
        ),
        ([*TRAIN, "--config.diffusion.num_steps=100"], "config.diffusion: the schedule's T = 100"),
        ([*TRAIN, "--config.train.batch_size=30"], "cannot be split over 4 devices; 28 or 32"),
        ([*TRAIN, "--config.train.accumulate_steps=3"], "does not divide"),
        (["--config=quikstart"], "did you mean quickstart?"),
        (["--mode=evaluate"], "needs --workdir"),
        (["--workdir", "/nonexistent", "--mode", "evaluate"], "config.json does not exist"),
        (["--mode=evaulate"], "flag --mode=evaulate: value should be one of <train|"),
        (["--workdir=/nonexistent"], "needs --config"),
        (["--config=configs/absent.py", "--workdir=/nonexistent"], "configs/absent.py"),
        (["--mode=upscale", "--workdir=/nonexistent", "--input=a"], "needs --output"),
        (["--mode=evaluate", "--workdir=/nonexistent"], "config.json does not exist"),
        (
            ["--mode=evaluate", "--config.seed=1", "--workdir=/nonexistent"],
            "config.json does not exist",
        ),
        (["--mode=generate", "--workdir=/nonexistent"], "needs --num_images"),
        (["--mode=generate", "--num_images=3"], "needs --workdir"),
        ([*CASCADE, "--workdir=/nonexistent"], "--config=CASCADE or --workdir, not both"),
        (  # Lengths that are given are not scaled with --steps.
            [
                *TRAIN,
                "--steps=100",
                "--config.train.num_warmup_steps=90",
                "--config.train.num_decay_steps=20",
            ],
            "num_warmup_steps = 90 and num_decay_steps = 20 do not fit into num_steps = 100",
        ),
        ([*CASCADE, "--steps=3"], "--steps: each stage of a cascade has its own"),
        ([*CASCADE, "--label=cat"], "--label has 'cat'; give numbers of classes"),
        (CASCADE, "network of runs/ffhq_64_base: runs/ffhq_64_base/config.json does not exist"),
        ([*CASCADE, "--config.stage_2.sampling.nmu_steps=3"], 'Did you mean "num_steps"'),
        ([CASCADE[2], "--workdir=/nonexistent"], "which is for --mode=generate"),
        (["--mode=generate", "--num_images=3", TRAIN[0]], "no section stage_1"),
        (["stray", "--workdir=/nonexistent"], "unexpected argument 'stray'"),
        ([*TRAIN[:1], "--workdir=README.md"], "--workdir=README.md is a file; give a folder"),
        ([*TRAIN[:1], "--workdir=/proc/foo"], "--workdir=/proc/foo takes no files: No such file"),
        ([*TRAIN, "--factor=2"], "--factor is of --mode=upscale; --mode=train has no use for it"),
        ([*UPSCALE, "--workers=2"], "--workers is of --engine=ray"),
        ([*UPSCALE, "--sampling=eta=1,eta=0"], "--sampling has 'eta' twice"),
        ([*UPSCALE, "--quality=\N{ARABIC-INDIC DIGIT THREE}"], "a whole number from 1 to 100"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_wrong_use_is_answered_with_the_key_and_the_remedy(flags, message, tmp_path):
    status = forked_run.run(flags, tmp_path / "said.txt")
    said = (tmp_path / "said.txt").read_text()
    assert status == 2, said
    (error,) = [
        line for line in said.splitlines() if not line.startswith(("I0", "W0", "devices: "))
    ]
    assert error.startswith("error: ") and message in error


def test_a_config_file_that_sets_an_unknown_key(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(
        "from configs import default\n"
        "def get_config():\n"
        "    config = default.get_config()\n"
        "    config.train.batchsize = 3\n"
        "    return config\n"
    )
    flags = [f"--config={config}", f"--workdir={tmp_path}"]
    assert forked_run.run(flags, tmp_path / "said.txt") == 2
    said = (tmp_path / "said.txt").read_text()
    assert 'Did you mean "batch_size"' in said and "Traceback" not in said


def test_train_evaluate_and_upscale(tmp_path):
    """Trains where TensorFlow is not installed."""
    workdir = f"--workdir={tmp_path / 'run'}"
    absent = tmp_path / "absent" / "tensorflow.py"
    absent.parent.mkdir()
    absent.write_text("raise ModuleNotFoundError(\"No module named 'tensorflow'\")\n")
    path = os.pathsep.join([str(absent.parent), os.environ.get("PYTHONPATH", "")])
    result = _run(*small_run.flags(), workdir, "--config.train.num_steps=4", PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    assert "| bicubic |" in result.stdout and "| sr3 |" in result.stdout
    table = [line for line in result.stdout.splitlines() if line.startswith("| sr3")]

    def again(status, *flags):
        said = tmp_path / "said.txt"
        said.unlink(missing_ok=True)
        assert forked_run.run([*flags, workdir], said) == status, said.read_text()
        return said.read_text()

    said = again(0, "--mode=evaluate")
    # All but the seconds: the same numbers.
    (repeated,) = [line for line in said.splitlines() if line.startswith("| sr3")]
    assert repeated.split("|")[:9] == table[0].split("|")[:9]
    # Options change the run's own config.
    said = again(0, "--mode=evaluate", "--config.evaluation.num_images=1")
    (of_one,) = [line for line in said.splitlines() if line.startswith("| sr3")]
    assert of_one.split("|")[9].strip() == "1"

    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(np.full((6, 9, 3), 120, np.uint8)).save(photos / "good.png")
    upscale = ["--mode=upscale", f"--input={photos}", f"--output={tmp_path / 'out'}"]
    again(0, *upscale)
    assert Image.open(tmp_path / "out" / "good.png").size == (36, 24)
    (photos / "bad.png").write_text("text")
    assert "failed: bad.png: not a JPEG" in again(1, *upscale, "--steps=2", "--overwrite")
    # A single input is checked before the network is loaded.
    said = again(2, "--mode=upscale", f"--input={photos}/bad.png", f"--output={tmp_path / 'none'}")
    assert said.startswith(f"error: --input={photos}/bad.png: not a JPEG")
    assert not (tmp_path / "none").exists()
