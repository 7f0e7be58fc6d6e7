"""Measures `config.units` on training images: `python -m sr3_jax.tools.measure_data`.

    python -m sr3_jax.tools.measure_data --config=configs/arrays_4x.py --config.data.path=FOLDER \
        --config.data.channels=13 --output=units.json

reads all training images once, prints a table of their channels, and writes the statistics for
`--config.units.file=units.json`. A training without them measures them when it begins; so this
command is for looking at data, and for data that many trainings share.
"""

from __future__ import annotations

import json

import tqdm
from absl import flags, logging
from ml_collections import config_flags

from sr3_jax import command_line, scaling
from sr3_jax.config import Config, data_sections, image_sets, read
from sr3_jax.data import storage
from sr3_jax.evaluation.report import markdown


def table(config: Config, found: scaling.Statistics) -> str:
    """Returns the statistics as a Markdown table, a row for each channel."""
    labels = [*image_sets.channel_labels(config)]
    labels += [f"source {i}" for i in range(len(labels), config.source_channels)]
    labels += [f"map {i}" for i in range(config.data.maps)]
    columns = (found.least, found.greatest, found.mean, found.deviation)
    rows = [
        [label, *(f"{number:.6g}" for number in numbers)]
        for label, *numbers in zip(labels, *columns, strict=True)
    ]
    return markdown.table(["channel", "least", "greatest", "mean", "deviation"], rows)


def measure(config: Config) -> scaling.Statistics:
    """Returns the statistics of the training images; raises as `image_sets.statistics`."""
    count = len(image_sets.training_source(config))
    with tqdm.tqdm(total=count, desc="measure", unit="image") as bar:
        return image_sets.statistics(config, progress=bar.update)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags; not on import, so that the module can be used beside other tools."""
    config_flags.DEFINE_config_file("config", None, "The config.", flag_values=values)
    flags.DEFINE_string("output", None, "JSON file to write; local or gs://.", flag_values=values)


def main(_: list[str], given: flags.FlagValues = flags.FLAGS) -> None:
    """Measures, prints, and writes."""
    if given.config is None or not given.output:
        raise ValueError("--config=FILE and --output=FILE are needed; see --help")
    if storage.exists(given.output):
        raise FileExistsError(f"--output={given.output} exists; give another file, or remove it")
    storage.check_takes_file(given.output, "--output")
    config = read(given.config)
    if config.has_levels:
        raise ValueError("config.units.scaling is empty: levels of 8 or 16 bits need no statistics")
    found = measure(config)
    print(table(config, found))
    text = json.dumps(data_sections.flat(found), indent=1) + "\n"
    storage.write_whole(given.output, text.encode())


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    define_flags()
    command_line.run(main)
