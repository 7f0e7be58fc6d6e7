"""The benchmark of the network, on a network that is small enough for a test."""

import json
import os
import subprocess
import sys

import pytest
import small_run

from sr3_jax import models
from sr3_jax.tools.benchmark import network


def test_the_benchmark_times_what_its_flags_describe(tmp_path):
    """Two images on four devices run on two of them."""
    flags = ["--channels=8", "--multipliers=1,2", "--num_blocks=1", "--image_size=8"]
    flags += ["--batch_size=2", "--sample_steps=3", "--repeats=2", f"--json={tmp_path}/found.json"]
    command = [sys.executable, "-m", "sr3_jax.tools.benchmark", *flags]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    run = subprocess.run(
        command, cwd=small_run.ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "device: 2 x cpu" in run.stdout
    found = json.loads((tmp_path / "found.json").read_text())["sr3_jax"]
    model = models.UNet(channels=8, multipliers=(1, 2), num_blocks=1, attention_levels=())
    assert found["parameters"] == models.count_parameters(model, 8)
    assert found["forward_flops"] == 2 * models.count_flops(model, 8)
    for name, passes in {"forward": 1, "train": 3, "sample": 3}.items():
        at = found[name]
        assert 0 < at["fastest"] <= at["seconds"]
        rate = passes * found["forward_flops"] / at["seconds"]
        assert at["flops_per_second"] == pytest.approx(rate)


def test_peers_are_compared_run_by_run_and_by_operations():
    ours, theirs = [1.0, 4.0, 3.0], [2.0, 2.0, 2.0]
    sides = {
        "sr3_jax": {"all": {"train": ours}, "forward_flops": 12.0},
        "diffusers": {"all": {"train": theirs}, "forward_flops": 6.0},
    }
    for facts in sides.values():
        facts["train"] = network.summarise(facts["all"]["train"], 3 * facts["forward_flops"])
    ratio = network.compare(sides["sr3_jax"], sides["diffusers"], "train")
    assert ratio == {"rounds": 1.5, "medians": 1.5, "per_flop": 0.75}
    text = network.peers_table({"small": {**sides, "ratio": {"train": ratio}}})
    assert "| small, train | 3000 ms | 2000 ms | 1.50 | 0.75 |" in text
    assert "warning: a median is more than" in text  # 3 s is three times the fastest
