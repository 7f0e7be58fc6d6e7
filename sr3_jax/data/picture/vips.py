"""libvips, imported when the first file comes that needs it."""

import functools
import logging
import types

from sr3_jax.data.picture.errors import BadImageError


@functools.cache
def vips() -> types.ModuleType:
    """The module pyvips.

    Raises:
        BadImageError: it is not installed.
    """
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise BadImageError(
            f"such files need pyvips ({error}); run: pip install 'pyvips[binary]'"
        ) from error
    # Else it would keep the files of the last calls.
    pyvips.cache_set_max(0)
    # Its warnings are of tags that nobody reads, seven times each; what matters is raised.
    logging.getLogger("pyvips").setLevel(logging.ERROR)
    return pyvips
