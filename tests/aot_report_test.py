"""The compiler's report on a TPU topology, without a TPU."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import small_run
from jax.sharding import PartitionSpec

from sr3_jax import parallel
from sr3_jax.tools import aot_report, aot_table

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ,
    reason="libtpu, the TPU's compiler, is not installed",
)


def run(*arguments):
    command = [sys.executable, "-m", "sr3_jax.tools.aot_report", *arguments]
    return subprocess.run(command, cwd=small_run.ROOT, capture_output=True, text=True, timeout=600)


SMALL = (
    "--config=configs/imagenet_64_256.py",
    "--topology=v3:2x2",
    "--config.data.image_size=32",
    "--config.data.low_resolution=8",
    "--config.model.channels=32",
    "--config.model.multipliers=(1,2)",
    "--config.model.num_blocks=1",
    "--config.model.attention_resolutions=()",
    "--config.model.lanes=128",
)


@needs_libtpu
@pytest.mark.parametrize("mode", ["train", "sample"])
def test_a_small_network_compiles_for_a_v3_8(mode, tmp_path):
    path = tmp_path / "report.json"
    done = run(*SMALL, "--config.train.batch_size=16", f"--mode={mode}", f"--json={path}")
    assert done.returncode == 0, done.stderr
    assert "Estimated by the compiler, not measured" in done.stdout
    report = json.loads(path.read_text())
    assert report["fits"] and report["num_cores"] == 8 and report["mode"] == mode
    seconds = report["estimated_step_seconds"]
    assert 0 < report["share_of_peak"] < 1
    flops = report["model_flops_per_core"]
    assert flops == pytest.approx(report["share_of_peak"] * 61.5e12 * seconds)
    # The levels of 32 and 64 channels are folded, and zeros are multiplied too.
    assert 1.2 * flops < report["flops_per_core"] < 8 * flops
    assert report["hbm_bytes_per_core"] > report["hbm_parts"]["activations and other temporaries"]
    # Two kinds: kernels are gathered, gradients summed. Sampling sends nothing.
    assert bool(report["collectives"]) == (mode == "train")
    # No activation changes places.
    assert not {"all-to-all", "collective-permute"} & set(report["collectives"])


@needs_libtpu
def test_a_topology_that_does_not_exist_is_named():
    done = run(*SMALL, "--topology=v9:2x2")
    assert done.returncode == 2
    assert "topology 'v9:2x2' is unknown" in done.stderr


def test_collectives_of_a_compiled_program_are_counted_with_their_bytes():
    mesh = parallel.make_mesh()

    def f(rows):
        whole = jax.lax.all_gather(rows, "data", tiled=True)
        return jax.lax.psum(rows * 2.0, "data"), whole

    program = jax.shard_map(
        f,
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=(PartitionSpec(), PartitionSpec()),
        check_vma=False,
    )
    shape = jax.ShapeDtypeStruct(
        (4 * mesh.size, 100), jnp.float32, sharding=parallel.split_batch(mesh)
    )
    text = jax.jit(program).lower(shape).compile().as_text()
    found = aot_report.count_collectives(text)
    assert found["all-reduce"] == {"count": 1, "bytes": 4 * 100 * 4}
    assert found["all-gather"] == {"count": 1, "bytes": 4 * mesh.size * 100 * 4}


def test_the_table_in_the_docs_is_that_of_the_reports_beside_it(tmp_path):
    copy = tmp_path / "tpu.md"
    copy.write_text((small_run.ROOT / "docs" / "tpu.md").read_text())
    paths = (small_run.ROOT / "docs" / "tpu").glob("*.json")
    reports = {path.stem: json.loads(path.read_text()) for path in paths}
    assert set(reports) <= {name for name, _ in aot_table.programs()}
    before = copy.read_text()
    aot_table.write_table(copy, aot_table.table(reports))
    assert copy.read_text() == before
    for report in reports.values():
        if report["fits"] and report["estimated_step_seconds"]:
            assert f"| {report['estimated_step_seconds']:.4f} s |" in before
    (tmp_path / "unmarked.md").write_text("no table here")
    with pytest.raises(ValueError, match=r"unmarked.md has no lines .*begin"):
        aot_table.write_table(tmp_path / "unmarked.md", "")


def test_programs_that_do_not_fit_are_in_the_table():
    report = aot_report.Report(
        config="ffhq_256_1024",
        topology="v3:8x8",
        mode="train",
        layout="zero1",
        num_cores=128,
        batch_size=256,
        fits=False,
        compile_seconds=1.0,
        hbm_bytes_per_core=20_000_000_000,
    )
    text = aot_table.table({"ffhq_256_1024-v3-8x8-train": dataclasses.asdict(report)})
    assert "| ffhq_256_1024 | v3:8x8 (128) | train | 256 | 20.00 GB **does not fit** |" in text
