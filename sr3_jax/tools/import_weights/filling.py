"""Puts arrays of another program into the places of a network's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from sr3_jax.checkpoints import digests

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}  # ours, and torch's


def fill(
    shapes: Any,
    names: Mapping[str, str],
    arrays: Any,
    others: Iterable[str] = (),
    absent: Iterable[str] = (),
) -> Any:
    """Returns the parameters of a network as float32 arrays.

    Args:
      shapes: of the parameters, as `models.parameter_shapes` returns them.
      names: for each of our modules, such as `down_0_block_0/conv_0`, its name in the other
        program.
      arrays: arrays of the other program by name, in torch's layouts; checked here.
      others: names of arrays that are no parameters.
      absent: our modules that have no bias in the other program; theirs becomes 0.

    Raises:
      ValueError: naming all arrays that are missing, unknown, of another shape, or not finite.
    """
    check_names(arrays)
    filled, used, missing, misfits, infinite = [], set(), [], [], []
    absent = set(absent)
    for path, ours in digests.named(shapes).items():
        module, _, leaf = path.rpartition("/")
        name = f"{names[module]}.{_LEAVES[leaf]}"
        filled.append(np.zeros(ours.shape, np.float32))
        found = arrays.get(name)
        if found is None:
            if leaf != "bias" or module not in absent:
                missing.append(name)
            continue
        used.add(name)
        wanted = _shape(ours.shape, found)
        if np.shape(found) != wanted:
            misfits.append(f"{name} {list(np.shape(found))} and not {list(wanted)}")
            continue
        if np.issubdtype(found.dtype, np.integer):
            misfits.append(f"{name} of whole numbers ({found.dtype})")
            continue
        filled[-1] = _in_our_layout(found, ours.shape)
        if not np.isfinite(filled[-1]).all():
            infinite.append(name)
    unknown = sorted(set(arrays) - used - set(others))
    faults = [
        f"{what}: {', '.join(which)}"
        for what, which in (
            ("of another shape or type", misfits),
            ("missing in it", sorted(missing)),
            ("not of the network", unknown),
            ("not finite", infinite),
        )
        if which
    ]
    if faults:
        raise ValueError(f"the weights are not those of the config. {'; '.join(faults)}")
    return jax.tree.unflatten(jax.tree.structure(shapes), filled)


def check_names(arrays: Any) -> None:
    """Raises ValueError if a file does not hold arrays by name."""
    if not isinstance(arrays, Mapping):
        raise ValueError(
            f"it holds a {type(arrays).__name__} and not a dictionary of tensors by name"
        )
    if wrong := [name for name in arrays if not isinstance(name, str)]:
        raise ValueError(f"it holds {wrong[0]!r}, which is no name of a tensor")
    if inner := [name for name, value in arrays.items() if isinstance(value, Mapping)]:
        raise ValueError(
            f"it holds a dictionary under {inner[0]!r}. If the weights are in there, save them "
            "alone: torch.save(torch.load(FILE, weights_only=True)[NAME], FILE)"
        )


def _shape(ours: tuple[int, ...], theirs: Any) -> tuple[int, ...]:
    """Returns the shape that torch gives an array; a matrix may be a 1x1 convolution there."""
    shape = (*ours[:-3:-1], *ours[:-2])  # [..., in, out] becomes [out, in, ...]
    return (*shape, 1, 1) if len(ours) == 2 and np.ndim(theirs) == 4 else shape


def _in_our_layout(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(array, np.float32)
    if len(shape) == 4:
        return np.ascontiguousarray(array.transpose(2, 3, 1, 0))
    return np.ascontiguousarray(array.reshape(array.shape[: len(shape)]).T)
