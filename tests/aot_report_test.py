"""Reports of the TPU's compiler on a topology, without a TPU."""

import dataclasses
import importlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import small_run
from jax.experimental import topologies
from jax.sharding import PartitionSpec, SingleDeviceSharding
from PIL import Image

from sr3_jax import models, parallel
from sr3_jax.config import Sampling, changed, layouts, read
from sr3_jax.inference import refinement
from sr3_jax.models import convolution
from sr3_jax.parallel import compilation, topology
from sr3_jax.tools import aot_report, aot_table
from sr3_jax.tools.aot import roofline

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ,
    reason="libtpu, the TPU's compiler, is not installed",
)


def run(*arguments, tool="aot_report"):
    command = [sys.executable, "-m", f"sr3_jax.tools.{tool}", *arguments]
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
)


@needs_libtpu
@pytest.mark.parametrize("mode", ["train", "sample"])
def test_a_small_network_compiles_for_a_v3_8(mode, tmp_path):
    path = tmp_path / "report.json"
    arguments = ("--config.train.batch_size=16", "--quick", f"--mode={mode}", f"--json={path}")
    done = run(*SMALL, *arguments)
    assert done.returncode == 0, done.stderr
    assert "Estimated by the compiler (Built on" in done.stdout
    report = json.loads(path.read_text())
    assert report["fits"] and report["num_cores"] == 8 and report["mode"] == mode
    seconds = report["estimated_step_seconds"]
    assert 0 < report["share_of_peak"] < 1
    flops = report["model_flops_per_core"]
    assert flops == pytest.approx(report["share_of_peak"] * 61.5e12 * seconds)
    # The levels of 32 and 64 channels are packed, and zeros are multiplied too.
    assert 1.2 * flops < report["flops_per_core"] < 8 * flops
    assert report["hbm_bytes_per_core"] > report["hbm_parts"]["activations and other temporaries"]
    # Our own sum over the operations agrees with the compiler's.
    parts = report["parts"].values()
    assert sum(part["seconds"] for part in parts) == pytest.approx(seconds, rel=0.05)
    arithmetic = sum(part["arithmetic_seconds"] for part in parts)
    assert arithmetic * roofline.RATES["TPU v3"][0] == pytest.approx(
        report["flops_per_core"], rel=0.05
    )
    assert {"up_0", "up_1_resample", "middle"} <= set(report["parts"])
    # Training gathers kernels and sums gradients; sampling has no collectives.
    assert bool(report["collectives"]) == (mode == "train")
    # No activation is moved between devices.
    assert not {"all-to-all", "collective-permute"} & set(report["collectives"])


@needs_libtpu
def test_our_sum_for_a_chip_with_fast_memory_is_the_estimate_less_what_stays_there(tmp_path):
    json_path, hlo_path = tmp_path / "report.json", tmp_path / "program.txt"
    on_v5p = ("--topology=v5p:2x2x1", "--config.train.batch_size=16", "--quick")
    done = run(*SMALL, *on_v5p, "--mode=sample", f"--json={json_path}", f"--hlo={hlo_path}")
    assert done.returncode == 0, done.stderr
    report = json.loads(json_path.read_text())
    found = roofline.operations(hlo_path.read_text(), as_estimated=True)
    flops, bandwidth = roofline.RATES["TPU v5"]
    seconds = sum(max(o.flops / flops, o.num_bytes / bandwidth) for o in found)
    assert seconds == pytest.approx(report["estimated_step_seconds"], rel=0.05)
    assert sum(part["seconds"] for part in report["parts"].values()) < 0.9 * seconds


@needs_libtpu
def test_a_program_that_does_not_fit_says_how_much_it_needs_and_what_to_change(tmp_path):
    path = tmp_path / "report.json"
    one_level = ("--config.model.multipliers=(1,)", "--config.model.bottleneck_attention=False")
    size = ("--config.data.image_size=64", "--config.data.low_resolution=16")
    batch = "--config.train.batch_size=65536"
    done = run(*SMALL, *one_level, *size, batch, "--quick", f"--json={path}")
    assert done.returncode == 0, done.stderr
    assert "DOES NOT FIT" in done.stdout and "exceeds available HBM" in done.stdout
    report = json.loads(path.read_text())
    assert not report["fits"] and report["estimated_step_seconds"] is None
    assert report["hbm_bytes_per_core"] > 16e9
    assert "--config.train.accumulate_steps=2" in report["advice"]


