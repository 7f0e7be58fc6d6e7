"""Writes docs/config.md, every option with its meaning and range, from `sr3_jax.config`.

python -m sr3_jax.tools.config_page > docs/config.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sr3_jax import command_line
from sr3_jax.config import SECTIONS, Config, fields
from sr3_jax.evaluation.report import markdown

_HEAD = """# Options

Every option of a run, made from `sr3_jax/config` by `python -m sr3_jax.tools.config_page`. A file
in `configs/` sets those that differ from the default; on the command line each can be set as
`--config.SECTION.KEY=VALUE`, a tuple as `--config.model.multipliers=1,2,4`. A command checks all
of them before anything else and names every fault at once.

Options marked with * decide which network it is: a training that goes on, an evaluation and an
upscaling must have the same value as the training that made the checkpoint. All others may
change."""


def page() -> str:
    """The page as Markdown."""
    lines = [_HEAD, *_section("", Config)]
    for name, default in SECTIONS.items():
        lines += _section(name, type(default))
    return "\n".join(lines) + "\n"


def _section(name: str, section: type) -> Iterator[str]:
    summary = (section.__doc__ or "").strip()
    yield f"\n## {name or 'The run'}\n\n{summary}\n"
    rows = []
    for key, (_, default, what) in fields.declared(section).items():
        mark = "" if what.may_change else " *"
        cells = (f"`{key}`{mark}", f"`{_text(default)}`", what.range(), what.meaning)
        rows.append([cell.replace("|", "\\|") for cell in cells])
    yield markdown.table(["option", "default", "range", "meaning"], rows)


def _text(value: Any) -> str:
    return "''" if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def main(_: list[str]) -> None:
    """Prints the page."""
    print(page(), end="")


if __name__ == "__main__":
    command_line.run(main)
