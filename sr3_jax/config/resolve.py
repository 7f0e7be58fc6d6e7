"""Checks what a config asks of the machine, before anything starts: packages, images, weights.

No devices are looked for, and no image is read, so that a wrong path is answered within seconds.
Of slow packages jax alone is imported, which takes half a second.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence

from etils import epath

from sr3_jax import sizes
from sr3_jax.config.sections import Config
from sr3_jax.config.use_sections import Evaluation
from sr3_jax.data import source_kinds, storage
from sr3_jax.data.source_kinds import Half
from sr3_jax.metrics import registry

_MADE_IN_WORKDIR = ("evaluation", "calibration", "tuning", "generated")
_IMAGENET_TARS = (
    "--config.data.path=ILSVRC2012_img_train.tar --config.data.eval_path=ILSVRC2012_img_val.tar"
)


def faults(config: Config, *, trains: bool) -> Iterator[str]:
    """Yields a message, with the key and the fix, for everything that is missing.

    Training images are needed if the run `trains`; held-out ones always.
    """
    data = config.data
    has_own = bool(data.eval_path or data.eval_source)
    of_training = config.evaluation.feature_metrics and config.evaluation.fid_reference == "train"
    halves = {"train": trains or not has_own or of_training, "eval": has_own}
    missing, needs_help = [], False
    for half in (half for half, is_needed in halves.items() if is_needed):
        kind, place = place_of(config, half)
        found = list(kind.faults(place))
        needs_help |= bool(found) and (kind is source_kinds.KINDS["tfds"] or not place.path)
        missing += found
    if data.loader == "tf" and importlib.util.find_spec("tensorflow") is None:
        missing.append(
            "config.data.loader = 'tf' needs TensorFlow, which is not installed: pip install "
            "'sr3_jax[tfds]', or use 'grain'"
        )
    if needs_help:
        missing[-1] += f". {_three_ways(data.tfds_train or data.path)}"
    yield from missing
    yield from metrics(config.evaluation, config.evaluation.feature_metrics)


def place_of(
    config: Config, half: Half, index_dir: epath.PathLike | None = None
) -> tuple[source_kinds.Kind, source_kinds.Place]:
    """Returns kind and place of the images of one half of the config.

    The held-out images of a config that names none of their own are in the place of training's.
    """
    data = config.data
    if half == "eval" and not has_held_out(config):
        half = "train"
    prefix = "" if half == "train" else "eval_"
    index, skip = None, frozenset()
    if index_dir:
        # A run within its own images must not take the pictures that it makes for some of them.
        index = epath.Path(index_dir) / f"{half}.npz"
        workdir = index.parent.parent
        skip = {storage.real_path(f) for f in (workdir, *(workdir / n for n in _MADE_IN_WORKDIR))}
    low_path = getattr(data, f"{prefix}low_path")
    return source_kinds.KINDS[getattr(data, f"{prefix}source") or data.source], source_kinds.Place(
        half,
        getattr(data, f"{prefix}path"),
        low_path,
        getattr(data, f"{prefix}maps_path") or data.maps_path,
        max(sizes.sides(config.evaluation_size if half == "eval" else data.image_size)),
        data.tfds_dir,
        index,
        frozenset(skip),
        # Without low resolutions of their own, images have the channels of these.
        channels=data.channels if low_path else config.source_channels,
        low_channels=config.source_channels,
        maps=data.maps,
        variables=data.variables,
        map_variables=data.map_variables,
    )


def has_held_out(config: Config) -> bool:
    """Returns whether held-out images are others than those of `data.path`."""
    data = config.data
    is_given = bool(data.eval_path or data.eval_source)
    return is_given or source_kinds.KINDS[data.source].has_held_out


def _three_ways(data_set: str) -> str:
    """Returns the three ways to give images, as a command and flags."""
    name, _, split = data_set.rpartition(":")
    name, split = (name, split) if name else ("NAME", "SPLIT")
    tars = _IMAGENET_TARS if name == "imagenet2012" else "--config.data.path=IMAGES.tar"
    return (
        'Images can be given in three ways. TFDS: python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', file_format='array_record').download_and_prepare()\", then "
        f"--config.data.source=tfds --config.data.path={name}:{split}, with "
        "--config.data.tfds_dir=FOLDER if they are not where TFDS looks. Tars: "
        f"--config.data.source=tar {tars}. Folders: --config.data.source=folder "
        "--config.data.path=IMAGES --config.data.eval_path=HELD_OUT_IMAGES. See docs/data.md"
    )


def metrics(
    evaluation: Evaluation,
    options: Sequence[str],
    key: str = "config.evaluation.feature_metrics",
) -> Iterator[str]:
    """Yields a message for every package and file that metrics of pretrained networks lack.

    Args:
      evaluation: the section with the files.
      options: names of metrics, of `metrics.registry.options()`.
      key: key of the config that asks for them.
    """
    packages = {metric.option: metric.package for metric in registry.of("network")}
    for metric in options:
        if importlib.util.find_spec(packages[metric]) is None:
            yield (
                f"{key} has {metric!r}, which needs {packages[metric]}: pip "
                "install 'sr3_jax[eval]', or leave it out"
            )
    keys = ["inception_weights", "lpips_weights", "resnet50_weights"]
    if evaluation.fid_reference not in ("", "train"):
        keys.append("fid_reference")
    for key in keys:
        path = getattr(evaluation, key)
        if path and not storage.exists(path):
            yield f"config.evaluation.{key} = {path!r} does not exist; give the path of a file"
