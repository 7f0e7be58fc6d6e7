"""Networks of other programs: `python -m sr3_jax.tools.import_weights`."""
