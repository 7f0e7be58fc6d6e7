"""Exports the sampler of a run to files that jax alone can run: `python -m sr3_jax.tools.export`.

    python -m sr3_jax.tools.export --workdir=runs/quickstart --output=FOLDER [--size=64x64]
    python FOLDER/run.py INPUT.png OUTPUT.png

writes all refinement steps as one StableHLO program for images of one size, in batches of any size,
with the weights, a description, and an example that runs it without this package and Flax. For a
seed its results are those of `SuperResolver.upscale(images, seed=[...])`, up to rounding. Images
larger than a tile are left to `--mode=upscale`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from absl import flags, logging
from jax import export as jax_export
from jaxtyping import Array, Num

import sr3_jax
from sr3_jax import command_line, diffusion, image_ops, released, sizes
from sr3_jax.checkpoints import Which, quiet_orbax
from sr3_jax.config import changed, networks, run_file, schedules, to_json, with_sampling
from sr3_jax.data import resampling, storage
from sr3_jax.inference import super_resolver
from sr3_jax.models import Params
from sr3_jax.tools import export_example
from sr3_jax.tools.export_plan import PLATFORMS, Plan, make_plan

PROGRAM, WEIGHTS, ABOUT, EXAMPLE = "sampler.stablehlo", "params.npz", "sampler.json", "run.py"

# By docs.jax.dev/en/latest/export/export.html#compatibility-guarantees.
_PROMISE = (
    "jax promises to run it with releases up to 6 months newer than the one it was made with, by "
    "the dates of the releases, and up to 3 weeks older; export anew after that"
)


def check_output(folder: str) -> None:
    """Checks that an export replaces only files of an export.

    Raises:
      FileExistsError: the folder has other files of these names.
      OSError: the folder takes no files.
    """
    folder = folder.rstrip("/")
    storage.check_writable(folder, "--output")
    there = [
        name for name in (ABOUT, PROGRAM, WEIGHTS, EXAMPLE) if storage.exists(f"{folder}/{name}")
    ]
    try:
        about = json.loads(storage.read(f"{folder}/{ABOUT}")) if ABOUT in there else {}
        is_export = about["versions"]["sr3_jax"] and set(about["files"]) == {PROGRAM, WEIGHTS}
    except (ValueError, KeyError, TypeError, RecursionError):
        is_export = False
    if there and not is_export:
        raise FileExistsError(
            f"--output={folder} has files that this command would replace, and did not make as far "
            f"as one can tell: {', '.join(there)}; remove them, or give another folder"
        )


def export_sampler(plan: Plan, params: Params) -> jax_export.Exported:
    """Returns the sampler as a program of any batch size.

    Args:
      plan: the export.
      params: the network's weights, or their shapes.

    Returns:
      A function of the leaves of `params` in their order, the low resolution uint8 `[b, h, w, c]`
      and seeds uint32 `[b]`, that returns uint8 `[b, h * factor, w * factor, c]`. Numbers of any
      range (`config.units`) are float32 in their own units, NaN where they are missing, and maps
      come between low resolution and seeds.
    """
    leaves, structure = jax.tree.flatten(params)
    (b,) = jax_export.symbolic_shape("b")
    arguments = [
        *(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves),
        *(
            jax.ShapeDtypeStruct((b, *size, channels), plan.dtype)
            for size, channels in plan.inputs.values()
        ),
        jax.ShapeDtypeStruct((b,), jnp.uint32),
    ]
    # Unused arguments of baselines stay, so that all programs are called alike.
    program = jax.jit(_program(plan, structure), keep_unused=True)
    return jax_export.export(program, platforms=plan.platforms)(*arguments)


def write(
    folder: str,
    plan: Plan,
    params: Params,
    exported: jax_export.Exported,
    checkpoint_step: int | None = None,
) -> dict[str, Any]:
    """Writes an export's four files, each whole or not at all.

    The description comes last, with checksums of the others, so that files of two exports are never
    taken for one.

    Args:
      folder: on a disk or in a bucket; need not exist.
      plan: the export.
      params: the weights.
      exported: the result of `export_sampler`.
      checkpoint_step: step of training, for the description.

    Returns:
      The description.

    Raises:
      OSError: a file cannot be written.
    """
    folder = str(folder).rstrip("/")
    weights = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    # numpy knows no bfloat16, which is stored as its bits.
    arrays = {
        name: array.view(np.uint16) if array.dtype == jnp.bfloat16 else array
        for name, array in weights.items()
    }
    files = {}
    for name, save in (
        (PROGRAM, lambda file: file.write(bytes(exported.serialize()))),
        (WEIGHTS, lambda file: np.savez(file, **arrays)),
    ):
        path = f"{folder}/{name}"
        with storage.open_whole(path) as file:
            save(file)
        with storage.open_read(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        files[name] = {"sha256": sha256, "bytes": storage.size(path)}
    about = _describe(plan, exported, checkpoint_step) | {
        "files": files,
        "weights": [
            {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
            for name, array in weights.items()
        ],
        "config": json.loads(to_json(plan.config)),
    }
    storage.write_whole(f"{folder}/{EXAMPLE}", inspect.getsource(export_example).encode())
    storage.write_whole(f"{folder}/{ABOUT}", (json.dumps(about, indent=1) + "\n").encode())
    return about


def _program(plan: Plan, structure: Any) -> Callable[..., Num[Array, "b h w c"]]:
    # Width packing suits TPUs and is slow elsewhere.
    tpu, others = (
        _sampling(plan, structure, packed_channels) for packed_channels in (networks.TPU_LANES, 1)
    )
    if "tpu" not in plan.platforms:
        return others
    if set(plan.platforms) == {"tpu"}:
        return tpu
    return lambda *arguments: jax.lax.platform_dependent(*arguments, tpu=tpu, default=others)


def _sampling(
    plan: Plan, structure: Any, packed_channels: int
) -> Callable[..., Num[Array, "b h w c"]]:
    scalings, sampling = plan.config.scalings, plan.config.effective_sampling
    channels = plan.config.data.channels
    packed_channels = plan.config.model.packed_channels or packed_channels
    denoiser = networks.denoiser(changed(plan.config, {"model.packed_channels": packed_channels}))
    height, width = plan.large_size
    filling = [(0, 0), (0, plan.tile[0] - height), (0, plan.tile[1] - width), (0, 0)]

    def sample(*arguments: Array) -> Num[Array, "b h w c"]:
        *weights, seeds = arguments
        count, maps = len(weights) - len(plan.inputs), None
        (low, *rest), weights = weights[count:], weights[:count]
        params = jax.tree.unflatten(structure, weights)
        signed = scalings.source.to_signed(low) if scalings else image_ops.to_signed(low)
        if rest:
            maps = scalings.maps.to_signed(rest[0])
        may_miss = denoiser.known_at > 0
        x = image_ops.network_input(
            signed,
            plan.large_size,
            maps,
            may_miss=may_miss,
            resize=networks.upsampling(plan.config),
        )
        # As `inference.refinement` fills up what is smaller than the network takes.
        x = jnp.pad(x, filling, mode="symmetric")
        y_0 = diffusion.sample(
            lambda y_t, gamma: denoiser(params, x, y_t, gamma),
            plan.sampler,
            jax.vmap(jax.random.key)(seeds),
            (*x.shape[1:3], channels),
            clip=sampling.clip,
        )[:, :height, :width]
        if sampling.consistent:
            low = signed[..., :channels]
            y_0 = resampling.make_consistent(y_0, low, clip=sampling.clip, factor=plan.factor)
        if may_miss:
            known = x[:, :height, :width, denoiser.known_at :][..., :channels]
            y_0 = jnp.where(known > 0.5, y_0, jnp.nan)
        return scalings.image.to_values(y_0) if scalings else image_ops.to_uint8(y_0)

    return sample


def _describe(
    plan: Plan, exported: jax_export.Exported, checkpoint_step: int | None
) -> dict[str, Any]:
    of_size = {"low_resolution": "low_resolution", "maps": "high_resolution"}
    arrays = [
        f"{'images' if name == 'low_resolution' else name} {plan.dtype} "
        f"[b, *{of_size[name]}, {channels}]"
        for name, (_, channels) in plan.inputs.items()
    ]
    return {
        "low_resolution": list(plan.size),
        "high_resolution": list(plan.large_size),
        "factor": plan.factor,
        "method": plan.config.method,
        "sampler": None if plan.config.predicts_image else schedules.sampler_name(plan.config),
        "steps": plan.sampler.num_steps,
        "network_calls": plan.sampler.nfe,
        "consistent": plan.config.sampling.consistent,
        "checkpoint_step": checkpoint_step,
        "channels": {name: channels for name, (_, channels) in plan.inputs.items()},
        "dtype": str(plan.dtype),
        "arguments": f"the weights in the order below, {' and '.join(arrays)}, seeds uint32 [b]; "
        "bfloat16 weights are stored as uint16, bit for bit",
        "result": f"{plan.dtype} [b, *high_resolution, {plan.config.data.channels}]",
        "platforms": list(exported.platforms),
        "versions": {
            "sr3_jax": sr3_jax.__version__,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "calling_convention": exported.calling_convention_version,
            "calling_conventions_of_this_jax": [
                jax_export.minimum_supported_calling_convention_version,
                jax_export.maximum_supported_calling_convention_version,
            ],
        },
        "promise": _PROMISE,
    }


def _example(plan: Plan) -> str:
    if plan.config.has_levels:
        return "INPUT.png OUTPUT.png"
    return "INPUT.npy OUTPUT.npy" + (" --maps=MAPS.npy" if plan.config.data.maps else "")


def _size(text: str) -> tuple[int, int]:
    """Reads --size."""
    if not re.fullmatch(r"[1-9][0-9]*x[1-9][0-9]*", text):
        raise ValueError(
            f"--size={text} is no size; give height x width of the low resolution, as 64x64"
        )
    height, width = map(int, text.split("x"))
    return height, width


def _which(text: str | None) -> Which | None:
    """Reads --which."""
    if text is None or text in ("latest", "best"):
        return text
    if not text.isdecimal():
        raise ValueError(
            f"--which={text} is unknown; use latest, best, or the step of a checkpoint"
        )
    return int(text)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags; not on import, so that the module can be used beside other tools."""
    for name, meaning in (
        ("workdir", "Folder of the run; local or gs://."),
        ("output", "Folder for the files; local or gs://."),
        ("size", "Height x width of the low resolution, as 64x64. Default: the config's."),
        ("which", "latest, best or a step. Default: config.evaluation.checkpoint."),
    ):
        flags.DEFINE_string(name, None, meaning, flag_values=values)
    meaning = "Refinement steps. Default: the config's."
    flags.DEFINE_integer("steps", None, meaning, flag_values=values)
    meaning = f"Of {', '.join(PLATFORMS)}."
    flags.DEFINE_list("platforms", "cpu,cuda,tpu", meaning, flag_values=values)


