"""Functions of the user's own, named in a config or by a flag: MODULE:FUNCTION."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from typing import Any


def find(path: str) -> Callable[..., Any]:
    """Returns the function of `MODULE:FUNCTION` or `FILE.py:FUNCTION`.

    Raises:
      ValueError: the module cannot be imported, or has no such function.
    """
    module, colon, name = path.rpartition(":")
    if not colon or not name.isidentifier():
        raise ValueError("give MODULE:FUNCTION, or FILE.py:FUNCTION")
    try:
        found = getattr(_module(module), name, None)
    except (ImportError, OSError, SyntaxError) as error:
        raise ValueError(f"{module} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"{module} has no function {name}")
    return found


def _module(name: str) -> types.ModuleType:
    if not name.endswith(".py"):
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # as `python -m` has it
        return importlib.import_module(name)
    path = os.path.abspath(os.path.expanduser(name))
    spec = importlib.util.spec_from_file_location(f"file {path}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
