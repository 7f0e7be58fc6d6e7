"""How fast the network runs: `python -m sr3_jax.tools.benchmark`.

Times the compiled forward pass, training step (gradient and Adam update) and, with
`--sample_steps`, sampling; with `--peer=diffusers` also PyTorch's `diffusers.UNet2DModel` of the
same size (on GPUs under `torch.compile`), in turn with ours, so that other load of the machine
affects both. All JAX devices share the batch. docs/cpu.md has results and the settings for CPUs;
launch/gpu_benchmark.sh makes the measurements of docs/gpu.md.

`--what=data --config=FILE` times the reading of a config's images (docs/data.md), `--what=upscale
--workdir=DIR` upscaling from file to file (docs/upscaling.md). `--what=options --workdir=DIR`
scores the options of upscaling on held-out images, and `--what=samplers` gives the errors of
samplers in few steps in closed form (docs/sampling.md).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags, logging
from ml_collections import config_flags

from sr3_jax import command_line, diffusion, models, parallel
from sr3_jax.checkpoints import quiet_orbax
from sr3_jax.config import read
from sr3_jax.models import layers
from sr3_jax.tools.benchmark import data, diffusers_peer, options, samplers, upscaling

_NOISY = 1.4  # median over fastest run; on a quiet machine it is below 1.2
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

_WHAT = flags.DEFINE_enum(
    "what",
    "model",
    ["model", "data", "samplers", "upscale", "options"],
    "What to measure: the network; reading a config's images; errors of samplers in few steps; "
    "upscaling from file to file; scores of its options.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Of a trained network (--what=upscale, options).")
_SIZE = flags.DEFINE_string("size", "64x64", "Height x width of inputs (--what=upscale).")
_STEPS = flags.DEFINE_integer("steps", None, "Refinement steps (--what=upscale, options).", 1)
_CONFIG = config_flags.DEFINE_config_file("config", None, "Of the images (--what=data).")
_IMAGES = flags.DEFINE_integer(
    "images", 512, "For each run (--what=data, upscale, options).", lower_bound=1
)
_CHANNELS = flags.DEFINE_integer("channels", 32, "Channels of the first level.", lower_bound=1)
_MULTIPLIERS = flags.DEFINE_list("multipliers", ["1", "2", "2"], "Multiple of them by level.")
_NUM_BLOCKS = flags.DEFINE_integer("num_blocks", 2, "Residual blocks a level.", lower_bound=1)
_ATTENTION = flags.DEFINE_list("attention_levels", [], "Levels with attention, such as 3,4.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 32, "Pixels a side.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images, on all devices.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", list(_DTYPES), "Type of the computation.")
_SAMPLE_STEPS = flags.DEFINE_integer(
    "sample_steps", 0, "Also time sampling in so many refinement steps.", lower_bound=0
)
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed runs; the median counts.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "File to write the results to.")
_PICTURE = flags.DEFINE_string("picture", None, "PNG to draw samples in (--what=options).")
_PEER = flags.DEFINE_enum("peer", None, ["diffusers"], "What to compare with.")
_PEER_PYTHON = flags.DEFINE_string(
    "peer_python", sys.executable, "Interpreter that has torch and diffusers."
)

Run = Callable[[], float]


def make_runs(
    model: models.UNet, image_size: int, batch_size: int, sample_steps: int = 0
) -> tuple[dict[str, Run], dict[str, Any]]:
    """Compiles the network and its training step on random images, split over all devices.

    Returns:
      `forward`, `train` and, with sample steps, `sample`, each of which runs once and returns the
      seconds; and facts: `parameters`, `forward_flops` of the batch, `compile_seconds` by run.
    """
    mesh = parallel.make_mesh()
    parallel.check_batch_size(batch_size, mesh, "--batch_size")
    # Operations of the network as written, before XLA rewrites convolutions.
    forward_flops = batch_size * _flops_of_image(model, image_size)
    shape = (batch_size, image_size, image_size, 3)
    keys = jax.random.split(jax.random.key(0), 3)
    x, y_0, eps = (jax.random.normal(key, shape) for key in keys)
    gamma = jnp.full((batch_size,), 0.5)
    y_t = diffusion.diffuse(y_0, gamma, eps)
    # Arguments, since every device would get all of a constant.
    batch = jax.device_put((x, y_t, gamma, eps), parallel.split_batch(mesh))

    one = jnp.zeros((1, *shape[1:]))
    whole = parallel.replicated(mesh)
    init = jax.jit(model.init, out_shardings=whole)
    params = init(jax.random.key(1), one, one, jnp.ones((1,)))["params"]
    optimizer = optax.adam(1e-4)
    opt_state = jax.jit(optimizer.init, out_shardings=whole)(params)

    def forward(params, x, y_t, gamma, eps):
        return model.apply({"params": params}, x, y_t, gamma)

    def train(params, opt_state, *batch):
        def loss(params):
            return diffusion.denoising_loss(forward(params, *batch), batch[-1])

        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    denoiser = models.Denoiser(model)

    def sample(params, keys, x):
        return diffusion.sample(
            lambda y_t, gamma: denoiser(params, x, y_t, gamma),
            diffusion.ancestral(diffusion.respace(diffusion.linear(), sample_steps)),
            keys,
            shape[1:],
        )

    state = [params, opt_state]
    compile_seconds = {}

    def compiled(name: str, program: Any) -> Any:
        start = time.perf_counter()
        executable = parallel.compile_for(jax.devices()[0], program)
        compile_seconds[name] = time.perf_counter() - start
        return executable

    run_forward = compiled("forward", jax.jit(forward).lower(params, *batch))
    run_train = compiled("train", jax.jit(train, donate_argnums=(0, 1)).lower(*state, *batch))

    def train_once() -> None:
        *state[:], _ = jax.block_until_ready(run_train(*state, *batch))

    runs = {
        "forward": _timed(lambda: jax.block_until_ready(run_forward(state[0], *batch))),
        "train": _timed(train_once),
    }
    if sample_steps:
        # Sampling uses weights in the type of the computation.
        few = jax.jit(denoiser.cast_params)(params)
        row_keys = jax.device_put(jax.random.split(keys[0], batch_size), parallel.split_batch(mesh))
        run_sample = compiled("sample", jax.jit(sample).lower(few, row_keys, batch[0]))
        runs["sample"] = _timed(lambda: jax.block_until_ready(run_sample(few, row_keys, batch[0])))
    facts = {
        "parameters": models.count_parameters(model, image_size),
        "forward_flops": forward_flops,
        "compile_seconds": compile_seconds,
    }
    return runs, facts


def _flops_of_image(model: models.UNet, image_size: int) -> float:
    flops = models.count_flops(model, image_size)
    if flops is None:
        raise ValueError(
            f"JAX_PLATFORMS = {os.environ.get('JAX_PLATFORMS', '')!r} leaves out the CPU, where "
            "operations are counted; add ,cpu to it"
        )
    return flops


def _timed(call: Callable[[], object]) -> Run:
    def run() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return run


def interleave(runs: dict[str, Run], repeats: int) -> dict[str, list[float]]:
    """Runs each once to warm up, then all of them in turn, `repeats` times."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            # A first run after another's turn meets cold caches and sleeping threads.
            run()
            seconds[name].append(run())
    return seconds


