"""The script for half an hour on a GPU runs through: here on the CPU, in tiny sizes."""

import importlib.util
import json
import os
import subprocess
import sys
import tarfile

import small_run

ROOT = small_run.ROOT


def test_every_stage_passes_and_leaves_its_figures(tmp_path):
    out = tmp_path / "day"
    environment = os.environ | {"TINY": "1", "PYTHON": sys.executable, "MINUTES": "60"}
    environment |= {"JAX_NUM_CPU_DEVICES": "1"}  # in place of one GPU
    command = ["bash", "launch/gpu_day.sh", str(out)]
    run = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(command, **run)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((out / "figures.json").read_text())
    assert [found["outcome"] for found in figures.values()] == ["passed"] * 7
    training = figures["small training"]
    assert 0 < training["seconds, compiling"] < training["seconds, all"]
    assert training["programs compiled"] > 3 and training["resumed"] == "at step 4"
    assert "ms" in figures["the paper's networks"]["tiny, batch 2"]["sr3_jax train"]
    assert len(figures["longest kernels of a training step"]) > 5
    report = (out / "report.md").read_text()
    assert all(f"## {name}" in report for name in figures)
    assert "launch/gpu_probe.py numbers" in (out / "log.txt").read_text()
    # The parts, put together, are the run's folder.
    whole = tmp_path / "network.tar.gz"
    whole.write_bytes(b"".join(path.read_bytes() for path in sorted(out.glob("network.tar.gz.*"))))
    with tarfile.open(whole) as archive:
        assert {"./config.json", "./checkpoints"} <= set(archive.getnames())
    assert subprocess.run(command, **run).returncode == 2  # nothing is written over


def test_a_stage_that_fails_does_not_stop_the_next(tmp_path):
    spec = importlib.util.spec_from_file_location("gpu_day", ROOT / "launch" / "gpu_day.py")
    gpu_day = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu_day)
    day = gpu_day.Day(tmp_path / "out", 1.0)
    code = "import sys; print('half'); sys.exit('no such kernel')"
    day.stage("first", lambda found: day.run([sys.executable, "-c", code], 30))
    endless = "import time; print('begun', flush=True); time.sleep(100)"
    day.stage("second", lambda found: day.run([sys.executable, "-c", endless], 1))
    day.stage("third", lambda found: found.update(figure=3))
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures["first"]["outcome"] == "FAILED: RuntimeError: status 1: no such kernel"
    assert "status -15" in figures["second"]["outcome"]
    assert figures["third"] == {"figure": 3, "outcome": "passed", "minutes": 0.0}
    assert "no such kernel" in (tmp_path / "out" / "log.txt").read_text()
