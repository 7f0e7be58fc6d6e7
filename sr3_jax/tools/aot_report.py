"""Reports of the TPU's or GPU's compiler on a config: `python -m sr3_jax.tools.aot_report`.

    python -m sr3_jax.tools.aot_report --config=configs/imagenet_64_256.py --topology=v3:8x8

compiles the training step (or, with --mode=sample, one call of the denoiser) for TPUs, which need
not be there, and reports memory by part, operations, bytes, collectives, and the compiler's
estimate of the time. It needs libtpu (`pip install libtpu`), which runs on any Linux.
`--topology=h100`, `a100` or `rtx4090` compiles for one GPU, and needs `pip install 'jax[cuda13]'`,
but no GPU; its time is the sum of `roofline`, since its compiler estimates none. Nothing here is a
measurement.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
from absl import flags
from etils import epath
from ml_collections import config_flags

from sr3_jax import command_line, models, parallel
from sr3_jax.config import Config, changed, layouts, networks, read, schedules
from sr3_jax.data import storage
from sr3_jax.parallel import topology as topologies
from sr3_jax.tools.aot import STEPS_OF_THE_PAPER, programs, roofline

# XLA chooses among Triton's kernels for matrix products by timing them. It cannot do so without a
# GPU, and some do not compile, so cuBLAS computes all products.
_GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
# jax takes this share of a GPU's memory by default.
_GPU_SHARE = 0.75

Mode = Literal["train", "sample"]

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; keys can be overridden.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", "v3:8x8", "TPU chip and axes, as v3:2x2; v5e:4x4*2: two slices."
)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "sample"], "Which program.")
_LARGEST = flags.DEFINE_bool(
    "largest_batch", False, "Double or halve the batch to the largest that fits."
)
_JSON = flags.DEFINE_string("json", None, "File to write the report to.")
_QUICK = flags.DEFINE_bool(
    "quick",
    False,
    "Take the first way to emit each kernel, not the best one: four times as fast, with the same "
    "operations, bytes and estimate, but no cycles and less code.",
)
_HLO = flags.DEFINE_string("hlo", None, "File to write the compiled program to, as text.")

_CALLS = "of the denoiser, the program that upscaling runs; without the sampler's sums between them"
_QUICK_OPTIONS = {"xla_jf_convolution_performance_target": 0}


@dataclasses.dataclass(frozen=True)
class Report:
    """A report on a program; bytes and operations are those of one core of the topology.

    Attributes:
      hbm_parts: unpadded sizes of arrays that stay between steps, padded sizes of the others.
      flops_per_core: operations of the compiled program, with recomputation and zeros of packed
        convolutions.
      model_flops_per_core: operations of the network as written (`models.count_flops`).
      estimated_step_seconds: the compiler's estimate: the sum over operations of the longer of
        arithmetic at the peak and bytes at the memory's bandwidth; None if it gives none.
      nfe: number of calls of the denoiser for a batch, by `config.sampling`; None for training.
      share_of_peak: share of the core's bf16 peak, by `model_flops_per_core` and the estimate.
      cycle_seconds: the sum of the kernels' cycles by the compiler's cost model, without
        collectives; it exceeds the estimate. None for a quick report.
      quick: whether kernels were emitted in the first way, not the best one.
      kernels: number of kernels that a GPU launches; None for TPUs.
      float32_images: number and bytes of the images that a GPU's kernels write in float32.
      bytes_by_kind: bytes that each opcode, and each call of a library, moves on a GPU.
      collectives: number, and bytes of the results, of each kind of collective.
      parts: `seconds`, `arithmetic_seconds` and `num_bytes` of each part of the network, by
        `roofline`.
      message: the compiler's message if the program does not fit.
      advice: options that make it fit.
    """

    config: str
    topology: str
    mode: str
    layout: str
    num_cores: int
    batch_size: int
    fits: bool
    compile_seconds: float
    hbm_bytes_per_core: int | None = None
    hbm_parts: dict[str, int] = dataclasses.field(default_factory=dict)
    flops_per_core: float | None = None
    model_flops_per_core: float | None = None
    bytes_per_core: float | None = None
    estimated_step_seconds: float | None = None
    estimated_steps_per_second: float | None = None
    estimated_days_for_1m_steps: float | None = None
    nfe: int | None = None
    share_of_peak: float | None = None
    cycle_seconds: float | None = None
    quick: bool = False
    compiler: str = ""
    kernels: int | None = None
    float32_images: dict[str, int] = dataclasses.field(default_factory=dict)
    bytes_by_kind: dict[str, int] = dataclasses.field(default_factory=dict)
    collectives: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    parts: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    message: str = ""
    advice: str = ""


def compile_report(
    config: Config,
    topology: str,
    mode: Mode,
    hlo_path: str | None = None,
    quick: bool = False,
) -> Report:
    """Compiles `config`'s program for `topology` and reports on it, also if it does not fit.

    Raises:
      ValueError: the config or the topology is invalid.
      RuntimeError: the compiler is not installed.
    """
    devices = topologies.devices(topology)
    layout = layouts.layout(config, devices, training=mode == "train")
    is_gpu = devices[0].platform == "gpu"
    if not config.model.packed_channels and not is_gpu:  # what a TPU would take
        config = changed(config, {"model.packed_channels": networks.TPU_LANES})
    is_training = mode == "train"
    program, arguments, parts = getattr(programs, mode)(config, layout)
    facts = dict(
        topology=topology,
        mode=mode,
        config="",
        layout=layout.name,
        num_cores=len(devices),
        batch_size=config.train.batch_size,
        nfe=None if is_training else schedules.sampler(config).nfe,
        quick=quick,
        compiler=devices[0].client.platform_version.splitlines()[-1],
    )
    begin = time.perf_counter()

    def too_big(used: int | None, message: str, remedy: str = "") -> Report:
        return Report(
            **facts,
            fits=False,
            compile_seconds=time.perf_counter() - begin,
            hbm_bytes_per_core=used,
            hbm_parts=parts,
            message=message,
            advice=_advice(config, layout) + remedy,
        )

    try:
        lowered = program.lower(*arguments)
        options = _GPU_OPTIONS if is_gpu else _QUICK_OPTIONS if quick else None
        compiled = parallel.compile_for(devices[0], lowered, options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return too_big(_used_hbm(str(error)), str(error).partition("\n")[0])
    text = compiled.as_text()
    if hlo_path:
        storage.write_whole(hlo_path, text.encode())
    memory, found = compiled.memory_analysis(), roofline.operations(text)
    parts["activations and other temporaries"] = memory.temp_size_in_bytes
    parts["program"] = memory.generated_code_size_in_bytes
    used = _used_bytes(memory)
    if is_gpu:
        images = roofline.float32_images(found)
        facts |= {
            "kernels": len(found),
            "float32_images": {"count": len(images), "bytes": sum(images)},
            "bytes_by_kind": roofline.by_kind(found),
        }
        if used > (most := _GPU_SHARE * topologies.gpu_memory(topology)):
            message = f"{used / 1e9:.1f} GB are more than the {most / 1e9:.1f} GB that jax takes"
            return too_big(used, message, " XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 helps, too.")
    size = config.data.image_size if is_training else config.tile_size
    model_flops = models.count_flops(networks.model(config), size)
    model_flops *= config.train.batch_size / len(devices) * (3 if is_training else 1)
    return Report(
        **facts,
        **_costs(compiled.cost_analysis(), found, model_flops, devices),
        fits=True,
        compile_seconds=time.perf_counter() - begin,
        hbm_bytes_per_core=used,
        hbm_parts=parts,
        cycle_seconds=None if quick else _cycle_seconds(text, devices[0]),
        collectives=roofline.count_collectives(text),
    )


def largest_batch(config: Config, topology: str, compile_one: Callable[[Config], Report]) -> Report:
    """Returns the report of the largest batch that fits, by doubling or halving that of `config`.

    If not even one image for each group of devices fits, the report says so.
    """
    layout = layouts.layout(config, topologies.devices(topology), training=False)
    groups = parallel.num_batch_parts(layout.mesh)
    parts = groups * config.train.accumulate_steps
    of = lambda rows: compile_one(changed(config, {"train.batch_size": rows * parts}))  # noqa: E731
    rows = config.train.batch_size // parts
    report = of(rows)
    if report.fits:
        while (larger := of(2 * rows)).fits:
            report, rows = larger, 2 * rows
    while not report.fits and rows > 1:
        rows //= 2
        report = of(rows)
    return report


def render(report: Report) -> str:
    """Returns the report as text for a terminal."""
    kind = "step" if report.mode == "train" else "call"
    lines = [
        f"{report.config} on {report.topology} ({report.num_cores} cores), {report.mode}, batch "
        f"{report.batch_size}, layout {report.layout}; compiled in {report.compile_seconds:.0f} s",
        f"Estimated by the compiler ({report.compiler}), not measured:",
    ]
    if report.hbm_bytes_per_core is not None:
        lines.append(f"  memory per core           {report.hbm_bytes_per_core / 1e9:8.2f} GB")
    lines += [f"    {name:<34}{size / 1e9:8.2f} GB" for name, size in report.hbm_parts.items()]
    if not report.fits:
        return "\n".join([*lines, f"  DOES NOT FIT: {report.message}", f"  {report.advice}"])
    lines.append(
        f"  operations per core       {report.flops_per_core / 1e12:8.2f} TFLOP, of the network as "
        f"written {report.model_flops_per_core / 1e12:.2f}"
    )
    lines.append(f"  bytes moved per core      {report.bytes_per_core / 1e9:8.1f} GB")
    if report.estimated_step_seconds is not None:
        lines.append(
            f"  time of a {kind}            {report.estimated_step_seconds:8.4f} s   "
            f"{report.estimated_steps_per_second:.2f} {kind}s/s"
        )
        if report.nfe:
            total = f"{report.estimated_step_seconds * report.nfe:8.2f} s   {_CALLS}"
            lines.append(f"  of {report.nfe:5d} calls            {total}")
        if report.share_of_peak:
            lines.append(f"  share of the bf16 peak    {report.share_of_peak:8.1%}")
        if report.mode == "train":
            days = report.estimated_days_for_1m_steps
            lines.append(f"  days for 1M steps         {days:8.2f}")
    else:
        lines.append(f"  time of a {kind}: the compiler gives no estimate of this program")
    if report.cycle_seconds:
        lines.append(
            f"  kernels by their cycles   {report.cycle_seconds:8.4f} s   without collectives"
        )
    if report.kernels:
        count, size = (report.float32_images[key] for key in ("count", "bytes"))
        lines.append(f"  kernels launched          {report.kernels:8d}")
        lines.append(f"  float32 images written    {count:8d}   {size / 1e9:.2f} GB")
        for kind, moved in list(report.bytes_by_kind.items())[:8]:
            lines.append(f"    by {kind:<31}{moved / 1e9:8.2f} GB")
    for kind, sums in sorted(report.collectives.items()):
        lines.append(f"  {kind:<22}{sums['count']:5d} times {sums['bytes'] / 1e9:8.3f} GB")
    if report.parts:
        total = sum(part["seconds"] for part in report.parts.values())
        lines.append(f"  where the time goes, by a sum of our own: {total:.4f} s")
    for name, part in report.parts.items():
        if part["seconds"] > 0.01 * total:
            lines.append(
                f"    {name:<28}{part['seconds'] * 1e3:8.2f} ms, of them arithmetic "
                f"{part['arithmetic_seconds'] * 1e3:8.2f}; {part['num_bytes'] / 1e9:6.2f} GB"
            )
    return "\n".join(lines)


def _used_bytes(memory: Any) -> int:
    """Returns the bytes of a device's memory that a program takes, by its `memory_analysis`."""
    kinds = ("argument", "output", "temp", "generated_code")
    return sum(getattr(memory, f"{k}_size_in_bytes") for k in kinds) - memory.alias_size_in_bytes


