"""Declarations of the fields of a config, and checks of values against them."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import math
import numbers
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sr3_jax.config import migration
from sr3_jax.sizes import Size

MAX_STEPS = 100_000  # of a noise schedule
Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]


@dataclasses.dataclass(frozen=True)
class Declared:
    """The declaration of a field: its meaning and its range.

    Attributes:
      meaning: a sentence for docs/config.md.
      choices: the allowed values; for a tuple, of its items. Empty: any value.
      at_least: lower bound, included; for a tuple, of its items. None: no bound.
      above: lower bound, excluded.
      at_most: upper bound, included.
      below: upper bound, excluded.
      lengths: allowed numbers of items of a tuple. None: any number.
      increases: whether the items of a tuple must not decrease.
      may_change: whether a run may be resumed, evaluated or used with another value. False for
        options that determine the network.
    """

    meaning: str
    choices: tuple[Scalar, ...] = ()
    at_least: int | float | None = None
    above: int | float | None = None
    at_most: int | float | None = None
    below: int | float | None = None
    lengths: tuple[int, ...] | None = None
    increases: bool = False
    may_change: bool = True

    def range(self) -> str:
        """Describes the range: `one of l1, l2`, `at least 1`, `above 0 and below 1`."""
        if self.choices:
            return f"one of {', '.join(repr(c) if c == '' else str(c) for c in self.choices)}"
        bounds = [(n, getattr(self, n)) for n in ("at_least", "above", "at_most", "below")]
        return " and ".join(
            f"{name.replace('_', ' ')} {bound if isinstance(bound, int) else format(bound, 'g')}"
            for name, bound in bounds
            if bound is not None
        )

    def nearest(self, value: Scalar) -> Scalar | None:
        """Returns the allowed value nearest to one that is not allowed; None if none is near."""
        if self.choices:
            names = {str(choice): choice for choice in self.choices}
            for older in migration.VALUES.values():
                names |= {old: new for old, new in older.items() if new in self.choices}
            return names.get(nearest_name(str(value), names, 0.5))
        if isinstance(value, str) or value != value:  # NaN
            return None
        if self.at_least is not None and value < self.at_least:
            return type(value)(self.at_least)
        if self.at_most is not None and value > self.at_most:
            return type(value)(self.at_most)
        return None

    def allows(self, value: Scalar) -> bool:
        """Returns whether a value of the right type is within the range."""
        if self.choices:
            return value in self.choices
        if isinstance(value, str):
            return True
        is_finite = not isinstance(value, float) or math.isfinite(value)
        return is_finite and not (
            (self.at_least is not None and value < self.at_least)
            or (self.above is not None and value <= self.above)
            or (self.at_most is not None and value > self.at_most)
            or (self.below is not None and value >= self.below)
        )


def nearest_name(given: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Returns the name most like the one given, whatever its case; None if none is near."""
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(given.lower(), by_lower, 1, cutoff)
    return by_lower[near[0]] if near else None


def option(default: Value, meaning: str, **declared: Any) -> Any:
    """Declares a field of a section with its default; see `Declared` for the keywords."""
    return dataclasses.field(default=default, metadata={"declared": Declared(meaning, **declared)})


class Section:
    """A dataclass of `option` fields that refuses values out of range."""

    def __post_init__(self) -> None:
        for name, (kind, _, what) in declared(type(self)).items():
            _, wrong = _value(kind, value := getattr(self, name), what)
            if wrong:
                raise ValueError(f"{type(self).__name__}: {name} = {value!r}{wrong[0]}")


def declared(section: type) -> dict[str, tuple[Any, Value, Declared]]:
    """Returns type, default and declaration of each field of a section, by name."""
    hints = typing.get_type_hints(section)
    return {
        field.name: (hints[field.name], field.default, field.metadata["declared"])
        for field in dataclasses.fields(section)
        if "declared" in field.metadata
    }


def read(section: type, values: Mapping[str, Any], prefix: str) -> tuple[Any, list[str]]:
    """Makes a section from plain values by field name; lists become tuples, whole numbers floats.

    Returns:
      The section, with defaults for missing and faulty values, and a message for each fault: key
      (after `prefix`, as `config.train.`), value, range and, if there is one, the nearest allowed.
    """
    fields, faults, good = declared(section), [], {}
    for name in (name for name in values if name not in fields):
        near = nearest_name(name, fields)
        hint = f"did you mean {near}?" if near else f"use one of {', '.join(fields)}"
        faults.append(f"{prefix}{name} is no key of the config; {hint}")
    for name, (kind, _, what) in fields.items():
        if name in values:
            value, wrong = _value(kind, values[name], what)
            faults += [f"{prefix}{name} = {values[name]!r}{why}" for why in wrong]
            if not wrong:
                good[name] = value
    return section(**good), faults


def _value(kind: Any, given: Any, what: Declared) -> tuple[Any, list[str]]:
    """Returns the value in its declared type, and its faults."""
    if kind == Size and (isinstance(given, str) or not isinstance(given, Sequence)):
        value = _scalar(int, given)
        if value is None:
            return None, [" is of the wrong type; give a whole number, or (height, width)"]
        return value, [] if what.allows(value) else [_out_of_range(value, what)]
    if kind == Size:
        pair = dataclasses.replace(what, lengths=(2,))
        sides, wrong = _value(tuple[int, ...], given, pair)
        is_square = sides and len(set(sides)) == 1
        return sides[0] if is_square and not wrong else sides, wrong
    if typing.get_origin(kind) is not tuple:
        value = _scalar(kind, given)
        if value is None:
            return None, [f" is of the wrong type; give {_NAMES[kind]}"]
        return value, [] if what.allows(value) else [_out_of_range(value, what)]
    of_item = typing.get_args(kind)[0]
    if isinstance(given, str) or not isinstance(given, Sequence):
        return None, [f" is of the wrong type; give several of {_NAMES[of_item]}, with commas"]
    if of_item is str:  # a flag such as --config.evaluation.feature_metrics=fid,lpips is one text
        parts = (item.split(",") if isinstance(item, str) else [item] for item in given)
        given = [part for part in itertools.chain.from_iterable(parts) if part != ""]
    items = [_scalar(of_item, item) for item in given]
    if None in items:
        return None, [f" has an item of the wrong type; each is {_NAMES[of_item]}"]
    # One message for all items out of range.
    outside = [item for item in items if not what.allows(item)]
    wrong = [f": {item!r}{_out_of_range(item, what)}" for item in outside[:1]]
    if what.lengths is not None and len(items) not in what.lengths:
        wrong.append(f" has {len(items)} items; give {' or '.join(map(str, what.lengths))}")
    if what.increases and items != sorted(items):
        wrong.append("; its items must not decrease")
    return tuple(items), wrong


def _out_of_range(value: Scalar, what: Declared) -> str:
    if what.choices:
        text = f" is unknown; use {what.range()}"
    else:
        text = f"; it must be {what.range() or 'finite'}"
    nearest = what.nearest(value)
    return text if nearest in (None, "") else f"{text} (nearest: {nearest})"


def _scalar(kind: Any, given: Any) -> Any:
    """Converts a value to its field's type; None if it has another type."""
    if kind is bool or isinstance(given, bool):
        return given if kind is bool and isinstance(given, bool) else None
    if kind is str:
        return given if isinstance(given, str) else None
    if kind is float:
        with contextlib.suppress(OverflowError):
            return float(given) if isinstance(given, numbers.Real) else None
        return math.inf
    return int(given) if isinstance(given, numbers.Integral) else None


_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