@needs_libtpu
def test_a_quick_report_differs_in_code_and_cycles_alone(tmp_path):
    reports = []
    for quick in ("--quick", "--noquick"):
        path = tmp_path / f"report{quick}.json"
        batch = "--config.train.batch_size=16"
        done = run(*SMALL, batch, "--mode=sample", quick, f"--json={path}")
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(path.read_text()))
    quick, full = reports
    assert quick["cycle_seconds"] is None and full["cycle_seconds"] > full["estimated_step_seconds"]
    assert quick["hbm_parts"].pop("program") < full["hbm_parts"].pop("program")
    same = ("estimated_step_seconds", "bytes_per_core", "flops_per_core", "hbm_parts")
    for key in (*same, "collectives"):
        assert quick[key] == full[key], key


@needs_libtpu
def test_few_images_are_not_cut_into_strips():
    """By default, the compiler for newer TPUs cuts images into strips and copies their edges."""
    device = topology.tpu_devices("v5e:2x2")[0]
    where = SingleDeviceSharding(device)

    def convolve_twice(images, kernels):
        for kernel in kernels:
            images = convolution.convolve(images, kernel)
        return images

    images = jax.ShapeDtypeStruct((4, 64, 64, 128), jnp.bfloat16, sharding=where)
    kernels = jax.ShapeDtypeStruct((2, 3, 3, 128, 128), jnp.bfloat16, sharding=where)
    program = jax.jit(convolve_twice).lower(images, kernels)
    ours, plain = parallel.compile_for(device, program), program.compile()
    bytes_of = [compiled.cost_analysis()["bytes accessed"] for compiled in (ours, plain)]
    assert bytes_of[0] < 0.6 * bytes_of[1]


@needs_libtpu
def test_an_option_that_is_no_more_is_left_out_and_said(monkeypatch, caplog):
    device = topology.tpu_devices("v5e:2x2")[0]
    monkeypatch.setitem(compilation._TPU_OPTIONS, "xla_tpu_gone", False)
    row = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=SingleDeviceSharding(device))
    assert parallel.compile_for(device, jax.jit(jnp.sin).lower(row)).as_text()
    assert "No such compile option: 'xla_tpu_gone'" in caplog.text


@needs_libtpu
def test_operations_are_counted_where_an_accelerator_is_the_default():
    """Plugins of accelerators give no cost analysis of a program that is not compiled."""
    model = models.UNet(channels=8, multipliers=(1, 2), num_blocks=1)
    expected = models.count_flops(model, 16)
    accelerator = topology.tpu_devices("v3:2x2")[0]
    elsewhere = jax.jit(jnp.sin, in_shardings=SingleDeviceSharding(accelerator))
    assert elsewhere.lower(jax.ShapeDtypeStruct((8,), jnp.float32)).cost_analysis() is None
    with jax.default_device(accelerator):
        assert models.count_flops(model, 16) == expected > 0


@needs_libtpu
def test_two_slices_split_the_state_within_each():
    """Slices are connected by a data-centre network only."""
    mesh = parallel.make_mesh(topology.tpu_devices("v3:2x2*2"), spatial=2)
    assert dict(mesh.shape) == {"replica": 2, "data": 4, "model": 1, "spatial": 2}
    for of_slice in mesh.devices:
        assert len({device.slice_index for device in of_slice.flat}) == 1
    spec = parallel.Layout(mesh).kept(jax.ShapeDtypeStruct((3, 3, 8, 8), jnp.float32)).spec
    assert spec == PartitionSpec(None, None, "data", None)


@needs_libtpu
def test_devices_share_images_where_a_core_would_have_few():
    def sharing(name, kind, **changes):
        config = read(importlib.import_module(f"configs.{name}").get_config())
        devices = topology.tpu_devices(kind)
        return layouts.layout(changed(config, changes), devices).mesh.shape["spatial"]

    assert sharing("imagenet_64_256", "v3:8x8") == 4  # 2 images a core
    assert sharing("imagenet_64_256", "v3:8x8", **{"train.batch_size": 512}) == 2
    assert sharing("imagenet_64_256", "v3:2x2") == 1  # 32 images a core
    assert sharing("imagenet_64_256", "v5e:8x8") == 1
    assert sharing("imagenet_56_224", "v3:8x8") == 1  # of 7 rows at the deepest level
    assert sharing("ffhq_16_128", "v3:8x8") == 1  # of 128 rows
    assert sharing("imagenet_64_256", "v3:8x8", **{"data.low_resolution": 50}) == 2
    assert sharing("imagenet_64_256", "v3:8x8", **{"parallel.spatial": 1}) == 1