def _costs(
    cost: dict[str, float] | None,
    found: list[roofline.Operation],
    model_flops: float,
    devices: Sequence[jax.Device],
) -> dict[str, Any]:
    """Returns a report's fields about arithmetic, bytes and time of one core.

    `cost` is the compiler's analysis, or None for GPUs, for which the operations are summed.
    """
    if cost is None:
        cost = {
            "flops": sum(operation.flops for operation in found),
            "bytes accessed": sum(operation.num_bytes for operation in found),
        }
    seconds = cost.get("optimal_seconds", -1.0)
    seconds = seconds if seconds > 0 else None
    peak = _peak_of_core(devices)
    of_data_sheet = peak, parallel.memory_bandwidth(devices[0])
    rates = roofline.RATES.get(devices[0].device_kind, of_data_sheet)
    shares = roofline.by_part(found, *rates) if all(rates) else {}
    return {
        "flops_per_core": cost["flops"],
        "model_flops_per_core": model_flops,
        "bytes_per_core": cost["bytes accessed"],
        "estimated_step_seconds": seconds,
        "estimated_steps_per_second": seconds and 1.0 / seconds,
        "estimated_days_for_1m_steps": seconds and seconds * STEPS_OF_THE_PAPER / 86_400,
        "share_of_peak": seconds and peak and model_flops / seconds / peak,
        "parts": {name: dataclasses.asdict(share) for name, share in shares.items()},
    }


