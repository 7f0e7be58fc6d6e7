"""Generates images, by one network or a cascade of networks.

sr3 generate --config=CASCADE --num_images=N [--label=CLASS,CLASS]
sr3 generate --workdir=DIR --num_images=N
"""

from __future__ import annotations

from absl import flags
from etils import epath

from sr3_jax import config as configs
from sr3_jax.commands import shared
from sr3_jax.config import cascades


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of generation."""
    shared.define_config(values, "The config of a cascade.")
    shared.define_workdir(values, "Folder of the training run of a single network.")
    of = {"flag_values": values}
    flags.DEFINE_integer("num_images", None, "Number of images.", lower_bound=1, **of)
    flags.DEFINE_string(
        "output", None, "Folder for the images. Default: the cascade's, or generated/.", **of
    )
    flags.DEFINE_list(
        "label", [], "Classes of the images in turn, from 0. Default: all classes.", **of
    )
    flags.DEFINE_float(
        "guidance",
        None,
        "Scale of classifier-free guidance, for class-conditional networks; 1: none.",
        lower_bound=0.0,
        **of,
    )
    shared.define_sampling(values)


def prepare(values: flags.FlagValues) -> shared.Job:
    """Checks the flags and reads the config of the cascade."""
    shared.require(values, "num_images")
    labels = tuple(_label(name) for name in values.label)
    sampling = shared.sampling(values)
    if values.config is None:
        return _of_network(values, labels, sampling)
    if values.workdir is not None:
        raise ValueError("--mode=generate takes --config=CASCADE or --workdir, not both")
    cascade = cascades.read(values.config)
    for name in ("steps", "sampler", "sampling"):
        if values[name].value:
            raise ValueError(
                f"--{name}: each stage of a cascade has its own; give it as "
                "--config.stage_1.sampling.KEY=VALUE"
            )

    def run() -> None:
        from sr3_jax.jobs import generating

        options = generating.Options(values.num_images, labels, values.seed, values.overwrite)
        stages = generating.stages_of(cascade, values.guidance)
        output = epath.Path(values.output or cascade.output)
        generating.generate(stages, output, options, generating.measure_of(cascade, stages))

    return shared.Job(run)


def _of_network(
    values: flags.FlagValues, labels: tuple[int, ...], sampling: dict[str, object]
) -> shared.Job:
    shared.require(values, "workdir")
    workdir = shared.workdir(values)
    if values.steps is not None:
        sampling["num_steps"] = values.steps
    if values.guidance is not None:
        sampling["guidance"] = values.guidance
    configs.with_sampling(configs.load(workdir / "config.json"), sampling)

    def run() -> None:
        from sr3_jax.inference import cascade
        from sr3_jax.jobs import generating

        options = generating.Options(values.num_images, labels, values.seed, values.overwrite)
        stages = [cascade.open_stage(workdir, **sampling)]
        output = epath.Path(values.output) if values.output else workdir / "generated"
        generating.generate(stages, output, options)

    return shared.Job(run, workdir)


def _label(name: str) -> int:
    try:
        return int(name)
    except ValueError:
        raise ValueError(f"--label has {name!r}; give numbers of classes, from 0") from None
