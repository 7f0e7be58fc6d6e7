"""The GPU's compiler, without a GPU: what it makes of a small training step."""

import json
import os
import subprocess
import sys

import pytest
import small_run

from sr3_jax.tools.aot import roofline

COMPILER = small_run.ROOT / ".venv" / "cuda"
needs_compiler = pytest.mark.skipif(
    not COMPILER.exists(), reason="jax's CUDA plugin is not installed (launch/test.sh)"
)


@needs_compiler
def test_a_training_step_compiles_for_a_gpu(tmp_path):
    report, hlo = tmp_path / "report.json", tmp_path / "hlo.txt"
    command = [sys.executable, "-m", "sr3_jax.tools.aot_report", "--topology=h100"]
    flags = ["--config.model.multipliers=1,2,", "--config.data.image_size=64"]
    flags += ["--config.data.low_resolution=16", "--config.model.dtype=bfloat16"]
    run = subprocess.run(
        [*command, "--config=configs/quickstart.py", *flags, f"--json={report}", f"--hlo={hlo}"],
        cwd=small_run.ROOT,
        env=os.environ | {"PYTHONPATH": str(COMPILER)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(report.read_text())
    assert found["fits"] and 0 < found["hbm_bytes_per_core"] < 2e9
    # Its operations are the network's, but for taps at borders and matrix products' padding.
    assert found["flops_per_core"] == pytest.approx(found["model_flops_per_core"], rel=0.15)
    # Convolutions are cuDNN's, in bfloat16, channels last.
    text = hlo.read_text()
    calls = [line for line in text.splitlines() if "__cudnn$conv" in line and " = (bf16" in line]
    assert len(calls) > 50 and all("dim_labels=b01f_o01i->b01f" in line for line in calls)
    assert found["kernels"] > len(calls)
    # Group normalisation keeps no image in float32 between its passes.
    assert found["float32_images"]["bytes"] < 0.1 * found["bytes_per_core"]
    seconds = sum(part["seconds"] for part in found["parts"].values())
    assert 0 < seconds < 1e-2 and f"kernels launched {found['kernels']:>17}" in run.stdout


def test_bytes_and_operations_of_a_gpus_program_are_counted():
    """By hand, of a convolution by cuDNN forward and backward, in a called computation."""
    convolution = "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f"
    text = f"""
%part (a: bf16[2,8,8,4], k: bf16[6,3,3,4]) -> f32[2,8,8,6] {{
  %a = bf16[2,8,8,4]{{3,2,1,0}} parameter(0)
  %k = bf16[6,3,3,4]{{3,2,1,0}} parameter(1)
  %cudnn-conv.1 = (bf16[2,8,8,6]{{3,2,1,0}}, u8[16]{{0}}) custom-call(%a, %k), {convolution}, custom_call_target="__cudnn$convForward"
  %y = bf16[2,8,8,6]{{3,2,1,0}} get-tuple-element(%cudnn-conv.1), index=0
  %cudnn-conv-bw-input.1 = (bf16[2,8,8,4]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%y, %k), {convolution}, custom_call_target="__cudnn$convBackwardInput"
  %cudnn-conv-bw-filter.1 = (bf16[6,3,3,4]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%a, %y), {convolution}, custom_call_target="__cudnn$convBackwardFilter"
  ROOT %z = f32[2,8,8,6]{{3,2,1,0}} copy(%y)
}}

ENTRY %main (a: bf16[2,8,8,4], k: bf16[6,3,3,4]) -> f32[2,8,8,6] {{
  %a.1 = bf16[2,8,8,4]{{3,2,1,0}} parameter(0)
  %k.1 = bf16[6,3,3,4]{{3,2,1,0}} parameter(1)
  ROOT %call = f32[2,8,8,6]{{3,2,1,0}} call(%a.1, %k.1), to_apply=%part
}}
"""  # noqa: E501
    image, kernel, result = 2 * 8 * 8 * 4 * 2, 6 * 3 * 3 * 4 * 2, 2 * 8 * 8 * 6 * 2
    operations = {operation.name: operation for operation in roofline.operations(text)}
    assert len(operations) == 4
    products = 2 * 8 * 8 * 6 * 3 * 3 * 4
    for name in ("cudnn-conv.1", "cudnn-conv-bw-input.1", "cudnn-conv-bw-filter.1"):
        assert operations[name].flops == 2 * products
    assert operations["cudnn-conv.1"].num_bytes == image + kernel + result + 16
    assert operations["z"].num_bytes == 3 * result and operations["z"].flops == 0
    assert roofline.float32_images(operations.values()) == [2 * result]
    kinds = roofline.by_kind(operations.values())
    assert kinds["copy"] == 3 * result and kinds["cudnn-conv-bw-input"] == image + kernel + result