def _peak_of_core(devices: Sequence[jax.Device]) -> float | None:
    """Returns the peak of one device; half the chip's if its two cores are devices."""
    peak = parallel.peak_flops(devices[0])
    halved = len(devices) > 1 and len({tuple(d.coords) for d in devices}) < len(devices)
    # For v2 and v3, `peak_flops` is of a core.
    if peak and halved and not re.search(r"v[23]", devices[0].device_kind):
        return peak / 2
    return peak


def _cycle_seconds(hlo: str, device: Any) -> float | None:
    """Returns the seconds of all kernels, by the cycles in the compiled program's text."""
    cycles = sum(int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', hlo))
    return cycles / clock if (clock := parallel.clock_hz(device)) and cycles else None


def _used_hbm(message: str) -> int | None:
    """Returns the memory that a program needs, by the compiler's error."""
    found = re.search(r"\(([\d.]+)([KMG])\) exceeds available HBM", message)
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(float(found[1]) * units[found[2]]) if found else None


def _advice(config: Config, layout: parallel.Layout) -> str:
    """Returns options that make a program fit, the cheapest first."""
    steps, groups = config.train.accumulate_steps, parallel.num_batch_parts(layout.mesh)
    ideas = []
    if layout.name == "replicated":
        ideas.append("--config.parallel.layout=zero1")
    is_splittable = config.train.batch_size // steps > groups
    if is_splittable:
        ideas.append(f"--config.train.accumulate_steps={2 * steps}")
        ideas.append("a smaller --config.train.batch_size")
    if not config.model.remat:
        ideas.append("--config.model.remat=True")
    if not is_splittable:
        spatial = layout.mesh.shape[parallel.SPATIAL_AXIS]
        ideas.append(f"--config.parallel.spatial={2 * spatial}")
    return "To make it fit, in this order: " + ", ".join(ideas) + ", or a larger topology."


def main(_: list[str]) -> None:
    """Prints the report of the flags."""
    if _CONFIG.value is None:
        raise ValueError("--config=FILE is needed, as --config=configs/imagenet_64_256.py")
    for flag in (_JSON, _HLO):
        if flag.value:
            storage.check_takes_file(flag.value, f"--{flag.name}")
    config = read(_CONFIG.value)
    compile_one = functools.partial(
        compile_report,
        topology=_TOPOLOGY.value,
        mode=_MODE.value,
        hlo_path=_HLO.value,
        quick=_QUICK.value,
    )
    if _LARGEST.value:
        report = largest_batch(config, _TOPOLOGY.value, compile_one)
    else:
        report = compile_one(config)
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    report = dataclasses.replace(report, config=epath.Path(name).stem)
    print(render(report))
    if _JSON.value:
        content = json.dumps(dataclasses.asdict(report), indent=2) + "\n"
        storage.write_whole(_JSON.value, content.encode())


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # the topology's devices are found all the same
    command_line.run(main)
