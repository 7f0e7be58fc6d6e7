"""The config of a run: every option, read and checked once, and the objects made from it.

    config = read(get_config())          # of a file in configs/, changed by flags
    config = load("runs/faces/config.json")

Everything below takes a `Config`, which is immutable and checked. `schedules`, `networks`,
`layouts` and `image_sets` make the objects that train and sample from it; they are imported by
name, since Flax and Optax take half a second.
"""

from sr3_jax.config.reading import (
    Check,
    as_recorded,
    changed,
    in_words,
    read,
    to_json,
    with_sampling,
)
from sr3_jax.config.run_file import changed_keys, check_same_network, load, save
from sr3_jax.config.sections import SECTIONS, Config
from sr3_jax.config.training_sections import Train
from sr3_jax.config.use_sections import SAMPLERS, Evaluation, Sampling

__all__ = [
    "SAMPLERS",
    "SECTIONS",
    "Check",
    "Config",
    "Evaluation",
    "Sampling",
    "Train",
    "as_recorded",
    "changed",
    "changed_keys",
    "check_same_network",
    "in_words",
    "load",
    "read",
    "save",
    "to_json",
    "with_sampling",
]