def summarise(seconds: list[float], flops: float) -> dict[str, float]:
    """Returns median and fastest seconds, and the rate at the median."""
    median = statistics.median(seconds)
    return {"seconds": median, "fastest": min(seconds), "flops_per_second": flops / median}


def compare(facts: dict[str, Any], peer: dict[str, Any], name: str) -> dict[str, float]:
    """Returns ours over theirs in seconds and in seconds for each FLOP; below 1, ours is faster.

    `rounds` is the median of the ratios within a round, the least sensitive to lasting noise.
    """
    ratios = [a / b for a, b in zip(facts["all"][name], peer["all"][name], strict=True)]
    rounds = statistics.median(ratios)
    return {
        "rounds": rounds,
        "medians": facts[name]["seconds"] / peer[name]["seconds"],
        "per_flop": rounds * peer["forward_flops"] / facts["forward_flops"],
    }


def benchmark_model() -> dict[str, Any]:
    """Times the network that the flags describe, and its peer."""
    dtype = _DTYPES[_DTYPE.value]
    multipliers = tuple(int(m) for m in _MULTIPLIERS.value)
    attention_levels = tuple(int(level) for level in _ATTENTION.value)
    model = models.UNet(
        channels=_CHANNELS.value,
        multipliers=multipliers,
        num_blocks=_NUM_BLOCKS.value,
        attention_levels=attention_levels,
        dtype=dtype,
    )
    description = {
        "channels": model.channels,
        "multipliers": multipliers,
        "num_blocks": model.num_blocks,
        "attention_levels": attention_levels,
        "image_size": _IMAGE_SIZE.value,
        "batch_size": _BATCH_SIZE.value,
        "dtype": _DTYPE.value,
        "norm_groups": layers.num_norm_groups(model.channels),
        "sample_steps": _SAMPLE_STEPS.value,
        "device": "cuda" if jax.default_backend() == "gpu" else "cpu",
    }
    peer = diffusers_peer.Peer(_PEER_PYTHON.value, description) if _PEER.value else None
    own, facts = make_runs(model, _IMAGE_SIZE.value, _BATCH_SIZE.value, _SAMPLE_STEPS.value)
    # A training step takes the operations of three forward passes.
    passes = {"forward": 1, "train": 3, "sample": _SAMPLE_STEPS.value}
    sides = {"sr3_jax": (own, facts)}
    if peer:
        theirs = {name: (lambda name=name: peer.seconds(name)) for name in own}
        sides["diffusers"] = (theirs, peer.facts)
    for name in own:
        runs = {side: runs[name] for side, (runs, _) in sides.items()}
        for side, seconds in interleave(runs, _REPEATS.value).items():
            flops = sides[side][1]["forward_flops"] * passes[name]
            sides[side][1][name] = summarise(seconds, flops)
            sides[side][1].setdefault("all", {})[name] = seconds
    peak = parallel.peak_flops(jax.devices()[0], dtype)
    results = {
        "config": description,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "peak_flops": peak and peak * jax.device_count(),
        "memory_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        **{side: facts for side, (_, facts) in sides.items()},
    }
    if peer:
        peer.close()
        results["ratio"] = {name: compare(facts, peer.facts, name) for name in own}
    return results


