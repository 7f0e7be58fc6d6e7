r"""Draws the images that a config trains on: `python -m sr3_jax.tools.preview_data`.

    python -m sr3_jax.tools.preview_data --config=configs/ffhq_16_128.py --config.data.path=FOLDER \
        --output=preview.png

draws the first images of the first training step as the network gets them, with flips and blurs:
the low resolution, x (its bicubic upsampling) and y_0 in each row. It then reads a thousand images,
or `--num_read`, and counts those that are usable, too small and damaged, and losses such as 16 bits
that are read at 8. With a `config.degradation`, each row says what was drawn for its image, and
each degradation is shown alone below.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
import tqdm
from absl import flags, logging
from jaxtyping import UInt, UInt8
from ml_collections import config_flags
from PIL import Image

from sr3_jax import command_line, image_ops, sizes
from sr3_jax.config import Config, changed, data_sections, image_sets, networks, read
from sr3_jax.data import degradations, sources, storage
from sr3_jax.evaluation.report import field_pictures, grids
from sr3_jax.training import step as training_step

_MOST_NAMED = 20
_NUM_DEGRADED = 2  # images on which each degradation is shown
_COLUMNS = 5  # degradations side by side
_COMMENT = "sr3_jax.tools.preview_data"  # in the PNG, which may then be replaced


class Preview(NamedTuple):
    """A picture of a config's images; the counts at its foot; why images are unusable, by name."""

    sheet: UInt8[np.ndarray, "h w 3"]
    counts: list[str]
    skipped: Mapping[str, str]


def preview(config: Config, num_images: int, num_read: int, held_out: bool = False) -> Preview:
    """Draws the first `num_images` of a config, and counts among `num_read` of them (0: all).

    Raises:
      ValueError: no image is usable.
    """
    allowed_share, size = config.data.max_bad_share, config.data.image_size
    config = changed(config, {"data.max_bad_share": 1.0, "data.cache_gb": 0.0})
    if not config.units.is_measured:
        found = image_sets.statistics(config)
        config = image_sets.with_statistics(config, data_sections.flat(found))
    if held_out:
        source = image_sets.evaluation_source(config)
        size = config.evaluation_size
    else:
        source = image_sets.training_source(config)
    # More than are shown, since some may be unusable.
    batch_size = min(4 * num_images, config.train.batch_size)
    if held_out:
        made = image_sets.evaluation_pipeline(config, batch_size)
    else:
        made = image_sets.make_pipeline(config, source, batch_size, config.data.image_size)
    config = changed(config, {"data.dtype": made.dtype.name})  # whatever is counted
    batches = made.evaluation_batches() if held_out else made.training_batches()
    with contextlib.closing(batches):
        # Row i of the first batch is row i of the first step.
        step, batch = next((i, b) for i, b in enumerate(batches) if b["weight"].any())
    rows = np.flatnonzero(batch["weight"])[:num_images]
    places = [step * batch_size + int(row) for row in rows]
    augment = jax.jit(lambda rows: training_step.augment(rows, step, config))
    seen = batch if held_out else augment(dict(batch))
    low, high = (np.asarray(seen[k])[rows] for k in ("low_resolution", "high_resolution"))
    names = [
        source[index].name + (f"  class {label}" if label >= 0 else "")
        for index, label in zip(batch["index"][rows], batch["label"][rows], strict=True)
    ]
    shown = [made.stream.evaluation(i) if held_out else made.stream.training(i) for i in places]
    names = [
        name + (f"  {choice.degradation}" if choice.degradation else "")
        for name, choice in zip(names, shown, strict=True)
    ]
    counts, skipped = _count(config, source, num_read, size, allowed_share)
    columns, large = {}, sizes.text(size, short=True)
    if config.has_source:
        may_miss = config.data.missing
        x = image_ops.network_input(
            jax.numpy.asarray(image_ops.to_signed(low)),
            high.shape[1:3],
            may_miss=may_miss,
            resize=networks.upsampling(config),
        )
        x = np.asarray(x if low.dtype == np.float32 else image_ops.to_uint8(x))
        small = sizes.text(low.shape[1:3], short=True)
        columns = {f"low resolution, {small}": low, f"x: {config.data.upsampling}, {large}": x}
    columns[f"y_0, {large}"] = high
    if "maps" in batch:
        columns["maps"] = np.asarray(seen["maps"])[rows]
    if not config.has_levels:
        columns = {name: _coloured(images, config) for name, images in columns.items()}
    sheets = [grids.grid(columns, names, counts)]
    if config.degradation.is_active:
        sheets += _degradations(config, high[:_NUM_DEGRADED])
    return Preview(grids.stacked(sheets), counts, skipped)


