"""Flags that several commands have, and what they are read into."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath
from ml_collections import config_flags

from sr3_jax import config as configs
from sr3_jax import conformal, released
from sr3_jax.config import resolve, run_file
from sr3_jax.data import storage


@dataclasses.dataclass(frozen=True)
class Job:
    """The work of a command, to be done once devices are known.

    Attributes:
      run: does it; returns the exit status, None for 0.
      workdir: workdir of the run, where compiled programs are kept; None for the user's cache.
      stops_together: whether all processes of a job end at the same step when one is asked to stop.
      sets_up_cpu: whether CPUs are set up for sampling (`parallel.set_up_cpu`).
    """

    run: Callable[[], int | None]
    workdir: epath.Path | None = None
    stops_together: bool = False
    sets_up_cpu: bool = False


def late(function: str, *arguments: Any) -> Callable[[], int | None]:
    """Returns a call of a function of `sr3_jax.jobs`, which is imported when it is called."""
    return lambda: pkgutil.resolve_name(f"sr3_jax.jobs:{function}")(*arguments)


def define_processes(values: flags.FlagValues) -> None:
    """Defines the flags of every command that say which process of a job this one is."""
    of = {"flag_values": values}
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, for a job of several processes. Not needed on TPU pods, under "
        "Slurm and Open MPI.",
        **of,
    )
    meaning = "Number of processes of the job; 1: this one alone, on any machine."
    flags.DEFINE_integer("num_processes", None, meaning, lower_bound=1, **of)
    meaning = "Index of this process, from 0."
    flags.DEFINE_integer("process_index", None, meaning, lower_bound=0, **of)


def define_config(values: flags.FlagValues, meaning: str) -> None:
    """Defines --config, and with it a flag for each of its keys."""
    meaning = (
        f"{meaning} A file, or the name of one that comes with sr3_jax, as imagenet_64_256. Each "
        "option can be set: --config.train.batch_size=64 (docs/config.md)."
    )
    config_flags.DEFINE_config_file("config", None, meaning, flag_values=values, lock_config=True)


def given_keys(values: flags.FlagValues) -> frozenset[str]:
    """Returns the keys that flags such as --config.train.batch_size=64 set."""
    if values.config is None:  # there is no --config, nor a flag of a key
        return frozenset()
    return frozenset(config_flags.get_override_values(values["config"]))


def define_workdir(values: flags.FlagValues, meaning: str = "Folder of the training run.") -> None:
    """Defines --workdir."""
    flags.DEFINE_string("workdir", None, f"{meaning} Local or gs://.", flag_values=values)


def define_run(values: flags.FlagValues) -> None:
    """Defines --workdir and --config of a command that uses a finished run; see `config_of_run`."""
    define_workdir(values)
    define_config(values, "In place of the config that the run left.")


def define_steps(values: flags.FlagValues, meaning: str) -> None:
    """Defines --steps, a number of refinement steps."""
    limits = {"lower_bound": 1, "upper_bound": 100_000}
    flags.DEFINE_integer("steps", None, meaning, flag_values=values, **limits)


def define_sampling(values: flags.FlagValues) -> None:
    """Defines the flags of sampling, and of outputs that are sampled."""
    of = {"flag_values": values}
    define_steps(values, "Number of refinement steps.")
    define_sampler(values)
    flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0, **of)
    meaning = "Make outputs anew, and replace files in their place, whoever wrote them."
    flags.DEFINE_bool("overwrite", False, meaning, **of)


def define_sampler(values: flags.FlagValues) -> None:
    """Defines the flags that replace options of the config's section `sampling`."""
    of = {"flag_values": values}
    flags.DEFINE_enum("sampler", None, configs.SAMPLERS, "The sampler.", **of)
    meaning = "KEY=VALUE,... of the config's section sampling, such as eta=1.0,consistent=true."
    flags.DEFINE_list("sampling", [], meaning, allow_overwrite=False, **of)


def define_promise(values: flags.FlagValues) -> None:
    """Defines the flags of intervals that a calibrated network promises; see `promise`."""
    of = {"flag_values": values}
    meaning = (
        "Also write the lower and the upper end of an interval for each value of each pixel, which "
        "hold so large a share of the true values, such as 0.9. Takes a network that "
        "--mode=calibrate has calibrated."
    )
    flags.DEFINE_float("confidence", None, meaning, **of)
    meaning = (
        "What --confidence promises. `average`: the share of values inside, over all images; "
        "`certified`: the same with probability 1 - delta, whatever images calibration drew; "
        "`each_image`: the share of the values of an image, with probability 1 - delta."
    )
    flags.DEFINE_enum("guarantee", "average", conformal.GUARANTEES, meaning, **of)
    meaning = "For --guarantee=certified and each_image: probability that it does not hold."
    flags.DEFINE_float("delta", 0.1, meaning, **of)


