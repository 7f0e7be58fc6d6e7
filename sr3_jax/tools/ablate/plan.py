"""The runs of an ablation: their configs, their faults, and what is left of them."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from absl import flags
from ml_collections import ConfigDict

from sr3_jax.config import Config, layouts, read, run_file, schedules
from sr3_jax.data import storage
from sr3_jax.tools.ablate.table import text

METRICS = "evaluation/metrics.json"

_AFTER_TRAINING = ("sampling.", "evaluation.")
# Keys of the held-out images that choose the best checkpoint.
_CHOOSE_BEST = ("evaluation.image_size", "evaluation.num_images")
_PARSERS = {
    bool: flags.BooleanParser(),
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
    str: flags.ArgumentParser(),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One combination with one seed.

    Attributes:
      values: values of the varied keys.
      config: with those values.
      flags: flags of `sr3_jax.main`, for this config.
      folder: its workdir.
    """

    values: Mapping[str, Any]
    config: Config
    flags: Sequence[str]
    folder: pathlib.Path

    @property
    def is_done(self) -> bool:
        """Whether it has been evaluated, which a run does last."""
        return (self.folder / METRICS).exists()


def combinations(
    config: ConfigDict,
    filename: str,
    overrides: Mapping[str, Any],
    vary: Sequence[str],
    num_seeds: int,
    workdir: pathlib.Path,
) -> list[Run]:
    """Returns a run for every combination of the varied values and every seed.

    Args:
      config: with the overrides.
      filename: filename of the config, as on the command line.
      overrides: keys set on the command line, for all runs.
      vary: `KEY=V1,V2,...` each.
      num_seeds: number of seeds, from `config.seed`.
      workdir: workdir of the runs' folders.

    Raises:
      ValueError: a key is unknown, a value has another type, or one of them is given twice.
    """
    varied: dict[str, list[Any]] = {}
    for given in vary:
        key, values = parse_values(config, given)
        if key in varied or key in overrides:
            raise ValueError(f"config.{key} is given twice; use one --vary, and no --config.{key}")
        varied[key] = values
    if num_seeds > 1 and "seed" in varied:
        raise ValueError("--vary=seed=... and --seeds both vary config.seed; use one")
    made = []
    for chosen in itertools.product(*varied.values()):
        values = dict(zip(varied, chosen, strict=True))
        named = {key: urllib.parse.quote(text(v), safe=":+") for key, v in values.items()}
        for seed in range(config.seed, config.seed + num_seeds):
            # The folder of the first seed names no seed, so that seeds can be added later.
            extra = {"seed": seed} if seed != config.seed else {}
            name = ",".join(f"{key}={value}" for key, value in {**named, **extra}.items())
            changes = {**overrides, **values, **extra}
            of_run = config.copy_and_resolve_references()
            of_run.update_from_flattened_dict(changes)
            try:
                checked = read(of_run)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            as_flags = [
                f"--config.{key}={value if isinstance(value, tuple) else text(value)}"
                for key, value in changes.items()
            ]
            made.append(Run(values, checked, [f"--config={filename}", *as_flags], workdir / name))
    return made


def parse_values(config: ConfigDict, given: str) -> tuple[str, list[Any]]:
    """Returns the key and the values of `KEY=V1,V2,...`; colons separate those of a tuple.

    Raises:
      ValueError: the key is unknown, or a value has another type or is given twice.
    """
    key, equals, listed = given.partition("=")
    if not equals:
        raise ValueError(f"--vary={given}: no values; give KEY=V1,V2,...")
    like: Any = config
    for part in key.split("."):
        try:
            like = like[part]
        except (KeyError, TypeError) as error:  # TypeError: of a value, which has no keys
            hint = str(error.args[0]).replace("\n", " ")
            raise ValueError(f"--vary={given}: there is no config.{key}: {hint}") from error
    if not isinstance(like, (tuple, *_PARSERS)):
        raise ValueError(f"--vary={given}: config.{key} is a section; give one of its keys")
    values = [_parse(key, value, like) for value in listed.split(",")]
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"--vary={given}: config.{key} has {value!r} twice; remove one")
    return key, values


