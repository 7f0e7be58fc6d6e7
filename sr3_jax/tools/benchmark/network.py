"""Times of the network's forward pass, training step and sampling: `tools.benchmark --what=model`.

With a peer, PyTorch's `diffusers.UNet2DModel` of the same channels, levels and blocks runs in turn
with ours, so that other load of the machine affects both. `--what=peers` does so for the networks
of docs/cpu.md.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sr3_jax import diffusion, models, parallel
from sr3_jax.evaluation.report import markdown
from sr3_jax.models import layers
from sr3_jax.tools.benchmark import diffusers_peer

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# The networks that docs/cpu.md compares with PyTorch.
NETWORKS = {
    "small": dict(channels=32, multipliers=(1, 2, 2), image_size=32, batch_size=16),
    "mid": dict(channels=64, multipliers=(1, 2, 4), image_size=64, batch_size=4),
    "big": dict(
        channels=128,
        multipliers=(1, 2, 2, 4, 4),
        attention_levels=(3,),
        image_size=128,
        batch_size=1,
    ),
}
_NOISY = 1.4  # median over fastest run; on a quiet machine it is below 1.2

Run = Callable[[], float]


def make_runs(
    model: models.UNet, image_size: int, batch_size: int, sample_steps: int = 0
) -> tuple[dict[str, Run], dict[str, Any]]:
    """Compiles the network and its training step on random images, split over the devices.

    A batch of fewer images than there are devices runs on as many of them as it has images.

    Returns:
      `forward`, `train` and, with sample steps, `sample`, each of which runs once and returns the
      seconds; and facts: `devices` in use, `parameters`, `forward_flops` of the batch,
      `compile_seconds` by run.
    """
    devices = jax.devices()
    devices = devices[: parallel.usable(batch_size, len(devices))]
    mesh = parallel.make_mesh(devices)
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

    forward, train, sample = _functions(model, optimizer, shape[1:], sample_steps)
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
        few = jax.jit(models.Denoiser(model).cast_params)(params)
        row_keys = jax.device_put(jax.random.split(keys[0], batch_size), parallel.split_batch(mesh))
        run_sample = compiled("sample", jax.jit(sample).lower(few, row_keys, batch[0]))
        runs["sample"] = _timed(lambda: jax.block_until_ready(run_sample(few, row_keys, batch[0])))
    facts = {
        "devices": len(devices),
        "parameters": models.count_parameters(model, image_size),
        "forward_flops": forward_flops,
        "compile_seconds": compile_seconds,
    }
    return runs, facts


def _functions(
    model: models.UNet,
    optimizer: optax.GradientTransformation,
    image: tuple[int, int, int],
    sample_steps: int,
) -> tuple[Callable, Callable, Callable]:
    """Returns the forward pass, the training step, and sampling, to be compiled."""

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
            image,
        )

    return forward, train, sample


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


def measure(
    network: Mapping[str, Any], repeats: int, peer_python: str | None = None
) -> dict[str, Any]:
    """Times a network, in turn with its peer.

    Args:
      network: `channels`, `multipliers`, `image_size`, `batch_size`; and where they are not those
        of the defaults `num_blocks` (2), `attention_levels` (none), `dtype` (float32),
        `sample_steps` (0).
      repeats: timed runs of each.
      peer_python: interpreter that has torch and diffusers; None for no peer.

    Returns:
      The network, the devices and their peak, facts and times of each side, and `ratio`
      (`compare`) where there is a peer.
    """
    defaults = dict(num_blocks=2, attention_levels=(), dtype="float32", sample_steps=0)
    description = {**defaults, **network}
    dtype, steps = DTYPES[description["dtype"]], description["sample_steps"]
    model = models.UNet(
        **{
            key: description[key]
            for key in ("channels", "multipliers", "num_blocks", "attention_levels")
        },
        dtype=dtype,
        by_products=parallel.multiplies_bfloat16(),
    )
    description |= {
        "norm_groups": layers.num_norm_groups(model.channels),
        "device": "cuda" if jax.default_backend() == "gpu" else "cpu",
    }
    peer = diffusers_peer.Peer(peer_python, description) if peer_python else None
    own, facts = make_runs(model, description["image_size"], description["batch_size"], steps)
    # A training step takes the operations of three forward passes.
    passes = {"forward": 1, "train": 3, "sample": steps}
    sides = {"sr3_jax": (own, facts)}
    if peer:
        theirs = {name: (lambda name=name: peer.seconds(name)) for name in own}
        sides["diffusers"] = (theirs, peer.facts)
    for name in own:
        runs = {side: runs[name] for side, (runs, _) in sides.items()}
        for side, seconds in interleave(runs, repeats).items():
            flops = sides[side][1]["forward_flops"] * passes[name]
            sides[side][1][name] = summarise(seconds, flops)
            sides[side][1].setdefault("all", {})[name] = seconds
    peak = parallel.peak_flops(jax.devices()[0], dtype)
    results = {
        "config": description,
        "device": f"{facts['devices']} x {jax.devices()[0].device_kind}",
        "peak_flops": peak and peak * facts["devices"],
        "memory_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        **{side: facts for side, (_, facts) in sides.items()},
    }
    if peer:
        peer.close()
        results["ratio"] = {name: compare(facts, peer.facts, name) for name in own}
    return results


def peers_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns what `measure` found of several networks with a peer, as a Markdown table."""
    rows = [
        [
            f"{name}, {what}",
            *(f"{result[side][what]['seconds'] * 1e3:.0f} ms" for side in ("sr3_jax", "diffusers")),
            f"{ratio['rounds']:.2f}",
            f"{ratio['per_flop']:.2f}",
        ]
        for name, result in found.items()
        for what, ratio in result["ratio"].items()
    ]
    headings = "network, sr3_jax, diffusers, ratio of times, the same per FLOP"
    times = [
        result[side][what]
        for result in found.values()
        for side in ("sr3_jax", "diffusers")
        for what in result["ratio"]
    ]
    return "\n".join([markdown.table(headings.split(", "), rows), *noise(times)])


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
    return "\n".join(lines + noise([facts[name] for facts, name in timed]))


def noise(times: Sequence[Mapping[str, float]]) -> list[str]:
    """Returns a warning if what `summarise` returned shows that others use the machine."""
    if all(found["seconds"] <= _NOISY * found["fastest"] for found in times):
        return []
    return [
        f"warning: a median is more than {_NOISY} times its fastest run: other processes use "
        "this machine. Do not compare; PyTorch's waiting threads suffer most from it"
    ]
