"""Upscales an image, or a folder of images of any size.

sr3 upscale --input=FILE_OR_FOLDER --output=FOLDER [--workdir=DIR]
"""

from __future__ import annotations

from absl import flags
from etils import epath

from sr3_jax import command_line, released
from sr3_jax import config as configs
from sr3_jax.commands import shared
from sr3_jax.data import image_files, storage
from sr3_jax.inference import confidence, inputs
from sr3_jax.inference.inputs import UpscaleOptions

_FORMATS = ("same", "png", "jpeg", "webp", "tiff", "avif")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of upscaling."""
    meaning = (
        "Folder of a training run, hf://USER/NAME, or a network of `sr3 models`. Default: "
        f"{released.DEFAULT}, which comes with sr3_jax."
    )
    shared.define_workdir(values, meaning)
    of = {"flag_values": values}
    flags.DEFINE_string("input", None, "An image, or a folder of them. Local or a URL.", **of)
    flags.DEFINE_string("output", None, "Folder for the results.", **of)
    shared.define_sampling(values)
    meaning = "Growth of pictures; a factor other than the trained one takes resizing as well."
    flags.DEFINE_float("factor", None, meaning, **of)
    meaning = (
        "Number of samples of each picture. Of several, their mean is written, and a map of where "
        "they differ."
    )
    flags.DEFINE_integer("samples", 1, meaning, lower_bound=1, **of)
    meaning = (
        "For networks that take maps: a file for all inputs, or a folder with a file of the name "
        "of each, at the size of the results."
    )
    flags.DEFINE_string("maps", "", meaning, **of)
    shared.define_promise(values)
    flags.DEFINE_bool("animate", False, "Also write a GIF from noise to picture.", **of)
    meaning = (
        "Format of the outputs; `same`: that of each input, or PNG where it cannot be written."
    )
    flags.DEFINE_enum("format", "same", _FORMATS, meaning, **of)
    meaning = "Quality of JPEG, WebP and AVIF, 1 to 100, or `lossless`. Default: 95; of AVIF 90."
    flags.DEFINE_string("quality", None, meaning, **of)
    flags.DEFINE_enum("engine", "local", ("local", "ray"), "This machine, or a Ray cluster.", **of)
    meaning = "Address of the Ray cluster, or `auto`. Default: this machine alone."
    flags.DEFINE_string("ray_address", None, meaning, **of)
    meaning = "Number of Ray workers with a network. Default: one for each host with devices."
    flags.DEFINE_integer("workers", None, meaning, lower_bound=1, **of)


def prepare(values: flags.FlagValues) -> shared.Job:
    """Checks the flags, and that the workdir holds a run."""
    shared.require(values, "input", "output")
    for name in ("ray_address", "workers"):
        if values.engine != "ray" and values[name].present:
            raise ValueError(f"--{name} is of --engine=ray; add that, or leave it out")
    given = values.workdir or released.shipped(released.DEFAULT)
    workdir = shared.network_folder(given)
    sampling = shared.sampling(values)
    format_ = None if values.format == "same" else values.format
    quality = values.quality
    if quality and quality.isascii() and quality.isdigit():
        quality = int(quality)
    options = UpscaleOptions(
        values.steps,
        values.seed,
        values.factor,
        values.samples,
        values.animate,
        format_,
        quality,
        values.maps,
    )
    config = configs.with_sampling(configs.load(workdir / "config.json"), sampling)
    options = inputs.for_network(options, config)
    promise = shared.promise(values)
    if promise:
        count = values.samples if values["samples"].present else None
        options = confidence.with_band(options, workdir, promise, count)
    if storage.exists(values.output) and not storage.is_folder(values.output):
        raise NotADirectoryError(f"--output={values.output} is a file; give a folder")
    if not storage.exists(values.input):
        raise FileNotFoundError(
            f"--input={storage.shown(values.input)} does not exist; give an image or a folder"
        )
    if options.are_arrays or not storage.is_folder(values.input):
        try:
            _check_input(values.input, options)
        except image_files.BadImageError as error:
            raise ValueError(f"--input={storage.shown(values.input)}: {error}") from error

    def run() -> int | None:
        from sr3_jax import jobs

        engine_options = {"address": values.ray_address, "num_workers": values.workers}
        num_failed = jobs.upscale(
            workdir,
            epath.Path(values.input),
            epath.Path(values.output),
            options,
            sampling=sampling,
            engine=values.engine,
            engine_options=engine_options if values.engine == "ray" else None,
            overwrite=values.overwrite,
        )
        return command_line.FAILED if num_failed else None

    keeps_programs = workdir if released.is_for_results(given) else None
    return shared.Job(run, keeps_programs, sets_up_cpu=True)


def _check_input(path: str, options: UpscaleOptions) -> None:
    """Raises BadImageError or ValueError if a single input cannot be read."""
    if options.are_arrays:
        inputs.find_inputs(path, are_arrays=True)
    else:
        image_files.open_file(storage.read(path))
