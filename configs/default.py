"""Functions that config files are made of, under the name that older files import them by."""

from sr3_jax.config.authoring import cascade, default, stage, variant

get_config = default

__all__ = ["cascade", "get_config", "stage", "variant"]
