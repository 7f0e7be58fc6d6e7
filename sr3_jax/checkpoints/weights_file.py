"""The averaged parameters of a network as one safetensors file: arrays and JSON, no code.

The file stands in a released network's folder where a training run has `checkpoints`.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from sr3_jax.checkpoints import digests
from sr3_jax.checkpoints.common import CheckpointError, Which
from sr3_jax.data import storage

_ABOUT = "sr3_jax"  # key of the file's metadata
_TYPES = {"BF16": jnp.bfloat16, "F16": np.float16, "F32": np.float32}  # by safetensors' names


def write(path: epath.PathLike, params: Any, step: int, dtype: str = "bfloat16") -> None:
    """Writes the parameters of step `step` of training, rounded to `dtype`, whole or not at all.

    Raises:
      ValueError: `dtype` cannot hold one of the numbers.
    """
    arrays = {
        name: np.asarray(jnp.asarray(array, dtype)) for name, array in digests.named(params).items()
    }
    found = digests.of(arrays)
    if wrong := [name for name, digest in found.items() if not digest.is_finite]:
        raise ValueError(
            f"{', '.join(wrong[:3])} has numbers that {dtype} cannot hold; use float32"
        )
    record = digests.Record({name: digest.text for name, digest in found.items()}, {})
    # One entry: the library writes several in any order, and the file would differ each time.
    about = json.dumps({"step": step, **record.to_json()})
    storage.write_whole(path, safetensors.numpy.save(arrays, {_ABOUT: about}))


class WeightsFile:
    """Reads such a file, by the methods of a `Checkpointer` of one checkpoint."""

    def __init__(self, path: epath.PathLike) -> None:
        """Reads the whole file.

        Raises:
          CheckpointError: it is damaged, or not one of this package.
        """
        self._path = epath.Path(path)
        content = self._path.read_bytes()
        try:
            self._arrays = read_arrays(content)
            # The library gives a file's metadata from a local path alone.
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            about = json.loads(header["__metadata__"][_ABOUT])
            self.step, self._digests = int(about["step"]), dict(about["arrays"])
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self._path} is not a file of weights that sr3 push writes, or it is damaged "
                f"({type(error).__name__}: {error}); fetch it again"
            ) from error

    def find(self, which: Which) -> int:
        """Returns the step of the weights; raises FileNotFoundError if another is asked for."""
        if which not in ("latest", "best", self.step):
            raise FileNotFoundError(
                f"no checkpoint {which!r}: {self._path} holds the weights of step {self.step} alone"
            )
        return self.step

    def check_shapes(self, like: Any, step: int) -> None:
        """Raises ValueError if the arrays are not those of `like`."""
        for name, array in self._own(like).items():
            found = self._arrays.get(name)
            if found is None or found.shape != array.shape:
                raise ValueError(
                    f"{self._path} is of another network than config.json beside it: {name} has "
                    f"shape {'none' if found is None else found.shape} there and {array.shape} by "
                    "the config; fetch both again"
                )

    def restore_part(self, like: Any, which: Which = "latest") -> tuple[int, Any]:
        """Returns the step and the arrays as `like`, in its types and shardings.

        Raises:
          FileNotFoundError: `which` is another step.
          ValueError: the arrays are not those of `like`.
          CheckpointError: they are not the numbers that were written.
        """
        step = self.find(which)
        self.check_shapes(like, step)
        for name, found in digests.of(self._arrays).items():
            if found.text != self._digests.get(name):
                raise CheckpointError(
                    f"{self._path} is damaged: {name} has not the numbers that were written; fetch "
                    "it again"
                )
        leaves = [
            jax.device_put(self._arrays[name].astype(array.dtype), array.sharding)
            for name, array in self._own(like).items()
        ]
        return step, jax.tree.unflatten(jax.tree.structure(like), leaves)

    def digest(self, like: Any, step: int) -> str:
        """Returns a digest of the arrays; raises as `check_shapes`."""
        self.check_shapes(like, step)
        return digests.combine(self._digests)

    def _own(self, like: Any) -> dict[str, Any]:
        return digests.named(like["ema_params"])


def read_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file by name.

    Raises:
      safetensors.SafetensorError: the file is damaged.
      KeyError: an array is of another type than bfloat16, float16 or float32.
    """
    return {
        name: np.frombuffer(found["data"], _TYPES[found["dtype"]]).reshape(found["shape"])
        for name, found in safetensors.deserialize(content)
    }