def _degradations(
    config: Config, high: UInt[np.ndarray, "n h w c"]
) -> list[UInt8[np.ndarray, "_h _w 3"]]:
    """Draws each degradation alone, at the greatest of its range, on the low resolutions."""
    size = tuple(n * config.low_sides[0] // config.image_sides[0] for n in high.shape[1:3])
    columns = {
        name: np.stack([degradations.degraded(image, size, drawn) for image in high])
        for name, drawn in degradations.alone(config.degradation.options()).items()
    }
    names = [*columns]
    rows = (names[i : i + _COLUMNS] for i in range(0, len(names), _COLUMNS))
    return [grids.grid({name: columns[name] for name in row}) for row in rows]


def _coloured(images: np.ndarray, config: Config) -> UInt8[np.ndarray, "n h w 3"]:
    """Returns pictures of numbers in the network's range."""
    count = min(images.shape[-1], config.data.channels)
    ends = [-1.0] * count, [1.0] * count
    return np.stack([field_pictures.colour(image[..., :count], *ends) for image in images])


def _count(
    config: Config,
    source: sources.Source,
    num_read: int,
    image_size: sizes.Size,
    allowed_share: float,
) -> tuple[list[str], Mapping[str, str]]:
    """Returns the counts as lines of text, and why images are unusable, by name."""
    total = len(source)
    chosen = np.arange(total)
    if 0 < num_read < total:
        chosen = np.sort(np.random.default_rng(config.seed).permutation(total)[:num_read])
    made = image_sets.make_pipeline(config, sources.Subset(source, chosen), 16, image_size)
    labels: set[int] = set()
    with tqdm.tqdm(total=len(chosen), desc="read", unit="image", file=sys.stderr) as bar:
        for batch in made.evaluation_batches():
            labels.update(batch["label"][batch["weight"] == 1].tolist())
            bar.update(int((batch["index"] >= 0).sum()))
    damaged, too_small = map(len, made.unusable)
    share = damaged / len(chosen)
    least = sizes.text(image_size, short=True)
    lines = [
        f"{total} images; {len(chosen)} read, of which {len(chosen) - too_small - damaged} usable",
        f"{too_small} too small (under {least} pixels), {damaged} damaged ({share:.2%})",
    ]
    if share > allowed_share:
        lines.append(f"more damaged than max_bad_share, {allowed_share:.2%}: training would stop")
    if made.dtype == np.uint16:
        lines.append("16 bits a channel; shown here in 8")
    lines += [f"{count} of {len(chosen)}: {loss}" for loss, count in made.reader.losses.items()]
    if made.reader.range_warning:
        lines.append(made.reader.range_warning)
    if labels != {sources.NO_LABEL}:
        lines.append(f"{len(labels)} classes among them, {min(labels)} to {max(labels)}")
    return lines, made.skipped


def check_output(config: Config, output: str) -> None:
    """Checks the path of the picture, before anything is read.

    Raises:
      FileExistsError: the file exists and is no preview.
      OSError: its folder takes no files.
      ValueError: the path is among the images of the config, or does not end in .png.
    """
    paths = ("path", "low_path", "maps_path")
    for key in (*paths, *(f"eval_{path}" for path in paths)):
        folder = getattr(config.data, key)
        if folder and storage.is_within(output, folder):
            raise ValueError(
                f"--output={output} is among the images of config.data.{key} = {folder!r}; give a "
                "place outside of it"
            )
    if not output.lower().endswith(".png"):
        raise ValueError(f"--output={output} must end in .png")
    if not storage.exists(output):
        storage.check_writable(output, "--output")
        return
    try:
        with Image.open(io.BytesIO(storage.read(output)), formats=("PNG",)) as file:
            is_preview = file.info.get("Comment") == _COMMENT
    except (OSError, ValueError, SyntaxError):  # Pillow raises these for other files
        is_preview = False
    if not is_preview:
        raise FileExistsError(
            f"--output={output} is there, and is no preview that this command made; remove it, or "
            "give another name"
        )


def define_flags() -> None:
    """Defines the flags; not on import, so that `preview` can be used beside other tools."""
    config_flags.DEFINE_config_file("config", None, "The config, as for training.")
    flags.DEFINE_string("output", "preview.png", "Picture to write.")
    flags.DEFINE_integer("num_images", 6, "Rows of the picture.", 1)
    flags.DEFINE_integer("num_read", 1000, "Images to read and count, at random; 0: all.", 0)
    flags.DEFINE_bool("held_out", False, "Show the held-out images, in their order.")


def main(_: list[str]) -> None:
    """Writes the picture, and prints the counts."""
    given = flags.FLAGS
    if given.config is None:
        raise ValueError("--config=configs/NAME.py is needed")
    output = os.path.expanduser(given.output)
    check_output(given.config, output)
    # Unusable images are listed at the end, not within the progress bar.
    logging.set_verbosity(logging.ERROR)
    made = preview(read(given.config), given.num_images, given.num_read, given.held_out)
    grids.save(made.sheet, output, _COMMENT)
    for name, reason in list(made.skipped.items())[:_MOST_NAMED]:
        print(f"  {name}: {reason}")
    if len(made.skipped) > _MOST_NAMED:
        print(f"  and {len(made.skipped) - _MOST_NAMED} more")
    print("\n".join([*made.counts, output]))


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