def report(results: dict[str, Any]) -> str:
    """Returns the results as text."""
    lines = [f"device: {results['device']}"]
    timed = []
    for side in ("sr3_jax", "diffusers"):
        if side not in results:
            continue
        facts = results[side]
        about = [f"{side}: {facts['parameters'] / 1e6:.2f} M parameters"]
        about.append(f"{facts['forward_flops'] / 1e9:.2f} GFLOP forward")
        about += [f"{facts[key]}" for key in ("versions",) if key in facts]
        about += [f"{facts[key]} threads" for key in ("threads",) if key in facts]
        lines.append(", ".join(about))
        for name in (name for name in ("forward", "train", "sample") if name in facts):
            at = facts[name]
            timed.append((facts, name))
            line = f"  {name:8s}{at['seconds'] * 1e3:10.2f} ms (fastest {at['fastest'] * 1e3:.2f})"
            line += f"{at['flops_per_second'] / 1e9:10.1f} GFLOP/s"
            if results["peak_flops"]:
                line += f", {at['flops_per_second'] / results['peak_flops']:.1%} of the peak"
            if "compile_seconds" in facts:
                line += f", compiled in {facts['compile_seconds'][name]:.1f} s"
            lines.append(line)
    for name, ratio in results.get("ratio", {}).items():
        lines.append(
            f"sr3_jax / diffusers, {name}: {ratio['rounds']:.2f} in time (ratio of medians "
            f"{ratio['medians']:.2f}), {ratio['per_flop']:.2f} in time per FLOP"
        )
    if any(facts[name]["seconds"] > _NOISY * facts[name]["fastest"] for facts, name in timed):
        lines.append(
            f"warning: a median is more than {_NOISY} times its fastest run: other processes use "
            "this machine. Do not compare; PyTorch's waiting threads suffer most from it"
        )
    return "\n".join(lines)


def _measure() -> tuple[dict[str, Any], str]:
    """Measures what --what says; returns the results, and as text."""
    what, images, steps, repeats = _WHAT.value, _IMAGES.value, _STEPS.value, _REPEATS.value
    if what == "model":
        return (found := benchmark_model()), report(found)
    if what == "samplers":
        return {"table": (table := samplers.table())}, table
    if what == "data":
        if _CONFIG.value is None:
            raise ValueError("--what=data needs --config=FILE; keys can be overridden")
        return (found := data.measure(read(_CONFIG.value), images, repeats)), data.report(found)
    if _WORKDIR.value is None:
        raise ValueError(f"--what={what} needs --workdir=DIR of a trained network")
    if what == "options":
        found = options.measure(_WORKDIR.value, images, steps, picture=_PICTURE.value)
        return found, options.report(found)
    try:
        height, width = (int(n) for n in _SIZE.value.split("x"))
    except ValueError:
        raise ValueError(f"--size={_SIZE.value}; give HEIGHTxWIDTH, such as 64x64") from None
    found = upscaling.measure(_WORKDIR.value, (height, width), images, steps, repeats)
    return found, upscaling.report(found)


def main(_: list[str]) -> None:
    """Prints the results, and writes them as JSON if --json is given."""
    logging.set_verbosity(logging.WARNING)  # hides jax's search for platforms
    quiet_orbax()
    results, text = _measure()
    print(text)
    if _JSON.value:
        with open(_JSON.value, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    command_line.run(main)