CHIPS = {
    "v2": ("1x1", "2x2", "2x4"),
    "v3": ("1x1", "2x2", "2x4"),
    "v4": ("1x1x1", "2x2x1", "2x2x2", "2x2x4"),
    "v5e": ("1x1", "2x2", "2x4", "4x4"),
    "v5p": ("1x1x1", "2x2x1", "2x2x2", "2x2x4"),
    "v6e": ("1x1", "2x2", "2x4", "4x4"),
}


@needs_libtpu
@pytest.mark.parametrize("chip", CHIPS)
def test_sampling_finds_a_mesh_of_any_chips_for_any_size_and_batch(chip):
    """Tries the chips of each host, and those of one host that has all chips of the slice."""
    for axes in CHIPS[chip]:
        topology.tpu_devices(f"{chip}:2x2x1" if len(axes) > 3 else f"{chip}:2x2")  # sets libtpu up
        how = {"chips_per_host_bounds": (*map(int, axes.split("x")), 1)[:3]}
        if chip == "v4":
            how["chip_config_name"] = "megacore"
        whole = topologies.get_topology_desc(f"{chip}:{axes}", "tpu", **how)
        groups = []
        if set(axes.split("x")) == {"1"}:  # as Colab's
            assert len(topology.tpu_devices(f"{chip}:{axes}")) == len(whole.devices)
        if len(whole.devices) >= 4:
            devices = topology.tpu_devices(f"{chip}:{axes}")
            hosts = {device.process_index for device in devices}
            groups = [[d for d in devices if d.process_index == host] for host in hosts]
        groups.append(whole.devices)
        for group, batch_size in itertools.product(groups, (1, 2, 3, 5, 6, 7, 8)):
            options = Sampling(num_steps=1, clip=False, batch_size=batch_size, tile_size=64)
            refiner = refinement.Refiner(
                models.Denoiser(models.UNet(channels=8)), options, factor=1, stride=1, devices=group
            )
            used = set()
            for height, count in itertools.product(range(1, 71), range(1, batch_size + 1)):
                shape = refiner.shape(count, (height, 5))
                if not shape.is_cut:
                    assert shape.tile[0] % shape.spatial == 0
                    assert shape.devices * shape.spatial <= len(group)
                used.add((shape.devices, shape.spatial))
            assert max(a * b for a, b in used) == len(group)
            for sharing in used:
                assert refiner.programs.mesh(*sharing).size == sharing[0] * sharing[1]


def test_a_topology_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"topology 'v3:2x2\*' is unknown"):
        topology.tpu_devices("v3:2x2*")
    for given in ("v3", "v3:3x5"):
        with pytest.raises(ValueError, match=f"topology '{given}' is unknown .* give axes of"):
            topology.tpu_devices(given)
    config = small_run.quickstart.get_config()
    config.train.batch_size = 3
    with pytest.raises(ValueError, match="batch_size .* = 3 cannot be split over 32 .* 32 would"):
        layouts.layout(read(config), topology.tpu_devices("v3:4x4"))
    done = run(*SMALL, "--topology=v9:2x2")
    assert done.returncode == 2
    assert "topology 'v9:2x2' is unknown" in done.stderr


