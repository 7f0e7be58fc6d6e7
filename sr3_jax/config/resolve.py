"""Checks what a config asks of the machine, before anything starts: packages, images, weights.

Nothing slow is imported, so that a wrong path is answered within seconds.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Literal

from sr3_jax.config.sections import Config
from sr3_jax.config.use_sections import Evaluation
from sr3_jax.data import storage
from sr3_jax.metrics import registry

Half = Literal["train", "eval"]

_IMAGENET_TARS = (
    "--config.data.path=ILSVRC2012_img_train.tar --config.data.eval_path=ILSVRC2012_img_val.tar"
)


def faults(config: Config, *, trains: bool) -> Iterator[str]:
    """Yields a message, with the key and the fix, for everything that is missing.

    Args:
      config: the config of the run.
      trains: whether training images are needed, besides the held-out ones.
    """
    data = config.data
    has_own = bool(data.eval_path or data.eval_source)
    of_training = config.evaluation.feature_metrics and config.evaluation.fid_reference == "train"
    missing = []
    if trains or not has_own or of_training:
        missing += _images(config, "train")
    if has_own:
        missing += _images(config, "eval")
    if missing:
        missing[-1] += f". {_three_ways(data.tfds_train or data.path)}"
    yield from missing
    yield from metrics(config.evaluation, config.evaluation.feature_metrics)


def _images(config: Config, half: Half) -> Iterator[str]:
    data = config.data
    prefix = "" if half == "train" else "eval_"
    kind = getattr(data, f"{prefix}source") or data.source
    key = f"config.data.{prefix}path"
    path = getattr(data, f"{prefix}path")
    if kind == "photos":
        return
    if not path:
        yield f"{key} is empty"
    elif kind == "tfds":
        yield from _tfds(config, key, path)
    elif kind in ("folder", "folder_pairs"):
        yield from _folder(key, path, "" if kind == "folder_pairs" else f"{prefix}source")
        if kind == "folder_pairs":
            yield from _folder(f"config.data.{prefix}low_path", getattr(data, f"{prefix}low_path"))
    elif "*" not in path and not storage.exists(os.path.expanduser(path)):
        yield f"{key} = {path!r} does not exist; give {_KINDS[kind]}"


_KINDS = {
    "tar": "the path of a tar file",
    "tfrecord": "a TFRecord file, a pattern of them, or their folder",
}


def _folder(key: str, path: str, source_key: str = "") -> Iterator[str]:
    expanded = os.path.expanduser(path)
    if not path:
        yield f"{key} is empty; give the folder of low resolutions"
    elif not storage.is_folder(expanded):
        there = "is a file" if storage.exists(expanded) else "does not exist"
        yield f"{key} = {path!r} {there}; give the path of a folder of images"
    elif source_key and "://" not in path:
        with os.scandir(expanded) as entries:
            names = [entry.name for entry in entries]
        if any(".tfrecord" in name for name in names):
            if not any(name.lower().endswith(_SUFFIXES) for name in names):
                yield (
                    f"{key} = {path!r} is a folder of TFRecord files, not of images; add "
                    f"--config.data.{source_key}=tfrecord"
                )


_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif")


def _tfds(config: Config, key: str, path: str) -> Iterator[str]:
    name, _, split = path.rpartition(":")
    if not name:
        yield (
            f"{key} = {path!r}: TFDS needs the name of a data set and its split, as "
            "imagenet2012:train"
        )
        return
    if importlib.util.find_spec("tensorflow_datasets") is None:
        yield f"{key} = {path!r} is of TFDS, which is not installed: pip install 'sr3_jax[train]'"
        return
    from sr3_jax.data import tfds_source

    try:
        tfds_source.check_prepared(name, split, config.data.tfds_dir or None)
    except (FileNotFoundError, ValueError) as error:
        yield f"{key} = {path!r}: {error}"


def _three_ways(data_set: str) -> str:
    """Returns the three ways to give images, as commands or as flags."""
    name, _, split = data_set.rpartition(":")
    name, split = (name, split) if name else ("NAME", "SPLIT")
    given = f"--config.data.path={name}:{split}"
    tars = _IMAGENET_TARS if name == "imagenet2012" else "--config.data.path=IMAGES.tar"
    return (
        'Images can be given in three ways. By TFDS: python -c "import tensorflow_datasets as '
        f"tfds; tfds.builder('{name}', file_format='array_record').download_and_prepare()\" (with "
        "download_config=tfds.download.DownloadConfig(manual_dir='FOLDER') for data that you "
        f"downloaded yourself), then --config.data.source=tfds {given}, and "
        "--config.data.tfds_dir or TFDS_DATA_DIR for another folder than TFDS's. By tars: "
        "--config.data.source=tar "
        f"{tars}. By folders: --config.data.source=folder --config.data.path=IMAGES "
        "--config.data.eval_path=HELD_OUT_IMAGES. docs/data.md"
    )


def metrics(
    evaluation: Evaluation,
    options: Sequence[str],
    key: str = "config.evaluation.feature_metrics",
) -> Iterator[str]:
    """Yields a message for every package and file that metrics of pretrained networks lack.

    Args:
      evaluation: the section with the files.
      options: of `metrics.registry.options()`.
      key: of the config, which asks for them.
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
        if path and not storage.exists(os.path.expanduser(path)):
            yield f"config.evaluation.{key} = {path!r} does not exist; give the path of a file"
