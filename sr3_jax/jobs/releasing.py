"""Writes a trained network where others can load it: a folder, or the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
import json
import tempfile

from absl import logging
from etils import epath

from sr3_jax import released
from sr3_jax.checkpoints import Which, weights_file
from sr3_jax.config import Config, reading, run_file
from sr3_jax.data import storage
from sr3_jax.inference import confidence, loading


def push(
    workdir: epath.Path,
    to: str,
    card: epath.Path | None = None,
    which: Which | None = None,
    *,
    dtype: str = "bfloat16",
    private: bool = False,
    overwrite: bool = False,
) -> str:
    """Writes the network of a run where others can load it; returns the address for `--workdir`.

    Args:
      workdir: workdir of a training run, or the folder of a released network.
      to: a folder, local or a URL, or `hf://USER/NAME`.
      card: the model card, a file in Markdown; None for README.md of the workdir, else one that
        is made of the config.
      which: the checkpoint, as in `TrainedNetwork.from_workdir`.
      dtype: type of the stored weights.
      private: makes the repository of the hub private, where it is new.
      overwrite: replaces a network in the folder.

    Raises:
      FileNotFoundError: there is no such checkpoint or card.
      FileExistsError: the folder has a network.
      RuntimeError: the hub refuses.
    """
    config = run_file.load(workdir / "config.json")
    folder = None if to.startswith(released.HUB) else epath.Path(to).expanduser()
    if folder is not None:
        released.check_free(folder, "--to", overwrite=overwrite)
    step, params = loading.restore(config, workdir / "checkpoints", which)
    files = {"config.json": (reading.to_json(_without_paths(config)) + "\n").encode()}
    if tuned := run_file.tuned(workdir, config):
        files[run_file.INFERENCE] = (json.dumps({"sampling": tuned}, indent=2) + "\n").encode()
    card = card or workdir / "README.md"
    files["README.md"] = card.read_bytes() if card.exists() else _card(config, step).encode()
    if folder is not None:
        _write(folder, files, params, step, dtype)
        _add_intervals(workdir, folder)
        return to
    with tempfile.TemporaryDirectory() as made:
        _write(epath.Path(made), files, params, step, dtype)
        _add_intervals(workdir, epath.Path(made))
        released.upload(made, to, f"Weights of step {step}", private=private)
    return to


def _write(
    folder: epath.Path, files: dict[str, bytes], params: object, step: int, dtype: str
) -> None:
    """Writes a released network; config.json last, without which the folder is no network."""
    for name in ("config.json", run_file.INFERENCE, confidence.FILE):
        if (folder / name).exists():
            storage.remove(folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    weights_file.write(folder / released.WEIGHTS, params, step, dtype)
    for name in reversed(files):
        storage.write_whole(folder / name, files[name])


def _add_intervals(workdir: epath.Path, folder: epath.Path) -> None:
    """Copies the calibration of a network to what it was written as, if the weights are the same.

    Rounded weights are another network, which nobody has calibrated.
    """
    if not (workdir / confidence.FILE).exists():
        return
    config = run_file.load(folder / "config.json")
    checkpoints = folder / "checkpoints"
    step = loading.find(config, checkpoints, None)
    network = loading.weights_digest(config, checkpoints, step)
    if confidence.read(workdir).made_with["network"] == network:
        storage.write_whole(folder / confidence.FILE, storage.read(workdir / confidence.FILE))
    else:
        logging.warning(
            "%s is left out: it is of the weights as they were, and these were rounded or written "
            "in another form. Run --mode=calibrate on what was written",
            confidence.FILE,
        )


def _without_paths(config: Config) -> Config:
    """Returns the config without files and folders of the machine it was trained on."""
    data, evaluation, train = config.data, config.evaluation, config.train
    paths = {"low_path": "", "eval_low_path": "", "tfds_dir": ""}
    if data.source != "tfds":
        paths["path"] = ""
    if (data.eval_source or data.source) != "tfds":
        paths["eval_path"] = ""
    weights = {f"{name}_weights": "" for name in ("inception", "lpips", "resnet50")}
    if evaluation.fid_reference != "train":
        weights["fid_reference"] = ""
    taught = config.distillation
    if released.is_for_results(train.initial_weights):
        train = dataclasses.replace(train, initial_weights="")
    if released.is_for_results(taught.teacher):
        # Without its teacher the student is not trained on, only used.
        taught = dataclasses.replace(taught, teacher="", teacher_calls=0)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(data, **paths),
        train=train,
        distillation=taught,
        evaluation=dataclasses.replace(evaluation, **weights),
    )


def _of_numbers(config: Config) -> str:
    """Returns what a network of numbers takes: its channels, and their ranges in training."""
    data, of = config.data, config.units
    count = config.source_channels
    names = (*data.variables, *map(str, range(len(data.variables), count)))
    ends = zip(names, of.least, of.greatest, strict=False)  # the ranges of maps come last
    ranges = ", ".join(f"{name} ({least:g} to {greatest:g})" for name, least, greatest in ends)
    beside = f", with {data.maps} maps beside," if data.maps else ""
    return f"arrays of {count} channels, which are {ranges} in its training data{beside}"


def _card(config: Config, step: int) -> str:
    """Returns a card that has what the config says, and says what is missing."""
    data = config.data
    if config.has_source:
        what = "photographs" if config.has_levels else _of_numbers(config)
        use = f"Upscales {what} {config.factor:g} times: `sr3 upscale --workdir=hf://USER/NAME`."
    else:
        use = f"Makes images of {data.image_size} pixels: `sr3 generate --workdir=hf://USER/NAME`."
    if calls := config.student_calls:
        use += f" A student of another network: it samples in {calls} call{'s' * (calls > 1)} only."
    return f"""---
library_name: sr3_jax
pipeline_tag: {"image-to-image" if config.has_source else "unconditional-image-generation"}
tags: [super-resolution, diffusion, sr3, jax]
---
# A network of sr3_jax

{use}

Method {config.method}, {config.sizes_text} pixels, step {step} of training
with batches of {config.train.batch_size}. All options are in config.json.

Not stated: the training data and their licences, figures on held-out images, what the network is
bad at, and what it must not be used for.
"""
