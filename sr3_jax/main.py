"""The one door: `python -m sr3_jax.main --mode=train|evaluate|upscale`.

python -m sr3_jax.main --config=configs/quickstart.py --workdir=DIR [--config.KEY=VALUE ...]
python -m sr3_jax.main --mode=evaluate --workdir=DIR
python -m sr3_jax.main --mode=upscale --workdir=DIR --input=FILE_OR_FOLDER --output=FOLDER
"""

import logging as std_logging
import os
import sys

from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

# TensorFlow only decodes images here; what it says when it starts is of no use to anyone.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_MODES = ("train", "evaluate", "upscale")

_MODE = flags.DEFINE_enum("mode", "train", _MODES, "What to do.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, logs, results. Local or gs://."
)
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, for train; for evaluate, in place of the workdir's config.json. Any key can be "
    "set: --config.train.batch_size=64.",
    lock_config=True,
)
_INPUT = flags.DEFINE_string("input", None, "upscale: an image, or a folder of them.")
_OUTPUT = flags.DEFINE_string("output", None, "upscale: the folder for the results.")
_STEPS = flags.DEFINE_integer(
    "steps", None, "upscale: refinement steps; the config's where not given.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "upscale: seed of the noise.", lower_bound=0)


class _WrongUseError(Exception):
    """Something the user gave cannot work; shown without a traceback."""


def main(argv: list[str]) -> None:
    """Picks the job."""
    if len(argv) > 1:
        raise _WrongUseError(f"unexpected argument {argv[1]!r}; options start with --")
    _require("workdir", _WORKDIR.value)
    workdir = epath.Path(_WORKDIR.value)
    if _MODE.value == "train":
        _require("config", _CONFIG.value)
    if _MODE.value == "upscale":
        _require("input", _INPUT.value)
        _require("output", _OUTPUT.value)

    _quiet_orbax()
    # Late, so that a wrong flag is answered at once.
    from sr3_jax import factory, jobs
    from sr3_jax.training.loop import NonFiniteError

    try:
        if _MODE.value == "train":
            jobs.train(_CONFIG.value, workdir)
        elif _MODE.value == "evaluate":
            jobs.evaluate(_CONFIG.value or factory.load_config(workdir / "config.json"), workdir)
        else:
            num_failed = jobs.upscale(
                workdir,
                epath.Path(_INPUT.value),
                epath.Path(_OUTPUT.value),
                _STEPS.value,
                _SEED.value,
            )
            if num_failed:
                sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except (ValueError, FileNotFoundError, NotADirectoryError, NonFiniteError) as error:
        # Messages for users; the traceback is one flag away.
        logging.debug("traceback", exc_info=True)
        raise _WrongUseError(str(error)) from error


def _quiet_orbax() -> None:
    """Orbax tells its inner life on the info level, dozens of lines for each checkpoint."""

    def keep(record: std_logging.LogRecord) -> bool:
        return "orbax" not in record.pathname or record.levelno >= std_logging.WARNING

    logging.get_absl_handler().addFilter(keep)


def _require(name: str, value: object) -> None:
    if not value:
        raise _WrongUseError(f"--mode={_MODE.value} needs --{name}=...; see --help")


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses as absl does; config errors name the key and the nearest valid one."""
    try:
        rest = app.parse_flags_with_usage(argv)
        # A config file that cannot be loaded is noticed when its value is first used.
        if _CONFIG.value is not None:
            _CONFIG.value.to_dict()
        return rest
    except (KeyError, AttributeError, TypeError, ValueError, OSError) as error:
        message = str(error.args[0] if error.args else error).replace("\\n", " ").strip("'\"")
        raise SystemExit(f"error in --config: {message}") from error


def run() -> None:
    """Runs `main`; wrong use ends with one line and status 2."""
    try:
        app.run(main, flags_parser=_parse_flags)
    except _WrongUseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
