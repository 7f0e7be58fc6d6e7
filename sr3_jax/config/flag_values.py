"""Checks the flags `--config.SECTION.KEY=VALUE` before they are parsed, to name all faults at once.

ml_collections stops at the first unknown key, and at the first value that it cannot read.
"""

from __future__ import annotations

import ast
import collections
import re
import typing
from collections.abc import Iterable
from typing import Any

from sr3_jax.config import cascades, fields, migration, reading
from sr3_jax.config.sections import SECTIONS, Config

_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def check(arguments: Iterable[str]) -> None:
    """Checks the flags of a config.

    Does nothing if all can be parsed; values out of range are then named by `reading.read`, with
    the faults of the config file.

    Args:
      arguments: arguments of the command line, under today's keys.

    Raises:
      ValueError: naming every fault of the flags: keys, types and ranges.
    """
    given: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    faults, can_be_parsed = [], True
    for argument in arguments:
        flag = re.fullmatch(r"--?config\.([\w.]+)=(.*)", argument, re.DOTALL)
        if not flag or re.match(r"stage_\d|output$", flag[1]):  # of a cascade
            continue
        section, _, name = flag[1].rpartition(".")
        if section and section not in SECTIONS:
            near = fields.nearest_name(section, SECTIONS)
            hint = f"did you mean {near}?" if near else f"use one of {', '.join(SECTIONS)}"
            faults.append(f"config.{section} is no section of the config; {hint}")
            can_be_parsed = False
            continue
        kind = _kind(section, name)
        try:
            given[section][name] = _parse(kind, flag[2])
        except ValueError:
            given[section][name], can_be_parsed = flag[2], False
    if can_be_parsed:
        return
    for section, values in migration.migrate(given).items():
        known = {name: value for name, value in values.items() if not _is_of_cascade(section, name)}
        prefix = f"config.{section}." if section else "config."
        faults += fields.read(_section(section), known, prefix)[1]
    raise ValueError(reading.in_words(faults))


def _section(name: str) -> type:
    return type(SECTIONS[name]) if name else Config


def _is_of_cascade(section: str, name: str) -> bool:
    """Returns whether an option is of cascades alone."""
    measures = fields.declared(cascades.Measures)
    return section == "evaluation" and name in measures and not _has(section, name)


def _has(section: str, name: str) -> bool:
    return name in fields.declared(_section(section))


def _kind(section: str, name: str) -> Any:
    """Returns the type of an option; None if it does not exist."""
    if _has(section, name):
        return fields.declared(_section(section))[name][0]
    return str if _is_of_cascade(section, name) else None


def _parse(kind: Any, text: str) -> Any:
    """Returns the value of a flag; raises ValueError if it is of another type."""
    if kind is None:
        raise ValueError("no such option")
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError("no boolean")
        return _BOOLEANS[text.lower()]
    if kind == fields.Size and "," not in text:
        return int(text)
    if kind != fields.Size and typing.get_origin(kind) is not tuple:
        return kind(text)
    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        items = text.strip("()").split(",")
    items = items if isinstance(items, tuple | list) else (items,)
    of_item = int if kind == fields.Size else typing.get_args(kind)[0]
    return tuple(of_item(item) for item in items)
