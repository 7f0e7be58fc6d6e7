"""The origin of a result: code, config, checkpoint, machine and command."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
import shlex
import subprocess
import sys

import jax

import sr3_jax
from sr3_jax.config import Config, to_json

_PACKAGE = pathlib.Path(__file__).resolve().parents[2]
_GIT_SECONDS = 20


def collect(*, config: Config | None = None, checkpoint_step: int | None = None) -> dict[str, str]:
    """Returns facts of this run by name.

    Args:
      config: config of the run; the facts have it as JSON.
      checkpoint_step: step of the checkpoint that was used.
    """
    devices = jax.devices()
    found = {
        "commit": commit(),
        "sr3_jax": sr3_jax.__version__,
        "command": shlex.join(sys.orig_argv),
        "date": datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds"),
    }
    if checkpoint_step is not None:
        found["checkpoint"] = f"step {checkpoint_step}"
    found |= {
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "processes": str(jax.process_count()),
        "processor": f"{_processor()}, {os.cpu_count()} logical cores",
        "system": platform.platform(),
        "Python": platform.python_version(),
        "jax": f"{jax.__version__}, jaxlib {jax.lib.__version__}",
    }
    if config is not None:
        found["config"] = to_json(config)
    return found


def commit(package: pathlib.Path = _PACKAGE) -> str:
    """Returns the git commit of a package's checkout, and whether its folder differs from it.

    "unknown, ..." if there is none: a package that is not at the top of a repository was installed
    there, and the commit of that repository says nothing about it.
    """
    root = package.resolve().parent
    try:
        top = pathlib.Path(_git(root, "rev-parse", "--show-toplevel"))
        if top.resolve() != root:
            return "unknown, not a git checkout"
        name = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", package.name)
    except FileNotFoundError:
        return "unknown, git is not installed"
    except subprocess.TimeoutExpired:
        return f"unknown, git gave no answer in {_GIT_SECONDS} s"
    except subprocess.CalledProcessError as error:
        if "not a git repository" in error.stderr:
            return "unknown, not a git checkout"
        return f"unknown, git: {error.stderr.strip()}"
    return f"{name} (modified: {package.name}/ differs from the commit)" if changed else name


def _git(folder: pathlib.Path, *arguments: str) -> str:
    # A hook's GIT_DIR names another repository. Git shall write no locks, and speak English.
    variables = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    return subprocess.run(
        ["git", "-C", str(folder), *arguments],
        env=variables | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=_GIT_SECONDS,
        check=True,
    ).stdout.strip()


def _processor() -> str:
    """Returns the processor's name; kernels of ARM give none."""
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
