"""What the readers of configs say about values that cannot work."""

from __future__ import annotations

from typing import Any


def choice(name: str, value: Any, choices: dict[str, Any]) -> Any:
    """What a choice stands for; raises ValueError for an unknown one."""
    if value not in choices:
        raise ValueError(f"{name} = {value!r} is unknown; use one of {', '.join(choices)}")
    return choices[value]


def at_least(name: str, value: int, least: int) -> None:
    """Raises ValueError for a value that is too small."""
    if value < least:
        raise ValueError(f"{name} = {value}; it must be at least {least}")


def above(name: str, value: float, bound: float) -> None:
    """Raises ValueError for a value that is not above the bound."""
    if not value > bound:
        raise ValueError(f"{name} = {value}; it must be above {bound}")


def name_key(name: str, make: Any, *args: Any) -> Any:
    """Runs `make`, adding the config's section to the message of a ValueError."""
    try:
        return make(*args)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