def test_bytes_are_counted_with_what_tiles_are_padded_by():
    """A tile of four rows holds two images: half of it is padding."""
    text = """
ENTRY %main (a: bf16[2,8,8,100]) -> bf16[2,8,8,100] {
  %a = bf16[2,8,8,100]{3,0,2,1:T(4,128)(2,1)} parameter(0)
  %b = bf16[2,8,8,100]{3,2,1,0:T(8,128)(2,1)} copy(%a), metadata={op_name="jit(f)/up_3_block_0/x"}
  ROOT %c = bf16[2,8,8,100]{3,2,1,0:T(8,128)(2,1)} negate(%b)
}
"""
    copy, negate = roofline.operations(text)
    assert copy.kind == "copy" and copy.flops == 0
    assert copy.num_bytes == 4 * 8 * 8 * 128 * 2 + 2 * 8 * 8 * 128 * 2
    parts = roofline.by_part([copy, negate], peak_flops=1.0, bytes_per_second=2.0)
    assert parts["up_3"].seconds == copy.num_bytes / 2 and parts["rest"].arithmetic_seconds == 0
    with pytest.raises(ValueError, match="no ENTRY"):
        roofline.operations("HloModule nothing")


def test_fast_memory_costs_nothing_and_a_copy_to_it_one_pass():
    text = """
ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %s = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%a)
  %b = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%s)
  %c = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} negate(%b)
  ROOT %d = bf16[8,128]{1,0:T(8,128)(2,1)} negate(%c)
}
"""  # noqa: E501
    size, mark = 8 * 128 * 2, 4
    bytes_of = lambda **how: [o.num_bytes for o in roofline.operations(text, **how)]  # noqa: E731
    assert bytes_of() == [size + mark, 0, size]
    assert bytes_of(as_estimated=True) == [4 * size + 2 * mark, 2 * size, 2 * size]


def test_a_slice_that_is_copied_to_fast_memory_counts_as_what_it_is():
    """Not as the array that it is cut from, though that is a part of the operation's result."""
    text = """
ENTRY %main (a: bf16[64,128]) -> bf16[8,128] {
  %a = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %s = ((bf16[64,128]{1,0:T(8,128)(2,1)}), bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:8], [0:128]}
  %b = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} slice-done(%s)
  ROOT %d = bf16[8,128]{1,0:T(8,128)(2,1)} negate(%b)
}
"""  # noqa: E501
    size = 8 * 128 * 2
    assert [o.num_bytes for o in roofline.operations(text)] == [size, size]


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
    found = roofline.count_collectives(text)
    assert found["all-reduce"] == {"count": 1, "bytes": 4 * 100 * 4}
    assert found["all-gather"] == {"count": 1, "bytes": 4 * mesh.size * 100 * 4}


def test_the_table_in_the_docs_is_that_of_the_reports_beside_it(tmp_path):
    copy, cascades = tmp_path / "tpu.md", tmp_path / "generation.md"
    for path in (copy, cascades):
        path.write_text((small_run.ROOT / "docs" / path.name).read_text())
    paths = (small_run.ROOT / "docs" / "tpu").glob("*.json")
    reports = {path.stem: json.loads(path.read_text()) for path in paths}
    assert set(reports) == {name for name, _ in aot_table.programs()}
    before, of_cascades = copy.read_text(), cascades.read_text()
    chart = tmp_path / "chart.png"
    files = (f"--document={copy}", f"--cascades={cascades}", f"--chart={chart}", "--render_only")
    for arguments, status, said in (
        ((f"--reports={tmp_path}",), 2, f"--reports={tmp_path} has no reports"),
        (("--only=v9", "--norender_only"), 2, "--only=v9 matches no program's name"),
        ((), 0, ""),
    ):
        done = run(*files, *arguments, tool="aot_table")
        assert (done.returncode, said in done.stderr) == (status, True), done.stderr
        assert (copy.read_text(), cascades.read_text()) == (before, of_cascades)
        assert chart.exists() == (status == 0)
    # Both cascades in three settings; and by hand, the seconds of a face on eight cores.
    assert of_cascades.count("| cascade_") == 6
    steps = {"ffhq_64_base": 1000, "imagenet_64_256": 256, "ffhq_256_1024": 100}
    each = [
        n * reports[f"{c}-v3-2x2-sample_one"]["estimated_step_seconds"] for c, n in steps.items()
    ]
    assert f"| {sum(each):.1f} s |" in of_cascades
    for report in reports.values():
        if report["fits"] and report["estimated_step_seconds"]:
            assert f"| {report['estimated_step_seconds']:.4f} s |" in before
    # With a report missing, the chart lacks a bar.
    del reports["ffhq_16_128-v4-4x4x4-train"]
    aot_table.draw(reports, chart)
    assert Image.open(chart).size == (990, 374)
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
