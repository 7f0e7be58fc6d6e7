"""The one door: `python -m sr3_jax.main --mode=train|evaluate|upscale|generate|...`.

python -m sr3_jax.main --config=configs/quickstart.py --workdir=DIR [--config.KEY=VALUE ...]
python -m sr3_jax.main --mode=evaluate --workdir=DIR
python -m sr3_jax.main --mode=tune_schedule --workdir=DIR [--steps=NETWORK_CALLS]
python -m sr3_jax.main --mode=upscale --workdir=DIR --input=FILE_OR_FOLDER --output=FOLDER
python -m sr3_jax.main --mode=generate --config=CASCADE --num_images=N [--label=CLASS,CLASS]
python -m sr3_jax.main --mode=score --workdir=DIR --reference=FOLDER [--low_resolution=FOLDER] \
    --outputs=NAME=FOLDER,NAME=FOLDER

Exit status: 0 done; 1 failed; 2 wrong use; 75 start the same command again and it goes on: training
was asked to stop by SIGTERM and has saved, or another process of the job was lost; 130 Ctrl-C.
"""

import contextlib
import itertools
import json
import os
import signal
import sys
from typing import NoReturn

from absl import flags
from etils import epath
from ml_collections import config_flags

from sr3_jax import command_line
from sr3_jax import config as configs
from sr3_jax.config import cascades

# TensorFlow only prepares TFDS's data sets here; what it says when it starts is of no use to
# anyone. That it uses oneDNN it says whatever the level.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

_MODES = ("train", "evaluate", "tune_schedule", "upscale", "generate", "score")

_MODE = flags.DEFINE_enum("mode", "train", _MODES, "What to do.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, logs, results. Local or gs://."
)
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, for train; for evaluate, in place of the workdir's config.json; for score, its "
    "section evaluation; for generate, of a cascade. Any key can be set: "
    "--config.train.batch_size=64.",
    lock_config=True,
)
_INPUT = flags.DEFINE_string("input", None, "upscale: an image, or a folder of them.")
_OUTPUT = flags.DEFINE_string("output", None, "upscale, generate: the folder for the results.")
_STEPS = flags.DEFINE_integer(
    "steps",
    None,
    "upscale: refinement steps; the config's where not given. tune_schedule: network calls.",
    lower_bound=1,
    upper_bound=100_000,
)
_FACTOR = flags.DEFINE_float(
    "factor",
    None,
    "upscale: by how much pictures grow; other than the trained one by resizing, too.",
)
_SAMPLER = flags.DEFINE_enum(
    "sampler",
    None,
    ("ancestral", "ddim", "dpmpp_2m", "heun"),
    "upscale: instead of the config's, or of inference.json's.",
)
_SAMPLING = flags.DEFINE_list(
    "sampling",
    [],
    "upscale: KEY=VALUE,... of the config's section sampling, such as eta=1.0,consistent=true.",
)
_SAMPLES = flags.DEFINE_integer(
    "samples", 1, "upscale: so many of each; writes their mean, and where they differ.", 1
)
_ANIMATE = flags.DEFINE_bool("animate", False, "upscale: also write a GIF from noise to picture.")
_FORMAT = flags.DEFINE_enum(
    "format",
    "same",
    ("same", "png", "jpeg", "webp", "tiff", "avif"),
    "upscale: of the outputs; `same` as each input, or PNG where that cannot be written.",
)
_QUALITY = flags.DEFINE_string(
    "quality", None, "upscale: 1 to 100 of jpeg, webp and avif, or `lossless`; default 95, avif 90."
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite",
    False,
    "upscale, generate: make outputs anew, and replace files in their place, whoever wrote them.",
)
_NUM_IMAGES = flags.DEFINE_integer("num_images", None, "generate: how many images.", 1)
_LABELS = flags.DEFINE_list(
    "label",
    [],
    "generate: class of the images, from 0; of several they have each in turn; "
    "default all there are.",
)
_GUIDANCE = flags.DEFINE_float(
    "guidance", None, "generate: of networks that know classes; 1 for none, 2 for much.", 0.0
)
_ENGINE = flags.DEFINE_enum(
    "engine", "local", ("local", "ray"), "upscale: on this machine, or on a Ray cluster."
)
_RAY_ADDRESS = flags.DEFINE_string(
    "ray_address", None, "--engine=ray: of the cluster, or `auto`; default this machine alone."
)
_WORKERS = flags.DEFINE_integer(
    "workers", None, "--engine=ray: processes with a network; default one a host with devices.", 1
)
_REFERENCE = flags.DEFINE_string("reference", None, "score: folder of what images should be.")
_LOW_RESOLUTION = flags.DEFINE_string(
    "low_resolution",
    None,
    "score: folder of what images were made from, for consistency and bicubic.",
)
_OUTPUTS = flags.DEFINE_list(
    "outputs", [], "score: NAME=FOLDER of each method, with images of the reference's names."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "Of several processes: HOST:PORT of process 0. Not needed on TPU pods, Slurm and Open MPI.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes there are; 1: alone, whatever the machine.", 1
)
_PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "Which of them this is, from 0.")
_SEED = flags.DEFINE_integer("seed", 0, "upscale, generate: seed of the noise.", lower_bound=0)


