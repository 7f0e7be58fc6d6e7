"""The config file of a run that exists: `--config=sr3_jax/config/of_run.py:WORKDIR`."""

from __future__ import annotations

from ml_collections import config_dict

from sr3_jax import released
from sr3_jax.config import authoring, run_file


def get_config(workdir: str) -> config_dict.ConfigDict:
    """Returns the config in a workdir or of a released network, locked, so that flags change it.

    Raises:
      FileNotFoundError: the folder is not of a run.
    """
    config = run_file.load(released.locate(workdir) / "config.json")
    return authoring.open_to_flags(config).lock()