def main(_: list[str], given: flags.FlagValues = flags.FLAGS) -> None:
    """Exports, and prints a summary."""
    if not given.workdir or not given.output:
        raise ValueError("--workdir=DIR and --output=FOLDER are needed; see --help")
    check_output(given.output)
    size = None if given.size is None else _size(given.size)
    which, workdir = _which(given.which), released.locate(given.workdir)
    config = run_file.load(workdir / "config.json")
    config = with_sampling(config, run_file.tuned(workdir, config))
    plan = make_plan(config, size, given.steps, given.platforms)
    resolver = super_resolver.SuperResolver.from_config(plan.config, workdir / "checkpoints", which)
    params, step = resolver.params, resolver.checkpoint_step
    about = write(given.output, plan, params, export_sampler(plan, params), step)
    files = ", ".join(f"{n} of {f['bytes'] / 1e6:.2f} MB" for n, f in about["files"].items())
    print(
        f"{given.output}: {sizes.text(plan.size)} to {sizes.text(plan.large_size)} in "
        f"{about['network_calls']} network calls, checkpoint {step}, for "
        f"{', '.join(plan.platforms)}; {files}\n"
        f"python {given.output}/{EXAMPLE} {_example(plan)}"
    )


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    quiet_orbax()
    define_flags()
    command_line.run(main)
