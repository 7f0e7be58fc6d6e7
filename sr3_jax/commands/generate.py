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
from sr3_jax.data import storage


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of generation."""
    shared.define_config(values, "The config of a cascade.")
    shared.define_workdir(values, "Folder of the training run of a single network.")
    of = {"flag_values": values}
    flags.DEFINE_integer("num_images", None, "Number of images.", lower_bound=1, **of)
    meaning = "Folder for the images. Default: the cascade's, or generated/."
    flags.DEFINE_string("output", None, meaning, **of)
    meaning = "Classes of the images in turn, from 0. Default: all classes."
    flags.DEFINE_list("label", [], meaning, allow_overwrite=False, **of)
    meaning = "Scale of classifier-free guidance, for class-conditional networks; 1: none."
    flags.DEFINE_float("guidance", None, meaning, lower_bound=0.0, **of)
    shared.define_sampling(values)


def prepare(values: flags.FlagValues) -> shared.Job:
    """Checks the flags and reads the config: of a cascade, or of the run of a single network."""
    shared.require(values, "num_images")
    labels = tuple(_label(name) for name in values.label)
    sampling = shared.sampling(values)
    cascade, workdir = None, None
    if values.config is None:
        shared.require(values, "workdir")
        workdir = shared.workdir(values)
        for key, value in (("num_steps", values.steps), ("guidance", values.guidance)):
            if value is not None:
                sampling[key] = value
        configs.with_sampling(configs.load(workdir / "config.json"), sampling)
    else:
        if values.workdir is not None:
            raise ValueError("--mode=generate takes --config=CASCADE or --workdir, not both")
        cascade = cascades.read(values.config)
        for name in ("steps", "sampler", "sampling"):
            if values[name].value:
                raise ValueError(
                    f"--{name}: each stage of a cascade has its own; give it as "
                    "--config.stage_1.sampling.KEY=VALUE"
                )
        for number, stage in enumerate(cascade.stages, 1):
            if not storage.exists(run := epath.Path(stage.workdir) / "config.json"):
                raise FileNotFoundError(
                    f"network of {stage.workdir}: {run} does not exist; train it, or give "
                    f"--config.stage_{number}.workdir"
                )

    def run() -> None:
        from sr3_jax.inference.cascade import open_stage
        from sr3_jax.jobs import generating

        request = generating.GenerateOptions(
            values.num_images, labels, values.seed, values.overwrite
        )
        if cascade is None:
            stages, measure = [open_stage(workdir, **sampling)], None
        else:
            stages = generating.stages_of(cascade, values.guidance)
            measure = generating.measure_of(cascade, stages)
        output = values.output or (workdir / "generated" if cascade is None else cascade.output)
        generating.generate(stages, epath.Path(output), request, measure)

    return shared.Job(run, workdir)


def _label(name: str) -> int:
    try:
        return int(name)
    except ValueError:
        raise ValueError(f"--label has {name!r}; give numbers of classes, from 0") from None