def promise(values: flags.FlagValues) -> conformal.Promise | None:
    """Returns what `define_promise`'s flags ask for, if anything.

    Raises:
      ValueError: a number is no probability, or a flag is given without --confidence.
    """
    for name in ("guarantee", "delta"):
        if values.confidence is None and values[name].present:
            raise ValueError(f"--{name} is of --confidence; add that, or leave it out")
    if values.confidence is None:
        return None
    try:
        return conformal.Promise(values.confidence, values.guarantee, values.delta)
    except ValueError as error:
        raise ValueError(f"--{error}") from error


def define_address(
    values: flags.FlagValues, what: str, port: int, *, has_password: bool = True
) -> None:
    """Defines the flags that say where a page is served."""
    of = {"flag_values": values}
    limits = {"lower_bound": 0, "upper_bound": 65535}
    flags.DEFINE_integer("port", port, f"Port of {what}. 0: a free one.", **limits, **of)
    how = ", with a password" if has_password else ""
    meaning = f"Let other machines reach it{how}. Default: this machine alone."
    flags.DEFINE_bool("listen", False, meaning, **of)
    if not has_password:
        return
    meaning = (
        "The password that browsers are asked for, with any user name; SR3_PASSWORD of the "
        "environment hides it from other users of the machine. Default: with --listen one is made "
        "and printed."
    )
    flags.DEFINE_string("password", os.environ.get("SR3_PASSWORD", ""), meaning, **of)


def sampling(values: flags.FlagValues) -> dict[str, Any]:
    """Returns the keys of `config.sampling` that --sampler and --sampling give.

    Raises:
      ValueError: an entry is no pair, or a key is given twice.
    """
    sampler = [] if values.sampler is None else [f"sampler={values.sampler}"]
    given: dict[str, Any] = dict(pairs("sampling", [*sampler, *values.sampling]))
    for key, value in given.items():
        try:
            given[key] = json.loads(value)
        except ValueError:
            pass  # a text without quotes
    return given


def pairs(flag: str, entries: Sequence[str]) -> Mapping[str, str]:
    """Returns the values of a flag's entries KEY=VALUE by key.

    Raises:
      ValueError: an entry is no pair, or a key is given twice.
    """
    found: dict[str, str] = {}
    for entry in entries:
        key, _, value = entry.partition("=")
        if not (key and value):
            raise ValueError(f"--{flag} has {entry!r}; give NAME=VALUE,NAME=VALUE,...")
        if key in found:
            raise ValueError(f"--{flag} has {key!r} twice; give it once")
        found[key] = value
    return found


def require(values: flags.FlagValues, *names: str) -> None:
    """Checks that flags have a value.

    Raises:
      ValueError: one has none.
    """
    for name in names:
        if not values[name].value:
            raise ValueError(f"--mode={values.mode} needs --{name}=...; see --help")


def workdir(values: flags.FlagValues) -> epath.Path:
    """Returns the folder of the run: --workdir, else `runs/` and the name of the config.

    Raises:
      NotADirectoryError: it is a file.
      ValueError: neither is given.
    """
    given = values.workdir
    if not given and "config" in values and values.config is not None:
        file = values["config"].config_filename
        name, _, variants = file.partition(":")
        given = "_".join(["runs/" + epath.Path(name).stem, *filter(None, variants.split(","))])
    if not given:
        require(values, "workdir")
    folder = network_folder(given)
    if not released.is_for_results(given):
        name = folder.name if given in released.names() else given.partition("@")[0].split("/")[-1]
        raise ValueError(
            f"--workdir={given} is for reading, and --mode={values.mode} writes into its workdir. "
            f"Copy it first: mkdir -p runs && cp -rL {folder} runs/{name}; then give "
            f"--workdir=runs/{name}"
        )
    return folder


def network_folder(given: str, flag: str = "workdir") -> epath.Path:
    """Returns the folder of a run or of a released network that a flag gives.

    Raises:
      NotADirectoryError: it is a file.
      OSError, ValueError, ImportError: as `released.locate`.
    """
    folder = released.locate(given)
    if storage.exists(folder) and not storage.is_folder(folder):
        raise NotADirectoryError(f"--{flag}={folder} is a file; give a folder")
    return folder


def config_of_run(values: flags.FlagValues, folder: epath.Path) -> configs.Config:
    """Returns the config of --config if that is given, else the one that the run left.

    Raises:
      FileNotFoundError: the folder is not of a run.
      ValueError: naming every fault of the config.
    """
    check = functools.partial(resolve.faults, trains=False)
    if values.config is not None:
        if not any((folder / name).exists() for name in ("checkpoints", released.WEIGHTS)):
            raise FileNotFoundError(
                f"--workdir={folder} has no checkpoints; give the folder of a training run"
            )
        config = configs.read(values.config, check)
        return run_file.with_measured(config, folder / "config.json")
    config = configs.load(folder / "config.json")
    if missing := list(check(config)):
        raise ValueError(configs.in_words(missing))
    return config
