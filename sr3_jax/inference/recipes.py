"""Recipes of outputs: a folder holds those of one recipe, and says which.

`OUTPUT/.manifest/recipe.json` has everything that decides what an input becomes: the digest of the
network's weights, how it samples, and the options of the job.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from sr3_jax.config import Sampling
from sr3_jax.data import storage

FOLDER = ".manifest"  # hidden, so that it is not taken for a folder of images
MARK = f"{FOLDER}/recipe.json"  # which folders of outputs have


def check(
    output: epath.PathLike, recipe: Mapping[str, Any], older: Mapping[str, Any] | None = None
) -> None:
    """Refuses to mix outputs of several recipes in one folder.

    Args:
      output: the folder of outputs, which need not exist.
      recipe: everything that decides what an input becomes; JSON.
      older: see `differences`.

    Raises:
      ValueError: the folder has outputs by another recipe, or its recipe is damaged.
    """
    if differ := differences(output, recipe, older):
        raise ValueError(
            f"{storage.shown(output)} has outputs made in another way: {'; '.join(differ)}. Give "
            "another folder, or --overwrite to make all of them anew"
        )


def differences(
    output: epath.PathLike, recipe: Mapping[str, Any], older: Mapping[str, Any] | None = None
) -> list[str]:
    """Returns in what a recipe differs from that of the outputs in a folder; empty without any.

    Args:
      output: the folder of outputs.
      recipe: see `check`.
      older: what stood in recipes for the digest of the weights, before there was one: workdirs
        and steps.

    Raises:
      ValueError: the folder's recipe is damaged.
    """
    before = read(output)
    if before is None:
        return []
    recipe = json.loads(json.dumps(recipe))
    if older and before.keys() >= older.keys():
        recipe = {key: value for key, value in recipe.items() if not key.endswith("network")}
        recipe.update(json.loads(json.dumps(older)))
    # Of workdirs that were older than a key of `config.sampling`.
    defaults = json.loads(json.dumps(dataclasses.asdict(Sampling())))
    was = {key: before.get(key, defaults.get(key.rpartition(".")[2])) for key in recipe} | before
    return [
        f"{key} was {was.get(key)!r} and is {recipe.get(key)!r}"
        for key in sorted(was)
        if was[key] != recipe.get(key)
    ]


def differs(
    output: epath.PathLike, recipe: Mapping[str, Any], older: Mapping[str, Any] | None = None
) -> bool:
    """Returns whether a folder has outputs by another recipe, or by one that is damaged."""
    try:
        return bool(differences(output, recipe, older))
    except ValueError:
        return True


def read(output: epath.PathLike) -> dict[str, Any] | None:
    """Returns the recipe of a folder's outputs; None where there is none.

    Raises:
      ValueError: it is damaged.
    """
    path = epath.Path(output) / MARK
    try:
        found = json.loads(storage.read(str(path)))
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        return found
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{storage.shown(path)}, which says how the outputs beside it were made, is damaged: "
            f"{error}. Remove it if you know that they were made in this way, give another folder, "
            "or --overwrite to make all of them anew"
        ) from error


def digest_of(recipe: Mapping[str, Any]) -> str:
    """Returns a digest that is equal for equal recipes."""
    return digest(json.dumps(recipe, sort_keys=True).encode())


def keep(output: epath.PathLike, recipe: Mapping[str, Any]) -> None:
    """Writes the recipe of a folder's outputs."""
    text = json.dumps(recipe, indent=2, sort_keys=True)
    storage.write_whole(str(epath.Path(output) / MARK), text.encode())


def digest(content: bytes) -> str:
    """Returns the digest of a file's content, as in `Record.input_digest`."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
