"""The commands: `sr3 train`, `sr3 upscale` and so on, each a module with its flags and its checks.

The module of a command has a docstring, which is the head of its help, and two functions:

    define_flags(flags)      defines its flags, beside those of every command (`shared`)
    prepare(flags) -> Job    checks them and reads the config, before devices are looked for

With `CONFIG_OF_RUN = "workdir"`, options without --config change that of the run in --workdir.
"""

from __future__ import annotations

import importlib
import types

NAMES = (
    "train",
    "evaluate",
    "tune_schedule",
    "calibrate",
    "distill",
    "upscale",
    "demo",
    "generate",
    "score",
    "study_new",
    "study_serve",
    "study_report",
    "push",
    "models",
)


def module(name: str) -> types.ModuleType:
    """Returns the module of a command of `NAMES`."""
    return importlib.import_module(f"sr3_jax.commands.{name}")
