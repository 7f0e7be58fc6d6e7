"""Finds config files by path, or by the name of one that comes with the package."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import types

from sr3_jax.config import fields

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
# The repository's configs, which users edit; and those of an installed package.
_FOLDERS = (_PACKAGE.parent / "configs", _PACKAGE / "configs")


def locate(given: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the file of a config, given its path or name.

    A name, such as `imagenet_64_256`, is searched in `configs/` of the working directory, of the
    repository, and of the installed package.

    Raises:
      FileNotFoundError: there is no such file; lists the configs of the package.
    """
    path = pathlib.Path(given).expanduser()
    is_of_run = path.name == "config.json"
    if path.is_file() and not is_of_run:
        return path
    name = path.name.removesuffix(".py")
    is_name = path.parent in (pathlib.Path(), pathlib.Path("configs"))
    folders = (pathlib.Path("configs"), *_FOLDERS) if is_name else ()
    for folder in folders:
        if (found := folder / f"{name}.py").is_file():
            return found
    run = path.parent if is_of_run else path
    if (run / "config.json").is_file():
        of_run = pathlib.Path(__file__).with_name("of_run.py")
        hint = f"for the config of that run give {of_run}:{run}, else"
    else:
        near = fields.nearest_name(name, names())
        hint = f"did you mean {near}? Give" if near else "give"
    fault = "is a folder" if path.is_dir() else "is a run's" if path.exists() else "does not exist"
    raise FileNotFoundError(
        f"--config={os.fspath(given)} {fault}; {hint} a file, or the name of one that comes with "
        f"sr3_jax: {', '.join(names())}"
    )


def names() -> list[str]:
    """Returns the names of the configs that come with the package."""
    found = {path.stem for folder in _FOLDERS for path in folder.glob("*.py")}
    return sorted(found - {"__init__", "default"})


def load(given: str | os.PathLike[str]) -> types.ModuleType:
    """Runs a config file (`locate`) and returns its module, which has `get_config`."""
    path = locate(given)
    spec = importlib.util.spec_from_file_location(f"sr3_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
