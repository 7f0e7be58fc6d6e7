"""The text of `sr3 --help` and `sr3 COMMAND --help`."""

from __future__ import annotations

import inspect
import textwrap

from absl import flags

import sr3_jax
from sr3_jax import commands
from sr3_jax.config import SECTIONS, Config, fields

_WIDTH = 96
_USES = "  sr3 COMMAND --FLAG=VALUE ...    (or: python -m sr3_jax.main --mode=COMMAND --FLAG=VALUE)"


def of_all() -> str:
    """Returns the commands, each with the first sentence of its help."""
    lines = [f"sr3_jax {sr3_jax.__version__}: SR3, image super-resolution by iterative refinement"]
    lines += ["", _USES, ""]
    for name in commands.NAMES:
        summary = inspect.getdoc(commands.module(name)).partition("\n")[0]
        lines.append(f"  {name.replace('study_', 'study '):16}{summary}")
    return "\n".join([*lines, "", "sr3 COMMAND --help shows the flags of a command."])


def of_command(name: str, values: flags.FlagValues) -> str:
    """Returns the help of a command.

    Args:
      name: name of the command.
      values: its flags, defined and not parsed.
    """
    lines = [inspect.getdoc(commands.module(name)), "", "Flags:"]
    for flag in (values[flag] for flag in values):
        shown = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}=..."
        default = f" Default: {flag.default}." if flag.default else ""
        lines += _entry(shown, flag.help + default)
    if name == "train":
        lines += ["", "Options, with the paper's values as defaults:"]
        for section, default in {"": Config(), **SECTIONS}.items():
            prefix = f"--config.{section}." if section else "--config."
            for key, (_, value, what) in fields.declared(type(default)).items():
                shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
                range_ = f" ({what.range()})" if what.range() and not what.choices else ""
                choices = f" One of {what.range()[7:]}." if what.choices else ""
                lines += _entry(f"{prefix}{key}={shown}", f"{what.meaning}{range_}{choices}")
    return "\n".join(lines)


def _entry(name: str, meaning: str) -> list[str]:
    text = textwrap.wrap(meaning, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return [f"  {name}", *text]
