"""Markdown as GitHub shows it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table; cells are Markdown, or values that are written as they are."""
    lines = [headings, *rows]
    lines = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join([lines[0], "|---" * len(headings) + "|", *lines[1:]])


def bullets(statements: Iterable[str]) -> str:
    """Returns a list of plain texts."""
    return "\n".join(f"- {safe(statement)}" for statement in statements)


def safe(text: object) -> str:
    """Returns text that is shown as it is, also in a table's cell: neither markup nor HTML."""
    words = " ".join(str(text).split())
    words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # GitHub takes what follows an @ for the name of a user.
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", words).replace("@", "&#64;")


def fenced(text: str) -> str:
    """Returns text as a block of code, with a fence longer than any within it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