def _parse(key: str, value: str, like: Any) -> Any:
    kind = type(like).__name__
    try:
        if not isinstance(like, tuple):
            return _PARSERS[type(like)].parse(value)
        element = type(like[0]) if like else int  # sizes, where the config has none
        kind = f"tuple of {element.__name__}, as 1:2:4"
        return tuple(_PARSERS[element].parse(part) for part in value.split(":") if value)
    except ValueError as error:
        raise ValueError(
            f"--vary={key}=...: config.{key} = {value!r} is not of its type, {kind}"
        ) from error


def check(configs: Mapping[str, Config]) -> None:
    """Raises ValueError, with the name of the config, if a schedule or a layout cannot work.

    It takes devices, so it should run in a process that ends before the first run needs them.
    """
    for name, config in configs.items():
        try:
            schedules.check(config)
            layouts.layout(config)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def check_folders(runs: Sequence[Run]) -> None:
    """Raises ValueError, naming the keys, if a run's folder is of another config."""
    for run in runs:
        path = run.folder / "config.json"
        if not path.exists() and not run.is_done:
            continue
        changed = run_file.changed_keys(run_file.load(path), run.config)
        if changed:
            pairs = (f"config.{k} was {a!r} and is now {b!r}" for k, (a, b) in changed.items())
            raise ValueError(
                f"{run.folder} was made by another config: {'; '.join(pairs)}. Give that config, "
                "use another --workdir, or remove the folder"
            )


def next_step(
    run: Run, runs: Sequence[Run]
) -> tuple[Literal["done", "train", "evaluate", "wait"], pathlib.Path]:
    """Returns the next step of a run and the folder of its training; `wait` for another run."""
    if run.is_done or has_training(run.folder):
        return "done" if run.is_done else "train", run.folder
    for path in sorted(run.folder.parent.glob("*/config.json")):
        last = path.parent / "checkpoints" / str(run.config.train.num_steps)
        is_trained = last.is_dir() and has_training(path.parent)
        if is_trained and _shares_training(run.config, run_file.load(path)):
            return "evaluate", path.parent
    first = trainer(run, runs)
    return "train" if first is run else "wait", first.folder


def trainer(run: Run, runs: Sequence[Run]) -> Run:
    """Returns the run that trains the network of a run: itself, or one of another sampling."""
    if has_training(run.folder):
        return run
    alike = [other for other in runs if _shares_training(run.config, other.config)]
    return next((other for other in alike if has_training(other.folder)), alike[0])


def borrow_training(run: Run, training: pathlib.Path) -> None:
    """Makes a folder in which the network of another run is evaluated."""
    for path in sorted((training / "index").glob("*.npz")):
        # A copy, since an evaluation of other files makes its list anew.
        storage.write_whole(run.folder / "index" / path.name, path.read_bytes())
    run.folder.mkdir(parents=True, exist_ok=True)
    link = run.folder / "checkpoints"
    link.unlink(missing_ok=True)
    link.symlink_to(pathlib.Path("..", training.name, "checkpoints"))
    run_file.save(run.config, run.folder / "config.json")


def _shares_training(ours: Config, theirs: Config) -> bool:
    apart = _CHOOSE_BEST if ours.evaluation.checkpoint == "best" else ()
    changed = run_file.changed_keys(ours, theirs)
    return all(key.startswith(_AFTER_TRAINING) and key not in apart for key in changed)


def has_training(folder: pathlib.Path) -> bool:
    """Returns whether a training has begun in a folder, and not in one that it links to."""
    checkpoints = folder / "checkpoints"
    return checkpoints.is_dir() and not checkpoints.is_symlink()