def main(_: list[str]) -> int | None:
    """Picks the job; returns its exit status, None for 0."""
    workdir = _check_flags()
    outputs = _outputs() if _MODE.value == "score" else {}
    config = _config(workdir)

    with command_line.nothing_to_lose():
        # Late, so that a wrong flag is answered at once.
        import jax
        from jax.errors import JaxRuntimeError

        from sr3_jax import jobs, parallel
        from sr3_jax.training.loop import StoppedError
        from sr3_jax.training.orbax_parts import quiet_orbax

    quiet_orbax()

    try:
        parallel.join(
            _COORDINATOR.value,
            _NUM_PROCESSES.value,
            _PROCESS_INDEX.value,
            stop_together=_MODE.value == "train",
        )
        parallel.check_accelerator()
        parallel.keep_compiled(workdir)
        if jax.process_index() == 0:
            print(parallel.describe(), file=sys.stderr)
        if _MODE.value == "train":
            jobs.train(config, workdir)
        elif _MODE.value == "evaluate":
            jobs.evaluate(config, workdir)
        elif _MODE.value == "tune_schedule":
            jobs.tune_schedule(config, workdir, _STEPS.value)
        elif _MODE.value == "score":
            jobs.score(config, workdir, _REFERENCE.value, outputs, _LOW_RESOLUTION.value)
        elif _MODE.value == "generate":
            _generate(workdir, config)
        elif _upscale(workdir):
            _leave(command_line.FAILED)  # an input failed
    except StoppedError as stopped:
        is_user = stopped.signal == signal.SIGINT
        status = command_line.INTERRUPTED if is_user else command_line.START_AGAIN
        leave = _leave if stopped.alone else command_line.leave
        leave(status, str(stopped))
    except Exception as error:
        status, message = command_line.ending(error)
        # Where another process is gone, so is the other end of a sum over devices.
        several = parallel.is_one_of_several()
        lost = isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)
        if several and lost:
            why = "this process cannot go on, most likely because another one was lost"
            status = command_line.START_AGAIN
            message = message.replace("error: ", f"error: {why}: ", 1)
        _leave(status, message)


# Flags that not every mode takes.
_FLAGS_OF = {
    "train": (),
    "evaluate": (),
    "tune_schedule": ("steps",),
    "upscale": (
        *("input", "output", "steps", "factor", "sampler", "sampling", "samples", "animate"),
        *("format", "quality", "overwrite", "engine", "ray_address", "workers", "seed"),
    ),
    "generate": (
        *("output", "steps", "sampler", "sampling", "overwrite", "num_images", "label"),
        *("guidance", "seed"),
    ),
    "score": ("reference", "low_resolution", "outputs"),
}
_FLAGS_OF_SOME = frozenset(itertools.chain(*_FLAGS_OF.values()))


def _check_flags() -> epath.Path:
    """Returns the workdir; ValueError where the mode needs a flag, or has no use for one."""
    mode = _MODE.value
    for name in sorted(_FLAGS_OF_SOME.difference(_FLAGS_OF[mode])):
        if flags.FLAGS[name].present:
            modes = " and ".join(m for m, names in _FLAGS_OF.items() if name in names)
            raise ValueError(f"--{name} is of --mode={modes}; --mode={mode} has no use for it")
    if _ENGINE.value != "ray":
        for name in ("ray_address", "workers"):
            if flags.FLAGS[name].present:
                raise ValueError(f"--{name} is of --engine=ray; add that, or leave it out")
    if _MODE.value == "generate":
        _require("num_images", _NUM_IMAGES.value)
    # A cascade's config says where its networks are.
    if _MODE.value != "generate" or _CONFIG.value is None:
        _require("workdir", _WORKDIR.value)
    elif _WORKDIR.value is not None:
        raise ValueError("--mode=generate takes --config=CASCADE or --workdir, not both")
    if _MODE.value == "train":
        _require("config", _CONFIG.value)
    if _MODE.value == "upscale":
        _require("input", _INPUT.value)
        _require("output", _OUTPUT.value)
    workdir = epath.Path(_WORKDIR.value or ".").expanduser()
    if workdir.exists() and not workdir.is_dir():
        raise NotADirectoryError(f"--workdir={workdir} is a file; give a folder")
    return workdir


