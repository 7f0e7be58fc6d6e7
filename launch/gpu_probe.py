"""Measurements of gpu_day.py that need processes of their own.

python launch/gpu_probe.py numbers PATH
python launch/gpu_probe.py profile FOLDER --config=FILE [--config.KEY=VALUE ...]
"""

from __future__ import annotations

import collections
import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


def write_numbers(path: str) -> None:
    """Writes a small float32 network's output, gradient, and sample of four steps to `PATH.npz`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sr3_jax import diffusion, models

    jax.config.update("jax_default_matmul_precision", "highest")
    model = models.UNet(channels=16, multipliers=(1, 2), num_blocks=1, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    shape = (2, 16, 16, 3)
    x, y_t = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    gamma = jnp.asarray([0.3, 0.9], jnp.float32)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        params = jax.jit(model.init)(jax.random.key(0), x, y_t, gamma)["params"]
    # The last layer begins at zero. Noise is added, so that the output is not zero, too.
    flat, tree = jax.tree.flatten(params)
    flat = [np.asarray(p) + 0.05 * rng.normal(size=p.shape).astype(np.float32) for p in flat]
    params = jax.tree.unflatten(tree, flat)

    def loss(params):
        return jnp.mean(jnp.square(model.apply({"params": params}, x, y_t, gamma)))

    gradient = jax.jit(jax.grad(loss))(params)
    sampler = diffusion.ddim(diffusion.respace(diffusion.linear(2000, 1e-6, 1e-2), 4), 0.0)
    keys = jax.random.split(jax.random.key(1), 2)

    def sample(params):
        denoise = functools.partial(models.Denoiser(model), params, x)
        return diffusion.sample(denoise, sampler, keys, shape[1:])

    np.savez(
        path,
        output=jax.jit(model.apply)({"params": params}, x, y_t, gamma),
        gradient=np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradient)]),
        sample=jax.jit(sample)(params),
    )


def write_profile(folder: str, flags: list[str]) -> None:
    """Traces three training steps on random images; prints kernels and their seconds a step."""
    import jax
    import jax.numpy as jnp
    from absl import flags as absl_flags
    from ml_collections import config_flags

    from sr3_jax import parallel
    from sr3_jax.config import layouts, read
    from sr3_jax.tools.aot import programs

    config = config_flags.DEFINE_config_file("config")
    absl_flags.FLAGS(["gpu_probe.py", *flags])
    config = read(config.value)
    layout = layouts.layout(config)
    program, (state, batch), _ = programs.train(config, layout)
    compiled = parallel.compile_for(jax.devices()[0], program.lower(state, batch))
    make = lambda a: jax.device_put(jnp.full(a.shape, 0.01, a.dtype), a.sharding)  # noqa: E731
    state, batch = jax.tree.map(make, state), jax.tree.map(make, batch)
    state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)
    steps = 3
    with jax.profiler.trace(folder):
        for _ in range(steps):
            state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
    (trace,) = pathlib.Path(folder).rglob("*.xplane.pb")
    seconds: collections.Counter[str] = collections.Counter()
    # A GPU's kernels are on its streams; a CPU's operations are among all that the process did.
    planes = list(jax.profiler.ProfileData.from_file(str(trace)).planes)
    gpus = [plane for plane in planes if "/device:" in plane.name.lower()]
    for plane in gpus or planes:
        for line in plane.lines:
            if gpus and "stream" not in line.name.lower():
                continue
            for event in line.events:
                if event.name.startswith("$"):  # a function of Python
                    continue
                seconds[event.name] += event.duration_ns / 1e9 / steps
    for name, value in seconds.most_common(10):
        print(f"kernel: {value:.6f} {name[:120]}")


if __name__ == "__main__":
    what, path, *rest = sys.argv[1:]
    if what == "numbers":
        write_numbers(path)
    else:
        write_profile(path, rest)
