"""Devices: their description, their peak rates, and accelerators that jax did not open."""

import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest
import small_run

from sr3_jax import parallel
from sr3_jax.config import read, save
from sr3_jax.parallel import devices, peak

LIBTPU = small_run.ROOT / ".venv" / "tpu_compiler"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Returns a function that adds a device to the PCI bus; jax may choose any platform."""
    monkeypatch.setattr(devices, "_PCI", tmp_path)
    monkeypatch.setattr(devices, "_TPU_PLUGINS", ())
    monkeypatch.setattr(devices, "_GPU_PLUGINS", ())
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)

    def add(vendor: str, kind: str) -> None:
        path = pathlib.Path(tmp_path, f"0000:00:{len(os.listdir(tmp_path)):02x}.0")
        path.mkdir()
        (path / "vendor").write_text(f"{vendor}\n")
        (path / "class").write_text(f"{kind}\n")

    yield add
    jax.config.update("jax_platforms", before)


def test_chips_that_are_not_used_stop_a_program(machine, monkeypatch):
    if devices._gpus():
        pytest.skip("this machine has a GPU")
    machine("0x1ae0", "0x020000")  # Google's network, on machines of its cloud without TPUs
    machine("0x1ae0", "0x010802")  # and disks
    parallel.check_accelerator()
    machine("0x1ae0", "0x120000")
    machine("0x1ae0", "0x120000")
    with pytest.raises(RuntimeError, match=r"a TPU \(2 on the PCI bus\).*pip install 'jax\[tpu\]"):
        parallel.check_accelerator()
    jax.config.update("jax_platforms", "cpu")
    parallel.check_accelerator()


def test_a_gpu_without_its_package_stops_a_program(machine, monkeypatch):
    machine("0x10de", "0x030200")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(RuntimeError, match=r"an NVIDIA GPU.*jax\[cuda13\].*JAX_PLATFORMS=cpu"):
        parallel.check_accelerator()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    parallel.check_accelerator()


@pytest.mark.skipif(not LIBTPU.exists(), reason="libtpu is not installed (launch/test.sh)")
def test_a_tpu_that_cannot_be_opened_ends_the_command(tmp_path):
    """Runs the real libtpu on a machine without a TPU."""
    save(read(small_run.config()), tmp_path / "config.json")
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS",)}
    environment["PYTHONPATH"] = str(LIBTPU)
    command = [sys.executable, "-m", "sr3_jax.main", "--mode=evaluate", f"--workdir={tmp_path}"]
    run = {"cwd": small_run.ROOT, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run(command, env=environment, **run)
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1
    assert "libtpu is installed, but jax came up on the CPU" in error
    assert "Backend 'tpu' failed to initialize" in error and "set JAX_PLATFORMS=cpu" in error
    done = subprocess.run(command, env=environment | {"JAX_PLATFORMS": "cpu"}, **run)
    assert done.returncode == 2
    assert done.stderr.startswith("devices: ") and "process 0 of 1" in done.stderr


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v3", 61.5),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 836),
        ("NVIDIA B200", 2250),
        ("NVIDIA RTX 6000 Ada Generation", 364),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
        ("cpu", None),
    ],
)
def test_peaks_are_of_the_very_device(kind, teraflops):
    """Device kinds as drivers print them; many contain the name of another."""
    found = peak._rates(kind)
    assert (found and found.flops) == (teraflops and pytest.approx(teraflops * 1e12))


@pytest.mark.skipif(shutil.which("lscpu") is None, reason="lscpu, of Linux, says what a CPU has")
def test_instructions_for_bfloat16_are_those_that_lscpu_lists():
    listed = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    has_some = "avx512_bf16" in listed or "amx_bf16" in listed
    assert parallel.multiplies_bfloat16() == has_some


def test_compiled_programs_are_kept_where_the_next_start_finds_them(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        for workdir, kept in (
            ("gs://bucket/run/", "gs://bucket/run/compiled"),  # another machine goes on there
            ("/a/run", str(tmp_path / "sr3_jax")),
            ("", str(tmp_path / "sr3_jax")),
        ):
            jax.config.update("jax_compilation_cache_dir", None)
            parallel.keep_compiled(workdir)
            assert jax.config.jax_compilation_cache_dir == kept
        parallel.keep_compiled("gs://bucket/another")  # jax was told where
        assert jax.config.jax_compilation_cache_dir == kept
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