def _config(workdir: epath.Path) -> configs.Config | cascades.Cascade | None:
    """The config of the mode, read and checked; None where the mode finds its own, or needs none.

    Raises:
      FileNotFoundError: a workdir without a config.
      ValueError: naming every fault of the config.
    """
    if _CONFIG.value is None:
        if _MODE.value in ("evaluate", "tune_schedule"):
            return configs.load(workdir / "config.json")
        return None
    if _MODE.value == "generate":
        return cascades.read(_CONFIG.value)
    if cascades.is_cascade(_CONFIG.value):
        raise ValueError(
            "--config is of a cascade, which is for --mode=generate; its networks are trained one "
            "by one, by the configs that it names"
        )
    return configs.read(_CONFIG.value)


def _upscale(workdir: epath.Path) -> int:
    """Returns how many inputs failed."""
    from sr3_jax import jobs
    from sr3_jax.inference.inputs import UpscaleOptions

    quality = _QUALITY.value
    options = UpscaleOptions(
        _STEPS.value,
        _SEED.value,
        _FACTOR.value,
        _SAMPLES.value,
        _ANIMATE.value,
        None if _FORMAT.value == "same" else _FORMAT.value,
        int(quality) if quality and quality.isascii() and quality.isdigit() else quality,
    )
    return jobs.upscale(
        workdir,
        epath.Path(_INPUT.value),
        epath.Path(_OUTPUT.value),
        options,
        sampling=_sampling(),
        engine=_ENGINE.value,
        engine_options={"address": _RAY_ADDRESS.value, "num_workers": _WORKERS.value}
        if _ENGINE.value == "ray"
        else None,
        overwrite=_OVERWRITE.value,
    )


def _generate(workdir: epath.Path, config: cascades.Cascade | None) -> None:
    """By a cascade, or the one network of a workdir."""
    from sr3_jax.inference import cascade
    from sr3_jax.jobs import generating

    labels = tuple(_label(name) for name in _LABELS.value)
    options = generating.Options(_NUM_IMAGES.value, labels, _SEED.value, _OVERWRITE.value)
    if config is None:
        sampling = _sampling() | ({} if _STEPS.value is None else {"num_steps": _STEPS.value})
        if _GUIDANCE.value is not None:
            sampling["guidance"] = _GUIDANCE.value
        stages = [cascade.open_stage(workdir, **sampling)]
        output = epath.Path(_OUTPUT.value) if _OUTPUT.value else workdir / "generated"
        generating.generate(stages, output, options)
        return
    given = {"steps": _STEPS.value, "sampler": _SAMPLER.value, "sampling": _SAMPLING.value}
    if wrong := [name for name, value in given.items() if value]:
        raise ValueError(
            f"--{wrong[0]}: each stage of a cascade has its own; give it as "
            "--config.stage_1.sampling.KEY=VALUE"
        )
    stages = generating.stages_of(config, _GUIDANCE.value)
    output = epath.Path(_OUTPUT.value or config.output)
    generating.generate(stages, output, options, generating.measure_of(config, stages))


def _label(name: str) -> int:
    try:
        return int(name)
    except ValueError:
        raise ValueError(f"--label has {name!r}; give numbers of classes, from 0") from None


def _sampling() -> dict[str, object]:
    """Keys of `config.sampling` on the command line."""
    given = {} if _SAMPLER.value is None else {"sampler": _SAMPLER.value}
    for pair in _SAMPLING.value:
        key, separator, value = pair.partition("=")
        if not separator:
            raise ValueError(f"--sampling has {pair!r}; give KEY=VALUE,KEY=VALUE,...")
        if key in given:
            raise ValueError(f"the key {key!r} of sampling is given twice; give it once")
        try:
            given[key] = json.loads(value)
        except ValueError:
            given[key] = value
    return given


def _outputs() -> dict[str, str]:
    """The folders of --outputs by name."""
    _require("reference", _REFERENCE.value)
    _require("outputs", _OUTPUTS.value)
    folders = {}
    for given in _OUTPUTS.value:
        name, _, folder = given.partition("=")
        if not name or not folder:
            raise ValueError(f"--outputs has {given!r}; give NAME=FOLDER,NAME=FOLDER,...")
        if name in folders:
            raise ValueError(f"--outputs has two folders of the name {name!r}; rename one")
        folders[name] = folder
    return folders


def _leave(status: int, message: str = "") -> NoReturn:
    """Ends the process after a failure, without waiting for the other processes of the job."""
    from sr3_jax import parallel

    if not parallel.is_one_of_several():
        command_line.leave(status, message)
    # The usual end of a process waits until all have come to theirs, and the others may be waiting
    # for this one.
    command_line.say(message)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)


def _require(name: str, value: object) -> None:
    if not value:
        raise ValueError(f"--mode={_MODE.value} needs --{name}=...; see --help")


def command() -> None:
    """The console command `sr3`: `sr3 upscale --workdir=...` for `--mode=upscale`."""
    if len(sys.argv) > 1 and sys.argv[1] in _MODES:
        sys.argv[1] = f"--mode={sys.argv[1]}"
    command_line.run(main)


def run() -> None:
    """The same for `python -m sr3_jax.main`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
