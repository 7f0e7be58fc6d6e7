"""libvips, imported when the first file comes that needs it."""

from __future__ import annotations

import functools
import logging
import types
from typing import TYPE_CHECKING

from sr3_jax.data.image_files.errors import BadImageError

if TYPE_CHECKING:
    import pyvips


@functools.cache
def vips() -> types.ModuleType:
    """Imports pyvips; raises BadImageError if it is not installed."""
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise BadImageError(
            f"such files need pyvips ({error}); run: pip install 'pyvips[binary]'"
        ) from error
    # By default it keeps the files of the last calls.
    pyvips.cache_set_max(0)
    # It warns of tags that nobody reads, seven times each. Errors that matter are raised.
    logging.getLogger("pyvips").setLevel(logging.ERROR)
    return pyvips


def open_buffer(loader: str, data: bytes) -> pyvips.Image:
    """Opens a file by a loader of libvips, such as `pngload_buffer`; it can be decoded once."""
    # Row by row: else libvips would hold the whole picture once more.
    return getattr(vips().Image, loader)(data, access="sequential", fail_on="error")
